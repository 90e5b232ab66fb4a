"""The table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from checkpoints import ARCHITECTURES
from compare import CHANCE, DIFFERS, EQUAL, FAILS, PURPOSE, ROUNDING, Row
from purposes import REASONS
from recipes import MODES

_SIGNS = {EQUAL: "=", ROUNDING: "≈", CHANCE: "~", FAILS: "fails", DIFFERS: "**DIFFERS**"}
_BACK = "written by us: "


def markdown(rows: list[Row], about: dict[str, Any], seconds: float) -> str:
    """All results as Markdown."""
    counts = Counter(row.verdict for row in rows)
    lines = [
        "# Parity with mergekit",
        "",
        f"mergekit {about['version']} with torch {about['torch']}; {len(rows)} recipes, "
        f"{seconds / 60:.0f} minutes. "
        + ", ".join(f"{verdict}: {n}" for verdict, n in counts.most_common())
        + ".",
        "",
        "`=` equal to the bit; `≈` equal up to rounding; `~` equal in distribution; a number: "
        "differs on purpose, see the reasons below; `fails`: mergekit raises an error. `units`: "
        "largest difference in units of the written type at the tensor's largest magnitude. "
        "`same`: smallest share of elements that are equal to the bit. `ours`, `theirs`: largest "
        "error against float64 in those units; `nearer`: who is nearer to float64 on average. "
        "`z`: largest score of a statistic of the random operators, in standard deviations. "
        "Figures are the worst over the architectures, without Mixtral where it differs on "
        "purpose. The README says more.",
    ]
    for mode in MODES:
        found = [r for r in rows if r.mode == mode and r.kind in ("exact", "random")]
        found = [r for r in found if not r.case.startswith(_BACK)]
        if found:
            lines += ["", f"## Operators: {mode}", "", *_matrix(found)]
    rest = [r for r in rows if r.kind in ("structure", "tokenizer")]
    rest = [r for r in rest if not r.case.startswith(_BACK)]
    if rest:
        lines += ["", "## Gradients, filters, slices, adapters, vocabularies", "", *_list(rest)]
    back = [r for r in rows if r.case.startswith(_BACK)]
    if back:
        lines += ["", "## Recipes that we wrote, read by mergekit", "", *_backward(back)]
    used = [r for r in REASONS if any(row.reason == r and row.verdict == PURPOSE for row in rows)]
    if used:
        lines += ["", "## Differences on purpose", ""]
        lines += [f"{REASONS.index(reason) + 1}. {reason}" for reason in used]
    for verdict in (DIFFERS, FAILS):
        lines += _noted([r for r in rows if r.verdict == verdict], verdict)
    return "\n".join([*lines, ""])


def _noted(rows: list[Row], verdict: str) -> list[str]:
    """Rows of a verdict, those with the same first note together."""
    if not rows:
        return []
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.notes[0] if row.notes else "", []).append(row)
    lines = ["", f"## {verdict}", ""]
    for note, found in groups.items():
        named = dict.fromkeys(f"{r.case} ({r.architecture})" for r in found)
        lines.append(f"- {note}: {', '.join(named)}")
    return lines


def _sign(row: Row) -> str:
    if row.verdict == PURPOSE and row.reason in REASONS:
        return str(REASONS.index(row.reason) + 1)
    return _SIGNS.get(row.verdict, row.verdict)


def _matrix(rows: list[Row]) -> list[str]:
    shown = [a for a in ARCHITECTURES if any(r.architecture == a for r in rows)]
    head = ["recipe", *shown, "units", "same", "ours", "theirs", "nearer", "z ours", "z theirs"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for case in dict.fromkeys(row.case for row in rows):
        found = {r.architecture: r for r in rows if r.case == case}
        cells = [_sign(found[a]) if a in found else "" for a in shown]
        lines.append("| " + " | ".join([case, *cells, *_figures(list(found.values()))]) + " |")
    return lines


def _figures(rows: list[Row]) -> list[str]:
    """Worst figures of a recipe over architectures whose results can be compared."""
    if rows[0].kind == "random":
        pairs = [r.z for r in rows if r.z is not None]
        worst = [max((p[i] for p in pairs), default=0.0) for i in (0, 1)]
        return ["", "", "", "", "", *(f"{z:.1f}" for z in worst)]
    alike = [r for r in rows if r.verdict != PURPOSE or r.architecture != "Mixtral"] or rows
    nearer = Counter(r.nearer for r in rows if r.nearer).most_common(1)
    return [
        _short(r.units for r in alike),
        f"{100 * min(r.same for r in alike):.1f}%",
        _short(r.ours or 0.0 for r in rows),
        _short(r.theirs or 0.0 for r in rows),
        nearer[0][0] if nearer else "", "", "",
    ]  # fmt: skip


def _short(values: Iterable[float]) -> str:
    return f"{max(values):.2g}"


def _list(rows: list[Row]) -> list[str]:
    lines = ["| recipe | models | mode | verdict | units | same | notes |", "|" + "---|" * 7]
    for row in rows:
        cells = [row.case, row.architecture, row.mode, _sign(row), f"{row.units:.2g}"]
        cells += [f"{100 * row.same:.1f}%", "; ".join(row.notes[:2])]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _backward(rows: list[Row]) -> list[str]:
    again = [r for r in rows if "route" not in r.case]
    same = [r for r in again if any("same to the bit" in note for note in r.notes)]
    lines = [
        f"{len(again)} of the recipes above were read and written again by us; with "
        f"{len(same)} of them mergekit makes the same model to the bit.",
        "",
    ]
    rest = [r for r in rows if r not in same]
    return [*lines, *(_list(rest) if rest else [])]
