"""Diversity, importance, phases, workers, parents and routes."""

from __future__ import annotations

import math
from pathlib import Path

import answer_runs as answers
import numpy as np
import pytest
import report_runs as runs
from scipy.stats import f_oneway

from evomerge.recipe import Recipe
from evomerge.report.candidates import CandidateRecord
from evomerge.report.diversity import diversity, matrix
from evomerge.report.importance import epsilon_squared, importance
from evomerge.report.parents import parents_of, parents_of_route, route_of
from evomerge.report.phases import phases, use_of_workers
from evomerge.report.provenance import gpu_hours, origins, workers_of
from evomerge.report.reading import RunFiles, read_run


def test_diversity_of_known_samples() -> None:
    rng = np.random.default_rng(0)
    spreads = [spread for _, spread in diversity(rng.random((4000, 6)))]
    assert np.mean(spreads) == pytest.approx(1.0, abs=0.02)
    assert {spread for _, spread in diversity(np.full((40, 3), 0.3))} == {0.0}
    half = diversity(np.tile([[0.0], [1.0]], (8, 1)))  # n/2 at each end: sd 0.5 sqrt(n / (n - 1))
    assert half[0][1] == pytest.approx(0.5 * math.sqrt(8 / 7) * math.sqrt(12))
    assert diversity(rng.random((5, 2))) == []


def test_genes_are_scaled_to_their_range_and_others_left_out() -> None:
    dimensions = [{"name": "a", "low": -1.0, "high": 3.0}, {"name": "b", "low": 2.0, "high": 2.0}]
    records = [CandidateRecord(0, genome=(1.0, 2.0)), CandidateRecord(1, genome=(1.0,)),
               CandidateRecord(2, genome=(3.0, 2.0))]  # fmt: skip
    array, places = matrix(records, dimensions)
    assert array.tolist() == [[0.5, 0.0], [1.0, 0.0]]
    assert places == [0, 2]


def test_epsilon_squared_by_the_f_statistic() -> None:
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 4, 60)
    values = rng.normal(groups.astype(float), 1.5)
    f = f_oneway(*(values[groups == k] for k in range(4))).statistic
    k, n = 4, len(values)
    expected = (k - 1) * (f - 1) / ((k - 1) * f + n - k)
    assert epsilon_squared(groups, values) == pytest.approx(expected)
    noise = rng.normal(size=60)
    assert 0.0 <= epsilon_squared(groups, noise) < 0.2


def test_importance_finds_the_genes_that_matter() -> None:
    rng = np.random.default_rng(2)
    genomes = rng.random((400, 4))
    scores = 2 * genomes[:, 1] - 3 * (genomes[:, 3] - 0.5) ** 2 + rng.normal(0, 0.1, 400)
    found = {one.name: one for one in importance(list("abcd"), genomes, scores)}
    assert list(found)[:2] == ["b", "d"]
    assert found["b"].direction == "higher scores"
    assert found["d"].direction == "no clear direction"  # its optimum is in the middle
    assert found["d"].share > 0.05 > max(found["a"].share, found["c"].share)
    assert importance(["a"], genomes[:5, :1], scores[:5]) == []
    assert importance(["a"], genomes[:, :1], np.ones(400)) == []


def test_phases_add_up(tmp_path: Path) -> None:
    run = runs.finished_run(tmp_path)
    answers.add_answers(run, items=40)
    found = {phase.name: phase for phase in phases(read_run(run))}
    assert list(found) == [
        "search",
        "random search",
        "validation of the finalists",
        "held-out test",
    ]
    search = found["search"]
    assert search.models == 128 and search.items == 150 * 122
    assert search.elapsed == pytest.approx(0.4 * 122)
    assert search.tokens is None
    test = found["held-out test"]
    assert (test.models, test.items, test.answered) == (8, 8 * 80, 8 * 80)
    assert test.tokens == 8 * 80 * 5 and not test.estimated
    assert test.elapsed == pytest.approx(70.0)  # 10 s from each to the next of 8


