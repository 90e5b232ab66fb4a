"""Barycentric interpolation of several sources on a sphere."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np

from evomerge.kernels.plans import Combination, divisor
from evomerge.kernels.view import View
from evomerge.operators.parameters import Flag, Small, Takes, Weights

_CANCELLED = 1e-3
"""Length of a weighted sum of unit vectors, relative to the weights, that dot products summed
in float32 cannot tell from 0."""


def multislerp(
    view: Annotated[View, Takes("optional")],
    *,
    weight: Weights,
    normalize_weights: Flag = True,
    eps: Small = 1e-8,
) -> Combination:
    """The direction of the weighted mean of unit vectors times the weighted mean of norms.

    The published definition goes on in the tangent space at that mean, with the same weights:
    unit vectors u_i projected there, u_i - (u_i . m) m, and summed. As the projection is linear
    and m is the direction of sum_i w_i u_i, that sum is 0 and the point stays m.

    Where unit vectors cancel out there is no direction; the result is the weighted sum of the
    sources then. With a base, task vectors take the sources' place and the base is added. One
    source is returned as it is, whatever its weight.

    Args:
        view: sources, with or without a base.
        weight: one a source.
        normalize_weights: whether the weights are scaled to sum to 1 (a sum of 0 counts as 1).
        eps: added to the norms that sources are divided by.

    Source: https://goddard.blog/posts/multislerp-wow-what-a-cool-idea
    """
    if len(view.sources) == 1:
        return Combination((1.0,))
    w = np.asarray(weight, dtype=np.float64) / (divisor(weight) if normalize_weights else 1.0)
    gram = view.gram()
    norms = np.sqrt(np.diagonal(gram))
    unit = np.divide(w, norms + eps, out=np.zeros_like(w), where=norms > 0)
    length = math.sqrt(max(0.0, float(unit @ gram @ unit)))
    if length <= max(eps, _CANCELLED * float(np.abs(w).sum())):
        c = w
    else:
        c = unit * (w @ norms / length)
    return Combination(tuple(float(x) for x in c), base=float(1.0 - c.sum()))
