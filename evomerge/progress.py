"""Shows how far a study is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

_LINE_EVERY = 10.0


@dataclass
class Progress:
    """Reports phases and, within a search, best score, rate and time left."""

    quiet: bool = False
    _bar: Any = None
    _task: Any = None
    _label: str = ""
    _last_line: float = 0.0
    _begin: float = 0.0
    _first: int = 0
    _plain: bool = field(default_factory=lambda: not sys.stderr.isatty())

    def say(self, text: str) -> None:
        """Prints one line."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def start(self, label: str, done: int, total: int | None) -> None:
        """Begins a phase of `total` candidates (None if only time limits it)."""
        self._label, self._first = label, done
        self._begin = time.monotonic()
        self._last_line = 0.0
        if self.quiet or self._plain:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"), console=Console(stderr=True),
        )  # fmt: skip
        self._bar.start()
        self._task = self._bar.add_task(label, total=total, completed=done, note="")

    def update(self, done: int, total: int | None, best: float | None, failed: int) -> None:
        """Shows a new state of the phase."""
        if self.quiet:
            return
        elapsed = max(time.monotonic() - self._begin, 1e-9)
        rate = (done - self._first) / elapsed
        parts = [] if best is None else [f"best {best:.3f}"]
        parts.append(f"{60 * rate:.0f} candidates/min")
        if total is not None and rate > 0:
            parts.append(f"{_clock((total - done) / rate)} left")
        if failed:
            parts.append(f"{failed} failed")
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=", ".join(parts))
        elif done == total or time.monotonic() - self._last_line >= _LINE_EVERY:
            self._last_line = time.monotonic()
            self.say(f"{self._label}: {done}/{total or '?'} ({', '.join(parts)})")

    def step(self, done: int, total: int, unit: str) -> None:
        """Shows a new state of a phase that has no score."""
        if self.quiet:
            return
        elapsed = max(time.monotonic() - self._begin, 1e-9)
        left = _clock((total - done) * elapsed / done) if done else "?"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=f"{unit}, {left} left")
        elif done == total or time.monotonic() - self._last_line >= _LINE_EVERY:
            self._last_line = time.monotonic()
            self.say(f"{self._label}: {done}/{total} {unit}")

    def stop(self) -> None:
        """Ends the phase."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
