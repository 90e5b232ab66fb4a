"""Steps that the operators on thinned task vectors share."""

from __future__ import annotations

from evomerge.kernels.plans import All, Band, Keep, RankedChance


def trimmed(count: int, density: float) -> Keep:
    """The share `density` of `count` elements that are largest in magnitude.

    Rounded down, but at least one unless the density is 0.
    Source: TIES-Merging (arXiv 2306.01708), step 1.
    """
    if density >= 1:
        return All()
    return Band(max(1, int(density * count)) if density > 0 else 0)


def without_outliers(count: int, density: float, gamma: float) -> Keep:
    """The largest `density` of `count` elements after the largest `gamma` of them.

    Both are rounded down; fewer outliers are dropped where density + gamma is more than 1.
    Source: Model Breadcrumbs (arXiv 2312.06795).
    """
    if density >= 1:
        return All()
    kept = int(density * count)
    return Band(kept, skip=min(int(gamma * count), count - kept))


def ranked(density: float, epsilon: float) -> Keep:
    """Random by rank (DELLA, arXiv 2406.11617), with probabilities that stay within 0 and 1."""
    return RankedChance(density, max(0.0, min(epsilon, density, 1 - density)))


def rescaling(rescale: bool, norm: str) -> str:
    """What a plan calls it: `none`, `l1` or `density`."""
    return norm if rescale else "none"
