"""Writes the comparison of several runs: a page and a table of its figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.durable import write_atomic
from evomerge.report.comparison import Comparison, compare
from evomerge.report.comparison_figures import comparison_charts, group_keys
from evomerge.report.comparison_text import cells, comparison_csv, gap_text, headings, tested
from evomerge.report.files import write_figure
from evomerge.report.marks import Key
from evomerge.report.numbers import p_value, whole
from evomerge.report.page import render

PAGE = "comparison.html"
TABLE = "comparison.csv"
FIGURES = "comparison"
"""Name of the folder of the figures."""


@dataclass(frozen=True)
class ComparisonContent:
    """What the template of the comparison is given."""

    comparison: Comparison
    title: str
    summary: list[list[str]]
    headings: list[str]
    pairs: list[tuple[str, str, str, str, str]]
    sentences: list[str]
    runs: list[tuple[str, str, str, list[str], str, float | None]]
    lines: list[Key]
    glyphs: list[Key]
    charts: dict[str, Any]

    @property
    def fronts(self) -> list[str]:
        """The ids of the scatters of fronts."""
        return [name for name in self.charts if name.startswith("fronts-")]

    @property
    def qualities(self) -> list[str]:
        """The ids of the charts of indicators."""
        return [name for name in self.charts if name.startswith("quality-")]


def write_comparison(
    runs: Sequence[Path], out: Path | None = None, reference: Mapping[str, float] | None = None
) -> Path:
    """Writes `comparison.html` and `comparison.csv` into `out`; returns the path of the page.

    Args:
        runs: run directories; what cannot be compared is left out with a sentence.
        out: a directory, made if there is none; by default the runs' common parent.
        reference: raw values of the hypervolume's reference point by objective.

    Raises:
        UserError: no run can be compared, or the reference is not usable.
        EvomergeError: the disk is full or fails.
    """
    return write_compared(compare(runs, reference), out or common_parent(runs))


def write_compared(comparison: Comparison, out: Path) -> Path:
    """Writes page, table and figures of a comparison into `out`; returns the path of the page."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / TABLE, comparison_csv(comparison))
    write_atomic(out / PAGE, render_comparison(comparison))
    for name, spec in comparison_charts(comparison).items():
        (out / FIGURES).mkdir(exist_ok=True)
        write_figure(out / FIGURES / name, spec)
    return out / PAGE


def common_parent(runs: Sequence[Path]) -> Path:
    """The deepest directory that holds all runs."""
    return Path(os.path.commonpath([Path(run).resolve().parent for run in runs]))


def render_comparison(comparison: Comparison) -> str:
    """The page as text; every text of the runs is escaped."""
    experiments = dict.fromkeys(r.experiment for g in comparison.groups for r in g.runs)
    charts = comparison_charts(comparison)
    content = ComparisonContent(
        comparison=comparison,
        title=", ".join(experiments),
        headings=headings(comparison),
        summary=[cells(comparison, summary) for summary in comparison.summaries],
        pairs=_pairs(comparison),
        sentences=tested(comparison),
        runs=_runs(comparison),
        lines=group_keys(comparison, "line"),
        glyphs=group_keys(comparison),
        charts=charts,
    )
    return render("comparison.html.j2", content, charts)


def _pairs(comparison: Comparison) -> list[tuple[str, str, str, str, str]]:
    rows = []
    for pair in comparison.tests.pairs:
        gap = gap_text(comparison, abs(pair.difference))
        sign = "" if pair.difference == 0 else "-" if pair.difference < 0 else "+"
        found = "yes" if pair.significant else "no"
        names = f"{pair.first} against {pair.second}"
        corrected = p_value(pair.adjusted)
        rows.append((names, f"{sign}{gap}", p_value(pair.p), corrected, found))
    return rows


def _runs(comparison: Comparison) -> list[tuple[str, str, str, list[str], str, float | None]]:
    """Run, group, seed, held-out values of the chosen merge, constraints and time of each run."""
    rows = []
    for group in comparison.groups:
        for run in group.runs:
            chosen = run.chosen or (None,) * len(comparison.objectives)
            values = [
                o.show(v, unit=False) for o, v in zip(comparison.objectives, chosen, strict=True)
            ]
            kept = {True: "kept", False: "broken", None: "not measured"}[run.kept]
            kept = kept if run.constraints else "none"
            size = whole(run.candidates)
            rows.append((run.name, group.label, run.seed, [size, *values], kept, run.seconds))
    return rows
