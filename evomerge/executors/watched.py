"""Tells whoever watches a study what its workers do."""

from __future__ import annotations

from typing import Protocol

from evomerge.executors.base import Executor
from evomerge.executors.worker import Job, Outcome


class Watcher(Protocol):
    """Is told of workers and jobs."""

    def employ(self, workers: int | None) -> None:
        """So many workers are there; None when they are gone."""

    def began(self, job: int) -> None:
        """A job was handed to a worker."""

    def ended(self, job: int, items: int, tokens: int, seconds: tuple[float, float] | None) -> None:
        """A job's outcome is here: items and tokens answered, seconds of merging and answering."""


class WatchedExecutor:
    """Passes everything on to another executor, and says so."""

    def __init__(self, executor: Executor, watcher: Watcher) -> None:
        self._executor = executor
        self._watcher = watcher
        watcher.employ(executor.workers)

    @property
    def workers(self) -> int:
        """How many there are now."""
        return self._executor.workers

    def submit(self, job: Job) -> None:
        """Queues a job."""
        self._watcher.began(job.id)
        self._executor.submit(job)

    def next(self) -> Outcome:
        """Waits for the next outcome.

        Raises:
            RuntimeError: if nothing was submitted.
        """
        outcome = self._executor.next()
        self._watcher.employ(self.workers)
        parts = outcome.scores or ()
        items = sum(len(part) for part in parts)
        tokens = sum(int(part.tokens.sum()) for part in parts)
        failed = outcome.scores is None
        seconds = None if failed else (outcome.merge_seconds, outcome.answer_seconds)
        self._watcher.ended(outcome.id, items, tokens, seconds)
        return outcome

    def close(self) -> None:
        """Stops the workers."""
        self._executor.close()
        self._watcher.employ(None)
