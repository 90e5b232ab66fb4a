"""Interpolation on a sphere, from dot products alone.

Points on a great circle through a and b are combinations of a and b, so their coefficients are
all that has to be known, and those follow from the dot products.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def correlations(gram: Floats) -> tuple[Floats, Floats]:
    """Norms (... x m) and cosines (... x m x m) of m vectors from their dot products.

    A zero vector is at right angles to everything; its cosine with itself is 0, too.
    """
    norms = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    product = norms[..., :, None] * norms[..., None, :]
    cosines = np.divide(gram, product, out=np.zeros_like(gram), where=product > 0)
    return norms, np.clip(cosines, -1.0, 1.0)


def arc(gram: Floats, t: float, linear_above: float) -> tuple[Floats, Floats]:
    """Coefficients of two vectors (... each) at the share t of the way from one to the other.

    sin((1 - t) theta) / sin(theta) and sin(t theta) / sin(theta), theta the angle between
    them; 1 - t and t where |cos(theta)| is above a number, as the way between opposite vectors
    is not defined and that between almost parallel ones is straight.

    Args:
        gram: dot products, ... x 2 x 2.
        t: 0 for the first, 1 for the second.
        linear_above: at most 1 - 1e-8, what dot products can tell from 1.

    Source: Shoemake, Animating rotation with quaternion curves (1985), section 3.3.
    """
    cosine = correlations(gram)[1][..., 0, 1]
    linear = np.abs(cosine) > linear_above
    theta = np.arccos(np.where(linear, 0.0, cosine))
    first = np.where(linear, 1 - t, np.sin((1 - t) * theta) / np.sin(theta))
    second = np.where(linear, t, np.sin(t * theta) / np.sin(theta))
    return first, second
