"""Shows how far a study is: a live view on a terminal, lines or JSON elsewhere."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from evomerge.controls import CONTROLS
from evomerge.errors import ConfigError
from evomerge.live.json_lines import JsonView
from evomerge.live.lines import LineView, QuietView
from evomerge.live.meter import Meter
from evomerge.live.state import Failure, Searching, State, Work
from evomerge.live.terminal import TerminalView, on_terminal
from evomerge.live.view import LOGS, View

_FAILURES = 20  # kept


def check_log(log: object) -> None:
    """Checks the key `log` of a config.

    Raises:
        ConfigError: if it is not one of `LOGS`.
    """
    if log not in LOGS:
        raise ConfigError.of("log", repr(log), f"one of {', '.join(LOGS)}", "Correct it.")


@dataclass
class Progress:
    """Collects what happens in a study and shows it.

    A study tells it of phases, of the standing of its search, of jobs that begin and end and of
    journal events; from these it makes the `State` that a view shows.

    Attributes:
        quiet: shows nothing.
        log: which view; one of `LOGS`.
    """

    quiet: bool = False
    log: str = "auto"
    clock: Callable[[], float] = time.monotonic
    _view: View | None = None
    _phase: str | None = None
    _done: int = 0
    _total: int | None = None
    _unit: str = "candidates"
    _begin: float = 0.0
    _first: int = 0
    _search: Searching | None = None
    _workers: int | None = None
    _jobs: dict[int, float] = field(default_factory=dict)
    _names: tuple[str, ...] = ()
    _failures: deque[Failure] = field(default_factory=lambda: deque(maxlen=_FAILURES))
    _meter: Meter = field(default_factory=Meter)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        check_log(self.log)

    # -- phases ---------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Shows a sentence that stays."""
        self.view.message(text)

    def start(
        self,
        label: str,
        done: int,
        total: int | None,
        unit: str = "candidates",
        search: Searching | None = None,
        names: Sequence[str] = (),
    ) -> None:
        """Begins a phase of `total` candidates or other things (None: not counted).

        `names` are those of its jobs, by number, where they have any.
        """
        with self._lock:
            self._phase = f"control: {label}" if label in CONTROLS else label
            self._done, self._total, self._first, self._unit = done, total, done, unit
            self._begin = self.clock()
            self._search, self._names = search, tuple(names)
            self._meter.reset(self._begin, done)
        self.view.begin(self.state())

    def show(self, search: Searching, done: int, total: int | None) -> None:
        """Shows how a search stands."""
        with self._lock:
            self._search = search
            self._went(done, total)
        self.view.update(self.state())

    def update(self, done: int, total: int | None, best: float | None, failed: int) -> None:
        """Shows a new state of a phase with at most one score."""
        found = {} if best is None else {"score": best}
        with self._lock:
            self._search = Searching(found, failed=failed) if found or failed else None
            self._went(done, total)
        self.view.update(self.state())

    def step(self, done: int, total: int, unit: str) -> None:
        """Shows a new state of a phase that has no score."""
        with self._lock:
            self._unit = unit
            self._went(done, total)
        self.view.update(self.state())

    def stop(self) -> None:
        """Ends the phase."""
        if self._phase is not None:
            self.view.end(self.state())
            self._phase = None

    # -- what happens in a study ----------------------------------------------------------

    def employ(self, workers: int | None) -> None:
        """So many workers are there; None when they are gone."""
        with self._lock:
            self._workers = workers
            if workers is None:
                self._jobs.clear()

    def began(self, job: int) -> None:
        """A job was handed to a worker."""
        with self._lock:
            self._jobs[job] = self.clock()

    def ended(self, job: int, items: int, tokens: int, seconds: tuple[float, float] | None) -> None:
        """A job's outcome is here.

        Args:
            job: its number.
            items: how many a model answered.
            tokens: how many it generated for them.
            seconds: of merging and of answering; None if the job failed.
        """
        with self._lock:
            self._jobs.pop(job, None)
            self._meter.answered(self.clock(), items, tokens, seconds)

    def hear(self, event: Mapping[str, Any]) -> None:
        """Takes an event of the journal: those that tell of a failure are shown."""
        if event.get("status") != "failed":
            return
        what = str(event["name"]) if "name" in event else f"candidate {event.get('id')}"
        failure = Failure(what, str(event.get("reason") or "no reason was given"))
        with self._lock:
            self._failures.append(failure)
        self.view.failure(failure)

    # -- what is shown --------------------------------------------------------------------

    @property
    def view(self) -> View:
        """What shows it; made when it is first needed."""
        if self._view is None:
            self._view = self._make_view()
        return self._view

    def state(self) -> State:
        """All that is known at the moment."""
        with self._lock:
            now = self.clock()
            work = sorted(
                (Work(i, now - since, self._name(i)) for i, since in self._jobs.items()),
                key=_longest,
            )
            return State(
                self._phase or "", self._done, self._total, self._unit, now - self._begin,
                self._left(now), self._search, self._meter.rates(), self._workers, tuple(work),
                self._meter.usual(), tuple(self._failures),
            )  # fmt: skip

    def _name(self, job: int) -> str | None:
        return self._names[job] if job < len(self._names) else None

    def _went(self, done: int, total: int | None) -> None:
        self._done, self._total = done, total
        self._meter.went(self.clock(), done)

    def _left(self, now: float) -> float | None:
        """Seconds until the first limit is reached, at the speed of the latest outcomes."""
        rates = self._meter.rates()
        speed = rates.candidates or (self._done - self._first) / max(now - self._begin, 1e-9)
        times = []
        if self._total is not None and speed > 0:
            times.append(max(0, self._total - self._done) / speed)
        for budget in self._search.budgets if self._search else ():
            if budget.name == "hours":
                times.append(3600 * budget.left)
        return min(times, default=None)

    def _make_view(self) -> View:
        if self.quiet or self.log == "quiet":
            return QuietView()
        if self.log == "json":
            return JsonView()
        if self.log == "auto" and on_terminal():
            return TerminalView(lambda: self.state() if self._phase is not None else None)
        return LineView()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if self._view is not None:
            shown = self._view.close(error)
            self._view = None
            if shown and error is not None:
                error.__dict__["shown"] = True  # the command line says nothing more


def _longest(work: Work) -> float:
    return -work.seconds
