"""Evaluates candidates in this process, one after the other."""

from __future__ import annotations

import dataclasses
import time
from collections import deque

from evomerge.executors.cores import available
from evomerge.executors.worker import Job, Outcome, Worker, WorkerSpec


class SerialExecutor:
    """Runs one worker in this process."""

    workers = 1

    def __init__(self, spec: WorkerSpec) -> None:
        """Starts the engine.

        Raises:
            EngineError, ConfigError: if it cannot start.
        """
        cores = tuple(available()[: spec.threads])
        self._worker = Worker(spec, cores if len(cores) == spec.threads else None)
        self._jobs: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Queues a job."""
        self._jobs.append(job)

    def next(self) -> Outcome:
        """Evaluates the oldest job.

        Raises:
            RuntimeError: if nothing was submitted.
        """
        if not self._jobs:
            raise RuntimeError("next: no job was submitted")
        begin = time.perf_counter()
        outcome = self._worker.evaluate(self._jobs.popleft())
        return dataclasses.replace(outcome, roundtrip_seconds=time.perf_counter() - begin)

    def close(self) -> None:
        """Frees the engine."""
        self._worker.close()
