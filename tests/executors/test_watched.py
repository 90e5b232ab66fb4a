"""What a watcher is told of workers and jobs, whatever the executor below does."""

from __future__ import annotations

import numpy as np

from evomerge.executors.watched import WatchedExecutor
from evomerge.executors.worker import Job, Outcome
from evomerge.progress import Progress
from evomerge.types import ItemScores


def scores(items: int, tokens: int) -> ItemScores:
    filled = np.full(items, 0.5)
    ids = tuple(map(str, range(items)))
    return ItemScores("t", "search", ids, filled, filled, ids, np.full(items, tokens))


class Queue:
    """Answers the latest job first; a worker joins after the first outcome."""

    def __init__(self) -> None:
        self.workers = 2
        self.jobs: list[Job] = []
        self.closed = False

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def next(self) -> Outcome:
        job = self.jobs.pop()
        self.workers = 3
        if job.id == 7:
            return Outcome(job.id, None, "no memory", merge_seconds=9.0)
        return Outcome(job.id, (scores(3, 5), scores(2, 1)), None, 0.25, 1.5)

    def close(self) -> None:
        self.closed = True


def test_a_watcher_follows_the_jobs() -> None:
    progress, below = Progress(quiet=True, clock=iter(range(100)).__next__), Queue()
    progress.start("search", 0, 3)
    executor = WatchedExecutor(below, progress)
    assert progress.state().workers == 2
    for i in (5, 6, 7):
        executor.submit(Job(i, {}, ()))
    assert [w.id for w in progress.state().work] == [5, 6, 7]  # the longest at work first
    assert executor.next().id == 7
    assert progress.state().usual is None  # a failed job says nothing of the usual time
    assert executor.next().id == 6
    state = progress.state()
    assert [w.id for w in state.work] == [5]
    assert state.workers == executor.workers == 3
    assert state.usual == (0.25, 1.5)
    assert state.rates.items is not None and state.rates.tokens is not None
    assert state.rates.tokens / state.rates.items == (3 * 5 + 2 * 1) / 5
    executor.close()
    assert below.closed and progress.state().workers is None and progress.state().work == ()