def result(number: int, busy: float, elapsed: float, **more: object) -> dict[str, object]:
    seconds = {"merge": 0.25 * busy, "answer": 0.75 * busy, "elapsed": elapsed}
    return {"event": "result", "id": number, "status": "ok", "seconds": seconds, **more}


def test_use_of_workers() -> None:
    events = [result(n, 1.5, 1.0) for n in range(40)]
    use = use_of_workers(RunFiles(None, events), 2)
    assert use.mean == pytest.approx(1.5)
    assert "2 workers, busy 75.0%" in use.sentence and "idle 25.0%" in use.sentence
    assert all(busy == pytest.approx(1.5) for _, busy in use.course)
    assert "1.50 workers" in use_of_workers(RunFiles(None, events), None).sentence
    named = [result(n, 1.0, 1.0, worker=n % 2) for n in range(10)]
    assert use_of_workers(RunFiles(None, named), None).each == {"0": 5.0, "1": 5.0}
    assert "no times" in use_of_workers(RunFiles(None, []), 3).sentence


def test_gpu_hours() -> None:
    study = {"matter": {"device": "cuda"}}
    executor = {"name": "ray", "workers": 4, "gpus_per_worker": None}
    assert workers_of({"executor": executor}, study) == (4, 1.0)
    assert workers_of({"executor": executor | {"gpus_per_worker": 2}}, study) == (4, 2.0)
    assert workers_of({"executor": {"name": "serial"}}, {"matter": {"device": "cpu"}}) == (1, 0.0)
    assert gpu_hours(7200.0, 2.0).startswith("4.00 ")
    assert "CPU" in gpu_hours(7200.0, 0.0)


def test_effective_parents() -> None:
    equal = parents_of({"a": [0.5, 0.2], "b": [0.5, -0.2], "c": [0.5, 0.2]}, "weight")
    assert equal is not None and equal.effective == pytest.approx(3.0)
    alone = parents_of({"a": [0.0, 0.7], "b": [0.0, 0.0]}, "weight")
    assert alone is not None and alone.effective == 1.0
    assert alone.shares == (("a", 1.0), ("b", 0.0))
    mixed = parents_of({"a": [3.0], "b": [1.0]}, "weight")
    assert mixed is not None and mixed.effective == pytest.approx(1 / (0.75**2 + 0.25**2))
    assert parents_of({"a": [0.0]}, "weight") is None


def test_a_route_lists_its_stops() -> None:
    recipe = Recipe.from_dict({
        "merge_method": "passthrough", "dtype": "bfloat16",
        "slices": [{"sources": [{"model": "m/math", "layer_range": [0, 2]}]},
                   {"sources": [{"model": "m/ja", "layer_range": [1, 2]}]}],
    })  # fmt: skip
    stops = route_of(recipe, {"m/math": "math"})
    assert [(s.place, s.model, s.layer) for s in stops] == [(0, "math", 0), (1, "math", 1),
                                                            (2, "m/ja", 1)]  # fmt: skip
    parents = parents_of_route(stops)
    assert parents is not None
    assert dict(parents.shares) == {"math": pytest.approx(2 / 3), "m/ja": pytest.approx(1 / 3)}


def test_origins_read_revision_and_licence(tmp_path: Path) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--org--base" / "snapshots" / revision
    cached.mkdir(parents=True)
    (cached / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    settings = {
        "models": {"base": str(cached), "sources": {"math": "org/model@v2", "ja": "org/ja"}}
    }
    events = [{"event": "study", "identities": {"base": "ab" * 32}}]
    base, math_, other = origins(RunFiles(None, events), settings)
    assert (base.revision, base.licence, base.fingerprint) == (revision, "apache-2.0", "ab" * 6)
    assert (math_.revision, math_.licence) == ("v2", "not stated")
    assert other.revision == "not stated"
