"""The interface of all executors."""

from __future__ import annotations

from typing import Protocol

from evomerge.executors.worker import Job, Outcome


class Executor(Protocol):
    """Takes jobs and hands back outcomes in whatever order they end."""

    @property
    def workers(self) -> int:
        """How many there are now, at least 1."""

    def submit(self, job: Job) -> None:
        """Queues a job; returns at once."""

    def next(self) -> Outcome:
        """Waits for the next outcome.

        Raises:
            RuntimeError: if nothing was submitted.
        """

    def close(self) -> None:
        """Stops the workers."""
