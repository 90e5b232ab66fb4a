"""Evaluates candidates in this process, one after the other."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque

from evomerge.executors.cores import available
from evomerge.executors.faults import ENGINE
from evomerge.executors.worker import Job, Outcome, Worker, WorkerSpec

_LOG = logging.getLogger(__name__)


class SerialExecutor:
    """Runs one worker in this process; a broken engine is made anew once for a job."""

    workers = 1

    def __init__(self, spec: WorkerSpec) -> None:
        """Starts the engine.

        Raises:
            EngineError, ConfigError: if it cannot start.
        """
        cores = tuple(available()[: spec.threads])
        self._spec = spec
        self._cores = cores if len(cores) == spec.threads else None
        self._worker = Worker(spec, self._cores)
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
        job = self._jobs.popleft()
        outcome = self._worker.evaluate(job)
        if outcome.fault == ENGINE:
            _LOG.warning("the engine broke (%s); starting another", outcome.reason)
            self._worker.close()
            self._worker = Worker(self._spec, self._cores)
            outcome = dataclasses.replace(self._worker.evaluate(job), tries=2)
        return dataclasses.replace(outcome, roundtrip_seconds=time.perf_counter() - begin)

    def close(self) -> None:
        """Frees the engine."""
        self._worker.close()
