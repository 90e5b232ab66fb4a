"""Searches with several objectives, constraints, asynchronous optimisers and warm starts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from studies import journal, quick_config, results

from evomerge.errors import ConfigError
from evomerge.journal import read_events
from evomerge.pareto import non_dominated
from evomerge.progress import Progress
from evomerge.setup import make_setup
from evomerge.study import run_study

PARETO = (
    "+experiment=pareto_tiny",
    "optimizer=random",
    "optimizer.batch=4",
    "space.granularity=global",
    "budget.candidates=12",
    "front.budgets=[5]",
    *(
        f"++{task}.{split}.limit={n}"
        for task in ("task", "tasks.polite_tiny", "tasks.sort_tiny")
        for split, n in (("search", 8), ("validation", 6), ("test", 10))
    ),
)


def run(run_dir: Path, *overrides: str) -> dict:
    return run_study(make_setup(quick_config(run_dir, *overrides)), Progress(quiet=True))


@pytest.fixture(scope="module")
def pareto(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("pareto") / "run"
    run(run_dir, *PARETO)
    return run_dir


def events(run_dir: Path, kind: str) -> list[dict]:
    return [e for e in read_events(run_dir) if e["event"] == kind]


def test_every_task_is_an_objective(pareto: Path) -> None:
    found = results(pareto)
    assert [o["name"] for o in found["objectives"]] == ["math", "polite", "sort"]
    for event in events(pareto, "result"):
        scores = {task: s["score"] for task, s in event["scores"].items()}
        expected = [scores[t] for t in ("en_math_tiny", "polite_tiny", "sort_tiny")]
        assert event["fitness"] == pytest.approx(expected)
        assert list(event["values"].values()) == event["fitness"]


def test_the_front_is_what_nothing_dominates_and_is_measured_on_test_items(pareto: Path) -> None:
    front = results(pareto)["front"]
    told = events(pareto, "result")
    for budget in (5, 12):
        values = np.array([e["fitness"] for e in told[:budget]])
        expected = {e["id"] for e, keep in zip(told, non_dominated(values), strict=False) if keep}
        digests = {c["id"]: c["digest"] for e in events(pareto, "ask") for c in e["candidates"]}
        found = front["budgets"][str(budget)]
        assert {digests[i] for i in found} == {digests[i] for i in expected}
    for point in front["points"]:
        assert set(point["values"]["test"]) == {"math", "polite", "sort"}
        for name, value in point["values"]["test"].items():
            assert point["low"][name] <= value <= point["high"][name]
    volumes = front["hypervolume"]["search"]
    assert 0 <= volumes["5"] <= volumes["12"] <= 1 + 1e-6


def test_the_chosen_merge_was_best_balanced_on_validation_items(pareto: Path) -> None:
    found = results(pareto)
    best = found["models"][found["best"]]
    finalists = [e for e in events(pareto, "measure") if e["role"] == "finalist"]
    values = np.array([[s["validation"]["score"] for s in e["scores"].values()] for e in finalists])
    told = np.array([e["fitness"] for e in events(pareto, "result")])
    among = np.vstack([told[non_dominated(told)], values])  # the whole front gives the scale
    span = np.where(np.ptp(among, axis=0) > 0, np.ptp(among, axis=0), np.inf)
    short = (among.max(axis=0) - values) / span / 3
    expected = finalists[int(np.argmin(short.max(axis=1) + 0.05 * short.sum(axis=1)))]
    assert best["digest"] == expected["digest"]


@pytest.mark.slow
def test_results_as_they_come_are_those_of_the_same_candidates(
    pareto: Path, tmp_path: Path
) -> None:
    """Random candidates learn nothing, so that the order of results changes no result; and a
    study whose results lie in another order than its candidates goes on."""
    run_dir = tmp_path / "arrival"
    run(run_dir, *PARETO, "executor=ray", "executor.workers=2", "executor.order=arrival")

    def told(where: Path) -> dict[int, list[float]]:
        return {e["id"]: e["fitness"] for e in events(where, "result")}

    assert told(run_dir) == told(pareto)
    lines = (run_dir / "journal.jsonl").read_text().splitlines(keepends=True)
    kinds = [json.loads(line)["event"] for line in lines]
    first, second = [i for i, kind in enumerate(kinds) if kind == "result"][:2]
    kept = lines[: second + 1]
    missing = json.loads(lines[first])["id"]
    kept.remove(lines[first])  # the second of the candidates at work was faster
    cut = tmp_path / "cut"
    (cut / "items").mkdir(parents=True)
    (cut / "journal.jsonl").write_text("".join(kept))
    for line in kept:
        if (file := json.loads(line).get("file")) is not None:
            (cut / file).write_bytes((run_dir / file).read_bytes())
    run(cut, *PARETO, "executor.order=arrival")
    assert told(cut) == told(pareto) and missing in told(cut)


@pytest.mark.slow
def test_asynchronous_candidates_do_not_depend_on_the_workers(pareto: Path, tmp_path: Path) -> None:
    """One worker in this process or two Ray actors; and a cut journal goes on to the same end."""
    run(tmp_path / "two", *PARETO, "executor=ray", "executor.workers=2")
    assert journal(tmp_path / "two") == journal(pareto)
    lines = (pareto / "journal.jsonl").read_text().splitlines(keepends=True)
    cut = tmp_path / "cut"
    (cut / "items").mkdir(parents=True)
    kept = lines[:14]
    (cut / "journal.jsonl").write_text("".join(kept))
    for line in kept:
        if (file := json.loads(line).get("file")) is not None:
            (cut / file).write_bytes((pareto / file).read_bytes())
    run(cut, *PARETO)
    assert journal(cut) == journal(pareto)


def test_asynchronous_asks_follow_each_result(pareto: Path) -> None:
    """Four candidates are at work at any time: after the first ask, one result, one ask."""
    kinds = [
        (e["event"], len(e.get("candidates", ()))) for e in read_events(pareto)
        if e["event"] in ("ask", "result")
    ]  # fmt: skip
    assert kinds[0] == ("ask", 4)
    assert kinds[1:17] == [("result", 0), ("ask", 1)] * 8
    assert kinds[17:] == [("result", 0)] * 4


def test_a_constraint_is_bound_to_the_best_source_and_kept(tmp_path: Path) -> None:
    constraint = "+constraints.sorting={task: sort_tiny, at_least: best source, margin: 0.3}"
    run(tmp_path, *PARETO, constraint)
    sources = [e for e in events(tmp_path, "measure") if e["role"] == "source"]
    scores = {e["name"]: e["scores"]["sort_tiny"]["search"]["score"] for e in sources[:4]}
    best = max(score for name, score in scores.items() if name != "base")
    [found] = results(tmp_path)["constraints"]
    assert found["search_bound"] == pytest.approx(best - 0.3)
    for event in events(tmp_path, "result"):
        value = event["scores"]["sort_tiny"]["score"]
        assert event["constraints"] == pytest.approx([found["search_bound"] - value])
    models = results(tmp_path)["models"]
    tested = {name: m["scores"]["sort_tiny"]["test"]["value"] for name, m in models.items()}
    best = max(tested[name] for name in ("math", "japanese", "sorter"))
    assert found["bound"] == pytest.approx(best - 0.3)
    assert found["found"] == tested["best merge"]
    assert found["satisfied"] == (tested["best merge"] >= best - 0.3)
    assert results(tmp_path)["cost"]["infeasible"] == sum(
        e["constraints"][0] > 0 for e in events(tmp_path, "result")
    )


def test_scalarized_objectives_suit_an_optimizer_of_one(tmp_path: Path) -> None:
    cma_es = [o for o in PARETO if o != "optimizer.batch=4"] + ["optimizer=cma_es"]
    run(tmp_path, *cma_es, "scalarize=weighted_sum")
    found = results(tmp_path)
    assert "front" not in found
    for event in events(tmp_path, "result"):
        assert event["fitness"] == pytest.approx([np.mean(list(event["values"].values()))])
    with pytest.raises(ConfigError, match="scalarize"):
        make_setup(quick_config(tmp_path, *cma_es))


def test_answer_length_is_minimised(tmp_path: Path) -> None:
    length = "+objectives.length={task: sort_tiny, metric: tokens}"
    run(tmp_path, *PARETO, length)
    for event in events(tmp_path, "result"):
        assert event["fitness"][3] == -event["values"]["length"] < 0
    point = results(tmp_path)["front"]["points"][0]
    assert point["values"]["test"]["length"] > 0
    assert point["low"]["length"] <= point["values"]["test"]["length"] <= point["high"]["length"]


class TestWarmStart:
    def test_an_earlier_study_is_told_and_gives_the_mean(self, pareto, tmp_path):
        config = quick_config(tmp_path, *PARETO, f"warm_start.run={pareto}")
        setup = make_setup(config)
        told = events(pareto, "result")
        assert [o.fitness.values for o in setup.start.observations] == [
            tuple(e["fitness"]) for e in told
        ]
        best = max(told, key=lambda e: sum(e["fitness"]))
        genomes = {c["id"]: c["genome"] for e in events(pareto, "ask") for c in e["candidates"]}
        assert setup.domain.start.tolist() == genomes[best["id"]]
        run_study(setup, Progress(quiet=True))
        assert len(events(tmp_path, "result")) == 12

    def test_its_best_merge_is_a_source(self, pareto, tmp_path):
        config = quick_config(tmp_path, *PARETO, f"models.sources.math={pareto}")
        assert config["models"]["sources"]["math"] == str(pareto / "best" / "model")
        make_setup(config)

    def test_recipes_are_anchors_and_the_first_the_start(self, pareto, tmp_path):
        path = pareto / "best" / "recipe.yaml"
        setup = make_setup(quick_config(tmp_path, *PARETO, f"warm_start.recipes=[{path}]"))
        digest = results(pareto)["models"]["best merge"]["digest"]
        from evomerge.setup import model_identities

        recipe = setup.space.decode(setup.domain.start)
        assert recipe.digest(model_identities(setup)) == digest
        assert np.array_equal(setup.domain.anchors[0], setup.domain.start)

    @pytest.mark.parametrize(
        ("overrides", "text"),
        [
            (("space.granularity=layer",), "dimensions"),
            (("scalarize=chebyshev",), "objectives"),
            (("+objectives.length={task: sort_tiny, metric: tokens}",), "objectives"),
        ],
    )
    def test_another_study_is_refused(self, pareto, tmp_path, overrides, text):
        with pytest.raises(ConfigError, match=text) as caught:
            make_setup(quick_config(tmp_path, *PARETO, *overrides, f"warm_start.run={pareto}"))
        assert caught.value.problems[0].field == "warm_start.run"

    def test_a_recipe_of_another_space_is_refused(self, pareto, tmp_path):
        path = pareto / "best" / "recipe.yaml"
        with pytest.raises(ConfigError, match=r"warm_start\.recipes"):
            make_setup(
                quick_config(tmp_path, *PARETO, "space=ties_dare", f"warm_start.recipes=[{path}]")
            )

    def test_an_unfinished_study_is_no_source(self, tmp_path):
        (tmp_path / "journal.jsonl").write_text("")
        with pytest.raises(ConfigError, match="without a result"):
            quick_config(tmp_path / "run", *PARETO, f"models.sources.math={tmp_path}")
