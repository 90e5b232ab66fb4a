"""The Ray side of a worker."""

from __future__ import annotations

import os
from dataclasses import replace

from evomerge.executors.cores import share
from evomerge.executors.worker import Job, Outcome, Worker, WorkerSpec

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Actor:
    """Lives on a node; makes its engine when it is told to, so that it is known where it is."""

    def __init__(self, make: type[Worker], spec: WorkerSpec, label: str) -> None:
        """Only sets the environment.

        Args:
            make: the worker's class.
            spec: what it holds.
            label: what this worker is called.
        """
        # torch and vLLM read these when they are imported, which is later than here.
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(spec.threads)))
        os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
        self._make = make
        self._spec = spec
        self._label = label
        self._worker: Worker | None = None

    def where(self) -> tuple[str, str]:
        """Id and address of the node that it was placed on."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        address = str(ray.util.get_node_ip_address())
        self._label = f"{self._label}@{address}"
        return node, address

    def start(self, index: int, workers: int | None) -> None:
        """Starts the engine.

        Args:
            index: number of this worker on this machine.
            workers: how many share the machine's cores; None leaves the cores to the system.
        """
        cores = None
        if workers is not None:
            mine = share(index, workers)[: self._spec.threads]
            cores = mine if len(mine) == self._spec.threads else None
            if cores is not None and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, cores)
        self._worker = self._make(self._spec, cores)

    def evaluate(self, job: Job) -> Outcome:
        """Merges, answers and scores."""
        if self._worker is None:
            raise RuntimeError("evaluate: the worker was not started")
        return replace(self._worker.evaluate(job), worker=self._label)
