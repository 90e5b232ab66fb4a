"""Searched parameters by source and layer group: the dimensions, and values of a genome."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from evomerge.domain import Dimension
from evomerge.errors import ConfigError
from evomerge.recipe import Case, Scalar, Setting
from evomerge.spaces.searched import Searched
from evomerge.spaces.simplex import shares, within
from evomerge.types import FloatArray

ALL = "all"
"""The one layer group of a global space, and the source of parameters that all share."""

GRANULARITIES = ("layer", "global")
Groups = Mapping[str, Sequence[str | None]]
"""Layer group to the tensor-name substrings that pick it; None picks everything else."""
Place = tuple[str, str, str]
"""Parameter, source and layer group of one dimension."""


class Grid:
    """Dimensions of some parameters, those that a source has its own of once a source.

    Attributes:
        searched: the parameters by name.
        owners: the sources that each parameter has values for, or `ALL` alone.
        groups: the layer groups.
        places: parameter, source and group of each dimension.
        dimensions: in that order.
    """

    def __init__(
        self,
        searched: Sequence[Searched],
        per_source: Iterable[str],
        sources: Sequence[str],
        groups: Sequence[str],
    ) -> None:
        """Lays the dimensions out.

        Args:
            searched: the parameters.
            per_source: names of those that each source has its own of.
            sources: their names.
            groups: names of the layer groups.
        """
        own = set(per_source)
        self.searched = {s.name: s for s in searched}
        self.owners = {s.name: tuple(sources) if s.name in own else (ALL,) for s in searched}
        self.groups = tuple(groups)
        self.places: tuple[Place, ...] = tuple(
            (name, source, group)
            for name in self.searched
            for source in self.owners[name]
            for group in self.groups
        )
        self.dimensions: tuple[Dimension, ...] = tuple(
            self.searched[place[0]].dimension("/".join(place)) for place in self.places
        )

    def is_shared(self, parameter: str) -> bool:
        """Whether there is one value of a parameter for all sources."""
        return self.owners[parameter] == (ALL,)

    def values(self, genome: Iterable[float]) -> dict[Place, Scalar]:
        """What the genes stand for; those of a simplex are divided by their sum."""
        genes = dict(zip(self.places, map(float, genome), strict=True))
        values = {place: self.searched[place[0]].value(gene) for place, gene in genes.items()}
        for places in self._simplices():
            values.update(zip(places, shares([genes[p] for p in places]), strict=True))
        return values

    def genome(self, values: Mapping[Place, Scalar]) -> FloatArray:
        """Genes that stand for values; the start where there is none."""
        genes = {
            place: self.searched[place[0]].gene(values[place])
            if place in values
            else self.searched[place[0]].start
            for place in self.places
        }
        for places in self._simplices():
            weights = [genes[p] for p in places]
            if max(weights) > 0:
                scaled = within(weights, self.searched[places[0][0]].high)
                genes.update(zip(places, scaled, strict=True))
        return np.array([genes[p] for p in self.places], dtype=np.float64)

    def _simplices(self) -> list[list[Place]]:
        """The places whose values sum to 1, group by group."""
        return [
            [(name, source, group) for source in self.owners[name]]
            for name, one in self.searched.items()
            if one.simplex
            for group in self.groups
        ]


def setting_of(groups: Groups, values: Mapping[str, Scalar]) -> Setting:
    """A recipe's setting from values by layer group; groups without one are left out."""
    if set(groups) == {ALL}:
        return values[ALL]
    cases = [
        Case(pattern, values[group])
        for group, patterns in groups.items()
        if group in values
        for pattern in patterns
    ]
    return tuple(sorted(cases, key=lambda case: case.filter is None))


def layer_groups(granularity: str | int, groups: Groups) -> dict[str, tuple[str | None, ...]]:
    """The groups of a granularity.

    Args:
        granularity: layer, global, or how many blocks in a row share their values; the embedding
            then goes with the first ones, final norm and head with the last.
        groups: the layer groups in the order of the model.

    Raises:
        ConfigError: for an unknown granularity, or a number that does not divide the blocks.
    """
    if isinstance(granularity, int) and not isinstance(granularity, bool):
        return _runs(granularity, groups)
    if granularity not in GRANULARITIES:
        raise ConfigError.of(
            "space.granularity", repr(granularity),
            f"one of {', '.join(GRANULARITIES)}, or a number of blocks", "Correct it.",
        )  # fmt: skip
    if granularity == "global":
        return {ALL: (None,)}
    return {group: tuple(patterns) for group, patterns in groups.items()}


def _runs(size: int, groups: Groups) -> dict[str, tuple[str | None, ...]]:
    """Blocks in runs of one size, with what stands before and behind them."""
    names = list(groups)
    blocks = [name for name in names if name.startswith("block.")]
    if size < 1 or not blocks or len(blocks) % size:
        raise ConfigError.of(
            "space.granularity", str(size), f"a divisor of the model's {len(blocks)} blocks",
            "Correct it.",
        )  # fmt: skip
    first = names.index(blocks[0])
    out = {}
    for start in range(0, len(blocks), size):
        run = blocks[start : start + size]
        begin = 0 if start == 0 else first + start
        end = len(names) if run[-1] == blocks[-1] else first + start + size
        out[f"blocks.{start}-{start + size - 1}"] = tuple(
            pattern for name in names[begin:end] for pattern in groups[name]
        )
    return out
