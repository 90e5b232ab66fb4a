"""DARE with TIES' sign election (arXiv 2311.03099, 2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.operators.masks import MaskKey
from evomerge.operators.parameters import Densities, Flag, RescaleNorm, Scale, Weights
from evomerge.operators.vectors import combine, drop


def dare_ties(
    base: Tensor,
    sources: Sequence[Tensor],
    *,
    keys: Sequence[MaskKey],
    weight: Weights,
    density: Densities,
    lambda_: Scale = 1.0,
    normalize: Flag = False,
    rescale: Flag = True,
    rescale_norm: RescaleNorm = "l1",
) -> Tensor:
    """Sum of randomly thinned task vectors over the sources that agree in sign.

    Args:
        base: float32 tensor.
        sources: float32 tensors of the base's shape.
        keys: what each source's mask is drawn from.
        weight: one a source, may be negative.
        density: probability of keeping an element, one a source.
        lambda_: scales the whole sum (`lambda` in a recipe).
        normalize: whether each element is divided by the weights that took part.
        rescale: whether dropping is made up for by scaling what is kept.
        rescale_norm: l1 keeps the l1 norm, density divides by the density (the paper).
    """
    deltas = [
        drop(x - base, float(d), key, rescale, rescale_norm)
        for x, d, key in zip(sources, density, keys, strict=True)
    ]
    return combine(base, deltas, weight, lambda_, normalize, consensus=True)
