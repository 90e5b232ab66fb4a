"""Model breadcrumbs: drop outliers and small changes (arXiv 2312.06795)."""

from __future__ import annotations

from evomerge.kernels.plans import Thinned
from evomerge.operators._thinning import rescaling, without_outliers
from evomerge.operators.parameters import (
    Deltas,
    Densities,
    Flag,
    Gammas,
    RescaleNorm,
    Scale,
    Unused,
    Weights,
)


def breadcrumbs(
    view: Deltas,
    *,
    weight: Weights,
    density: Densities,
    gamma: Gammas,
    lambda_: Scale = 1.0,
    normalize: Flag = False,
    rescale: Flag = False,
    rescale_norm: RescaleNorm = "l1",
    int8_mask: Unused = False,
) -> Thinned:
    """Sum of task vectors without their largest and their smallest elements.

    Of elements that are equally large (to 2**-9 of their size where all files hold 16 bits) as
    many are kept as it takes on average, by draws that depend on their position.

    Args:
        view: a base and its fine-tuned sources.
        weight: one a source, may be negative.
        density: fraction of elements kept, one a source: the largest after the outliers. 1 keeps
            all of them, outliers too.
        gamma: fraction of largest-magnitude elements dropped as outliers, one a source; less where
            `density` would not be reached.
        lambda_: scales the whole sum (`lambda` in a recipe).
        normalize: whether the sum is divided by the sum of the weights.
        rescale: whether dropping is made up for by scaling what is kept.
        rescale_norm: l1 keeps the l1 norm, density divides by the fraction kept.
        int8_mask: no effect.
    """
    return Thinned(
        weights=tuple(weight),
        keeps=tuple(
            without_outliers(view.count, p, g) for p, g in zip(density, gamma, strict=True)
        ),
        scale=lambda_,
        normalize=normalize,
        consensus=False,
        rescale=rescaling(rescale, rescale_norm),
    )
