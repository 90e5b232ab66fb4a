"""A genome as grids of source x layer group, one for each parameter of the merge."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.recipe import Recipe, Scalar, Setting, Value, cases
from evomerge.report.reading import mapping, number


@dataclass(frozen=True)
class Grid:
    """The values of one parameter (weight, density, ...) by source and layer group.

    Attributes:
        parameter: what the values are.
        sources: the rows, in the order of the search space.
        groups: the columns, from the embedding to the head.
        values: value at (source, group); a pair that does not vary is absent.
        low: least value that the search allows.
        high: greatest value that the search allows.
    """

    parameter: str
    sources: tuple[str, ...]
    groups: tuple[str, ...]
    values: dict[tuple[str, str], float]
    low: float
    high: float

    @property
    def signed(self) -> bool:
        """Whether the colours are to diverge from 0."""
        return self.parameter == "weight" or self.low < 0

    @property
    def reach(self) -> float:
        """The greatest absolute value, of the bounds and the values; at least a tiny number."""
        return max(abs(self.low), abs(self.high), *(abs(v) for v in self.values.values()), 1e-9)


@dataclass
class _Cells:
    values: dict[tuple[str, str], float] = field(default_factory=dict)
    bounds: list[float] = field(default_factory=list)


def split_name(name: str) -> tuple[str, str, str] | None:
    """`parameter/source/group` as its parts (a source may hold slashes), None if it is not one."""
    parts = name.split("/")
    if len(parts) < 3 or not all(parts):
        return None
    return parts[0], "/".join(parts[1:-1]), parts[-1]


def group_order(group: str) -> tuple[int, int, str]:
    """Sort key of a layer group: embedding, blocks by number, head, `all`, then any other."""
    if block := re.fullmatch(r"blocks?\.(\d{1,9})(-\d{1,9})?", group):
        return 1, int(block[1]), ""
    fixed = {"embedding": 0, "head": 2, "all": 3}
    return fixed.get(group, 4), 0, group


def group_label(group: str) -> str:
    """A short name for a column: the number of a block, or of a run of them, else the group."""
    return group.removeprefix("block.").removeprefix("blocks.")


def read_genome(
    dimensions: Sequence[Any], genome: Sequence[Any]
) -> tuple[list[Grid], list[tuple[str, str]]]:
    """The grids of a genome, and (name, value) of every dimension that belongs to no grid.

    Both are empty if genome and dimensions differ in length: nothing is then known.
    """
    cells: dict[str, _Cells] = {}
    others: list[tuple[str, str]] = []
    if len(dimensions) != len(genome):
        return [], []
    for dimension, gene in zip(map(mapping, dimensions), genome, strict=True):
        name, value = str(dimension.get("name", "")), number(gene)
        parts = split_name(name)
        if gene is None:
            continue
        if parts is None or value is None:
            others.append((name, str(gene)))
            continue
        parameter, source, group = parts
        cell = cells.setdefault(parameter, _Cells())
        cell.values[source, group] = value
        limits = (number(dimension.get("low")), number(dimension.get("high")))
        cell.bounds += [value, *(v for v in limits if v is not None)]
    return [_grid(parameter, cell) for parameter, cell in cells.items()], others


def genome_of(dimensions: Sequence[Any], recipe: Recipe) -> list[Any]:
    """The value of every dimension in a recipe that the space made; None where it has none.

    Sources stand in the recipe in the order in which the dimensions name them first. A block
    is picked by a filter that ends in its number, the embedding by one that does not, and the
    head, as everything else, by the case without a filter.
    """
    names = [split_name(str(mapping(d).get("name", ""))) for d in dimensions]
    shared = set(recipe.parameters)
    sources = list(dict.fromkeys(p[1] for p in names if p and p[0] not in shared))
    if sources and len(sources) != len(recipe.sources):
        return [None] * len(names)
    own = {name: s.parameters for name, s in zip(sources, recipe.sources, strict=False)}
    return [
        _value((recipe.parameters if p[0] in shared else own[p[1]]).get(p[0]), p[2]) if p else None
        for p in names
    ]


def _value(setting: Setting | None, group: str) -> Scalar | None:
    if setting is None:
        return None
    number = re.sub(r"^blocks?\.(\d+)(-\d+)?$", r"\1", group)
    listed = cases(setting)
    if len(listed) == 1 and listed[0].filter is None:
        return _one(listed[0].value)
    for case in listed:
        if case.filter is None or case.filter == "*":
            found = group == "head"
        elif group == "embedding":
            found = not re.search(r"\.\d+\.$", case.filter)
        else:
            found = group != number and case.filter.endswith(f".{number}.")
        if found:
            return _one(case.value)
    return None


def _one(value: Value) -> Scalar | None:
    """A value that is the same at every depth; a gradient is none."""
    return None if isinstance(value, tuple) else value


def _grid(parameter: str, cells: _Cells) -> Grid:
    sources = dict.fromkeys(source for source, _ in cells.values)
    groups = dict.fromkeys(group for _, group in cells.values)
    return Grid(
        parameter=parameter,
        sources=tuple(sources),
        groups=tuple(sorted(groups, key=group_order)),
        values=cells.values,
        low=min(cells.bounds),
        high=max(cells.bounds),
    )
