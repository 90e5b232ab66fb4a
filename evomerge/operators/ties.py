"""TIES: trim, elect sign, merge (arXiv 2306.01708)."""

from __future__ import annotations

from evomerge.kernels.plans import Thinned
from evomerge.operators._thinning import rescaling, trimmed
from evomerge.operators.parameters import (
    Deltas,
    Densities,
    Flag,
    RescaleNorm,
    Scale,
    Unused,
    Weights,
)


def ties(
    view: Deltas,
    *,
    weight: Weights,
    density: Densities,
    lambda_: Scale = 1.0,
    normalize: Flag = True,
    rescale: Flag = False,
    rescale_norm: RescaleNorm = "l1",
    int8_mask: Unused = False,
) -> Thinned:
    """Sum of trimmed task vectors over the sources that agree with the elected sign.

    The elected sign is that of the weighted sum, zero counting as positive; an exact zero agrees
    with nobody.

    Of elements that are equally large (to 2**-9 of their size where all files hold 16 bits) as
    many are kept as it takes on average, by draws that depend on their position.

    Args:
        view: a base and its fine-tuned sources.
        weight: one a source, may be negative.
        density: fraction of largest-magnitude elements kept, one a source. 0 keeps none, any other
            at least one (on average, where more are equally large).
        lambda_: scales the whole sum (`lambda` in a recipe).
        normalize: whether each element is divided by the weights that took part.
        rescale: whether dropping is made up for by scaling what is kept.
        rescale_norm: l1 keeps the l1 norm, density divides by the fraction kept.
        int8_mask: no effect.
    """
    return Thinned(
        weights=tuple(weight),
        keeps=tuple(trimmed(view.count, p) for p in density),
        scale=lambda_,
        normalize=normalize,
        consensus=True,
        rescale=rescaling(rescale, rescale_norm),
    )
