"""DELLA: magnitude-ranked random drop, then sign election (arXiv 2406.11617)."""

from __future__ import annotations

from evomerge.kernels.plans import Thinned
from evomerge.operators._thinning import ranked, rescaling
from evomerge.operators.parameters import (
    Densities,
    Epsilons,
    Flag,
    RandomDeltas,
    RescaleNorm,
    Scale,
    Unused,
    Weights,
)


def della(
    view: RandomDeltas,
    *,
    weight: Weights,
    density: Densities,
    epsilon: Epsilons,
    lambda_: Scale = 1.0,
    normalize: Flag = True,
    rescale: Flag = True,
    rescale_norm: RescaleNorm = "l1",
    int8_mask: Unused = False,
) -> Thinned:
    """Sum of task vectors thinned at random by rank, over the sources that agree in sign.

    An element is kept with a probability that rises with the rank of its magnitude in its row,
    from density - epsilon to density + epsilon, in at most 32 steps. Density 0 gives the base,
    density 1 everything.

    The elected sign is that of the weighted sum, zero counting as positive; an exact zero agrees
    with nobody.

    Args:
        view: a base and its fine-tuned sources with what their masks are drawn from.
        weight: one a source, may be negative.
        density: mean probability of keeping an element, one a source.
        epsilon: how far probabilities reach to both sides of the density, one a source; lowered to
            min(density, 1 - density) where that is less.
        lambda_: scales the whole sum (`lambda` in a recipe).
        normalize: whether each element is divided by the weights that took part.
        rescale: whether dropping is made up for by scaling what is kept.
        rescale_norm: l1 keeps the l1 norm, density divides by the density: the mean probability,
            not that of the element as in the paper.
        int8_mask: no effect.
    """
    return Thinned(
        weights=tuple(weight),
        keeps=tuple(ranked(p, e) for p, e in zip(density, epsilon, strict=True)),
        scale=lambda_,
        normalize=normalize,
        consensus=True,
        rescale=rescaling(rescale, rescale_norm),
    )
