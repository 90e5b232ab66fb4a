"""TIES: trim, elect sign, merge (arXiv 2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.operators.parameters import Densities, Flag, Scale, Weights
from evomerge.operators.vectors import combine, trim


def ties(
    base: Tensor,
    sources: Sequence[Tensor],
    *,
    weight: Weights,
    density: Densities,
    lambda_: Scale = 1.0,
    normalize: Flag = True,
) -> Tensor:
    """Sum of trimmed task vectors over the sources that agree with the elected sign.

    Args:
        base: float32 tensor.
        sources: float32 tensors of the base's shape.
        weight: one a source, may be negative.
        density: fraction of largest-magnitude elements kept, one a source.
        lambda_: scales the whole sum (`lambda` in a recipe).
        normalize: whether each element is divided by the weights that took part.
    """
    deltas = [trim(x - base, float(d)) for x, d in zip(sources, density, strict=True)]
    return combine(base, deltas, weight, lambda_, normalize, consensus=True)
