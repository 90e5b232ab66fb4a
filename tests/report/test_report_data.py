"""Data preparation of the report, against values worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import report_runs as runs
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import UserError
from evomerge.recipe import Recipe
from evomerge.report import numbers
from evomerge.report.candidates import (
    best_so_far,
    best_stair,
    by_search,
    candidate_records,
    failure_counts,
    find_best,
    thin,
)
from evomerge.report.coefficients import genome_of, group_order, read_genome, split_name
from evomerge.report.content import prepare
from evomerge.report.reading import number, read_run
from evomerge.report.rows import task_names, task_rows


def ask(*ids: int, search: str = "search") -> dict[str, Any]:
    candidates = [{"id": i, "genome": [i / 10], "digest": f"d{i}"} for i in ids]
    return {"event": "ask", "search": search, "generation": 0, "candidates": candidates}


def ok(key: int, score: float, fitness: float | None = None) -> dict[str, Any]:
    return {
        "event": "result", "id": key, "status": "ok",
        "scores": {"t": {"score": score, "loglik": -1.0, "items": 10}},
        "fitness": [score if fitness is None else fitness],
    }  # fmt: skip


def failed(key: int, reason: str) -> dict[str, Any]:
    return {"event": "result", "id": key, "status": "failed", "reason": reason}


LOG = [ask(0, 1, 2), ok(1, 0.4), ok(0, 0.2), failed(2, "NaN"), ask(3, 4), ok(3, 0.3), ok(4, 0.5)]


def test_candidates_in_order_of_id_with_their_status() -> None:
    records = candidate_records([*LOG, ask(5)])
    assert [r.id for r in records] == [0, 1, 2, 3, 4, 5]
    assert [r.score for r in records] == [0.2, 0.4, None, 0.3, 0.5, None]
    assert [r.status for r in records] == ["ok", "ok", "failed", "ok", "ok", "pending"]
    assert records[4].genome == (0.4,)
    assert records[4].items == 10


def test_score_of_several_tasks_is_their_mean() -> None:
    event = ok(0, 0.2)
    event["scores"]["u"] = {"score": 0.6, "items": 30}
    (record,) = candidate_records([event])
    assert record.score == pytest.approx(0.4)
    assert record.items == 40


def test_best_so_far_rises_only() -> None:
    records = candidate_records(LOG)
    assert best_so_far(records) == [(0, 0.2), (1, 0.4), (4, 0.5)]
    assert best_stair(records[:4]) == [(0, 0.2), (1, 0.4), (3, 0.4)]
    assert best_stair([]) == []


def test_searches_are_kept_apart() -> None:
    log = [ask(0), ok(0, 0.2), ask(1, 2, search="random search"), ok(1, 0.9), ok(2, 0.1)]
    searches = by_search(candidate_records(log))
    assert {name: [r.id for r in part] for name, part in searches.items()} == {
        "search": [0],
        "random search": [1, 2],
    }
    assert best_stair(searches["random search"]) == [(0, 0.9), (1, 0.9)]


def test_failures_are_counted_and_the_sum_is_kept() -> None:
    log = [failed(i, f"reason {min(i, 5) % 5}") for i in range(8)]
    records = candidate_records(log)
    assert failure_counts(records) == [("reason 0", 4)] + [(f"reason {i}", 1) for i in range(1, 5)]
    assert failure_counts(records, most=3) == [
        ("reason 0", 4), ("reason 1", 1), ("3 rarer reasons", 3),
    ]  # fmt: skip


def test_best_is_by_digest_or_by_fitness() -> None:
    records = candidate_records([ask(0, 1), ok(0, 0.9, fitness=0.1), ok(1, 0.3, fitness=0.2)])
    assert find_best(records, "d0") == records[0]
    assert find_best(records, "unknown") is None
    assert find_best(records) == records[1]
    assert find_best([]) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200), st.integers(5, 50))
def test_thinning_keeps_every_improvement(scores: list[float], most: int) -> None:
    records = candidate_records([ok(i, s) for i, s in enumerate(scores)])
    kept = thin(records, most)
    assert best_so_far(kept) == best_so_far(records)
    assert len(kept) <= most + len(best_so_far(records))


def test_thinning_keeps_failures_that_come_at_every_second_place() -> None:
    log = [failed(i, "no") if i % 2 else ok(i, 0.5) for i in range(100)]
    assert sum(r.status == "failed" for r in thin(candidate_records(log), 10)) == 5


def test_dimension_names() -> None:
    assert split_name("weight/math/block.0") == ("weight", "math", "block.0")
    assert split_name("weight/org/model/all") == ("weight", "org/model", "all")
    assert split_name("temperature") is None
    groups = ["odd", "all", "head", "block.10", "block.9", "embedding"]
    assert sorted(groups, key=group_order) == [
        "embedding", "block.9", "block.10", "head", "all", "odd",
    ]  # fmt: skip


def test_genome_becomes_grids() -> None:
    names = ["weight/a/head", "weight/a/block.0", "weight/b/head", "density/a/all", "choice"]
    dimensions = [{"name": name, "low": -0.5, "high": 1.0} for name in names]
    (weight, density), others = read_genome(dimensions, [0.1, -0.2, 0.3, 0.9, "x"])
    assert (weight.sources, weight.groups) == (("a", "b"), ("block.0", "head"))
    assert weight.values == {("a", "head"): 0.1, ("a", "block.0"): -0.2, ("b", "head"): 0.3}
    assert (weight.signed, weight.low, weight.high, weight.reach) == (True, -0.5, 1.0, 1.0)
    assert density.groups == ("all",)
    assert others == [("choice", "x")]
    assert read_genome(dimensions, [0.1]) == ([], [])


def test_genome_is_read_off_a_recipe() -> None:
    cases = [
        {"filter": "model.embed_tokens.weight", "value": 0.1},
        {"filter": "model.layers.1.", "value": 0.2},
        {"filter": "model.layers.11.", "value": 0.3},
        {"value": 0.4},
    ]
    models = [{"model": "m", "parameters": {"weight": cases, "density": 0.7}}]
    recipe = Recipe.from_dict({"merge_method": "ties", "base_model": "b", "models": models})
    names = [f"weight/math/{g}" for g in ("embedding", "block.1", "block.11", "head", "block.2")]
    dimensions = [{"name": name} for name in [*names, "density/math/all"]]
    assert genome_of(dimensions, recipe) == [0.1, 0.2, 0.3, 0.4, None, 0.7]
    assert genome_of([{"name": "weight/a/all"}, {"name": "weight/b/all"}], recipe) == [None] * 2


def test_rows_are_sorted_by_held_out_score() -> None:
    results = runs.results()
    results["models"]["TIES"]["scores"]["jp_math"].pop("test")
    rows = task_rows(results, "jp_math")
    assert task_names(results) == ["jp_math"]
    assert [r.name for r in rows][:3] == ["evolved merge", "random search", "task arithmetic"]
    assert rows[-1].name == "TIES"
    assert rows[0].role == "chosen merge"
    assert rows[0].optimism == pytest.approx(0.04)
    assert rows[-1].optimism is None


def test_the_objective_stands_first() -> None:
    results = runs.results()
    scores = results["models"]["math"]["scores"]
    results["models"]["math"]["scores"] = {"another": scores["jp_math"], **scores}
    results["models"] = {"math": results["models"].pop("math"), **results["models"]}
    assert task_names(results) == ["jp_math", "another"]


def test_only_finite_numbers_count() -> None:
    assert [number(v) for v in (1, True, "1", None, float("nan"), float("inf"))] == [
        1.0, None, None, None, None, None,
    ]  # fmt: skip


def test_numbers_as_text() -> None:
    assert numbers.percent(0.625) == "62.5%"
    assert numbers.interval(0.5561, 0.69) == "[55.6%, 69.0%]"
    assert numbers.interval(None, 0.69) == numbers.NONE
    assert numbers.points(-0.0001) == "0.0 percentage points"
    assert numbers.points(0.085) == "+8.5 percentage points"
    assert [numbers.p_value(p) for p in (0.0001, 0.0123, 0.713)] == [
        "p < 0.001", "p = 0.012", "p = 0.71",
    ]  # fmt: skip
    assert [numbers.duration(s) for s in (4.2, 125, 7500)] == ["4.2 s", "2 min 5 s", "2 h 5 min"]


def test_torn_last_line_is_left_out(tmp_path: Path) -> None:
    log = runs.events(16)
    run = read_run(runs.write_run(tmp_path, log, torn=True))
    assert len(run.events) == len(log)
    assert run.results is None


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither"):
        read_run(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"models": 3}'])
def test_damaged_results_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json"):
        read_run(tmp_path)


def test_coefficients_of_a_winner_that_was_no_candidate(tmp_path: Path) -> None:
    """The mean of the search's distribution can win; its recipe is then the only record."""
    log = runs.events(16)
    log[0]["space"]["dimensions"] = [
        {"name": f"weight/{name}/all", "low": 0, "high": 1} for name in ("math", "japanese")
    ]
    outcome = runs.results()
    outcome["models"]["evolved merge"]["digest"] = "the mean"
    content = prepare(read_run(runs.write_run(tmp_path / "a", log, outcome, runs.RECIPE)))
    assert content.grids[0].values == {("math", "all"): 0.8, ("japanese", "all"): 0.6}
    assert content.genome_of == "the chosen merge"
    mean = runs.measure("search finalist mean", "finalist", "validation", 0.7)
    log.insert(-1, mean | {"digest": "the mean"})
    content = prepare(read_run(runs.write_run(tmp_path / "b", log, outcome, runs.RECIPE)))
    assert "no candidate: the optimiser's mean" in content.genome_of


def test_a_recipe_that_cannot_be_read_shows_no_coefficients(tmp_path: Path) -> None:
    outcome = runs.results()
    outcome["models"]["evolved merge"]["digest"] = "the mean"
    for text in ("a: [", "just text", "models: []"):
        content = prepare(read_run(runs.write_run(tmp_path, runs.events(16), outcome, text)))
        assert content.grids == []


def test_chart_data_is_strict_json(tmp_path: Path) -> None:
    content = prepare(read_run(runs.finished_run(tmp_path)))
    assert json.dumps(content.charts, allow_nan=False)
    wanted = {"scores-1", "history", "grid-1", "grid-2", "diversity", "importance-1", "phases"}
    assert set(content.charts) == wanted
