"""Numbers, times and untrusted texts as a terminal may show them."""

from __future__ import annotations

import re
import unicodedata

from evomerge.live.state import Searching, State

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, movements
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # OSC, DCS
    r"|\x9b[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]*[0-~]?"
)
_DROPPED = ("Cc", "Cf", "Cs", "Co", "Cn")


def clean(text: str, limit: int | None = None) -> str:
    """A text without escape sequences, control and direction characters, on one line.

    Args:
        text: untrusted, such as a model's answer or the reason of a failure.
        limit: characters to keep at most.
    """
    text = _ESCAPES.sub("", text)
    kept = "".join(
        " " if c.isspace() else c
        for c in text
        if c.isspace() or unicodedata.category(c) not in _DROPPED
    )
    line = " ".join(kept.split())
    return line if limit is None or len(line) <= limit else f"{line[: limit - 1]}…"


def clock(seconds: float) -> str:
    """Seconds as M:SS or H:MM:SS."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def value(number: float) -> str:
    """A measured value: three decimals, or four digits where it is large."""
    return f"{number:.3f}" if abs(number) < 1000 else f"{number:.4g}"


def rate(number: float) -> str:
    """A speed: whole from 10 on, else two digits."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def best(search: Searching) -> str:
    """The values of the best candidate; with its objectives' names where there are several."""
    named = len(search.best) > 1
    values = (f"{clean(k)} {value(v)}" if named else value(v) for k, v in search.best.items())
    return ", ".join(values)


def counts(search: Searching) -> list[str]:
    """How many candidates came to nothing, of each kind that there is."""
    found = [(search.failed, "failed"), (search.infeasible, "infeasible"),
             (search.stopped, "stopped early")]  # fmt: skip
    return [f"{number} {name}" for number, name in found if number]


def progress(state: State, ended: bool = False) -> str:
    """A phase on one line of a log."""
    search = state.search
    parts = []
    if search and search.best:
        feasible = "" if search.feasible else " (infeasible)"
        parts.append(f"best {best(search)}{feasible}")
    if search and search.front is not None:
        parts.append(f"front {search.front}")
    if state.rates.candidates and state.unit == "candidates":
        parts.append(f"{rate(60 * state.rates.candidates)} candidates/min")
    elif state.unit not in ("candidates", "models"):
        parts.append(state.unit)
    if ended and state.elapsed >= 1:
        parts.append(f"in {clock(state.elapsed)}")
    elif state.left is not None and state.done != state.total:
        parts.append(f"{clock(state.left)} left")
    if search:
        parts.extend(counts(search))
    note = f" ({', '.join(parts)})" if parts else ""
    return f"{clean(state.phase)}: {state.done}/{state.total or '?'}{note}"


def counted(state: State) -> bool:
    """Whether a phase has something to say at its end."""
    return state.total != 0 and (state.total is not None or state.search is not None)
