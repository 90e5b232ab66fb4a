"""The worker actors of a study: starting, replacing and ending them."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from evomerge.executors.actor import Actor
from evomerge.executors.cluster import Needs
from evomerge.executors.worker import Job, Worker, WorkerSpec

_LOG = logging.getLogger(__name__)
_AGAIN = 5.0


@dataclass(frozen=True)
class Event:
    """A remote call that ended.

    Attributes:
        worker: whose.
        kind: `placed`, `started` or `answered`.
        run: number of the run, of an answer.
        value: what it returned.
        error: why it failed, else None.
        when: by the monotonic clock.
    """

    worker: int
    kind: str
    run: int
    value: Any
    error: BaseException | None
    when: float


@dataclass(eq=False)
class Member:
    """One worker.

    Attributes:
        id: never used again.
        index: of the place that it has in the study; the one that replaces it has the same.
        state: `placing`, `starting` or `ready`.
        node: where it is, once it is placed.
        since: when the state began.
    """

    id: int
    index: int
    actor: Any
    state: str = "placing"
    node: str = ""
    since: float = field(default_factory=time.monotonic)

    def turn(self, state: str) -> None:
        """Goes over to another state."""
        self.state, self.since = state, time.monotonic()


class Pool:
    """Keeps actors and tells of whatever becomes of them through a queue.

    Several GPUs of one worker are a placement group of one bundle, which is always on one
    node; the group stays with the worker's place when the worker is replaced, so that nobody
    takes the GPUs in between.

    Attributes:
        events: what has happened.
        members: workers by id.
        waiting: places without a worker, with the time at which another is tried.
        retired: places whose workers could not start, and the node of the last one.
    """

    def __init__(
        self, make: type[Worker], spec: WorkerSpec, needs: Needs, share_cores: int | None
    ) -> None:
        """Starts none yet.

        Args:
            make: the workers' class.
            spec: what each holds.
            needs: what each takes.
            share_cores: workers that share this machine's cores; None binds them to none.
        """
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.members: dict[int, Member] = {}
        self.waiting: dict[int, float] = {}
        self.retired: dict[int, str] = {}
        self._failures: dict[int, int] = {}
        self._groups: dict[int, Any] = {}
        self._make = make
        self._spec = spec
        self._needs = needs
        self._share_cores = share_cores
        self._count = 0

    def ready(self) -> int:
        """Workers that can be given jobs."""
        return sum(member.state == "ready" for member in self.members.values())

    def places(self) -> set[int]:
        """Indices that are taken, by a worker, one to come, or one that could not start."""
        return {m.index for m in self.members.values()} | set(self.waiting) | set(self.retired)

    def start(self, index: int) -> None:
        """Starts a worker at a place."""
        import ray

        self.waiting.pop(index, None)
        self._count += 1
        options: dict[str, Any] = {"num_cpus": self._needs.cpus, "max_restarts": 0}
        if self._needs.gpus:
            options["num_gpus"] = self._needs.gpus
        if self._needs.gpus > 1:
            options["scheduling_strategy"] = self._group(index)
        remote: Any = ray.remote(Actor).options(**options)
        actor = remote.remote(self._make, self._spec, str(index))
        self.members[self._count] = Member(self._count, index, actor)
        self._call(self._count, "placed", 0, actor.where.remote())

    def engine(self, member: Member, node: str) -> None:
        """Starts the engine of a worker that was placed."""
        member.node = node
        member.turn("starting")
        call = member.actor.start.remote(member.index, self._share_cores)
        self._call(member.id, "started", 0, call)

    def run(self, worker: int, run: int, job: Job) -> None:
        """Gives a worker a job."""
        self._call(worker, "answered", run, self.members[worker].actor.evaluate.remote(job))

    def serve(self, member: Member) -> None:
        """Takes note that a worker's engine has started."""
        self._failures.pop(member.index, None)
        member.turn("ready")

    def drop(self, worker: int) -> None:
        """Ends a worker, which may be dead already or not there any more."""
        import ray

        member = self.members.pop(worker, None)
        if member is not None:
            with contextlib.suppress(Exception):  # Ray says in many ways that it is dead
                ray.kill(member.actor)

    def replace(self, member: Member, failed: bool, most: int) -> bool:
        """Starts another worker at a place, at once or, where engines fail to start, later.

        Args:
            member: the one before.
            failed: whether it could not start.
            most: failures in a row after which the place is given up.

        Returns:
            Whether there is another.
        """
        index = member.index
        if not failed:
            self.start(index)
            return True
        self._failures[index] = self._failures.get(index, 0) + 1
        if self._failures[index] >= most:
            self.retired[index] = member.node
            self.release(index)
            return False
        return self.postpone(index)

    def postpone(self, index: int) -> bool:
        """Has another worker tried at a place a little later."""
        self.waiting[index] = time.monotonic() + _AGAIN
        return True

    def release(self, index: int) -> None:
        """Gives back what was kept for a place."""
        import ray

        group = self._groups.pop(index, None)
        if group is not None:
            with contextlib.suppress(Exception):
                ray.util.remove_placement_group(group)

    def close(self) -> None:
        """Ends all workers."""
        for worker in list(self.members):
            self.drop(worker)
        for index in list(self._groups):
            self.release(index)

    def _group(self, index: int) -> Any:
        from ray.util import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        if index not in self._groups:
            self._groups[index] = placement_group([self._needs.resources()])
        return PlacementGroupSchedulingStrategy(self._groups[index], 0)

    def _call(self, worker: int, kind: str, run: int, call: Any) -> None:
        """Has the end of a call told as an event; nothing is looked up or waited for."""

        def ended(future: Any) -> None:
            error = future.exception()
            value = None if error is not None else future.result()
            self.events.put(Event(worker, kind, run, value, error, time.monotonic()))

        call.future().add_done_callback(ended)
