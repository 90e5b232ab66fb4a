"""Figures and tables beside the page: PNG, SVG and CSV files in the run's `report` folder."""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from evomerge.durable import replaced, write_atomic
from evomerge.report.content import FOLDER, Content
from evomerge.report.curves import fitted_name
from evomerge.report.figures import theme
from evomerge.report.items import kinds_of

WIDTH = 760
"""Pixels of a figure that is as wide as its box on the page."""

SCALE = 2.0
"""Pixels of a PNG for one of the figure."""

Table = tuple[Sequence[str], Iterable[Sequence[Any]]]


def write_files(content: Content, run_dir: Path) -> Path:
    """Writes figures and tables of a page into `RUN/report`; returns that folder.

    Raises:
        EvomergeError: if the disk is full or fails.
    """
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    for name, (head, rows) in tables(content).items():
        write_atomic(folder / f"{name}.csv", csv_text(head, rows))
    for name, spec in content.charts.items():
        write_figure(folder / name, spec)
    for curves in content.curves:
        if curves.fitted is not None:  # so that the next report need not fit it
            curves.fitted.save(folder / fitted_name(curves.task))
    return folder


def write_figure(stem: Path, spec: dict[str, Any]) -> None:
    """Writes a chart as SVG and PNG, on white, without what only a page can do."""
    import vl_convert

    figure = copy.deepcopy(spec)
    if figure.get("width") == "container":
        figure["width"] = WIDTH
    figure["config"] = {**theme("light"), "background": "#ffffff"}
    svg = str(vl_convert.vegalite_to_svg(figure))
    write_atomic(stem.with_name(f"{stem.name}.svg"), svg)
    with replaced(stem.with_name(f"{stem.name}.png")) as temporary:
        temporary.write_bytes(bytes(vl_convert.svg_to_png(svg, scale=SCALE)))


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV; None is an empty cell.

    Text that a spreadsheet would take for a formula gets an apostrophe in front, since names and
    answers come from others (OWASP, CSV injection).
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_cell(name) for name in head])
    writer.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


def tables(content: Content) -> dict[str, Table]:
    """Every table by name, those without rows left out."""
    found = {
        "candidates": _candidates(content),
        "scores": _scores(content),
        "against": _against(content),
        "front": _front(content),
        "items": _items(content),
        "importance": _importance(content),
        "phases": _phases(content),
        "coefficients": _coefficients(content),
    }
    lists = {name: (head, list(rows)) for name, (head, rows) in found.items()}
    return {name: (head, rows) for name, (head, rows) in lists.items() if rows}


def _candidates(content: Content) -> Table:
    """Every candidate of every search, with its genome where the space names the genes."""
    names = [objective.name for objective in content.objectives]
    genes = content.genes
    head = ["candidate", "search", "generation", "status", "complete", "score", "items",
            "violation", *names, *genes, "reason"]  # fmt: skip
    rows = (
        [r.id, r.search, r.generation, r.status, r.complete, r.score, r.items, r.violation,
         *(r.values.get(name) for name in names),
         *(r.genome if len(r.genome) == len(genes) else [None] * len(genes)), r.reason]
        for records in content.records.values()
        for r in records
    )  # fmt: skip
    return head, rows


def _scores(content: Content) -> Table:
    rows = [
        [task, row.name, row.role, split, score.value, score.low, score.high, score.items]
        for task, listed in content.tables
        for row in listed
        for split, score in (("test", row.test), ("search", row.search))
        if score.value is not None
    ]
    return ["task", "model", "role", "split", "score", "low", "high", "items"], rows


def _against(content: Content) -> Table:
    rows = [
        [task, one.name, one.role, one.difference, one.low, one.high, one.wins, one.losses,
         one.items, one.p, one.adjusted, one.finding]
        for task, listed in content.against.items()
        for one in listed
    ]  # fmt: skip
    return ["task", "against", "role", "difference", "low", "high", "better_on", "worse_on",
            "items", "p", "p_holm", "finding"], rows  # fmt: skip


def _front(content: Content) -> Table:
    if content.front is None:
        return [], []
    names = [objective.name for objective in content.front.objectives]
    head = ["merge", "candidate", "chosen", "knee", "on_held_out_front", "violation"]
    head += [f"{split} {name}" for split in ("test", "search") for name in names]
    rows = [
        [p.name, p.candidate, p.chosen, p.knee, p.best, p.violation,
         *(p.test or [None] * len(names)), *(p.search or [None] * len(names))]
        for p in content.front.points
    ]  # fmt: skip
    return head, rows


def _items(content: Content) -> Table:
    """One row a held-out item and model, with the whole answer."""
    rows = []
    for task in content.tasks.tasks:
        kinds = kinds_of(task) or {}
        for at, item in enumerate(task.ids):
            kind = next((name for name, mask in kinds.items() if mask[at]), "")
            for row, subject in enumerate(task.subjects):
                rows.append([task.task, item, kind, task.prompts[at], task.targets[at],
                             subject.name, subject.role, float(task.scores[row, at]),
                             int(task.tokens[row, at]), task.texts[row][at]])  # fmt: skip
    return ["task", "item", "kind", "question", "expected", "model", "role", "score", "tokens",
            "answer"], rows  # fmt: skip


def _importance(content: Content) -> Table:
    found = content.course.importances if content.course else {}
    rows = [
        [name, one.name, one.share, one.rho] for name, listed in found.items() for one in listed
    ]
    return ["explained", "coefficient", "share", "rank_correlation"], rows


def _phases(content: Content) -> Table:
    rows = [
        [p.name, p.models, p.items, p.answered, p.tokens, p.estimated, p.elapsed, p.answer,
         p.merge, p.overhead]
        for p in (content.course.phases if content.course else [])
    ]  # fmt: skip
    return ["phase", "models", "items", "answered", "tokens", "tokens_estimated", "seconds",
            "answer_seconds", "merge_seconds", "overhead_seconds"], rows  # fmt: skip


def _coefficients(content: Content) -> Table:
    rows = [
        [grid.parameter, source, group, value]
        for grid in content.grids
        for (source, group), value in grid.values.items()
    ]
    return ["parameter", "source", "layer_group", "value"], rows
