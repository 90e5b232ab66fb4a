"""Plain lines, for logs and pipes."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from evomerge.live import text
from evomerge.live.state import Failure, State

_EVERY = 10.0  # seconds between two lines of a phase
_REASONS = 20  # different ones that are printed; the journal has all


@dataclass
class LineView:
    """Prints messages at once, and how far a phase is every ten seconds and at its end."""

    _last: float = 0.0
    _shown: int | None = None
    _reasons: set[str] = field(default_factory=set)

    def message(self, text_: str) -> None:
        """Prints a sentence."""
        print(text.clean(text_), file=sys.stderr, flush=True)

    def begin(self, state: State) -> None:
        """Prints nothing yet."""
        self._last, self._shown = 0.0, None

    def update(self, state: State) -> None:
        """Prints how far the phase is, unless it just did."""
        now = time.monotonic()
        if state.done == state.total or now - self._last >= _EVERY:
            self._last, self._shown = now, state.done
            self.message(text.progress(state))

    def end(self, state: State) -> None:
        """Prints where the phase ended, unless that line is there."""
        if state.done != self._shown and text.counted(state):
            self.message(text.progress(state, ended=True))

    def failure(self, failure: Failure) -> None:
        """Prints what failed and why, the first time that it fails for that reason."""
        reason = text.clean(failure.reason, 300)
        if reason not in self._reasons and len(self._reasons) < _REASONS:
            self._reasons.add(reason)
            self.message(f"{failure.what} failed: {reason}")

    def close(self, error: BaseException | None) -> bool:
        """Leaves the error to the program."""
        return False


class QuietView:
    """Shows nothing."""

    def message(self, text_: str) -> None:
        """Nothing."""

    def begin(self, state: State) -> None:
        """Nothing."""

    def update(self, state: State) -> None:
        """Nothing."""

    def end(self, state: State) -> None:
        """Nothing."""

    def failure(self, failure: Failure) -> None:
        """Nothing."""

    def close(self, error: BaseException | None) -> bool:
        """Leaves the error to the program."""
        return False
