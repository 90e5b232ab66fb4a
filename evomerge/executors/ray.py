"""Evaluates candidates in Ray actors that each hold an engine."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections import deque
from typing import Any

from evomerge.errors import ConfigError, EngineError, UserError
from evomerge.executors.cores import share
from evomerge.executors.worker import Job, Outcome, Worker, WorkerSpec

_LOG = logging.getLogger(__name__)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class RayExecutor:
    """Runs N worker actors; only recipes and scores travel.

    A worker that dies is replaced and its job tried again `retries` times, then reported as
    failed.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        workers: int,
        address: str | None = None,
        gpus_per_worker: float = 0.0,
        retries: int = 2,
    ) -> None:
        """Starts or joins a cluster and starts the workers.

        Args:
            spec: what each worker holds.
            workers: number of actors, at least 1.
            address: of a running cluster; None starts one on this machine.
            gpus_per_worker: share of a GPU that each worker takes.
            retries: how often a job is tried again after its worker died.

        Raises:
            ConfigError: if Ray cannot start or be reached.
            EngineError: if the engines cannot start.
        """
        import ray

        self.workers = workers
        self._spec = spec
        self._retries = retries
        self._gpus = gpus_per_worker
        self._local = address is None and gpus_per_worker == 0
        self._owns_cluster = not ray.is_initialized()
        if self._owns_cluster:
            _start_ray(address, workers * spec.threads)
        self._check_resources()
        self._jobs: deque[Job] = deque()
        self._tries: dict[int, int] = {}
        self._running: dict[Any, tuple[int, Job, float]] = {}
        self._actors = [self._start_actor(i) for i in range(workers)]
        self._idle = list(range(workers))
        self._await_engines()

    def submit(self, job: Job) -> None:
        """Gives a job to a free worker, or queues it."""
        self._jobs.append(job)
        self._dispatch()

    def next(self) -> Outcome:
        """Waits for whichever job ends first.

        Raises:
            RuntimeError: if nothing was submitted.
        """
        import ray

        while self._running:
            done, _ = ray.wait(list(self._running), num_returns=1)
            index, job, begin = self._running.pop(done[0])
            try:
                outcome: Outcome = ray.get(done[0])
            except ray.exceptions.RayError as error:
                _reraise_mistake(error)
                retried = self._recover(index, job, error)
                if retried is None:
                    continue
                return retried
            self._idle.append(index)
            self._dispatch()
            return dataclasses.replace(outcome, roundtrip_seconds=time.perf_counter() - begin)
        raise RuntimeError("next: no job was submitted")

    def close(self) -> None:
        """Stops the workers, and the cluster if it was started here."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        if self._owns_cluster:
            ray.shutdown()

    def _check_resources(self) -> None:
        """Refuses a cluster that could never hold the workers."""
        import ray

        have = ray.cluster_resources()
        needs = {"CPU": self.workers * self._spec.threads, "GPU": self.workers * self._gpus}
        for kind, count in needs.items():
            if count > have.get(kind, 0.0):
                raise ConfigError.of(
                    "executor.workers",
                    f"{self.workers} workers that need {count:g} {kind}(s) in all",
                    f"at most the cluster's {have.get(kind, 0.0):g} {kind}(s)",
                    "Use fewer workers or threads, or a larger cluster.",
                )  # fmt: skip

    def _dispatch(self) -> None:
        while self._jobs and self._idle:
            index, job = self._idle.pop(0), self._jobs.popleft()
            ref = self._actors[index].evaluate.remote(job)
            self._running[ref] = (index, job, time.perf_counter())

    def _recover(self, index: int, job: Job, error: Exception) -> Outcome | None:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        _LOG.warning("worker %d died on candidate %d (%s); starting another", index, job.id, reason)
        self._actors[index] = self._start_actor(index)
        self._idle.append(index)
        tries = self._tries[job.id] = self._tries.get(job.id, 0) + 1
        if tries <= self._retries:
            self._jobs.appendleft(job)
            self._dispatch()
            return None
        self._dispatch()
        return Outcome(job.id, None, f"the worker died {tries} times: {reason}"[:500])

    def _start_actor(self, index: int) -> Any:
        import ray

        options: dict[str, Any] = {"num_cpus": self._spec.threads}
        if self._gpus:
            options["num_gpus"] = self._gpus
        actor = ray.remote(_Actor).options(**options)
        return actor.remote(self._spec, index, self.workers if self._local else None)

    def _await_engines(self) -> None:
        import ray

        try:
            ray.get([actor.ready.remote() for actor in self._actors])
        except ray.exceptions.RayError as error:
            self.close()
            _reraise_mistake(error)
            cause = getattr(error, "cause", None) or error
            raise EngineError(f"a worker could not start its engine: {cause}") from error


class _Actor:
    """The Ray side of a worker."""

    def __init__(self, spec: WorkerSpec, index: int, workers: int | None) -> None:
        # torch and vLLM read these when they are imported, which is later than here.
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(spec.threads)))
        os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
        cores = None
        if workers is not None:
            mine = share(index, workers)[: spec.threads]
            cores = mine if len(mine) == spec.threads else None
            if cores is not None and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, cores)
        self._worker = Worker(spec, cores)

    def ready(self) -> bool:
        return True

    def evaluate(self, job: Job) -> Outcome:
        return self._worker.evaluate(job)


def _reraise_mistake(error: Exception) -> None:
    """Raises what a worker said of the study's own settings as it was raised there."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError | EngineError):
        raise cause from error


def _start_ray(address: str | None, cpus: int) -> None:
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if address is None:
            ray.init(
                address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False,
                logging_level=logging.ERROR, _node_ip_address="127.0.0.1",
            )  # fmt: skip
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigError.of(
            "executor.address", f"{address or 'a local cluster'}: {error}",
            "a Ray cluster that starts or can be reached",
            "Start one with `ray start --head`, or leave executor.address empty.",
        ) from error  # fmt: skip
