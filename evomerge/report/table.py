"""The result table for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.markdown import markdown_text, printable
from evomerge.report.front import Model, models_of
from evomerge.report.numbers import NONE, interval, percent, whole
from evomerge.report.objectives import Objective, read_objectives
from evomerge.report.reading import Json
from evomerge.report.rows import Row, Score, task_names, task_rows
from evomerge.report.surrogate import predictions_markdown

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

HEADINGS = ("Model", "Role", "Held-out (test)", "Items", "Search", "Items")


def results_table(results: Json) -> Group:
    """The results for the terminal, 80 columns wide: the objective, then the other tasks.

    Names are shown as they are: neither rich's markup nor control characters in them act.
    """
    from rich.console import Group
    from rich.text import Text

    tasks = task_names(results)
    parts: list[RenderableType] = [_objective(results, tasks[0])] if tasks else []
    if len(tasks) > 1:
        parts.append(_others(results, tasks[1:]))
    if (values := objective_values(results)) is not None:
        objectives, models = values
        table = _empty("Objectives of the search, held-out")
        table.add_column("Model", overflow="fold")
        for objective in objectives:
            table.add_column(Text(printable(objective.title)), justify="right", overflow="fold")
        for model in models:
            _add(table, model.chosen, [model.name, *_shown(objectives, model)])
        parts.append(table)
    return Group(*parts)


def objective_values(results: Json) -> tuple[tuple[Objective, ...], list[Model]] | None:
    """Objectives and the models' held-out values of them; None for a search of a plain score."""
    objectives = read_objectives(results, {})
    plain = len(objectives) == 1 and objectives[0].metric == "score"
    models = [] if plain else models_of(results, objectives)
    return (objectives, models) if models else None


def _shown(objectives: Sequence[Objective], model: Model) -> list[str]:
    return [o.show(value, unit=False) for o, value in zip(objectives, model.test, strict=True)]


def _objective(results: Json, task: str) -> Table:
    rows = task_rows(results, task)
    test, search = (next((n for n in counts if n is not None), None) for counts in _items(rows))
    table = _empty(f"{_title(results)}, task {printable(task)}")
    for heading in ("Model", "Role"):
        table.add_column(heading, overflow="fold")
    table.add_column(f"Held-out, {whole(test)} items", justify="right", no_wrap=True)
    table.add_column(f"Search, {whole(search)} items", justify="right", no_wrap=True)
    for row in rows:
        _add(table, row.chosen, [row.name, row.role, _scored(row.test), _scored(row.search)])
    return table


def _others(results: Json, tasks: Sequence[str]) -> Table:
    by_task = {task: {row.name: row for row in task_rows(results, task)} for task in tasks}
    table = _empty("Not part of the search, held-out")
    table.add_column("Model", overflow="fold")
    for task in tasks:
        table.add_column(printable(task), justify="right", overflow="fold")
    for first in task_rows(results, task_names(results)[0]):
        scores = [by_task[task].get(first.name) for task in tasks]
        cells = [NONE if row is None else _scored(row.test, decimals=0) for row in scores]
        _add(table, first.chosen, [first.name, *cells])
    return table


def _empty(title: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    return Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)


def _add(table: Table, chosen: bool, cells: Sequence[str]) -> None:
    from rich.text import Text

    table.add_row(*(Text(printable(c)) for c in cells), style="bold" if chosen else None)


def _items(rows: Sequence[Row]) -> tuple[list[int | None], list[int | None]]:
    return [row.test.items for row in rows], [row.search.items for row in rows]


def results_markdown(results: Json) -> str:
    """The same table as Markdown, one table a task; ends with a newline.

    A task that the search did not use has no search columns.
    """
    tasks = task_names(results)
    blocks = []
    for task in tasks:
        rows = task_rows(results, task)
        width = 6 if any(row.search.value is not None for row in rows) else 4
        lines = [
            f"| {' | '.join(HEADINGS[:width])} |",
            f"|---|---{'|---:' * (width - 2)}|",
        ]
        for row in rows:
            cells = [markdown_text(row.name), *_cells(row)[1:width]]
            if row.chosen:
                cells[0] = f"**{cells[0]}**"
            lines.append(f"| {' | '.join(cells)} |")
        heading = f"{markdown_text(task)}:\n\n" if len(tasks) > 1 else ""
        blocks.append(heading + "\n".join(lines) + "\n")
    if (found := objective_values(results)) is not None:
        objectives, models = found
        titles = [markdown_text(objective.title) for objective in objectives]
        lines = [f"| Model | Role | {' | '.join(titles)} |", f"|---|---{'|---:' * len(titles)}|"]
        for model in models:
            name = markdown_text(model.name)
            named = [f"**{name}**" if model.chosen else name, model.role]
            lines.append(f"| {' | '.join([*named, *_shown(objectives, model)])} |")
        blocks.append("Objectives of the search, held-out:\n\n" + "\n".join(lines) + "\n")
    blocks += filter(None, [predictions_markdown(results, read_objectives(results, {}))])
    return "\n".join(blocks) if blocks else "No model has been measured.\n"


def _title(results: Json) -> str:
    return printable(f"{results.get('experiment', 'study')}, seed {results.get('seed', '-')}")


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        row.role,
        _scored(row.test),
        whole(row.test.items),
        _scored(row.search),
        whole(row.search.items),
    ]


def _scored(score: Score, decimals: int = 1) -> str:
    if score.low is None or score.high is None or score.value is None:
        return percent(score.value)
    if decimals:
        return f"{percent(score.value)} {interval(score.low, score.high)}"
    value, low, high = (f"{100 * x:.0f}" for x in (score.value, score.low, score.high))
    return f"{value}% [{low}, {high}]"
