"""Evaluates candidates in Ray actors that each hold an engine, whatever becomes of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from queue import Empty
from typing import Any

from evomerge.errors import ConfigError, EngineError, EvomergeError, UserError
from evomerge.executors.cluster import Cluster, Needs
from evomerge.executors.faults import ENGINE
from evomerge.executors.limits import Limits
from evomerge.executors.pool import Event, Member, Pool
from evomerge.executors.scheduler import Run, Scheduler
from evomerge.executors.worker import Job, Outcome, Worker, WorkerSpec

_LOG = logging.getLogger(__name__)
_START_LIMIT = 3600.0
_START_TRIES = 3


@dataclass(frozen=True)
class Pace:
    """How often the executor looks after its workers, in seconds.

    Attributes:
        tick: for jobs that hang or are slow.
        head: for the cluster's head.
        patience: with a head that does not answer. Ray itself ends the process after 60 s.
        look: for nodes that came or left.
        grace: for a worker to be placed, before a study begins with those that are there.
    """

    tick: float = 0.5
    head: float = 2.0
    patience: float = 20.0
    look: float = 3.0
    grace: float = 15.0


class RayExecutor:
    """Runs worker actors on a cluster; only recipes and scores travel.

    A worker that dies, hangs, breaks its engine or keeps giving answers that are not finite is
    replaced, and its job given to another: at most `retries` times, then it is reported as failed.
    Slow jobs are given to a second worker. No fault changes an outcome's scores.

    With a number of workers, each that is lost is replaced as soon as the cluster has room.
    Without one there are as many as the cluster has room for: nodes may come and go. While there
    is no worker at all, jobs wait for one for a while.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        workers: int | None,
        address: str | None = None,
        gpus_per_worker: float = 0.0,
        retries: int = 2,
        *,
        max_workers: int | None = None,
        limits: Limits | None = None,
        wait: float = 300.0,
        make: type[Worker] = Worker,
        pace: Pace | None = None,
    ) -> None:
        """Starts or joins a cluster and starts the workers.

        Args:
            spec: what each worker holds.
            workers: number of actors, at least 1; None for as many as have room.
            address: of a running cluster; None starts one on this machine.
            gpus_per_worker: GPUs of each worker, all on one node; below 1, a share of one.
            retries: how often a job is tried again after its worker was lost.
            max_workers: most actors where `workers` is None.
            limits: how long jobs may take; None learns it.
            wait: seconds to wait while there is no worker.
            make: the workers' class.
            pace: how often to look after the workers.

        Raises:
            ConfigError: if the cluster cannot start or be reached, or is too small.
            EngineError: if no engine can start.
        """
        self._needs = Needs(spec.threads, gpus_per_worker)
        self._wanted = workers
        self._most = max_workers
        self._wait = wait
        self._pace = pace or Pace()
        self._scheduler = Scheduler(retries, limits or Limits())
        self._served = False
        self._lost_head = False
        self._cause: BaseException | None = None
        self._cluster = Cluster(address, (workers or 1) * spec.threads)
        local = workers if self._cluster.owned and not gpus_per_worker else None
        self._pool = Pool(make, spec, self._needs, local)
        now = time.monotonic()
        self._ticked = self._looked = self._probed = self._answered = now
        self._idle_since: float | None = now
        self._said = 0.0
        try:
            self._check_room()
            self._recruit(now)
            self._await_engines()
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> int:
        """Workers that can be given jobs now, at least 1."""
        return max(1, self._pool.ready())

    def submit(self, job: Job) -> None:
        """Gives a job to a free worker, or queues it."""
        now = time.monotonic()
        self._scheduler.submit(job, now)
        self._begin(self._scheduler.assign(now))

    def next(self) -> Outcome:
        """Waits for whichever job ends first.

        Raises:
            RuntimeError: if nothing was submitted.
            EvomergeError: if the cluster's head or all workers are lost; or EngineError, if no
                engine can start any more.
        """
        while not self._scheduler.ready:
            if not self._scheduler.pending:
                raise RuntimeError("next: no job was submitted")
            self._step()
        return self._scheduler.ready.popleft()

    def close(self) -> None:
        """Stops the workers, and the cluster if it was started here."""
        if not self._lost_head:  # nobody is there who could be asked to
            self._pool.close()
        self._cluster.close()

    # -- what happens ---------------------------------------------------------------------

    def _step(self) -> None:
        """Waits for an event or the next tick, and does what is due."""
        try:
            self._take(self._pool.events.get(timeout=self._pace.tick))
            while True:  # all of them, or a worker might be said to hang that has answered
                self._take(self._pool.events.get_nowait())
        except Empty:
            pass
        now = time.monotonic()
        if now - self._ticked >= self._pace.tick:
            self._ticked = now
            self._tick(now)
        self._begin(self._scheduler.assign(now))

    def _take(self, event: Event) -> None:
        member = self._pool.members.get(event.worker)
        if member is None:
            return  # of a worker that was given up
        now = event.when
        if event.error is not None:
            if event.kind == "answered" or not self._served:
                _raise_mistake(event.error)
            self._lose(member, _reason(event.error), now, event.error)
        elif event.kind == "placed":
            self._pool.engine(member, event.value[0])
        elif event.kind == "started":
            self._pool.serve(member)
            self._served = True
            self._idle_since = None
            self._scheduler.join(member.id)
            self._count_coming()
        elif event.value.fault == ENGINE:
            self._lose(member, event.value.reason, now, None)
        else:
            self._scheduler.finish(event.run, event.value, now)
            while self._scheduler.condemned:
                bad = self._pool.members[self._scheduler.condemned.popleft()]
                self._lose(bad, "its answers are not finite where others' are", now, None)

    def _lose(self, member: Member, reason: str, now: float, error: BaseException | None) -> None:
        """Ends a worker, gives its job to others and starts another in its place."""
        starting = member.state != "ready"
        self._pool.drop(member.id)
        if starting:
            self._cause = error or self._cause
        another = self._replace(member, starting)
        _LOG.warning(
            "worker %d is lost (%s); %s", member.index, reason,
            "starting another" if another else "it is not replaced",
        )  # fmt: skip
        if not self._pool.ready() and self._idle_since is None:
            self._idle_since = now
        self._count_coming()
        self._scheduler.leave(member.id, reason)
        if not self._pool.members and not self._pool.waiting and self._pool.retired:
            raise self._no_engine()

    def _replace(self, member: Member, failed: bool) -> bool:
        if not self._cluster.alive():  # or Ray would wait for the head
            return self._pool.postpone(member.index)
        if not self._served:  # engines that never worked are not tried again and again
            return self._pool.replace(member, failed, 1)
        return self._pool.replace(member, failed, _START_TRIES)

    def _begin(self, runs: Iterable[Run]) -> None:
        for run in runs:
            self._pool.run(run.worker, run.number, run.job)

    # -- what is due ----------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        for worker, limit in self._scheduler.overdue(now):
            member = self._pool.members[worker]
            self._lose(member, f"no answer within {limit:.0f} s", now, None)
        for member in list(self._pool.members.values()):
            if member.state == "starting" and now - member.since > _START_LIMIT:
                self._lose(member, f"no engine within {_START_LIMIT:.0f} s", now, None)
        self._begin(self._scheduler.assist(now))
        if now - self._looked >= self._pace.look:
            self._looked = now
            if self._probe():  # at once before, or Ray would wait for the head, and end us
                self._recruit(now)
        elif now - self._probed >= self._pace.head:
            self._probe()
        self._count_coming()
        self._check_hope(now)

    def _probe(self) -> bool:
        """Whether the head is there now."""
        self._probed = time.monotonic()
        if self._cluster.alive():
            self._answered = time.monotonic()
            return True
        if self._probed - self._answered > self._pace.patience:
            self._lost_head = True
            raise EvomergeError(
                f"the head of the Ray cluster at {self._cluster.address} does not answer any more. "
                "What was recorded is whole; start the cluster again and run the same command "
                "to go on."
            )
        return False

    def _recruit(self, now: float) -> None:
        """Starts workers where there is room for them."""
        pool = self._pool
        for index, due in list(pool.waiting.items()):
            if now >= due:
                pool.start(index)
        if self._wanted is not None:
            for index in set(range(self._wanted)) - pool.places():
                pool.start(index)
            return
        places = self._cluster.places(self._needs)
        self._forget_the_gone(places)
        taken = [m.node for m in pool.members.values()] + list(pool.retired.values())
        room = sum(max(0, count - taken.count(node)) for node, count in places.items())
        room -= taken.count("") + len(pool.waiting)
        room = min(room, self._cluster.free(self._needs) - taken.count(""))
        used = pool.places()
        if self._most is not None:
            room = min(room, self._most - len(used))
        new = sorted(set(range(len(used) + max(room, 0))) - used)[: max(room, 0)]
        for index in new:
            pool.start(index)
        if new and self._served:
            _LOG.warning("the cluster has room for %d more worker(s); starting them", len(new))

    def _forget_the_gone(self, places: dict[str, int]) -> None:
        """Lets go of places of which there are more than there is room for, nodes having left."""
        pool = self._pool
        for index, node in list(pool.retired.items()):
            if node not in places:
                del pool.retired[index]
        spare = len(pool.places()) - sum(places.values())
        unplaced = [m for m in pool.members.values() if m.state == "placing"]
        for member in unplaced[: max(0, spare)]:
            pool.drop(member.id)
            pool.release(member.index)

    def _check_hope(self, now: float) -> None:
        """Ends the wait for a worker when it has lasted too long.

        Engines that are being started are waited for.
        """
        starting = any(m.state == "starting" for m in self._pool.members.values())
        if self._idle_since is None or starting or self._pool.ready():
            return
        waited = now - self._idle_since
        if waited > self._wait:
            raise EvomergeError(
                f"no worker had room in the Ray cluster at {self._cluster.address} for "
                f"{self._wait:.0f} s (each needs {_listed(self._needs)}). What was recorded is "
                "whole; the same command goes on once there are nodes. executor.wait sets how "
                "long to wait."
            )
        if now - self._said >= 30.0 and waited > min(self._pace.grace, self._wait / 2):
            self._said = now
            _LOG.warning(
                "no worker is left; waiting for a node with %s (%.0f of %.0f s)",
                _listed(self._needs), waited, self._wait,
            )  # fmt: skip

    # -- the beginning --------------------------------------------------------------------

    def _check_room(self) -> None:
        """Refuses a cluster of this machine that could never hold the workers."""
        if not self._cluster.owned:
            return
        room = sum(self._cluster.places(self._needs).values())
        if self._wanted is not None and room < self._wanted:
            raise ConfigError.of(
                "executor.workers",
                f"{self._wanted} workers that need {_listed(self._needs)} each",
                f"at most {room}, for which there is room",
                "Use fewer workers or threads, or a larger cluster.",
            )

    def _await_engines(self) -> None:
        """Waits until a worker is ready and no other is about to be."""
        while not self._pool.ready() or any(map(self._is_coming, self._pool.members.values())):
            self._step()
        if self._wanted is not None and self._pool.ready() < self._wanted:
            _LOG.warning(
                "%d of %d workers have room in the cluster; the others start when there is more",
                self._pool.ready(), self._wanted,
            )  # fmt: skip

    def _is_coming(self, member: Member) -> bool:
        """Whether a worker is on its way; one that finds no room in a while is not."""
        placing = member.state == "placing" and (
            self._cluster.owned or time.monotonic() - member.since < self._pace.grace
        )
        return placing or member.state == "starting"

    def _count_coming(self) -> None:
        coming = sum(map(self._is_coming, self._pool.members.values()))
        self._scheduler.coming = coming + len(self._pool.waiting)

    def _no_engine(self) -> EngineError:
        cause = getattr(self._cause, "cause", None) or self._cause
        return EngineError(f"no worker can start its engine: {cause}")


def _raise_mistake(error: BaseException) -> None:
    """Raises what a worker said of the study's own settings as it was raised there."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        raise cause from error


def _reason(error: BaseException) -> str:
    """One line of why a call failed."""
    cause: Any = getattr(error, "cause", None) or error
    if isinstance(cause, EngineError):
        return f"its engine broke: {cause}"[:300]
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    first = lines[0] if lines else ""
    return f"{type(cause).__name__}: {first}"[:300]


def _listed(needs: Needs) -> str:
    names = {"CPU": "core(s)", "GPU": "GPU(s)"}
    return " and ".join(f"{count:g} {names[k]}" for k, count in needs.resources().items())
