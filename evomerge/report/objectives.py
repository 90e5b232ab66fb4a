"""What a run optimises and what it is bound by, as its journal and results say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evomerge.report.numbers import UNITS, amount, amount_interval
from evomerge.report.reading import Json, mapping, number
from evomerge.types import FloatArray


@dataclass(frozen=True)
class Objective:
    """One objective of a search.

    Attributes:
        name: what the user calls it.
        task: the task that it is measured on; empty if it belongs to none.
        metric: score, loglik, tokens, seconds, sparsity or blocks.
        minimised: whether less is better.
        weight: its share in the preference that picks one merge of a front; None if unknown.
    """

    name: str
    task: str = ""
    metric: str = "score"
    minimised: bool = False
    weight: float | None = None

    @property
    def sense(self) -> str:
        """Which way is better, in words."""
        return "lower is better" if self.minimised else "higher is better"

    @property
    def unit(self) -> str:
        """The unit of its values, empty for shares, which carry their % sign."""
        return UNITS.get(self.metric, "")

    @property
    def title(self) -> str:
        """Its name, unit and direction, for an axis or a column."""
        return f"{self.name}, {self.unit} ({self.sense})" if self.unit else self.direction

    @property
    def direction(self) -> str:
        """Its name and direction."""
        return f"{self.name} ({self.sense})"

    def show(self, value: float | None, unit: bool = True) -> str:
        """A value in its own unit."""
        return amount(self.metric, value, unit)

    def show_gap(self, value: float, other: float, unit: bool = True) -> str:
        """How far two values lie apart, in its own unit: percentage points between shares."""
        text = self.show(abs(value - other), unit)
        return f"{text.removesuffix('%')} percentage points" if text.endswith("%") else text

    def show_interval(self, low: float | None, high: float | None) -> str:
        """The interval of a value."""
        return amount_interval(self.metric, low, high)

    def better(self, value: float, other: float) -> bool:
        """Whether `value` is better than `other`."""
        return value < other if self.minimised else value > other


@dataclass(frozen=True)
class Constraint:
    """A bound that a merge has to keep.

    Attributes:
        name: what the user calls it.
        task: the task that it is measured on; empty if it belongs to none.
        metric: as in `Objective`.
        at_least: whether the bound is a least value; else it is a greatest.
        bound: the bound, in the metric's unit; None while it is not known.
        model: the model whose own value is the bound, while that is not known.
        found: what the chosen merge has on the held-out items; None if not measured.
        broken: how many measured candidates broke it.
        measured: how many candidates it was measured on.
    """

    name: str
    task: str
    metric: str
    at_least: bool
    bound: float | None
    model: str = ""
    found: float | None = None
    broken: int = 0
    measured: int = 0

    @property
    def condition(self) -> str:
        """The bound in words: "at most 40.0 tokens"."""
        side = f"at {'least' if self.at_least else 'most'}"
        if self.bound is None:
            return f"{side} that of {self.model}, not measured yet"
        return f"{side} {amount(self.metric, self.bound)}"

    @property
    def shown(self) -> str:
        """What was found, in its unit."""
        return amount(self.metric, self.found)

    @property
    def satisfied(self) -> bool | None:
        """Whether the chosen merge keeps it on the held-out items; None if not measured."""
        if self.found is None or self.bound is None:
            return None
        return self.found >= self.bound if self.at_least else self.found <= self.bound

    def bounds(self, objective: Objective) -> bool:
        """Whether it is a bound on what `objective` measures."""
        return (self.task, self.metric) == (objective.task, objective.metric)


def read_objectives(results: Json, study: Json) -> tuple[Objective, ...]:
    """The objectives of a run, in order; empty for runs that do not list any."""
    listed = results.get("objectives") or study.get("objectives")
    found: dict[str, Objective] = {}
    for entry in map(mapping, listed if isinstance(listed, list) else []):
        name = str(entry.get("name") or "")
        if name and name not in found:
            found[name] = Objective(
                name=name,
                task=str(entry.get("task") or ""),
                metric=str(entry.get("metric") or "score"),
                minimised=entry.get("goal") == "minimize",
                weight=number(entry.get("weight")),
            )
    return tuple(found.values())


def read_constraints(
    results: Json, study: Json, told: Sequence[Sequence[float]] = ()
) -> tuple[Constraint, ...]:
    """The constraints of a run, in order; those without a bound are left out.

    Args:
        results: `results.json`, which knows what was found, or empty.
        study: the journal's `study` event.
        told: the constraint values of each measured candidate, satisfied at 0 or below.
    """
    found = results.get("constraints")
    listed = found or study.get("constraints")
    constraints = []
    for place, entry in enumerate(map(mapping, listed if isinstance(listed, list) else [])):
        bound = number(entry.get("bound"))
        model = entry.get("bound") if bound is None else ""
        if not isinstance(model, str) or (bound is None and not model):
            continue
        values = [row[place] for row in told if len(row) > place]
        constraint = Constraint(
            name=str(entry.get("name") or f"constraint {place + 1}"),
            task=str(entry.get("task") or ""),
            metric=str(entry.get("metric") or "score"),
            at_least=entry.get("sense") == "at_least",
            bound=bound,
            model=model,
        )
        constraints.append(
            replace(
                constraint,
                found=number(entry.get("found")),
                broken=sum(value > 0 for value in values),
                measured=len(values),
            )
        )
    return tuple(constraints)


def read_values(
    objectives: Sequence[Objective], values: Mapping[str, Any]
) -> tuple[float, ...] | None:
    """One raw value an objective; None unless all are known."""
    found = [number(values.get(objective.name)) for objective in objectives]
    known = tuple(value for value in found if value is not None)
    return known if known and len(known) == len(objectives) else None


def losses(objectives: Sequence[Objective], values: Sequence[Sequence[float]]) -> FloatArray:
    """Raw values as an `n x objectives` array in which less is better everywhere."""
    signs = np.array([1.0 if objective.minimised else -1.0 for objective in objectives])
    array = np.array([list(row) for row in values], dtype=np.float64)
    return array.reshape(len(values), len(objectives)) * signs
