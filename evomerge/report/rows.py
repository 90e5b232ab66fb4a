"""The measured models of `results.json` as rows of a table."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.report.reading import Json, count, mapping, number

ROLES = ("chosen merge", "merge", "source", "control", "other")
"""What a model of the table is, in the order of legends."""


@dataclass(frozen=True)
class Score:
    """A plain score in [0, 1] with its interval and the number of items behind it."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    items: int | None = None


@dataclass(frozen=True)
class Row:
    """What one model scored on one task, held-out and in the search."""

    name: str
    role: str
    task: str
    test: Score
    search: Score

    @property
    def chosen(self) -> bool:
        """Whether this is the merge that the study chose."""
        return self.role == ROLES[0]

    @property
    def optimism(self) -> float | None:
        """Search score minus held-out score."""
        if self.search.value is None or self.test.value is None:
            return None
        return self.search.value - self.test.value


def task_names(results: Json) -> list[str]:
    """Every task that a model of the results was scored on, the objective first."""
    names: dict[str, None] = {}
    for model in mapping(results.get("models")).values():
        names.update(dict.fromkeys(mapping(mapping(model).get("scores"))))
    return sorted(names, key=lambda name: name != results.get("objective", name))


def task_rows(results: Json, task: str) -> list[Row]:
    """The models scored on `task`, best held-out score first, unmeasured ones last."""
    best = results.get("best")
    rows = []
    for name, model in mapping(results.get("models")).items():
        splits = mapping(mapping(mapping(model).get("scores")).get(task))
        role = str(mapping(model).get("role", ""))
        if not splits:
            continue
        rows.append(
            Row(
                name=name,
                role=ROLES[0] if name == best else role if role in ROLES[1:] else ROLES[-1],
                task=task,
                test=_score(splits.get("test")),
                search=_score(splits.get("search")),
            )
        )
    return sorted(rows, key=lambda row: (row.test.value is None, -(row.test.value or 0.0)))


def _score(value: object) -> Score:
    parts = mapping(value)
    return Score(
        value=number(parts.get("value")),
        low=number(parts.get("low")),
        high=number(parts.get("high")),
        items=count(parts.get("items")),
    )
