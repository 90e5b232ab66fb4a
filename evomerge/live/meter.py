"""How fast a study goes, from its latest outcomes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from evomerge.live.state import Rates

_LATEST = 64  # outcomes that a rate is taken over


@dataclass
class Meter:
    """Counts candidates, items and tokens over time."""

    _marks: deque[tuple[float, int, int, int]] = field(
        default_factory=lambda: deque(maxlen=_LATEST + 1)
    )
    _done: int = 0
    _items: int = 0
    _tokens: int = 0
    _usual: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_LATEST))

    def reset(self, now: float, done: int) -> None:
        """A phase begins, in which `done` things are ready from before."""
        self._marks.clear()
        self._usual.clear()
        self._done = done
        self._mark(now)

    def went(self, now: float, done: int) -> None:
        """So many are ready now."""
        if done != self._done:
            self._done = done
            self._mark(now)

    def answered(
        self, now: float, items: int, tokens: int, seconds: tuple[float, float] | None
    ) -> None:
        """A model answered items; `seconds` are those of merging and of answering."""
        self._items += items
        self._tokens += tokens
        if seconds is not None:
            self._usual.append(seconds)
        self._mark(now)

    def rates(self) -> Rates:
        """Means over the latest outcomes, from the first of them to the last."""
        if len(self._marks) < 2:
            return Rates()
        first, last = self._marks[0], self._marks[-1]
        seconds = last[0] - first[0]
        if seconds <= 0:
            return Rates()
        done, items, tokens = ((b - a) / seconds for a, b in zip(first[1:], last[1:], strict=True))
        return Rates(done or None, items or None, tokens or None)

    def usual(self) -> tuple[float, float] | None:
        """Mean seconds of merging and of answering of the latest jobs."""
        usual = list(self._usual)
        if not usual:
            return None
        merging, answering = (sum(column) / len(usual) for column in zip(*usual, strict=True))
        return merging, answering

    def _mark(self, now: float) -> None:
        self._marks.append((now, self._done, self._items, self._tokens))
