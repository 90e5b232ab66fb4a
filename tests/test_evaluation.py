"""Outcomes in the order of their jobs, or as they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.evaluation import Pipeline
from evomerge.executors.worker import Job, Outcome


class Drawn:
    """An executor whose next outcome is that of any job at work."""

    def __init__(self, workers: int, draw: st.DataObject) -> None:
        self.workers, self._draw = workers, draw
        self.at_work: list[int] = []
        self.ended: list[int] = []

    def submit(self, job: Job) -> None:
        self.at_work.append(job.id)
        assert len(self.at_work) <= self.workers

    def next(self) -> Outcome:
        number = self._draw.draw(st.sampled_from(self.at_work))
        self.at_work.remove(number)
        self.ended.append(number)
        return Outcome(number, ())

    def close(self) -> None:
        """Nothing to stop."""


@given(st.data(), st.integers(1, 5), st.integers(1, 12), st.booleans())
def test_every_outcome_comes_once_and_workers_have_what_there_is(data, workers, jobs, by_arrival):
    executor = Drawn(workers, data)
    pipeline = Pipeline(executor, by_arrival)
    for number in range(jobs):
        pipeline.add(Job(number, {}, ()))
    found = []
    while len(pipeline):
        left = jobs - len(executor.ended)
        assert len(executor.at_work) == min(workers, left)
        found.append(pipeline.next().id)
    assert found == (executor.ended if by_arrival else list(range(jobs)))
    with pytest.raises(RuntimeError):
        pipeline.next()
