"""Genomes worth a first look, and how much of the sources' changes a genome leaves out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from evomerge.operators import Operator
from evomerge.recipe import Scalar
from evomerge.spaces.grid import ALL, Grid, Place
from evomerge.spaces.searched import Searched, is_number
from evomerge.types import FloatArray

_SHARES = ("density", "select_topk")
"""Parameters that say what share of a change is kept."""
_LOSSES = ("gamma", "epsilon")
"""Parameters that drop elements of a change, or make keeping them a matter of chance."""

Lookup = Callable[[Place], Scalar | None]
"""Value of a parameter for a source in a layer group; None where it has no effect there."""


def landmarks(grid: Grid, sources: Sequence[str], arc: bool) -> list[FloatArray]:
    """Each source alone, the uniform merge, the whole sum, the base of an interpolation.

    A source alone has the weight 1, the others 0; nothing of a change is dropped, and scales
    are 1: all as near as the bounds permit. What else there is stays at its start.

    Args:
        grid: of the searched parameters.
        sources: names of the sources.
        arc: whether `t` leads from the base (0) to the source (1).

    Returns:
        genes of the grid, `n` arrays, in that order; some may be equal.
    """
    alone = [{name: float(name == one) for name in sources} for one in sources]
    found = [_genome(grid, weights, 1.0, arc) for weights in alone]
    found.append(_genome(grid, dict.fromkeys(sources, 1.0 / len(sources)), 0.5, arc))
    found.append(_genome(grid, dict.fromkeys(sources, 1.0), 1.0, arc))
    if arc and "t" in grid.searched:
        found.append(_genome(grid, {}, 0.0, True))
    return found


def distinct(genomes: Iterable[FloatArray]) -> tuple[FloatArray, ...]:
    """The genomes without repeats, in order."""
    first: dict[bytes, FloatArray] = {}
    for genome in genomes:
        first.setdefault(genome.tobytes(), genome)
    return tuple(first.values())


def left_out(lookup: Lookup, grid: Grid, sources: Sequence[str]) -> float:
    """Share of the sources' changes that a merge leaves out.

    1 - mean over sources and layer groups of density * min(1, |weight| / reach), where reach is
    the greatest weight that the bounds allow, but at most 1: a source of weight 1 is wholly in.
    All layer groups count alike. What an operator does not have counts as 1; `t` counts as a
    weight, `select_topk` as a density.

    Returns:
        a number in [0, 1].
    """
    searched = grid.searched.get("weight")
    reach = 1.0 if searched is None or searched.simplex else min(1.0, searched.reach())
    kept = [
        math.prod([
            *(_share(lookup((name, source, group)), 1.0) for name in _SHARES),
            _share(lookup(("weight", source, group)), reach),
            _share(lookup(("t", source, group)), 1.0),
        ])
        for source in sources
        for group in grid.groups
    ]  # fmt: skip
    return float(min(1.0, max(0.0, 1.0 - math.fsum(kept) / len(kept))))


def interpolates(method: str) -> bool:
    """Whether an operator's `t` leads from the base (0) to its one source (1)."""
    return method == "slerp"


def has_effect(operator: Operator, parameter: str) -> bool:
    """Whether an operator has a parameter that it makes use of."""
    found = operator.parameters.get(parameter)
    return found is not None and not found.inert


def fixed_or_searched(
    operator: Operator,
    fixed: Mapping[str, Scalar],
    values: Mapping[Place, Scalar],
    place: Place,
) -> Scalar | None:
    """The value of a parameter at a place, if it has an effect there."""
    parameter, _, group = place
    idle = parameter == "t" and not interpolates(operator.name)
    if idle or not has_effect(operator, parameter):
        return None
    return fixed.get(parameter, values.get(place, values.get((parameter, ALL, group))))


def _share(value: Scalar | None, reach: float) -> float:
    """What part of a whole a value stands for; the whole where there is none."""
    return min(1.0, abs(float(value)) / reach) if value is not None and is_number(value) else 1.0


def _genome(grid: Grid, weights: Mapping[str, float], t: float, arc: bool) -> FloatArray:
    """Genes of given weights a source, with whole changes."""

    def gene(searched: Searched, source: str) -> float:
        if searched.name == "weight" and source in weights:
            return searched.nearest(weights[source])
        if searched.name == "t" and arc:
            return searched.nearest(t)
        if searched.name in (*_SHARES, "lambda"):
            return searched.nearest(1.0)
        return searched.nearest(0.0) if searched.name in _LOSSES else searched.start

    return np.array([gene(grid.searched[p], source) for p, source, _ in grid.places])
