"""The result table for the terminal and as Markdown."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from evomerge.report.numbers import interval, percent, whole
from evomerge.report.reading import Json
from evomerge.report.rows import Row, Score, task_names, task_rows

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = ("Model", "Role", "Held-out (test)", "Items", "Search", "Items")


def results_table(results: Json) -> Table:
    """The result table for the terminal: held-out score and interval, search score beside it.

    Names are shown as they are: neither rich's markup nor control characters in them act.
    """
    from rich.table import Table
    from rich.text import Text

    tasks = task_names(results)
    table = Table(title=Text(_title(results)), title_justify="left")
    for place, heading in enumerate(HEADINGS):
        table.add_column(
            heading, justify="left" if place < 2 else "right", no_wrap=place >= 2, overflow="fold"
        )
    for task in tasks:
        if len(tasks) > 1:
            table.add_section()
            table.add_row(Text(printable(task), style="italic"))
        for row in task_rows(results, task):
            cells = [Text(printable(cell)) for cell in _cells(row)]
            table.add_row(*cells, style="bold" if row.chosen else None)
    return table


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
    return "\n".join(blocks) if blocks else "No model has been measured.\n"


def printable(text: str) -> str:
    """`text` on one line, with every control and format character (such as ANSI) left out."""
    kept = (c for c in " ".join(text.split()) if unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    return "".join(kept)


def markdown_text(text: str) -> str:
    """`text` on one line, with every character that means something in Markdown escaped."""
    safe = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    safe = re.sub(r"([\\`*{}\[\]|#!~$])", r"\\\1", safe)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", safe)


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


def _scored(score: Score) -> str:
    if score.low is None or score.high is None:
        return percent(score.value)
    return f"{percent(score.value)} {interval(score.low, score.high)}"
