"""Riemannian (Karcher) mean of the models' directions (arXiv 2603.04972)."""

from __future__ import annotations

import math

import numpy as np

from evomerge.kernels.plans import Combination
from evomerge.operators._sphere import Floats, correlations
from evomerge.operators.parameters import Models, Small, Steps

_CANCELLED = 1e-3
"""Length of a mean of unit vectors that dot products summed in float32 cannot tell from 0."""


def karcher(view: Models, *, max_iter: Steps = 10, tol: Small = 1e-5) -> Combination:
    """The point on the sphere with the least sum of squared angles, times the mean norm.

    All models count alike. Models of zeros have no direction, but count in the mean norm. Where
    the directions cancel out the result is the models' plain mean.

    Args:
        view: the models, a base like any other.
        max_iter: most iterations.
        tol: angle in radians at which the iteration stops.
    """
    count = len(view.sources)
    if count == 1:
        return Combination((1.0,))
    norms, cosines = correlations(view.gram(deltas=False))
    there = norms > 0
    mean = _mean(cosines[np.ix_(there, there)], max_iter, tol)
    if mean is None:
        return Combination((1.0 / count,) * count)
    out = np.zeros(count)
    out[there] = mean / norms[there] * norms.mean()
    return Combination(tuple(float(c) for c in out))


def _mean(cosines: Floats, max_iter: int, tol: float) -> Floats | None:
    """Coefficients of the unit vectors in their mean, which is a unit vector, too."""
    count = len(cosines)
    if count == 0:
        return None
    mean = np.full(count, 1.0 / count)
    length = _length(mean, cosines)
    if length <= max(tol, _CANCELLED):
        return None
    mean /= length
    least = max(tol, 1e-12)  # a tolerance of 0 would divide by 0
    for _ in range(max_iter):
        dots = np.clip(cosines @ mean, -1.0, 1.0)
        theta = np.arccos(dots)
        sine = np.sin(theta)
        # logarithm of u at the mean: (u - (u . mean) mean) * theta / sin(theta); it has no
        # direction where u is at the mean or opposite to it
        factor = np.divide(theta, sine, out=np.zeros(count), where=sine > least) / count
        tangent = factor - (factor @ dots) * mean
        length = _length(tangent, cosines)
        if length <= least:
            break
        mean = np.cos(length) * mean + np.sin(length) / length * tangent
        mean /= _length(mean, cosines)
    return mean


def _length(coefficients: Floats, cosines: Floats) -> float:
    return math.sqrt(max(0.0, float(coefficients @ cosines @ coefficients)))
