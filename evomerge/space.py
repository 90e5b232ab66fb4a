"""What may vary: named, bounded dimensions over a recipe template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Protocol

import numpy as np

from evomerge import operators
from evomerge.domain import Dimension
from evomerge.errors import ConfigError
from evomerge.operators import Operator
from evomerge.operators.parameters import Parameter
from evomerge.recipe import Case, Recipe, Scalar, Setting, Source, resolve
from evomerge.types import FloatArray

ALL = "all"
"""The one layer group of a global space, and the source of parameters that all share."""

GRANULARITIES = ("layer", "global")
Place = tuple[str, str, str]
"""Parameter, source and layer group of one dimension."""


class SearchSpace(Protocol):
    """Maps genomes to recipes."""

    dimensions: tuple[Dimension, ...]

    def decode(self, genome: FloatArray) -> Recipe:
        """Recipe of a genome, an array of `len(dimensions)` numbers."""

    def encode(self, recipe: Recipe) -> FloatArray:
        """Genome of a recipe of this space; the inverse of `decode`."""


class MergeSpace:
    """Varies parameters of one operator, per layer group or for the whole model.

    A parameter that each source has its own of (weight, density) varies per source, one of the
    whole merge (t, lambda) once.

    Masks of operators that draw some are the same for every candidate of a study (common
    random numbers), so a genome always means the same weights.
    """

    def __init__(
        self,
        method: str,
        parameters: Mapping[str, Mapping[str, float | None]],
        base: str | None,
        sources: Mapping[str, str],
        groups: Mapping[str, Sequence[str | None]],
        granularity: str = "layer",
        fixed: Mapping[str, Scalar] | None = None,
        dtype: str = "bfloat16",
        seed: int = 0,
    ) -> None:
        """Lays out the dimensions.

        Args:
            method: name of the operator.
            parameters: searched parameter to `low`, `high` and optionally `start` (default:
                the middle) and `step` (default: a sixth of the range).
            base: model reference of the base.
            sources: name to model reference.
            groups: layer group to the tensor-name substrings that pick it.
            granularity: layer (one value per source and group) or global (one per source).
            fixed: operator parameters that do not vary.
            dtype: of the merged tensors.
            seed: of the random masks.

        Raises:
            ConfigError: naming the key at fault.
        """
        if granularity not in GRANULARITIES:
            raise ConfigError.of(
                "space.granularity", repr(granularity), f"one of {', '.join(GRANULARITIES)}",
                "Correct it.",
            )  # fmt: skip
        if not isinstance(parameters, Mapping) or not parameters:
            raise ConfigError.of(
                "space.parameters", "nothing", "at least one parameter to vary",
                "For example space.parameters.weight={low: 0, high: 1}.",
            )  # fmt: skip
        twice = [name for name in parameters if name in (fixed or {})]
        if twice:
            raise ConfigError.of(
                f"space.fixed.{twice[0]}", "a parameter that varies", "one that does not vary",
                f"Remove it there or from space.parameters.{twice[0]}.",
            )  # fmt: skip
        self.method = method
        self.base = base
        self.sources = dict(sources)
        self.groups = {ALL: (None,)} if granularity == "global" else dict(groups)
        self.fixed = dict(fixed or {})
        self.dtype = dtype
        self.seed = seed
        ranges = {name: _range(name, spec) for name, spec in parameters.items()}
        operator = operators.get(method)
        for name in ranges:
            _check_searchable(name, operator)
        self._owners = {
            name: tuple(self.sources) if operator.is_per_source(name) else (ALL,) for name in ranges
        }
        self._places = tuple(
            (parameter, source, group)
            for parameter in ranges
            for source in self._owners[parameter]
            for group in self.groups
        )
        self.dimensions: tuple[Dimension, ...] = tuple(
            Dimension("/".join(place), *ranges[place[0]]) for place in self._places
        )
        self._parameters = tuple(ranges)

    def decode(self, genome: FloatArray) -> Recipe:
        """Recipe of a genome.

        Raises:
            ValueError: if it has another length or holds NaN or infinity.
        """
        if len(genome) != len(self.dimensions):
            raise ValueError(f"genome of {len(genome)} numbers; expected {len(self.dimensions)}")
        if not np.isfinite(genome).all():
            raise ValueError("genome with NaN or infinity; expected finite numbers")
        values = dict(zip(self._places, map(float, genome), strict=True))
        own = [p for p in self._parameters if self._owners[p] != (ALL,)]
        sources = [
            Source(ref, {p: self._setting(values, p, name) for p in own})
            for name, ref in self.sources.items()
        ]
        shared = {p: self._setting(values, p, ALL) for p in self._parameters if p not in own}
        common: dict[str, Setting] = {**self.fixed, **shared, "seed": self.seed}
        return Recipe(self.method, tuple(sources), self.base, common, self.dtype)

    def encode(self, recipe: Recipe) -> FloatArray:
        """Genome of a recipe that this space made."""
        genome = []
        parameters = dict(zip(self.sources, (s.parameters for s in recipe.sources), strict=True))
        for parameter, source, group in self._places:
            shared = self._owners[parameter] == (ALL,)
            setting = (recipe.parameters if shared else parameters[source])[parameter]
            value: Any = resolve(setting, self.groups[group][0] or "")
            genome.append(float(value))
        return np.array(genome, dtype=np.float64)

    def _setting(self, values: Mapping[Place, float], parameter: str, source: str) -> Setting:
        if set(self.groups) == {ALL}:
            return values[parameter, source, ALL]
        cases = [
            Case(pattern, values[parameter, source, group])
            for group, patterns in self.groups.items()
            for pattern in patterns
        ]
        return tuple(sorted(cases, key=lambda case: case.filter is None))


def _check_searchable(name: str, operator: Operator) -> None:
    """Refuses parameters that the operator does not have or that are no numbers."""
    parameter = operator.parameters.get(name)
    if isinstance(parameter, Parameter) and not parameter.inert and not parameter.whole:
        return
    numbers = [
        key
        for key, p in operator.parameters.items()
        if isinstance(p, Parameter) and not p.inert and not p.whole
    ]
    found = "a parameter that the operator does not have"
    if parameter is not None:
        found = "a parameter that does not take any number, or has no effect"
    raise ConfigError.of(
        f"space.parameters.{name}", found,
        f"one of {', '.join(numbers) or 'none'} for {operator.name}",
        "Correct the name, or set it below space.fixed.",
    )  # fmt: skip


def _range(name: str, spec: Any) -> tuple[float, float, float, float]:
    if not isinstance(spec, Mapping):
        raise ConfigError.of(
            f"space.parameters.{name}", repr(spec), "a mapping with low and high",
            f"For example space.parameters.{name}={{low: 0, high: 1}}.",
        )  # fmt: skip
    unknown = [k for k in spec if k not in ("low", "high", "start", "step")]
    if unknown:
        raise ConfigError.of(
            f"space.parameters.{name}.{unknown[0]}", "an unknown key", "low, high, start or step",
            "Correct it.",
        )  # fmt: skip
    for key, value in spec.items():
        if value is not None and not _is_number(value):
            raise ConfigError.of(
                f"space.parameters.{name}.{key}", repr(value), "a finite number", "Correct it."
            )
    low, high = spec.get("low"), spec.get("high")
    if low is None or high is None or not low < high:
        raise ConfigError.of(
            f"space.parameters.{name}", f"low={low}, high={high}", "two numbers, low < high",
            "Correct the bounds.",
        )  # fmt: skip
    start, step = spec.get("start"), spec.get("step")
    start = (low + high) / 2 if start is None else start
    step = (high - low) / 6 if step is None else step
    if not low <= start <= high or not step > 0:
        raise ConfigError.of(
            f"space.parameters.{name}", f"start={start}, step={step}",
            f"a start in [{low}, {high}] and a positive step", "Correct them.",
        )  # fmt: skip
    return float(low), float(high), float(start), float(step)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
