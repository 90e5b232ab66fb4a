"""Faults in a real Ray cluster of several local nodes: nothing is lost, doubled or changed."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_cluster import LocalCluster, with_token
from studies import items, journal, quick_config
from tiny_worker import TinyWorker, order

from evomerge import study
from evomerge.errors import EngineError, EvomergeError
from evomerge.evaluation import in_order
from evomerge.executors import ray as ray_module
from evomerge.executors import serial as serial_module
from evomerge.executors.limits import Limits
from evomerge.executors.ray import Pace, RayExecutor
from evomerge.executors.serial import SerialExecutor
from evomerge.executors.staging import content_digests
from evomerge.executors.worker import Job, Outcome, Request, WorkerSpec
from evomerge.progress import Progress
from evomerge.setup import make_setup
from evomerge.workers import Plan, worker_spec
from evomerge.zoo import zoo_path

pytestmark = pytest.mark.slow

TIMEOUT = 12.0
PACE = Pace(tick=0.2, head=1.0, patience=4.0, look=1.0, grace=120.0)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory, faults: Path) -> WorkerSpec:
    made = worker_spec(quick_config(tmp_path_factory.mktemp("run")), Plan(1, 1, 0.0))
    return dataclasses.replace(made, engine={"args": {"faults": str(faults)}})


@pytest.fixture(scope="module")
def jobs() -> list[Job]:
    request = Request("jp_math_tiny", "search", (0, 3, 5), loglik=True)
    source = {"model": "a", "parameters": {"weight": 1.0}}
    recipe: dict[str, Any] = {"merge_method": "linear", "models": [source]}
    return [
        Job(i, {**recipe, "parameters": {"weight": 1.0 + i}}, (request,)) for i in range(6)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def expected(spec: WorkerSpec, jobs: list[Job]) -> list[tuple[object, ...]]:
    """What one worker answers that has no faults."""
    worker = TinyWorker(spec)
    return [contents(worker.evaluate(job)) for job in jobs]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with with_token():
        made = LocalCluster({"num_cpus": 1}, {"num_cpus": 1})
        yield made
        made.close()


@pytest.fixture(scope="module")
def executor(cluster: LocalCluster, spec: WorkerSpec) -> Iterator[RayExecutor]:
    """Two workers, one a node, in the elastic way."""
    limits = Limits(timeout=TIMEOUT, slow_floor=600.0)
    made = RayExecutor(
        spec, None, cluster.address, limits=limits, wait=600.0, make=TinyWorker, pace=PACE
    )
    yield made
    made.close()


def contents(outcome: Outcome) -> tuple[object, ...]:
    if outcome.scores is None:
        return (outcome.id, outcome.reason)
    part = outcome.scores[0]
    return (outcome.id, part.ids, part.texts, part.scores.tolist(), part.logliks.tolist())


def actors(executor: RayExecutor) -> dict[int, str]:
    """Ready workers and their nodes."""
    return {m.id: m.node for m in executor._pool.members.values() if m.state == "ready"}


def until(condition: Any, executor: RayExecutor, seconds: float = 120.0) -> None:
    """Lets the executor do what is due until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        executor._step()


def leave_room(executor: RayExecutor) -> None:
    """Ends the workers, whose cores are needed; others are recruited at the next step."""
    for worker in list(executor._pool.members):
        executor._pool.drop(worker)
        executor._scheduler.leave(worker, "no longer wanted")


def two_workers(executor: RayExecutor) -> dict[int, str]:
    until(lambda: len(actors(executor)) == 2, executor)
    return actors(executor)


