"""Studies whose candidates race over items, or whose best are evaluated again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from studies import journal, quick_config, results

from evomerge.errors import ConfigError
from evomerge.journal import read_events, read_items
from evomerge.progress import Progress
from evomerge.setup import make_setup
from evomerge.study import run_study

QUICK = ("budget.candidates=18", "optimizer.population=6", "space.granularity=global")
RACES = {
    "halving": ("racing=halving", "racing.first=3"),
    "hyperband": ("racing=hyperband", "racing.first=2", "racing.eta=2"),
    "sequential": ("racing=sequential", "racing.first=3", "racing.step=3"),
    "alone": ("racing=halving", "racing.first=3", "optimizer=random", "optimizer.batch=4"),
    "adaptive": ("racing=adaptive", "racing.first=3", "racing.step=3", "racing.stderr=0.1"),
    "rechecked": ("estimator.items=4", "recheck.every=6", "recheck.count=2", "recheck.items=3"),
    "backfilled": ("estimator.items=4", "recheck.backfill=true", "recheck.items=2"),
    "both": ("racing=halving", "racing.first=2", "estimator.items=6", "recheck.every=6"),
    "rotating": ("estimator.items=4", "estimator.rotate=true", "optimizer.elites=2"),
}
NO_RACE = ("rechecked", "backfilled", "rotating")


def only(names: Iterable[str]) -> pytest.MarkDecorator:
    """Runs a test on some of the studies."""
    return pytest.mark.parametrize("raced", list(names), indirect=True)


def overrides(name: str) -> Sequence[str]:
    own = RACES[name]
    kept = [o for o in QUICK if not ("optimizer=random" in own and "population" in o)]
    return [*kept, *own]


def run(run_dir: Path, *more: str) -> dict:
    return run_study(make_setup(quick_config(run_dir, *more)), Progress(quiet=True))


@pytest.fixture(scope="module", params=RACES)
def raced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp(request.param) / request.param
    run(run_dir, *overrides(request.param))
    return run_dir


def events(run_dir: Path, *kinds: str) -> list[dict]:
    return [e for e in read_events(run_dir) if e["event"] in kinds]


def asked(run_dir: Path) -> Iterator[tuple[int, int]]:
    """Candidate and number of items of every stage and re-evaluation."""
    for event in events(run_dir, "part", "recheck"):
        yield event["id"], sum(map(len, event["items"].values()))


def test_every_candidate_has_a_result_and_every_item_is_counted(raced: Path) -> None:
    told = events(raced, "result")
    assert sorted(e["id"] for e in told) == list(range(18))
    found = results(raced)["cost"]
    asks, items = {}, None
    for event in events(raced, "ask"):
        items = event.get("items", items)  # absent: as before
        asks |= {c["id"]: items for c in event["candidates"]}
    if raced.name in NO_RACE:
        counted = sum(len(next(iter(i.values()))) for i in asks.values())
        counted += sum(n for _, n in asked(raced))
    else:
        counted = sum(n for _, n in asked(raced))
        assert {e["id"]: e["items"] for e in told} == {
            i: sum(n for j, n in asked(raced) if j == i and (j, n) in list(stages(raced)))
            for i in range(18)
        }
    assert found["item_evaluations"] == counted


def stages(run_dir: Path) -> Iterator[tuple[int, int]]:
    for event in events(run_dir, "part"):
        yield event["id"], sum(map(len, event["items"].values()))


@only(name for name in RACES if name not in NO_RACE)
def test_some_stop_early_and_the_winner_does_not(raced: Path) -> None:
    told = events(raced, "result")
    assert any(not e["complete"] for e in told) or raced.name == "adaptive"
    digests = {c["id"]: c["digest"] for e in events(raced, "ask") for c in e["candidates"]}
    complete = {digests[e["id"]] for e in told if e["complete"]}
    finalists = {
        e["digest"] for e in events(raced, "measure")
        if e["role"] == "finalist" and not e["name"].endswith("mean")
    }  # fmt: skip
    assert finalists <= complete


def test_results_hold_all_answers_of_all_stages(raced: Path) -> None:
    parts: dict[int, list[str]] = {}
    for event in events(raced, "part"):
        (part,) = read_items(raced / event["file"])
        parts.setdefault(event["id"], []).extend(part.ids)
    for event in events(raced, "result"):
        (part,) = read_items(raced / event["file"])
        assert len(set(part.ids)) == len(part.ids)
        if event["id"] in parts:
            assert list(part.ids) == parts[event["id"]]
        assert event["values"]["jp_math_tiny"] == pytest.approx(part.scores.mean())


@only(["rechecked", "backfilled", "both"])
def test_further_answers_count_for_the_standing(raced: Path) -> None:
    """What a leader is worth afterwards is the mean over all items that it ever answered."""
    again = events(raced, "recheck")
    assert again
    files = {e["id"]: [e["file"]] for e in events(raced, "result")}
    for event in again:
        files[event["id"]].append(event["file"])
        parts = [read_items(raced / f)[0] for f in files[event["id"]]]
        ids = [i for part in parts for i in part.ids]
        assert len(set(ids)) == len(ids)  # never an item twice
        scores = np.concatenate([part.scores for part in parts])
        assert event["values"]["jp_math_tiny"] == pytest.approx(scores.mean())
        assert event["scores"]["jp_math_tiny"]["items"] == len(ids)


@only(["backfilled"])
def test_leaders_answer_behind_a_generation_that_nobody_waits_for(raced: Path) -> None:
    """Jobs end in their order: results of a generation, the next ask, then what was filled in."""
    kinds = [e["event"] for e in events(raced, "ask", "result", "recheck")]
    first, second, third = (i for i, kind in enumerate(kinds) if kind == "ask")
    assert kinds[first:second] == ["ask"] + ["result"] * 6  # nobody leads yet
    assert kinds[second:third] == ["ask"] + ["result"] * 6
    assert kinds[third + 1 : third + 4] == ["recheck"] * 3
    assert kinds[third + 4 :] == ["result"] * 6 + ["recheck"] * 3


@only(["rotating"])
def test_a_genome_that_returns_is_worth_the_mean_of_all_its_items(raced: Path) -> None:
    digests = {c["id"]: c["digest"] for e in events(raced, "ask") for c in e["candidates"]}
    seen: dict[str, dict[str, float]] = {}
    pooled = 0
    for event in events(raced, "result"):
        own = seen.setdefault(digests[event["id"]], {})
        before = len(own)
        (part,) = read_items(raced / event["file"])
        for key, score in zip(part.ids, part.scores, strict=True):
            own.setdefault(key, float(score))
        if before and len(own) > before:
            pooled += 1
            expected = np.mean(list(own.values()))
            assert event["pooled"]["values"]["jp_math_tiny"] == pytest.approx(expected)
            assert event["values"]["jp_math_tiny"] == pytest.approx(part.scores.mean())
    assert pooled


def test_a_cut_journal_goes_on_to_the_same_end(raced: Path, tmp_path: Path) -> None:
    lines = (raced / "journal.jsonl").read_text().splitlines(keepends=True)
    kinds = [json.loads(line)["event"] for line in lines]
    last = max(i for i, kind in enumerate(kinds) if kind in ("result", "recheck", "part"))
    rng = np.random.default_rng(0)
    first = next(i for i, kind in enumerate(kinds) if kind in ("result", "part"))
    for number, at in enumerate(rng.integers(first + 1, last + 1, 2)):
        cut = tmp_path / str(number)
        (cut / "items").mkdir(parents=True)
        shutil.copytree(raced / "ledger", cut / "ledger")
        kept = lines[: int(at)]
        (cut / "journal.jsonl").write_text("".join(kept))
        for line in kept:
            if (file := json.loads(line).get("file")) is not None:
                (cut / file).write_bytes((raced / file).read_bytes())
        run(cut, *overrides(raced.name))
        assert journal(cut) == journal(raced), f"cut after {at} lines"


@only(["halving"])
def test_another_study_begins_at_the_best_that_answered_everything(raced: Path) -> None:
    genomes = {c["id"]: c["genome"] for e in events(raced, "ask") for c in e["candidates"]}
    complete = [e for e in events(raced, "result") if e["complete"]]
    best = max(complete, key=lambda e: e["fitness"][0])
    config = quick_config(raced.parent / "next", *QUICK, f"warm_start.run={raced}")
    assert make_setup(config).start.mean == pytest.approx(genomes[best["id"]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["halving", "sequential", "both", "backfilled"])
def test_two_workers_write_the_same_journal(name: str, tmp_path: Path) -> None:
    run(tmp_path / name, *overrides(name))
    run(tmp_path / "two", *overrides(name), "executor=ray", "executor.workers=2")
    assert journal(tmp_path / "two") == journal(tmp_path / name)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        (("racing=sequential", "estimator.items=6", "estimator.rotate=true"), "racing"),
        (("racing=adaptive", "+objectives.short={task: jp_math_tiny, metric: tokens}"), "racing"),
        (("racing=halving", "optimizer=m2n2", "space=pieces"), "racing"),
        (("recheck.every=0",), "recheck.every"),
        (("recheck.items=-1",), "recheck.items"),
    ],
)
def test_what_cannot_be_raced_is_refused(more: Sequence[str], field: str, tmp_path: Path) -> None:
    from evomerge.check import check

    problems = check(quick_config(tmp_path, *more))
    assert field in {p.field for p in problems}
    if field == "racing":
        with pytest.raises(ConfigError):
            make_setup(quick_config(tmp_path, *more))
