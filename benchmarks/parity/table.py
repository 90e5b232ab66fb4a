"""The table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from checkpoints import ARCHITECTURES
from compare import CHANCE, DIFFERS, EQUAL, FAILS, PURPOSE, ROUNDING, Row
from purposes import REASONS
from recipes import MODES

_SIGNS = {EQUAL: "=", ROUNDING: "≈", CHANCE: "~", FAILS: "mergekit fails", DIFFERS: "**DIFFERS**"}
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
        "differs on purpose, see the reasons below. `units`: largest difference in units of the "
        "written type at the tensor's largest magnitude. `same`: smallest share of elements that "
        "are equal to the bit. `ours`, `theirs`: largest error against float64 in those units; "
        "`nearer`: who is nearer to float64 on average. `z`: largest score of a statistic of the "
        "random operators, in standard deviations. The README says more.",
    ]
    for mode in MODES:
        found = [r for r in rows if r.mode == mode and (r.ours is not None or r.z is not None)]
        found = [r for r in found if not r.case.startswith(_BACK)]
        if found:
            lines += ["", f"## Operators: {mode}", "", *_matrix(found)]
    rest = [r for r in rows if r.ours is None and r.z is None and not r.case.startswith(_BACK)]
    if rest:
        lines += ["", "## Gradients, filters, slices, adapters, vocabularies", "", *_list(rest)]
    back = [r for r in rows if r.case.startswith(_BACK)]
    if back:
        lines += ["", "## Recipes that we wrote, read by mergekit", "", *_backward(back)]
    used = [r for r in REASONS if any(row.reason == r and row.verdict == PURPOSE for row in rows)]
    if used:
        lines += ["", "## Differences on purpose", ""]
        lines += [f"{REASONS.index(reason) + 1}. {reason}" for reason in used]
    noted = [r for r in rows if r.verdict in (DIFFERS, FAILS)]
    if noted:
        lines += ["", "## What differs or fails", ""]
        for row in noted:
            lines += [f"- {row.case}, {row.architecture}, {row.mode}: {row.verdict}"]
            lines += [f"  - {note}" for note in row.notes]
    return "\n".join([*lines, ""])


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
    if rows[0].z is not None:
        pairs = [r.z for r in rows if r.z is not None]
        return ["", "", "", "", "", *(f"{max(p[i] for p in pairs):.1f}" for i in (0, 1))]
    alike = [r for r in rows if r.verdict != PURPOSE or r.architecture != "Mixtral"] or rows
    nearer = Counter(r.nearer for r in rows).most_common(1)[0][0] or ""
    return [
        _short(r.units for r in alike),
        f"{100 * min(r.same for r in alike):.1f}%",
        _short(r.ours or 0.0 for r in rows),
        _short(r.theirs or 0.0 for r in rows),
        nearer, "", "",
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
