"""A live view on a terminal, redrawn in place; every phase leaves one line behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from evomerge.live import text
from evomerge.live.state import Failure, Searching, State

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_PER_SECOND = 4  # redraws
_LABEL = 9  # columns
_BAR = 30
_LAST_FAILURES = 3


class TerminalView:
    """Shows the state of a study in a few lines at the bottom of the terminal.

    Everything is written as plain text: nothing in a name or a reason is read as markup or as
    a control sequence.
    """

    def __init__(self, now: Callable[[], State | None], console: Console | None = None) -> None:
        """Draws nothing yet.

        Args:
            now: gives the state at any time; called from another thread.
            console: to draw on; stderr by default.
        """
        from rich.console import Console

        self._now = now
        self._console = console or Console(stderr=True, highlight=False)
        self._live: Any = None

    def message(self, text_: str) -> None:
        """Prints a sentence above the view; it stays."""
        line = text.clean(text_)
        self._console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def begin(self, state: State) -> None:
        """Starts to draw."""
        if self._live is not None:
            return
        from rich.live import Live

        self._live = Live(
            get_renderable=self._draw, console=self._console, refresh_per_second=_PER_SECOND,
            transient=True, vertical_overflow="crop", redirect_stdout=sys.stdout.isatty(),
        )  # fmt: skip
        self._live.start()

    def update(self, state: State) -> None:
        """Leaves it to the next redraw, which is a quarter of a second away."""

    def end(self, state: State) -> None:
        """Leaves a line that says where the phase ended."""
        if not text.counted(state):
            return
        self.message(text.progress(state, ended=True))

    def failure(self, failure: Failure) -> None:
        """Leaves it to the next redraw."""

    def close(self, error: BaseException | None) -> bool:
        """Removes the view; what was printed above it stays."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        return False

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        state = self._now()
        if state is None:
            return Text("")
        height = max(1, self._console.height - 2)
        width = max(20, self._console.width)
        plain = self._console.options.ascii_only
        return Group(*list(panel(state, width, plain))[:height])


def on_terminal() -> bool:
    """Whether stderr is a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def panel(state: State, width: int, ascii_only: bool = False) -> Iterator[Text]:
    """The lines of the view, none wider than the terminal, the most important first."""
    yield _heading(state, width, ascii_only)
    search = state.search
    if search is not None:
        yield _line("best", _best(search), width, "green" if search.feasible else "yellow")
        counted = ([f"front {search.front}"] if search.front is not None else []) + text.counts(
            search
        )
        if counted:
            yield _line("found", ", ".join(counted), width)
    speed = _speed(state)
    if speed:
        yield _line("rate", speed, width)
    if search is not None and search.budgets:
        yield _line("budget", ", ".join(_budgets(search)), width)
    if state.workers is not None:
        yield from _workers(state, width)
    for i, failure in enumerate(reversed(state.failures[-_LAST_FAILURES:])):
        said = f"{text.clean(failure.what)}: {text.clean(failure.reason, 500)}"
        yield _line("" if i else "failed", said, width, "yellow")


def _heading(state: State, width: int, ascii_only: bool) -> Text:
    from rich.text import Text

    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(text.clean(state.phase, max(12, width // 2)), "bold")
    time = text.clock(state.elapsed)
    if state.total:
        bar = min(_BAR, max(5, width - len(line) - 34))
        full = round(bar * min(1.0, state.done / state.total))
        done, rest = ("#", "-") if ascii_only else ("━", "━")
        line.append("  ").append(done * full, "cyan").append(rest * (bar - full), "bright_black")
        line.append(f"  {state.done}/{state.total}")
    elif state.search is not None:
        line.append(f"  {state.done} {state.unit}")
    left = "" if state.left is None else f", {text.clock(state.left)} left"
    line.append(f"  {time}{left}", "dim")
    line.truncate(width, overflow="ellipsis")
    return line


def _best(search: Searching) -> str:
    if not search.best:
        return "none yet"
    named = ", ".join(f"{text.clean(k, 40)} {text.value(v)}" for k, v in search.best.items())
    return named if search.feasible else f"{named} (breaks a constraint)"


def _speed(state: State) -> str:
    rates = state.rates
    parts = []
    if rates.candidates and state.search is not None:
        parts.append(f"{text.rate(60 * rates.candidates)} candidates/min")
    if rates.items:
        parts.append(f"{text.rate(rates.items)} items/s")
    if rates.tokens:
        parts.append(f"{text.rate(rates.tokens)} tokens/s")
    return ", ".join(parts)


def _budgets(search: Searching) -> Iterator[str]:
    for budget in search.budgets:
        if budget.name == "hours":
            yield f"{text.clock(3600 * budget.left)} h left of {budget.limit:g}"
        else:
            name = budget.name.removesuffix("s") if budget.left == 1 else budget.name
            yield f"{budget.left:,.0f} {name} left of {budget.limit:,.0f}"


def _workers(state: State, width: int) -> Iterator[Text]:
    workers = state.workers or 0
    idle = max(0, workers - len(state.work))
    what = "candidate" if state.search is not None else "model"
    names = [f"{what} {w.id}" if w.name is None else text.clean(w.name, 40) for w in state.work]
    busy = [f"{n} for {text.clock(w.seconds)}" for n, w in zip(names, state.work, strict=True)]
    said = [f"{idle} of {workers} idle" if workers > 1 else "idle"] if idle else []
    yield _line("workers" if workers > 1 else "worker", ", ".join(_few(busy, width) + said), width)
    if state.usual is not None:
        merging, answering = state.usual
        yield _line(
            "", f"lately {merging:.2g} s merging, {answering:.2g} s answering", width, "dim"
        )


def _few(parts: Iterable[str], width: int) -> list[str]:
    """As many as fit, and how many more there are."""
    out: list[str] = []
    room = width - _LABEL - 20
    parts = list(parts)
    for part in parts:
        room -= len(part) + 2
        if room < 0 and out:
            return [*out, f"{len(parts) - len(out)} more at work"]
        out.append(part)
    return out


def _line(label: str, said: str, width: int, style: str = "") -> Text:
    from rich.text import Text

    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{label:{_LABEL}}", "dim").append(said, style)
    line.truncate(width, overflow="ellipsis")
    return line
