"""What trackers are told: every result once, the best so far, and no secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from tracked import CONFIG, HELD_OUT, SECRET, events, write

from evomerge.trackers.base import Candidate, HeldOut, Study
from evomerge.trackers.story import HIDDEN, Story, public


def told(run_dir: Path, **kind: bool | int) -> list[Study | Candidate | HeldOut]:
    write(run_dir, [])
    story = Story(run_dir, CONFIG)
    return [record for event in events(40, **kind) for record in story.read(event)]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_so_far(tmp_path: Path, several: bool, seed: int) -> None:
    """Against a plain loop over everything before: feasible, then complete, then the value."""
    records = told(tmp_path, several=several, seed=seed)
    results = [e for e in events(40, several=several, seed=seed) if e["event"] == "result"]
    candidates = [r for r in records if isinstance(r, Candidate)]
    assert [c.id for c in candidates] == [e["id"] for e in results]
    assert [c.step for c in candidates] == list(range(len(results)))
    for n, candidate in enumerate(candidates):
        now = [e for e in results[: n + 1] if e["search"] == candidate.search]
        digests = {f"digest{e['id'] % 7}": e for e in now if e["status"] == "ok"}  # the latest
        assert candidate.metrics[f"{candidate.search}/failed"] == len(
            [e for e in now if e["status"] == "failed"]
        )
        if not digests:
            continue
        best = max(
            (
                all(c <= 0 for c in e.get("constraints", ())),
                e["complete"] if all(c <= 0 for c in e.get("constraints", ())) else 0,
                e["fitness"][0] if all(c <= 0 for c in e.get("constraints", ())) else 0,
            )
            for e in digests.values()
        )
        shown = candidate.metrics[f"{candidate.search}/best math"]
        if best[0]:
            assert shown == best[2]


def test_fronts_are_counted(tmp_path: Path) -> None:
    candidates = [r for r in told(tmp_path, several=True) if isinstance(r, Candidate)]
    own = [c for c in candidates if c.search == "search"]
    feasible = {
        (c.values["math"], -c.values["cost"])
        for c in own
        if c.values and c.constraints["safety"] <= 0
    }
    front = [
        a for a in feasible
        if not any(b != a and b[0] >= a[0] and b[1] >= a[1] for b in feasible)
    ]  # fmt: skip
    assert own[-1].metrics["search/front"] == len(front)


def test_each_kind_of_candidate(tmp_path: Path) -> None:
    study, *records = told(tmp_path)
    assert isinstance(study, Study) and study.objectives == [("math", "maximize")]
    candidates = [r for r in records if isinstance(r, Candidate)]
    assert {c.status for c in candidates} == {"complete", "stopped", "failed"}
    failed = candidates[4]
    assert failed.status == "failed" and not failed.values
    assert {k.split("/")[1] for k in failed.metrics} >= {"best math", "failed"}
    stopped = candidates[2]
    assert stopped.status == "stopped" and stopped.stages == {5: 0.25}
    assert set(candidates[0].stages) == {5, 10}
    assert isinstance(candidates[0].params["layers"], int)
    assert candidates[0].params["method"] in ("ties", "dare")
    assert candidates[-1].search == "greedy soup" and candidates[-1].params == {}
    assert 0 < candidates[0].ended - candidates[0].began <= 20
    assert isinstance(records[-1], HeldOut) and records[-1].metrics == HELD_OUT


def test_a_recheck_moves_the_best(tmp_path: Path) -> None:
    """The better of two falls behind the other, and the next candidate shows it."""
    story = Story(tmp_path, CONFIG)
    written = events(4)[:-1]
    results = [e for e in written if e["event"] == "result" and e["search"] == "search"]
    for result, value in zip(results, (0.9, 0.5, 0.0, 0.1), strict=True):
        result |= {"fitness": [value], "values": {"math": value}, "complete": True}
    shown = []
    for event in written:
        shown += [r for r in story.read(event) if isinstance(r, Candidate)]
        if event is results[1]:
            again = {**results[0], "event": "recheck", "digest": "digest0"}
            list(story.read(again | {"fitness": [0.2], "values": {"math": 0.2}}))
    assert [r.metrics["search/best math"] for r in shown[:4]] == [0.9, 0.9, 0.5, 0.5]


def test_a_recheck_moves_the_front(tmp_path: Path) -> None:
    """What was alone on the front falls behind, and those that it had hidden are there again."""
    story = Story(tmp_path, CONFIG)
    written = events(4, several=True)[:-1]
    results = [e for e in written if e["event"] == "result" and e["search"] == "search"]
    for result, fitness in zip(results, ([9, 9], [1, 2], [2, 1], [0, 0]), strict=True):
        result |= {"fitness": fitness, "constraints": [-1.0]}
    shown = []
    for event in written:
        shown += [r for r in story.read(event) if isinstance(r, Candidate)]
        if event is results[2]:
            again = {**results[0], "event": "recheck", "digest": "digest0", "fitness": [0, 1]}
            list(story.read(again))
    assert [r.metrics["search/front"] for r in shown[:4]] == [1, 1, 1, 2]


def test_trackers_never_see_secrets(tmp_path: Path) -> None:
    assert SECRET not in repr(told(tmp_path))
    flat = public(CONFIG)
    assert flat["engine.args.hf_token"] == HIDDEN
    assert flat["engine.args.max_num_seqs"] == 8 and flat["engine.max_new_tokens"] == 7
    assert flat["ledger"] == "s3://host/answers"
    assert not [key for key in flat if key.startswith("trackers")]
