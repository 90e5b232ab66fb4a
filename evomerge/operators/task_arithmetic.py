"""Weighted sum of task vectors (arXiv 2212.04089)."""

from __future__ import annotations

from evomerge.kernels.plans import Combination, divisor
from evomerge.operators.parameters import (
    Deltas,
    Flag,
    Scale,
    Unused,
    UnusedDensities,
    Weights,
)


def task_arithmetic(
    view: Deltas,
    *,
    weight: Weights,
    density: UnusedDensities,
    lambda_: Scale = 1.0,
    normalize: Flag = False,
    rescale: Unused = False,
    int8_mask: Unused = False,
) -> Combination:
    """base + lambda * sum_i w_i (x_i - base).

    Computed as a combination of base and sources, so that one source of weight 1 is returned
    exactly.

    Args:
        view: a base and its fine-tuned sources.
        weight: one a source, may be negative.
        density: no effect; task vectors are taken whole.
        lambda_: scales the whole sum (`lambda` in a recipe).
        normalize: whether the sum is divided by sum_i w_i (a sum of 0 counts as 1).
        rescale: no effect.
        int8_mask: no effect.
    """
    step = lambda_ / (divisor(weight) if normalize else 1.0)
    coefficients = tuple(step * w for w in weight)
    return Combination(coefficients, base=1.0 - sum(coefficients))
