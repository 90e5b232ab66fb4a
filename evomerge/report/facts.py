"""What a study used, as rows of a table."""

from __future__ import annotations

from datetime import UTC, datetime

from evomerge.report.course import Course
from evomerge.report.numbers import duration, whole
from evomerge.report.reading import Json, count, mapping, number
from evomerge.report.rows import Row


def facts_of(
    results: Json, study: Json, tables: list[tuple[str, list[Row]]], course: Course
) -> list[tuple[str, str]]:
    """Quantity and value, those that are not known left out."""
    cost = mapping(results.get("cost"))
    space = mapping(study.get("space"))
    dimensions = space.get("dimensions")
    overhead = number(cost.get("overhead_ms_per_candidate"))
    chosen = [row for _, rows in tables for row in rows if row.chosen]
    sizes = mapping(results.get("splits")) or {
        row.task: {"search": row.search.items, "test": row.test.items} for row in chosen
    }
    facts = [
        ("Candidates evaluated", whole(count(cost.get("candidates")))),
        ("of them failed", whole(count(cost.get("failed")))),
        ("of them stopped early by the race", whole(count(cost.get("stopped")))),
        ("Item evaluations", whole(count(cost.get("item_evaluations")))),
        ("of them answered by a model", whole(count(cost.get("answered")))),
        ("Tokens generated", _tokens(course)),
        ("GPU hours", course.gpu_hours if course.use.busy else ""),
        ("Wall-clock time of the search", duration(number(cost.get("seconds")))),
        ("Overhead a candidate", f"{overhead:.1f} ms" if overhead is not None else ""),
        ("Seed", seed_of(results, study)),
        ("Optimiser", str(study.get("optimizer") or results.get("optimizer") or "")),
        ("Search space", str(space.get("name", ""))),
        ("Dimensions", whole(len(dimensions)) if isinstance(dimensions, list) else ""),
        *((f"{name} split", _items(sizes, name.lower())) for name in ("Search", "Validation")),
        ("Held-out test split", _items(sizes, "test")),
        *(
            (f"Control: {name}", _control(mapping(control)))
            for name, control in mapping(results.get("controls_cost")).items()
        ),
    ]
    return [(name, value) for name, value in facts if value.strip() and value != whole(None)]


def _tokens(course: Course) -> str:
    if course.tokens is None:
        return ""
    return f"{'about ' if course.estimated else ''}{whole(int(course.tokens))}"


def _items(sizes: Json, split: str) -> str:
    """The items of a split; of tasks that only the test split measures, no others."""
    known = {task: count(mapping(size).get(split)) for task, size in sizes.items()}
    return "; ".join(f"{task}: {whole(n)} items" for task, n in known.items() if n)


def _control(cost: Json) -> str:
    candidates = whole(count(cost.get("candidates")))
    return f"{candidates} candidates, {duration(number(cost.get('seconds')))}"


def pairs_of(value: object) -> list[tuple[str, str]]:
    """Name and value of a mapping, by name."""
    return [(name, str(text)) for name, text in sorted(mapping(value).items())]


def seed_of(results: Json, study: Json) -> str:
    """The seed of a study as text; empty if unknown."""
    seed = results.get("seed", study.get("seed"))
    return "" if seed is None else str(seed)


def moment(value: object) -> str:
    """A time stamp in seconds as date and time; empty if it is none."""
    seconds = number(value)
    if seconds is None:
        return str(value or "")
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return ""
