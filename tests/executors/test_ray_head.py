"""A head that is lost is never asked for anything: Ray would wait for it, and end the process."""

from __future__ import annotations

import time
from typing import Any

import pytest

from evomerge.errors import EvomergeError
from evomerge.executors import ray as ray_module
from evomerge.executors.cluster import Needs
from evomerge.executors.pool import Event, Member, Pool
from evomerge.executors.ray import Pace, RayExecutor
from evomerge.executors.worker import Job, WorkerSpec


class LostCluster:
    """Has one node, and a head until somebody takes it away."""

    owned = False
    address = "127.0.0.1:6379"
    there = True

    def __init__(self, *_: Any) -> None:
        self.probes = 0

    def alive(self) -> bool:
        self.probes += 1
        return self.there

    def places(self, needs: Needs) -> dict[str, int]:
        assert self.there, "asked a head that is not there"
        return {"node": 1}

    def free(self, needs: Needs) -> int:
        assert self.there, "asked a head that is not there"
        return 1

    def close(self) -> None:
        pass


class IdlePool(Pool):
    """Its worker is ready at once, and never answers."""

    def start(self, index: int) -> None:
        self.members[1] = Member(1, index, None, "starting", "node")
        self.events.put(Event(1, "started", 0, None, None, time.monotonic()))

    def run(self, worker: int, run: int, job: Job) -> None:
        pass

    def drop(self, worker: int) -> None:
        del self.members[worker]


@pytest.mark.parametrize(
    ("head", "look"), [(60.0, 0.05), (0.05, 60.0), (0.05, 0.05)]
)  # which is due first
def test_a_lost_head_is_not_asked_for_its_nodes(
    head: float, look: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_module, "Cluster", LostCluster)
    monkeypatch.setattr(ray_module, "Pool", IdlePool)
    spec = WorkerSpec({}, "model", {}, 1, 0)
    pace = Pace(tick=0.01, head=head, patience=0.2, look=look, grace=0.0)
    executor = RayExecutor(spec, None, "127.0.0.1:6379", pace=pace)
    try:
        cluster: Any = executor._cluster
        cluster.there = False
        executor.submit(Job(0, {}, ()))
        with pytest.raises(EvomergeError, match=r"the head of .* does not answer any more"):
            executor.next()
        assert cluster.probes > 2
    finally:
        executor.close()
