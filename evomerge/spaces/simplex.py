"""Weights that sum to 1."""

from __future__ import annotations

from collections.abc import Sequence

_GRID = 10**12
"""Weights are multiples of its inverse, so that weights of a recipe are their own shares."""


def shares(weights: Sequence[float]) -> list[float]:
    """Each weight divided by the sum of all; equal ones where that is 0.

    They are rounded to 12 decimals that sum to 1, so that `shares(shares(w)) == shares(w)`.

    Args:
        weights: finite; negative ones count as 0.
    """
    positive = [max(0.0, w) for w in weights]
    largest = max(positive)
    scaled = [w / largest for w in positive] if largest > 0 else [1.0] * len(positive)
    total = sum(scaled)
    exact = [w / total * _GRID for w in scaled]
    units = [round(e) for e in exact]
    missing = _GRID - sum(units)
    sign = 1 if missing > 0 else -1
    # the weights that rounding moved furthest the other way give or take the units that are missing
    order = sorted(range(len(exact)), key=lambda i: (sign * (units[i] - exact[i]), i))
    for i in order[: abs(missing)]:
        units[i] += sign
    return [u / _GRID for u in units]


def within(weights: Sequence[float], high: float) -> list[float]:
    """Shares, scaled down together where one is above an upper bound."""
    factor = min(1.0, high / max(weights))
    return [min(high, factor * w) for w in weights]
