"""The parameters of one operator, per layer group or for the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge import operators
from evomerge.domain import Dimension
from evomerge.errors import ConfigError
from evomerge.recipe import Recipe, Scalar, Setting, Source, resolve
from evomerge.spaces.grid import ALL, Grid, Groups, Place, layer_groups, setting_of
from evomerge.spaces.landmarks import (
    distinct,
    fixed_or_searched,
    interpolates,
    landmarks,
    left_out,
)
from evomerge.spaces.searched import Searched, check_searchable, read_searched
from evomerge.types import FloatArray


class MergeSpace:
    """Varies parameters of one operator, per layer group or for the whole model.

    A parameter that each source has its own of (weight, density) varies per source, one of the
    whole merge (t, lambda, normalize) once.

    Masks of operators that draw some are the same for every candidate of a study (common
    random numbers), so a genome always means the same weights.
    """

    def __init__(
        self,
        method: str,
        parameters: Mapping[str, Mapping[str, Any]],
        base: str | None,
        sources: Mapping[str, str],
        groups: Groups,
        granularity: str | int = "layer",
        fixed: Mapping[str, Scalar] | None = None,
        dtype: str = "bfloat16",
        seed: int = 0,
    ) -> None:
        """Lays out the dimensions.

        Args:
            method: name of the operator.
            parameters: searched parameter to `low`, `high` and optionally `start` (default:
                the middle), `step` (default: a sixth of the range), `kind` (real, or integer
                for whole numbers) and `simplex` (whether the sources' values are divided by
                their sum); or to `choices`, and optionally `start` (default: the first of
                them) and `step`.
            base: model reference of the base.
            sources: name to model reference.
            groups: layer group to the tensor-name substrings that pick it.
            granularity: layer (one value per source and group), global (one per source), or how
                many blocks in a row share their values.
            fixed: operator parameters that do not vary.
            dtype: of the merged tensors.
            seed: of the random masks.

        Raises:
            ConfigError: naming the key at fault.
        """
        self.groups = layer_groups(granularity, groups)
        searched = read_parameters(parameters)
        twice = [one.name for one in searched if one.name in (fixed or {})]
        if twice:
            raise ConfigError.of(
                f"space.fixed.{twice[0]}", "a parameter that varies", "one that does not vary",
                f"Remove it there or from space.parameters.{twice[0]}.",
            )  # fmt: skip
        self.method = method
        self.base = base
        self.sources = dict(sources)
        self.fixed = dict(fixed or {})
        self.dtype = dtype
        self.seed = seed
        self._operator = operators.get(method)
        for one in searched:
            check_searchable(one, self._operator, f"space.parameters.{one.name}")
        own = [one.name for one in searched if self._operator.is_per_source(one.name)]
        self._grid = Grid(searched, own, tuple(self.sources), tuple(self.groups))
        self.dimensions: tuple[Dimension, ...] = self._grid.dimensions

    def decode(self, genome: FloatArray) -> Recipe:
        """Recipe of a genome.

        Raises:
            ValueError: if it has another length or holds NaN or infinity.
        """
        check_genome(genome, len(self.dimensions))
        values = self._grid.values(genome)
        own = [p for p in self._grid.searched if not self._grid.is_shared(p)]
        sources = [
            Source(ref, {p: self._setting(values, p, name) for p in own})
            for name, ref in self.sources.items()
        ]
        shared = {p: self._setting(values, p, ALL) for p in self._grid.searched if p not in own}
        common: dict[str, Setting] = {**self.fixed, **shared, "seed": self.seed}
        return Recipe(self.method, tuple(sources), self.base, common, self.dtype)

    def encode(self, recipe: Recipe) -> FloatArray:
        """Genome of a recipe that this space made; of a simplex the values that sum to 1."""
        return self._grid.genome(found_values(recipe, self._grid, self.sources, self.groups))

    def anchors(self) -> tuple[FloatArray, ...]:
        """Each source alone, the uniform merge, the whole sum, slerp's base, the start."""
        found = landmarks(self._grid, tuple(self.sources), interpolates(self.method))
        start = np.array([d.start for d in self.dimensions])
        return distinct(self._grid.genome(self._grid.values(g)) for g in (*found, start))

    def sparsity(self, genome: FloatArray) -> float:
        """Share in [0, 1] of the sources' changes that a genome leaves out; see `left_out`."""
        values = self._grid.values(genome)

        def lookup(place: Place) -> Scalar | None:
            return fixed_or_searched(self._operator, self.fixed, values, place)

        return left_out(lookup, self._grid, tuple(self.sources))

    def _setting(self, values: Mapping[Place, Scalar], parameter: str, source: str) -> Setting:
        return setting_of(self.groups, {g: values[parameter, source, g] for g in self.groups})


def read_parameters(parameters: Any) -> list[Searched]:
    """Searched parameters from `space.parameters`.

    Raises:
        ConfigError: naming the key at fault.
    """
    if not isinstance(parameters, Mapping) or not parameters:
        raise ConfigError.of(
            "space.parameters", "nothing", "at least one parameter to vary",
            "For example space.parameters.weight={low: 0, high: 1}.",
        )  # fmt: skip
    return [read_searched(f"space.parameters.{n}", n, spec) for n, spec in parameters.items()]


def found_values(
    recipe: Recipe, grid: Grid, sources: Mapping[str, str], groups: Groups
) -> dict[Place, Scalar]:
    """What a recipe says at the places of a grid; a place of which it says nothing is absent."""
    own = dict(zip(sources, (s.parameters for s in recipe.sources), strict=True))
    found = {}
    for parameter, source, group in grid.places:
        settings = recipe.parameters if grid.is_shared(parameter) else own[source]
        value = resolve(settings.get(parameter, ()), groups[group][0] or "")
        if value is not None:
            found[parameter, source, group] = value
    return found


def check_genome(genome: FloatArray, length: int) -> None:
    """Checks length and values of a genome.

    Raises:
        ValueError: if it has another length or holds NaN or infinity.
    """
    if len(genome) != length:
        raise ValueError(f"genome of {len(genome)} numbers; expected {length}")
    if not np.isfinite(genome).all():
        raise ValueError("genome with NaN or infinity; expected finite numbers")
