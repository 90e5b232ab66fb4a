"""Weighted average of the sources (model soups, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.operators.parameters import Flag, Weights


def linear(
    base: Tensor | None,
    sources: Sequence[Tensor],
    *,
    weight: Weights,
    normalize: Flag = True,
) -> Tensor:
    """sum_i w_i x_i, divided by sum_i w_i unless `normalize` is off (or the sum is 0).

    Args:
        base: not used; a base among the sources is averaged like any other.
        sources: float32 tensors of one shape.
        weight: one a source.
        normalize: whether the weights are scaled to sum to 1.
    """
    divisor = sum(float(w) for w in weight) if normalize else 1.0
    out = torch.zeros_like(sources[0])
    for w, x in zip(weight, sources, strict=True):
        out += float(w) * x
    return out / divisor if abs(divisor) >= 1e-8 else out
