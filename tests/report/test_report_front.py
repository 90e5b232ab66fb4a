"""The front and the constraints of one run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import front_runs as fronts
import numpy as np
import pytest
import report_runs as runs
from rich.console import Console
from test_report_page import Reader, page_of

from evomerge.report import numbers, results_markdown, results_table, verdict
from evomerge.report.candidates import candidate_records, find_best
from evomerge.report.content import prepare
from evomerge.report.front import front_points, mark
from evomerge.report.objectives import read_constraints, read_objectives
from evomerge.report.reading import Json, read_run
from evomerge.report.verdict import progress


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fronts.make(tmp_path_factory.mktemp("two"), constraints=[fronts.TOKENS])


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    return fronts.make(folder, [fronts.ACCURACY, fronts.LENGTH, fronts.POLITE])


def outcome_of(run: Path) -> Json:
    return json.loads((run / "results.json").read_text())


def test_amounts_are_in_their_own_unit() -> None:
    assert numbers.amount("score", 0.625) == numbers.amount("sparsity", 0.625) == "62.5%"
    assert numbers.amount("tokens", 41.2) == "41.20 tokens"
    assert numbers.amount("seconds", 0.0521) == "0.05210 s"
    assert numbers.amount("tokens", 12345.6, unit=False) == "12,346"
    assert numbers.amount("loglik", -1.2345) == "-1.234 nats a token"
    assert numbers.amount("tokens", None) == numbers.NONE
    assert numbers.amount_interval("tokens", 38.2, 44.14) == "[38.20, 44.14]"


def test_held_out_front_by_brute_force(two: Path) -> None:
    results = outcome_of(two)
    objectives = read_objectives(results, {})
    assert [o.minimised for o in objectives] == [False, True]
    listed = {p["candidate"]: p for p in results["front"]["points"]}
    usable = {i for i, p in listed.items() if p["violation"] == 0}
    values = {i: p["values"]["test"] for i, p in listed.items()}
    expected = set(fronts.front_ids(results["objectives"], values, usable))
    marked = mark(objectives, front_points(results, objectives))
    assert {p.candidate for p in marked if p.best} == expected
    assert len(expected) > 2


def test_front_of_the_page(two: Path) -> None:
    content = prepare(read_run(two))
    front, results = content.front, outcome_of(two)
    assert front is not None
    last = set(results["front"]["budgets"]["120"])
    assert {p.candidate for p in front.points} == last
    assert [p.test[0] for p in front.points if p.test] == sorted(
        (p.test[0] for p in front.points if p.test), reverse=True
    )
    assert sum(p.chosen for p in front.points) == sum(p.knee for p in front.points) == 1
    assert set(content.charts) >= {"front-0-1", "hypervolume"}
    assert "front-parallel" not in content.charts
    events = [e for e in read_run(two).events if e.get("values")]
    broken = sum(e["constraints"][0] > 0 for e in events)
    assert (front.measured, front.infeasible) == (len(events), broken)
    assert content.constraints[0].broken == broken > 0
    ok = [d for d in front.dots if d.feasible]
    searched = {d.id: dict(zip(("accuracy", "length"), d.values, strict=True)) for d in ok}
    best = fronts.front_ids(results["objectives"], searched, set(searched))
    assert {d.id for d in ok if d.best} == set(best) == last


def test_knee_lies_farthest_from_the_line_between_the_ends(two: Path) -> None:
    front = prepare(read_run(two)).front
    assert front is not None
    best = [p for p in front.points if p.best and p.test]
    array = np.array([[-p.test[0], p.test[1]] for p in best if p.test])
    array = (array - array.min(axis=0)) / np.ptp(array, axis=0)
    start, end = array[array[:, 0].argmin()], array[array[:, 0].argmax()]
    along = (end - start) / np.linalg.norm(end - start)
    across = np.array([-along[1], along[0]])
    distances = [abs(float(across @ (point - start))) for point in array]
    assert front.knee == best[int(np.argmax(distances))]


def test_hypervolume_rises_and_ends_where_the_last_budget_is(two: Path) -> None:
    front = prepare(read_run(two)).front
    assert front is not None
    shares = [share for _, share in front.steps]
    assert shares == sorted(shares)
    assert front.steps[-1] == (120, pytest.approx(front.budgets[-1].search))
    assert [b.candidates for b in front.budgets] == list(fronts.BUDGETS)
    assert front.reference == tuple(outcome_of(two)["front"]["reference"].values())


def test_three_objectives_get_pairs_and_parallel_axes(three: Path) -> None:
    content = prepare(read_run(three))
    assert content.pair_charts == ["front-0-1", "front-0-2", "front-1-2"]
    assert "front-parallel" in content.charts
    assert content.constraints == ()
    text = Reader(page_of(three)).text
    assert "Pareto front" in text
    assert "Violation" not in text


@pytest.mark.slow
@pytest.mark.parametrize("objectives", [[], [fronts.POLITE]])
def test_charts_of_fronts_are_valid_vega_lite(tmp_path: Path, objectives: list[Any]) -> None:
    altair = pytest.importorskip("altair")
    listed = [fronts.ACCURACY, fronts.LENGTH, *objectives]
    run = fronts.make(tmp_path, listed, [fronts.TOKENS], candidates=12, budgets=(6, 12))
    for spec in prepare(read_run(run)).charts.values():
        altair.Chart.from_dict(spec, validate=True)


def test_page_shows_front_and_constraints(two: Path) -> None:
    page = page_of(two)
    reader = Reader(page)
    for part in (
        "Several objectives", "length, tokens (lower is better)", "at most 70.00 tokens",
        "Hypervolume over candidates", "short answers", "weights accuracy 0.7 and length 0.3",
    ):  # fmt: skip
        assert part in " ".join(reader.text.split()), part
    assert reader.tags.count("caption") == reader.tags.count("table")
    assert [name for name, _ in reader.attributes].count("scope") == reader.tags.count("th")


def test_verdict_claims_what_was_measured(two: Path) -> None:
    results = outcome_of(two)
    judged = verdict(results)
    best = next(p for p in results["front"]["points"] if p["chosen"])
    accuracy = numbers.percent(best["values"]["test"]["accuracy"])
    assert judged.kind == "untested"
    assert judged.headline.startswith(f"The chosen merge, “evolved merge”, has accuracy {accuracy}")
    text = " ".join(judged.sentences)
    assert "Higher is better in accuracy and lower is better in length." in text
    sources = {n: results["models"][n]["objectives"]["test"] for n in ("math", "japanese")}
    short = min(sources, key=lambda name: sources[name]["length"])
    assert f"In length the best source is “{short}”" in text
    assert "significant" not in text
    own = text.split("In accuracy")[1].split("The plain score")[0]
    before, _, gap = own.partition("Optimism gap")
    assert "percentage" not in before
    apart = {
        n: abs(best["values"]["search"][n] - best["values"]["test"][n]) for n in sources["math"]
    }
    assert f"{100 * apart['accuracy']:.1f} percentage points" in gap
    assert f"{numbers.amount('tokens', apart['length'])} " in gap


def test_verdict_names_what_dominates_and_what_is_dominated(two: Path) -> None:
    results = outcome_of(two)
    results["models"]["TIES"]["objectives"]["test"] = {"accuracy": 1.0, "length": 1.0}
    results["models"]["math"]["objectives"]["test"] = {"accuracy": 0.0, "length": 100.0}
    (sentence,) = [s for s in verdict(results).sentences if "every objective" in s]
    assert "better in one: “TIES”." in sentence
    assert "Compared with" in sentence
    assert "“math”" in sentence


def test_a_broken_constraint_is_the_verdict(two: Path) -> None:
    results = outcome_of(two)
    results["constraints"][0]["found"] = 71.0
    judged = verdict(results)
    assert (judged.kind, judged.badge) == ("worse", "Breaks a constraint on held-out items")
    expected = "breaks short answers (found 71.00 tokens, allowed at most 70.00 tokens)."
    assert any(expected in sentence for sentence in judged.sentences)


def test_constraints_of_a_plain_search_are_in_its_verdict() -> None:
    found = fronts.TOKENS | {"found": 50.0}
    plain = runs.results(objectives=[fronts.ACCURACY], constraints=[found])
    judged = verdict(plain)
    assert judged.kind == "better"
    assert any("it keeps short answers (50.00 tokens" in s for s in judged.sentences)


@pytest.mark.parametrize(
    ("sense", "found", "satisfied"),
    [
        ("at_most", 70.0, True), ("at_most", 70.1, False), ("at_least", 70.0, True),
        ("at_least", 69.9, False), ("at_most", None, None),
    ],
)  # fmt: skip
def test_bounds_include_themselves(sense: str, found: float | None, satisfied: bool | None) -> None:
    listed = [fronts.TOKENS | {"sense": sense, "found": found}]
    (constraint,) = read_constraints({"constraints": listed}, {}, [(0.0,), (0.1,), (-1.0,)])
    assert constraint.satisfied is satisfied
    assert (constraint.broken, constraint.measured) == (1, 3)


def test_a_bound_that_is_not_measured_yet() -> None:
    (constraint,) = read_constraints({}, {"constraints": [fronts.TOKENS | {"bound": "math"}]})
    assert constraint.condition == "at most that of math, not measured yet"
    assert constraint.satisfied is None
    assert read_constraints({}, {"constraints": [fronts.TOKENS | {"bound": None}, 3]}) == ()


def test_a_running_study(tmp_path: Path) -> None:
    run = fronts.make(tmp_path, constraints=[fronts.TOKENS], finished=False)
    content = prepare(read_run(run))
    assert content.front is not None
    assert content.front.points == content.front.budgets == ()
    assert content.front.dots
    assert "Nothing has been measured on held-out items yet" in Reader(page_of(run)).text


def test_results_that_lack_parts_of_the_front(tmp_path: Path) -> None:
    run = fronts.make(tmp_path)
    results = outcome_of(run)
    for change in ({}, {"points": 3, "budgets": [1]}, {"points": [{}], "budgets": {"x": [1]}}):
        results["front"] = change
        (run / "results.json").write_text(json.dumps(results))
        assert "Pareto front" in page_of(run)
    del results["front"]
    (run / "results.json").write_text(json.dumps(results))
    assert "told one fitness" in " ".join(Reader(page_of(run)).text.split())
    assert "The search combined them" in " ".join(verdict(results).sentences)


def test_models_may_lack_an_objective_of_the_whole_candidate(tmp_path: Path) -> None:
    run = fronts.make(tmp_path, [fronts.ACCURACY, fronts.TIME, fronts.LENGTH])
    results = outcome_of(run)
    for model in results["models"].values():
        model["objectives"]["test"].pop("time")
    (run / "results.json").write_text(json.dumps(results))
    assert "Pareto front" in page_of(run)
    judged = verdict(results)
    assert " s " in judged.headline  # the chosen merge's time is known from the front
    assert not any("In time" in sentence for sentence in judged.sentences)
    assert any("no claim is made on all together" in sentence for sentence in judged.sentences)


def test_no_candidate_keeps_the_constraints(tmp_path: Path) -> None:
    run = fronts.make(tmp_path, constraints=[fronts.TOKENS | {"bound": -1.0}])
    content = prepare(read_run(run))
    assert content.front is not None
    assert content.front.measured == content.front.infeasible > 0
    assert content.front.knee is None
    assert "Pareto front" in page_of(run)


def test_infeasible_candidates_raise_nothing_and_are_best_last() -> None:
    def event(key: int, score: float, broken: float) -> dict[str, Any]:
        return {"event": "result", "id": key, "status": "ok", "fitness": [score],
                "scores": {"t": {"score": score}}, "constraints": [broken]}  # fmt: skip

    records = candidate_records([event(0, 0.9, 1.0), event(1, 0.3, -1.0), event(2, 0.8, 0.5)])
    assert find_best(records) == records[1]
    assert "best search score so far is 30.0%" in progress(records, ended=False).headline
    assert find_best(records[::2]) == records[2]


def test_tables_hold_the_objectives(two: Path) -> None:
    results = outcome_of(two)
    console = Console(file=io.StringIO(), width=80)
    console.print(results_table(results))
    shown = console.file.getvalue()
    assert "Objectives of the search, held-out" in shown
    assert max(map(len, shown.splitlines())) <= 80
    markdown = results_markdown(results)
    heading = "| Model | Role | accuracy (higher is better) | length, tokens (lower is better) |"
    assert heading in markdown
    assert "| **evolved merge** | chosen merge |" in markdown.split(heading)[1]


def test_nothing_of_a_hostile_run_becomes_markup(tmp_path: Path) -> None:
    evil = f"{runs.EVIL}<img src=x onerror=alert(2)>"
    objectives = [fronts.ACCURACY | {"name": evil}, fronts.LENGTH, fronts.POLITE]
    constraint = fronts.TOKENS | {"name": f"c {evil}", "task": evil}
    run = fronts.make(tmp_path, objectives, [constraint])
    results = outcome_of(run)
    for point in results["front"]["points"]:
        point["name"] = evil
    results["models"][evil] = results["models"].pop("math")
    (run / "results.json").write_text(json.dumps(results))
    page = page_of(run)
    assert runs.EVIL not in page
    assert "img" not in Reader(page).tags
    charts = prepare(read_run(run)).charts

    def outside_of_data(node: object) -> str:
        if isinstance(node, dict):
            return "".join(f"{k} {outside_of_data(v)}" for k, v in node.items() if k != "data")
        return "".join(map(outside_of_data, node)) if isinstance(node, list) else str(node)

    assert "alert" in json.dumps(charts)
    assert "alert" not in outside_of_data(charts)


def test_a_run_without_objectives_says_nothing_of_fronts(tmp_path: Path) -> None:
    content = prepare(read_run(runs.finished_run(tmp_path)))
    assert content.front is None
    assert content.constraints == ()
    text = Reader(page_of(tmp_path)).text
    assert "Pareto" not in text
    assert "Constraint" not in text
