"""Decides which worker gets which job, and what an answer or its absence means.

Pure bookkeeping: it starts nothing, waits for nothing and reads no clock.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from evomerge.errors import EngineError
from evomerge.executors.faults import DOUBT
from evomerge.executors.limits import Limits, size_of
from evomerge.executors.worker import Job, Outcome

_LOG = logging.getLogger(__name__)
_STRIKES = 2
_HOPELESS = 5


@dataclass(eq=False)
class _Ticket:
    """A job on its way to its one outcome.

    Attributes:
        size: number of its items, None for whole splits.
        faults: how many workers it lost.
        avoid: workers that it was lost on or that gave a doubtful answer.
        doubted: such an answer with its worker.
        runs: of it that are at work.
        settled: its outcome was handed back.
    """

    job: Job
    size: int | None
    submitted: float
    faults: int = 0
    avoid: set[int] = field(default_factory=set)
    doubted: tuple[int, Outcome] | None = None
    runs: int = 0
    settled: bool = False


@dataclass(frozen=True)
class Run:
    """A job on a worker.

    Attributes:
        number: of the run; no two have the same.
        first: it is the worker's first.
    """

    number: int
    worker: int
    job: Job
    begin: float
    first: bool
    ticket: _Ticket


class Scheduler:
    """Gives jobs to free workers in order, each answered exactly once.

    A job that was lost with its worker goes first to the next free worker, up to a limit. A
    doubtful answer (not finite, or a source that could not be read) is believed when a second
    worker gives one as well; a worker that keeps giving them where others do not is condemned. A
    slow job is given to a free worker, too, and the first answer counts.

    Workers are numbers that are never used again.

    Attributes:
        ready: outcomes to hand back.
        condemned: workers to replace.
        coming: workers that are about to join; doubtful jobs wait for them.
    """

    def __init__(self, retries: int, limits: Limits) -> None:
        """Knows no worker and no job yet.

        Args:
            retries: how often a job is tried again after a worker was lost with it.
            limits: how long jobs may take.
        """
        self.ready: deque[Outcome] = deque()
        self.condemned: deque[int] = deque()
        self.coming = 0
        self._retries = retries
        self._limits = limits
        self._queue: deque[_Ticket] = deque()
        self._idle: dict[int, None] = {}
        self._runs: dict[int, Run] = {}
        self._run_of: dict[int, int] = {}
        self._strikes: dict[int, int] = {}
        self._unused: set[int] = set()
        self._count = 0
        self._open = 0
        self._successes = 0
        self._given_up = 0

    @property
    def pending(self) -> int:
        """Jobs that were not answered yet."""
        return self._open

    def submit(self, job: Job, now: float) -> None:
        """Queues a job."""
        self._queue.append(_Ticket(job, size_of(job), now))
        self._open += 1

    def join(self, worker: int) -> None:
        """Takes a worker that is free from now on."""
        self._strikes[worker] = 0
        self._unused.add(worker)
        self._idle[worker] = None

    def leave(self, worker: int, reason: str) -> None:
        """Lets go of a worker; its job goes to another.

        Raises:
            EngineError: if several jobs were given up and none was ever answered.
        """
        self._strikes.pop(worker, None)
        self._idle.pop(worker, None)
        self._unused.discard(worker)
        number = self._run_of.pop(worker, None)
        if number is None:
            return
        ticket = self._runs.pop(number).ticket
        ticket.runs -= 1
        if ticket.settled:
            return
        ticket.faults += 1
        ticket.avoid.add(worker)
        if ticket.faults > self._retries:
            self._give_up(ticket, reason)
        elif not ticket.runs:
            self._queue.appendleft(ticket)

    def assign(self, now: float) -> Iterator[Run]:
        """Starts queued jobs on free workers."""
        held: list[_Ticket] = []
        while self._queue and self._idle:
            ticket = self._queue.popleft()
            worker = self._free_for(ticket)
            if ticket.settled:
                continue
            if worker is None:
                held.append(ticket)
            else:
                yield self._start(ticket, worker, now)
        self._queue.extendleft(reversed(held))

    def assist(self, now: float) -> Iterator[Run]:
        """Starts slow jobs a second time on workers that nothing is queued for."""
        if self._queue or not self._idle:
            return
        for run in list(self._runs.values()):
            limit = self._limits.slow(run.ticket.size)
            if limit is None or run.ticket.settled or run.ticket.runs > 1:
                continue
            worker = self._free_for(run.ticket) if now - run.begin > limit else None
            if worker is not None:
                _LOG.warning(
                    "candidate %d has been at work for %.0f s; another worker gets it, too",
                    run.job.id, now - run.begin,
                )  # fmt: skip
                yield self._start(run.ticket, worker, now)

    def overdue(self, now: float) -> list[tuple[int, float]]:
        """Workers that hang, and the seconds that they were given."""
        found = []
        for run in self._runs.values():
            limit = self._limits.hung(run.ticket.size, run.first)
            if now - run.begin > limit:
                found.append((run.worker, limit))
        return found

    def finish(self, number: int, outcome: Outcome, now: float) -> None:
        """Takes the answer of a run; one that is not expected any more counts for nothing.

        Its `fault` may not be that of a broken engine: such a worker leaves.
        """
        run = self._runs.pop(number, None)
        if run is None:
            _LOG.info("an answer to candidate %d came twice; the first counts", outcome.id)
            return
        ticket, worker = run.ticket, run.worker
        del self._run_of[worker]
        self._unused.discard(worker)
        self._idle[worker] = None
        ticket.runs -= 1
        if outcome.scores is not None:
            self._limits.add(ticket.size, now - run.begin)
            self._successes += 1
        if ticket.settled:
            return
        if outcome.fault == DOUBT and self._doubt(ticket, worker, outcome):
            return
        if ticket.doubted is not None and outcome.scores is not None:
            self._strike(ticket.doubted[0])
        answered = replace(outcome, roundtrip_seconds=now - run.begin)
        self._settle(ticket, answered, ticket.faults + 1)

    def _doubt(self, ticket: _Ticket, worker: int, outcome: Outcome) -> bool:
        """Whether another worker is to be asked before an answer is believed."""
        others = any(other not in ticket.avoid | {worker} for other in self._strikes)
        if ticket.doubted is not None or not (others or ticket.runs or self.coming):
            return False
        ticket.doubted = (worker, outcome)
        ticket.avoid.add(worker)
        if not ticket.runs:
            self._queue.appendleft(ticket)
        return True

    def _strike(self, worker: int) -> None:
        if worker not in self._strikes:
            return  # it has left
        self._strikes[worker] += 1
        if self._strikes[worker] == _STRIKES:
            self.condemned.append(worker)

    def _give_up(self, ticket: _Ticket, reason: str) -> None:
        tries = ticket.faults
        text = f"given up after {tries} {'try' if tries == 1 else 'tries'}: {reason}"
        self._given_up += 1
        if self._given_up >= _HOPELESS and not self._successes:
            raise EngineError(
                f"no candidate could be evaluated; {self._given_up} were given up, the last since "
                f"{reason}"
            )
        self._settle(ticket, Outcome(ticket.job.id, None, text[:500]), tries)

    def _settle(self, ticket: _Ticket, outcome: Outcome, tries: int) -> None:
        ticket.settled = True
        self._open -= 1
        self.ready.append(replace(outcome, id=ticket.job.id, tries=tries))

    def _free_for(self, ticket: _Ticket) -> int | None:
        """A free worker; one that the job was lost on only if there is no other at all."""
        for worker in self._idle:
            if worker not in ticket.avoid:
                return worker
        wait = ticket.doubted is not None and self.coming > 0
        if not wait and all(worker in ticket.avoid for worker in self._strikes):
            return next(iter(self._idle), None)
        return None

    def _start(self, ticket: _Ticket, worker: int, now: float) -> Run:
        del self._idle[worker]
        self._count += 1
        run = Run(self._count, worker, ticket.job, now, worker in self._unused, ticket)
        self._runs[run.number] = run
        self._run_of[worker] = run.number
        ticket.runs += 1
        return run
