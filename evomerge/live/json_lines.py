"""One JSON object a line on stderr, for other programs."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from evomerge.errors import EvomergeError, UserError
from evomerge.live.state import Failure, State

_EVERY = 1.0  # seconds between two lines of a phase


@dataclass
class JsonView:
    """Prints events; see docs/live.md for their keys. What Python logs becomes events, too."""

    _last: float = 0.0
    _logging: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        self._logging.enter_context(_captured(self._log))

    def message(self, text: str) -> None:
        """Prints a sentence."""
        self._print("message", text=text)

    def begin(self, state: State) -> None:
        """Prints that a phase begins."""
        self._last = 0.0
        self._print("phase", phase=state.phase, done=state.done, total=state.total, unit=state.unit)

    def update(self, state: State) -> None:
        """Prints how far the phase is, at most once a second and at its last step."""
        now = time.monotonic()
        if state.done == state.total or now - self._last >= _EVERY:
            self._last = now
            self._print("progress", **_facts(state))

    def end(self, state: State) -> None:
        """Prints where the phase ended."""
        self._print("phase_end", **_facts(state))

    def failure(self, failure: Failure) -> None:
        """Prints what failed and why."""
        self._print("failure", what=failure.what, reason=failure.reason)

    def close(self, error: BaseException | None) -> bool:
        """Prints how the study ended."""
        if isinstance(error, UserError):
            self._print("error", exit_code=error.exit_code,
                        problems=[asdict(p) for p in error.problems])  # fmt: skip
        elif isinstance(error, EvomergeError):
            self._print("error", exit_code=error.exit_code, text=str(error))
        elif isinstance(error, KeyboardInterrupt):
            self._print("interrupted")
        elif error is None:
            self._print("end")
        self._logging.close()
        return error is None or isinstance(error, EvomergeError | KeyboardInterrupt)

    def _log(self, record: logging.LogRecord) -> None:
        self._print("log", level=record.levelname.lower(), logger=record.name,
                    text=record.getMessage())  # fmt: skip

    def _print(self, event: str, **facts: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts})
        print(line, file=sys.stderr, flush=True)


def _facts(state: State) -> dict[str, Any]:
    """A state as plain data; what is not known is null."""
    search = state.search
    rates = state.rates
    facts: dict[str, Any] = {
        "phase": state.phase, "done": state.done, "total": state.total, "unit": state.unit,
        "elapsed": _rounded(state.elapsed), "left": _rounded(state.left),
        "rate": {
            "candidates_per_minute": None if rates.candidates is None
            else _rounded(60 * rates.candidates),
            "items_per_second": _rounded(rates.items),
            "tokens_per_second": _rounded(rates.tokens),
        },
        "workers": state.workers,
        "at_work": [
            {"id": w.id, "name": w.name, "seconds": _rounded(w.seconds)} for w in state.work
        ],
    }  # fmt: skip
    if search is not None:
        facts |= {
            "best": {k: _finite(v) for k, v in search.best.items()}, "feasible": search.feasible,
            "front": search.front, "failed": search.failed, "infeasible": search.infeasible,
            "stopped": search.stopped,
            "budget": {b.name: {"used": b.used, "limit": b.limit} for b in search.budgets},
        }  # fmt: skip
    return facts


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


@contextlib.contextmanager
def _captured(show: Any) -> Iterator[None]:
    """Hands what is logged and warned of to a function instead of the terminal."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            show(record)

    root, handler = logging.getLogger(), Handler(logging.WARNING)
    shown = warnings.showwarning
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        warnings.showwarning = shown
        root.removeHandler(handler)