def test_a_broken_engine_in_this_process_is_made_anew(
    spec: WorkerSpec, jobs: list[Job], expected: list[Any], faults: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(serial_module, "Worker", TinyWorker)
    order(faults, "memory", 2)
    outcomes = list(in_order(SerialExecutor(spec), jobs))
    assert list(map(contents, outcomes)) == expected
    assert [o.tries for o in outcomes] == [1, 1, 2, 1, 1, 1]


@pytest.mark.parametrize("kind", ["kill", "memory", "broken", "hang", "nan", "slow"])
def test_a_fault_changes_nothing(
    kind: str, executor: RayExecutor, jobs: list[Job], expected: list[Any], faults: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A worker is killed, has no memory, breaks, hangs, says NaN, or takes long, with job 2."""
    before = two_workers(executor)
    if kind == "slow":
        monkeypatch.setattr(executor._scheduler._limits, "_slow_floor", 2.0)
    for _ in range(6 if kind == "slow" else 0):  # so that it is known what is usual
        list(in_order(executor, jobs[:1]))
    order(faults, kind, 2)
    begin = time.monotonic()
    outcomes = list(in_order(executor, jobs))
    assert list(map(contents, outcomes)) == expected
    assert not list(faults.iterdir())
    assert [o.tries for o in outcomes] == [
        2 if o.id == 2 and kind in ("kill", "memory", "broken", "hang") else 1 for o in outcomes
    ]
    assert all(o.worker for o in outcomes)
    if kind == "slow":
        assert time.monotonic() - begin < TIMEOUT
    if kind in ("nan", "slow"):  # nobody was killed
        assert set(before) <= set(actors(executor))
    else:
        assert len(set(before) & set(actors(executor))) <= 1


def test_a_candidate_that_kills_every_worker_is_recorded_with_its_reason(
    executor: RayExecutor, jobs: list[Job], expected: list[Any], faults: Path
) -> None:
    two_workers(executor)
    order(faults, "kill", 4, times=3)
    outcomes = list(in_order(executor, jobs))
    assert not list(faults.iterdir())
    assert outcomes[4].scores is None
    assert str(outcomes[4].reason).startswith("given up after 3 tries: ")
    del outcomes[4]
    assert list(map(contents, outcomes)) == expected[:4] + expected[5:]


def test_a_worker_that_keeps_saying_nan_is_replaced(
    executor: RayExecutor, jobs: list[Job], expected: list[Any], faults: Path
) -> None:
    before = two_workers(executor)
    order(faults, "always_nan", 0)
    for _ in range(4):
        assert list(map(contents, in_order(executor, jobs))) == expected
    assert not list(faults.iterdir())
    assert set(two_workers(executor)) != set(before)


def test_nan_of_the_candidates_own_is_a_failure(
    executor: RayExecutor, jobs: list[Job], expected: list[Any], faults: Path
) -> None:
    two_workers(executor)
    order(faults, "nan", 1, times=2)
    outcomes = list(in_order(executor, jobs))
    assert "not finite" in str(outcomes[1].reason)
    assert list(map(contents, outcomes))[2:] == expected[2:]


def test_an_answer_that_comes_twice_counts_once(
    executor: RayExecutor, jobs: list[Job], expected: list[Any]
) -> None:
    two_workers(executor)
    take, seen = executor._take, []

    def twice(event: Any) -> None:
        seen.append(event)
        take(event)
        take(event)

    executor._take = twice  # type: ignore[method-assign]
    try:
        assert list(map(contents, in_order(executor, jobs))) == expected
        with pytest.raises(RuntimeError, match="no job"):
            executor.next()
    finally:
        executor._take = take  # type: ignore[method-assign]
    assert len(seen) == len(jobs)


def test_a_study_with_faults_writes_the_journal_of_one_without(
    cluster: LocalCluster, executor: RayExecutor, faults: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Genomes, scores, measurements and the best are the same."""
    monkeypatch.setattr(study, "write_report", lambda *_, **__: None)  # it takes long
    monkeypatch.setattr(serial_module, "Worker", TinyWorker)
    remote = functools.partial(
        RayExecutor, make=TinyWorker, limits=Limits(timeout=TIMEOUT), pace=PACE
    )
    monkeypatch.setattr(ray_module, "RayExecutor", lambda *a, **k: remote(*a))
    until(lambda: len(actors(executor)) == 2, executor)
    leave_room(executor)
    found = {}
    for name, more in (("without", ()), ("with", (
        "executor=ray", f"executor.address={cluster.address}", "executor.retries=3",
    ))):  # fmt: skip
        config = quick_config(
            tmp_path / name, "budget.candidates=16", "finalists=1", *more,
            f"+engine.args.faults={faults}",
        )  # fmt: skip
        if more:
            for number, kind in ((2, "kill"), (5, "memory"), (7, "nan"), (9, "broken")):
                order(faults, kind, number)
            order(faults, "kill", 12, times=2)
        study.run_study(make_setup(config), Progress(quiet=True))
        found[name] = journal(tmp_path / name), items(tmp_path / name)
    assert not list(faults.iterdir())
    assert found["with"] == found["without"]


def test_nodes_come_and_go_and_without_any_the_study_stops(
    cluster: LocalCluster, executor: RayExecutor, jobs: list[Job], expected: list[Any],
    faults: Path,
) -> None:  # fmt: skip
    """A node is lost in the middle of its job; another joins; then all are lost."""
    nodes = two_workers(executor)
    assert len(set(nodes.values())) == 2  # one a node
    order(faults, "slow", 0)
    order(faults, "slow", 1)
    for job in jobs:
        executor.submit(job)
    cluster.kill(1)
    outcomes = sorted((executor.next() for _ in jobs), key=lambda o: o.id)
    assert list(map(contents, outcomes)) == expected
    assert executor.workers == 1
    cluster.add(num_cpus=1)
    until(lambda: executor.workers == 2, executor)
    assert list(map(contents, in_order(executor, jobs))) == expected
    cluster.kill(0)
    cluster.kill(2)
    executor._wait = 5.0
    executor.submit(jobs[0])
    with pytest.raises(EvomergeError, match="no worker had room"):
        executor.next()


def test_sources_are_staged_once_a_node(
    cluster: LocalCluster, executor: RayExecutor, spec: WorkerSpec, jobs: list[Job], tmp_path: Path
) -> None:
    """Each node has its own disk; workers read the copies there, and answer the same."""
    leave_room(executor)
    folders = [tmp_path / "first", tmp_path / "second"]
    cluster.add(num_cpus=2, env_vars={"NODE_DISK": str(folders[0])})
    cluster.add(num_cpus=1, num_gpus=2, env_vars={"NODE_DISK": str(folders[1])})
    refs = [str(zoo_path(f"models/{name}")) for name in ("base", "math")]
    digests = content_digests(refs)
    staged = dataclasses.replace(spec, stage="$NODE_DISK/sources", sources=digests)
    models = [{"model": ref, "parameters": {"weight": 1.0}} for ref in refs]
    jobs = [dataclasses.replace(job, recipe={**job.recipe, "models": models}) for job in jobs]
    there = RayExecutor(staged, 3, cluster.address, make=TinyWorker, pace=PACE)
    try:
        assert there.workers == 3
        outcomes = list(in_order(there, jobs))
    finally:
        there.close()
    worker = TinyWorker(spec)
    assert list(map(contents, outcomes)) == [contents(worker.evaluate(job)) for job in jobs]
    for folder in folders:
        copies = [p for p in (folder / "sources").iterdir() if p.is_dir()]
        assert sorted(content_digests(map(str, copies)).values()) == sorted(digests.values())


def test_a_group_of_gpus_stays_with_its_worker_when_it_is_replaced(
    cluster: LocalCluster, executor: RayExecutor, spec: WorkerSpec, jobs: list[Job],
    expected: list[Any], faults: Path,
) -> None:  # fmt: skip
    """On a node that says it has two GPUs."""
    import ray

    leave_room(executor)
    two = RayExecutor(spec, 1, cluster.address, 2.0, make=TinyWorker, pace=PACE)
    try:
        before = actors(two)
        order(faults, "kill", 2)
        assert list(map(contents, in_order(two, jobs))) == expected
        after = actors(two)
        assert list(after.values()) == list(before.values())
        assert list(after) != list(before)
        groups = [g for g in ray.util.placement_group_table().values() if g["state"] == "CREATED"]
        assert [list(g["bundles"].values()) for g in groups] == [[{"CPU": 1.0, "GPU": 2.0}]]
    finally:
        two.close()


def test_engines_that_cannot_start_stop_the_study_with_one_error(
    cluster: LocalCluster, executor: RayExecutor, spec: WorkerSpec, faults: Path
) -> None:
    leave_room(executor)
    (faults / "no_engine").touch()
    try:
        with pytest.raises(EngineError, match="no worker can start its engine: there is no engine"):
            RayExecutor(spec, 2, cluster.address, make=TinyWorker, pace=PACE)
    finally:
        (faults / "no_engine").unlink()
