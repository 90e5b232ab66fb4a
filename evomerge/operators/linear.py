"""Weighted average of the sources (model soups, arXiv 2203.05482)."""

from __future__ import annotations

from evomerge.kernels.plans import Combination, divisor
from evomerge.operators.parameters import Flag, Models, Weights


def linear(view: Models, *, weight: Weights, normalize: Flag = True) -> Combination:
    """sum_i w_i x_i, divided by sum_i w_i where `normalize` (a sum of 0 counts as 1).

    Args:
        view: the models, a base like any other.
        weight: one a model.
        normalize: whether the weights are scaled to sum to 1.
    """
    total = divisor(weight) if normalize else 1.0
    return Combination(tuple(w / total for w in weight))
