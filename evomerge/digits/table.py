"""The results as a Markdown table: mean over seeds, lowest and highest."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.digits.figure import STARTS, summary
from evomerge.digits.methods import METHODS
from evomerge.digits.records import Plan, Record

COLUMNS = (1_000, 3_000, 5_000, 10_000, 20_000, 50_000)


def table(results: Sequence[tuple[Plan, Sequence[Record]]]) -> str:
    """Test accuracy in % after some evaluations, with the number of seeds, one line a method."""
    cells = {(r["start"], r["method"], r["evaluations"]): r for r in summary(results)}
    shown = [c for c in COLUMNS if any(key[2] == c for key in cells)] or sorted(
        {key[2] for key in cells}
    )
    lines = [
        f"| start | method | {' | '.join(f'{c:,}' for c in shown)} |",
        f"|---|---|{'---:|' * len(shown)}",
    ]
    for start in STARTS:
        for method in METHODS:
            found = [cells.get((start, method, c)) for c in shown]
            if any(found):
                texts = [
                    "" if r is None
                    else f"{r['mean']:.1f} \\[{r['low']:.1f}, {r['high']:.1f}\\] ({r['seeds']})"
                    for r in found
                ]  # fmt: skip
                lines.append(f"| {start} | `{method}` | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"
