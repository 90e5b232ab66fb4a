"""What a study knows of one of its merges, for a model card: held-out values where it has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.estimators.intervals import NORMAL, wilson
from evomerge.markdown import markdown_text
from evomerge.predictions import raw_errors
from evomerge.recorded import Chosen, Recorded
from evomerge.report.card import Evidence
from evomerge.report.front import Point, front_points
from evomerge.report.numbers import NONE, whole
from evomerge.report.objectives import Objective, read_objectives, read_values
from evomerge.report.reading import Json, count, mapping
from evomerge.report.table import results_markdown

_UNPROVED = """\
It was **not** measured on held-out items: what follows is from the search, which looked for high
values on these very items, so they are optimistic."""


def evidence_of(study: Recorded, chosen: Chosen) -> Evidence | None:
    """What there is of a merge; None of the study's choice, of which the results tell themselves.

    Raises:
        JournalError: if a file of items is damaged.
    """
    results = study.results
    if chosen.subject and chosen.subject == results.get("best"):
        return None
    note = [chosen.note] if chosen.note else []
    if chosen.subject:
        said = f"In the tables it is called {chosen.subject}; it is not what the study chose."
        return Evidence(chosen.name, (*note, said), results_markdown(results))
    objectives = read_objectives(results, study.files.study)
    point = next(
        (
            p
            for p in front_points(results, objectives)
            if p.candidate is not None and p.candidate == chosen.number and p.test
        ),
        None,
    )
    if point is not None:
        said = "It is a point of the study's front, not its choice; measured on held-out items."
        return Evidence(chosen.name, (*note, said), _front_table(objectives, point, results))
    said = "It was not measured on held-out items."
    if not results:
        said += " The study has no proof on held-out items yet."
    table = _search_table(study, chosen, objectives)
    return Evidence(chosen.name, (*note, said), f"{_UNPROVED}\n\n{table}")


def _front_table(objectives: Sequence[Objective], point: Point, results: Json) -> str:
    """Held-out values with intervals and search values of a point of the front."""
    lines = [
        "| Objective | Held-out (test) | 95% interval | Items | Search |",
        "|---|---:|---:|---:|---:|",
    ]
    lows, highs = point.low or (), point.high or ()
    for place, one in enumerate(objectives):
        low, high = (side[place] if place < len(side) else None for side in (lows, highs))
        items = count(mapping(mapping(results.get("splits")).get(one.task)).get("test"))
        cells = [
            markdown_text(one.title), one.show(point.test[place] if point.test else None),
            one.show_interval(low, high), whole(items) if one.task else NONE,
            one.show(point.search[place]) if point.search else NONE,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _search_table(study: Recorded, chosen: Chosen, objectives: Sequence[Objective]) -> str:
    """Values of the search items with intervals and the number of items."""
    events = study.files.events
    event = next(
        (
            e
            for e in reversed(events)
            if e.get("event") in ("recheck", "result")
            and e.get("id") == chosen.number
            and e.get("status") == "ok"
        ),
        None,
    )
    values = read_values(objectives, mapping(event.get("values"))) if event else None
    if event is None or values is None:
        return "There is no result of it.\n"
    told = [(o.name, o.task, -1.0 if o.minimised else 1.0) for o in objectives]
    errors = raw_errors(event, told, study.run_dir)
    lines = ["| Objective | Search | 95% interval | Items |", "|---|---:|---:|---:|"]
    for one, value, error in zip(objectives, values, errors, strict=True):
        low, high = search_interval(event, one, value, error)
        known = math.isfinite(error)
        items = answered_items(event, one.task)
        cells = [
            markdown_text(one.title), one.show(value),
            one.show_interval(low, high) if known else NONE, whole(items) if one.task else NONE,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def search_interval(
    event: Json, objective: Objective, value: float, error: float
) -> tuple[float, float]:
    """The 95% interval of a value on search items, NaN where its standard error is unknown.

    Normal, and Wilson's where all items have the same score, whose spread says nothing.
    """
    items = answered_items(event, objective.task)
    if objective.metric == "score" and error == 0.0 and value in (0.0, 1.0) and items:
        return wilson(round(value * items), items)
    low, high = value - NORMAL * error, value + NORMAL * error
    if objective.metric in ("score", "sparsity") and math.isfinite(error):
        return max(low, 0.0), min(high, 1.0)
    return low, high


def answered_items(event: Json, task: str) -> int | None:
    """How many items of a task a result is of."""
    return count(mapping(mapping(event.get("scores")).get(task)).get("items"))
