"""Weighted sum of task vectors (arXiv 2212.04089)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.operators.parameters import Flag, Scale, Weights
from evomerge.operators.vectors import combine


def task_arithmetic(
    base: Tensor,
    sources: Sequence[Tensor],
    *,
    weight: Weights,
    lambda_: Scale = 1.0,
    normalize: Flag = False,
) -> Tensor:
    """base + lambda * sum_i w_i (x_i - base).

    Args:
        base: float32 tensor.
        sources: float32 tensors of the base's shape.
        weight: one a source, may be negative.
        lambda_: scales the whole sum (`lambda` in a recipe).
        normalize: whether the sum is divided by sum_i w_i.
    """
    deltas = [x - base for x in sources]
    return combine(base, deltas, weight, lambda_, normalize, consensus=False)
