"""DARE with TIES' sign election (arXiv 2311.03099, 2306.01708)."""

from __future__ import annotations

from evomerge.kernels.plans import Chance, Thinned
from evomerge.operators._thinning import rescaling
from evomerge.operators.parameters import (
    Densities,
    Flag,
    RandomDeltas,
    RescaleNorm,
    Scale,
    Unused,
    Weights,
)


def dare_ties(
    view: RandomDeltas,
    *,
    weight: Weights,
    density: Densities,
    lambda_: Scale = 1.0,
    normalize: Flag = False,
    rescale: Flag = True,
    rescale_norm: RescaleNorm = "l1",
    int8_mask: Unused = False,
) -> Thinned:
    """Sum of randomly thinned task vectors over the sources that agree in sign.

    Density 0 gives the base, density 1 everything.

    The elected sign is that of the weighted sum, zero counting as positive; an exact zero agrees
    with nobody.

    Args:
        view: a base and its fine-tuned sources with what their masks are drawn from.
        weight: one a source, may be negative.
        density: probability of keeping an element, one a source.
        lambda_: scales the whole sum (`lambda` in a recipe).
        normalize: whether each element is divided by the weights that took part.
        rescale: whether dropping is made up for by scaling what is kept.
        rescale_norm: l1 keeps the l1 norm, density divides by the density (the paper).
        int8_mask: no effect.
    """
    return Thinned(
        weights=tuple(weight),
        keeps=tuple(Chance(p) for p in density),
        scale=lambda_,
        normalize=normalize,
        consensus=True,
        rescale=rescaling(rescale, rescale_norm),
    )
