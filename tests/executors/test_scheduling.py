"""The scheduler without any cluster: who gets what, and that each job has one outcome."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import CandidateError, EngineError, NotFiniteError, SourceError
from evomerge.executors.faults import DOUBT, ENGINE, fault_of
from evomerge.executors.limits import Limits, size_of
from evomerge.executors.scheduler import Run, Scheduler
from evomerge.executors.worker import Job, Outcome, Request


def job(number: int, items: int = 4) -> Job:
    return Job(number, {}, (Request("t", "search", tuple(range(items))),))


def good(number: int) -> Outcome:
    return Outcome(number, ())


def doubtful(number: int) -> Outcome:
    return Outcome(number, None, "not finite", fault=DOUBT)


def scheduler(workers: int, retries: int = 2, limits: Limits | None = None) -> Scheduler:
    made = Scheduler(retries, limits or Limits())
    for worker in range(workers):
        made.join(worker)
    return made


def start(it: Scheduler, now: float = 0.0) -> list[Run]:
    return list(it.assign(now))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 12), st.integers(0, 3))
def test_every_job_has_one_outcome_whatever_happens(
    seed: int, workers: int, jobs: int, retries: int
) -> None:
    """Workers die, join, answer twice, doubt or are slow, at random; nothing is lost or doubled."""
    dice = random.Random(seed)
    limits = Limits(floor=0.0, slow_floor=0.0)
    it = scheduler(workers, retries, limits)
    alive, fresh, runs, old = set(range(workers)), workers, {}, []
    waiting = [job(i) for i in range(jobs)]
    outcomes: list[Outcome] = []
    lost = dict.fromkeys(range(jobs), 0)
    for now in range(2000):
        if waiting and dice.random() < 0.5:
            it.submit(waiting.pop(), now)
        for run in [*it.assign(now), *it.assist(now)]:
            assert run.worker in alive
            assert run.worker not in {r.worker for r in runs.values()}
            runs[run.number] = run
        chance = dice.random()
        if chance < 0.1 and alive:
            worker = dice.choice(sorted(alive))
            alive.remove(worker)
            for run in [r for r in runs.values() if r.worker == worker]:
                lost[run.job.id] += 1
                old.append(runs.pop(run.number))
            try:
                it.leave(worker, "dead")
            except EngineError:
                return  # nothing ever worked: the study stops
        elif chance < 0.3 and len(alive) < workers:
            it.join(fresh)
            alive.add(fresh)
            fresh += 1
        elif chance < 0.4 and old:
            run = dice.choice(old)
            it.finish(run.number, good(run.job.id), now)
        elif runs:
            run = runs.pop(dice.choice(sorted(runs)))
            old.append(run)
            answer = doubtful if dice.random() < 0.2 else good
            it.finish(run.number, answer(run.job.id), now)
        outcomes += it.ready
        it.ready.clear()
        if len(outcomes) == jobs and not waiting:
            break
    assert sorted(o.id for o in outcomes) == list(range(jobs))
    assert it.pending == 0
    for outcome in outcomes:
        if outcome.reason and outcome.reason.startswith("given up"):
            assert lost[outcome.id] > retries
        assert outcome.tries >= 1


def test_a_lost_job_comes_first_and_goes_elsewhere() -> None:
    it = scheduler(2)
    for number in range(3):
        it.submit(job(number), 0.0)
    first, second = start(it)
    it.leave(first.worker, "dead")
    it.join(7)  # in its place
    it.finish(second.number, good(1), 1.0)
    again, _ = start(it, 1.0)
    assert again.job.id == 0
    it.finish(again.number, good(0), 2.0)
    assert [(o.id, o.tries) for o in it.ready] == [(1, 1), (0, 2)]


def test_retries_are_counted_and_the_reason_is_told() -> None:
    it = scheduler(1, retries=1)
    it.submit(job(5), 0.0)
    for worker in (0, 1):
        (run,) = start(it)
        assert run.worker == worker
        it.leave(worker, "killed")
        it.join(worker + 1)
    (outcome,) = it.ready
    assert (outcome.id, outcome.scores, outcome.tries) == (5, None, 2)
    assert outcome.reason == "given up after 2 tries: killed"


def test_engines_that_never_answer_end_the_study() -> None:
    it = scheduler(1, retries=0)
    with pytest.raises(EngineError, match="5 were given up, the last since boom"):
        for worker in range(9):
            it.submit(job(worker), 0.0)
            start(it)
            it.leave(worker, "boom")
            it.join(worker + 1)
    assert worker == 4


def test_a_worker_that_doubts_alone_twice_is_condemned_and_two_are_believed() -> None:
    it = scheduler(2)
    bad = 0
    for number in range(2):
        it.submit(job(number), 0.0)
        (run,) = start(it)
        if run.worker != bad:  # keep it busy, so that the bad one is asked
            it.submit(job(100 + number), 0.0)
            (asked,) = start(it)
            it.finish(asked.number, doubtful(100 + number), 0.0)
            it.finish(run.number, good(number), 0.0)
        else:
            it.finish(run.number, doubtful(number), 0.0)
        (second,) = start(it)
        assert second.worker != bad
        it.finish(second.number, good(second.job.id), 0.0)
    assert list(it.condemned) == [bad]
    it.ready.clear()
    it.submit(job(7), 0.0)
    for _ in range(2):
        (run,) = start(it)
        it.finish(run.number, doubtful(7), 0.0)
    assert [(o.id, o.reason) for o in it.ready] == [(7, "not finite")]


def test_doubt_waits_for_a_worker_that_is_coming_but_not_for_one_that_is_not() -> None:
    it = scheduler(1)
    it.coming = 1
    for number in range(2):
        it.submit(job(number), 0.0)
    (run,) = start(it)
    it.finish(run.number, doubtful(0), 0.0)
    (other,) = start(it)  # the next job; the first waits
    it.finish(other.number, good(1), 0.0)
    assert start(it) == []
    it.coming = 0
    (again,) = start(it)  # nobody came
    it.finish(again.number, doubtful(0), 0.0)
    assert [(o.id, o.reason) for o in it.ready] == [(1, None), (0, "not finite")]


def test_slow_jobs_are_given_to_a_free_worker_and_the_first_answer_counts() -> None:
    limits = Limits(slow_floor=0.0)
    for _ in range(5):
        limits.add(4, 1.0)
    it = scheduler(2, limits=limits)
    it.submit(job(0), 0.0)
    (slow,) = start(it)
    assert list(it.assist(2.9)) == []
    (quick,) = it.assist(3.1)
    assert (quick.job.id, quick.worker) == (0, 1 - slow.worker)
    assert list(it.assist(99.0)) == []
    it.finish(quick.number, good(0), 4.0)
    it.finish(slow.number, Outcome(0, None, "too late"), 50.0)
    it.finish(slow.number, good(0), 51.0)
    assert [(o.id, o.reason) for o in it.ready] == [(0, None)]
    it.submit(job(1), 60.0)
    it.submit(job(2), 60.0)
    assert len(start(it, 60.0)) == 2  # both are free again


def test_limits_follow_the_definition() -> None:
    seconds = np.random.default_rng(0).uniform(10, 30, 40)
    limits = Limits(floor=1.0, slow_floor=0.1)
    assert limits.hung(8) == 3600.0
    assert limits.slow(8) is None
    for value in seconds:
        limits.add(8, float(value))
    assert limits.hung(8) == pytest.approx(10 * np.quantile(seconds, 0.95))
    assert limits.slow(8) == pytest.approx(3 * np.median(seconds))
    assert limits.hung(16) == pytest.approx(2 * limits.hung(8))  # by items, until it is known
    assert limits.hung(None) == 3600.0  # a whole split may have any number
    assert Limits(timeout=7.0).hung(8, first=True) == 7.0
    slow = Limits()
    for _ in range(5):
        slow.add(8, 0.01)
    assert (slow.hung(8), slow.hung(8, first=True), slow.slow(8)) == (60.0, 300.0, 5.0)
    assert size_of(job(0, 6)) == 6
    assert size_of(Job(0, {}, (Request("t", "search"),))) is None


def test_a_worker_hangs_after_its_time_even_with_a_job_that_another_has_answered() -> None:
    it = scheduler(2, limits=Limits(timeout=10.0))
    it.submit(job(0), 0.0)
    it.submit(job(1), 5.0)
    runs = start(it, 5.0)
    assert it.overdue(15.0) == []
    assert sorted(it.overdue(15.1)) == [(run.worker, 10.0) for run in runs]


def wrapped(cause: Exception) -> CandidateError:
    error = CandidateError(f"the weights could not be merged: {cause}")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (MemoryError(), ENGINE),
        (wrapped(MemoryError()), ENGINE),
        (wrapped(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")), ENGINE),
        (RuntimeError("CUDA error: device-side assert triggered"), ENGINE),
        (NotFiniteError("the log-likelihood of pair 3 is nan"), DOUBT),
        (NotFiniteError("tensor a has 3 values that are not finite"), DOUBT),
        (wrapped(NotFiniteError("a: a score is not finite")), DOUBT),
        (SourceError.of("models.sources.a", "no directory x", "a directory", "Fix."), DOUBT),
        (CandidateError("the merge has more blocks than the model"), ""),
        (ValueError("nance is infamous"), ""),
    ],
)
def test_faults_of_the_machine_are_told_from_the_candidates_own(
    error: Exception, fault: str
) -> None:
    assert fault_of(error) == fault
