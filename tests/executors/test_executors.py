"""Executors: the same outcomes wherever the work is done, and workers may die."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from studies import quick_config

from evomerge.evaluation import in_order
from evomerge.executors.cores import available, share
from evomerge.executors.ray import RayExecutor
from evomerge.executors.serial import SerialExecutor
from evomerge.executors.worker import Job, Outcome, Request, WorkerSpec
from evomerge.recipe import Recipe, Source
from evomerge.setup import make_setup
from evomerge.workers import Plan, worker_spec


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> WorkerSpec:
    return worker_spec(quick_config(tmp_path_factory.mktemp("run")), Plan(1, 1, 0.0))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    """Six different merges; the fourth cannot be made."""
    space = make_setup(quick_config(tmp_path_factory.mktemp("run"))).space
    rng = np.random.default_rng(0)
    request = Request("jp_math_tiny", "search", (0, 3, 5), loglik=True)
    recipes = [space.decode(rng.uniform(0, 1, len(space.dimensions))) for _ in range(6)]
    sources = (*recipes[3].sources, Source("no/such/model/here", {"weight": 1.0}))
    recipes[3] = dataclasses.replace(recipes[3], sources=sources)
    return [Job(i, r.to_dict(), (request,)) for i, r in enumerate(recipes)]


@pytest.fixture(scope="module")
def serial(spec: WorkerSpec, jobs: list[Job]) -> list[Outcome]:
    executor = SerialExecutor(spec)
    outcomes = list(in_order(executor, jobs))
    executor.close()
    return outcomes


@pytest.fixture
def ray_executor(spec: WorkerSpec) -> Iterator[RayExecutor]:
    executor = RayExecutor(spec, workers=2)
    yield executor
    executor.close()


def contents(outcome: Outcome) -> tuple[object, ...]:
    if outcome.scores is None:
        return (outcome.id, outcome.reason)
    part = outcome.scores[0]
    return (outcome.id, part.ids, part.texts, part.scores.tolist(), part.logliks.tolist())


def test_outcomes_hold_what_was_asked_for(serial: list[Outcome]) -> None:
    assert [o.id for o in serial] == list(range(6))
    assert serial[3].scores is None
    assert "no/such/model/here" in str(serial[3].reason)
    for outcome in serial[:3] + serial[4:]:
        assert outcome.scores is not None
        (part,) = outcome.scores
        assert len(part.ids) == len(part.texts) == len(part.scores) == 3
        assert np.isfinite(part.logliks).all()
        times = (outcome.merge_seconds, outcome.answer_seconds, outcome.total_seconds)
        assert 0 < times[0] + times[1] <= times[2] <= outcome.roundtrip_seconds


@pytest.mark.slow
def test_ray_gives_the_same_outcomes_and_outlives_its_workers(
    ray_executor: RayExecutor, jobs: list[Job], serial: list[Outcome]
) -> None:
    import ray

    assert list(map(contents, in_order(ray_executor, jobs))) == list(map(contents, serial))
    outcomes = in_order(ray_executor, jobs)
    first = next(outcomes)
    for member in list(ray_executor._pool.members.values()):  # both die with jobs at hand
        ray.kill(member.actor)
    assert list(map(contents, [first, *outcomes])) == list(map(contents, serial))


def test_next_without_a_job_is_refused(spec: WorkerSpec) -> None:
    with pytest.raises(RuntimeError, match="no job"):
        SerialExecutor(spec).next()


def test_shares_of_cores_do_not_overlap() -> None:
    cores = available()
    for workers in range(1, len(cores) + 1):
        shares = [share(i, workers) for i in range(workers)]
        used = [core for part in shares for core in part]
        assert len(used) == len(set(used)) <= len(cores)
        assert set(used) <= set(cores)
    assert all(len(share(i, 5 * len(cores))) == 1 for i in range(5 * len(cores)))


def test_recipe_reaches_the_worker_whole(jobs: list[Job], tmp_path: Path) -> None:
    """What travels is plain data that makes the same recipe on the other side."""
    for job in jobs:
        recipe = Recipe.from_dict(job.recipe)
        assert recipe.to_dict() == dict(job.recipe)
        assert recipe.digest() == Recipe.from_dict(recipe.to_dict()).digest()
