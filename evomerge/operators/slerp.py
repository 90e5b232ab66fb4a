"""Spherical interpolation between the base and one source."""

from __future__ import annotations

from evomerge.kernels.plans import Combination
from evomerge.operators._sphere import arc
from evomerge.operators.parameters import Pair, Scale

_LINEAR = 0.9995


def slerp(view: Pair, *, t: Scale) -> Combination:
    """The point at the share t of the arc from the base to the source.

    Linear, (1 - t) base + t x, where the cosine between them is above 0.9995 or below -0.9995:
    almost equal or opposite tensors. A tensor of zeros counts as at right angles to the other.

    Args:
        view: a base and one source.
        t: 0 for the base, 1 for the source.
    """
    first, second = arc(view.gram(deltas=False), t, _LINEAR)
    return Combination((float(second),), base=float(first))
