"""Which task vectors change an element, as reinforced agent merging counts them."""

from __future__ import annotations

import torch
from torch import Tensor


def changed(
    base: Tensor | None, xs: list[Tensor], epsilon: float
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Task vectors, where each is larger in magnitude than epsilon, and in how many that is so."""
    assert base is not None
    deltas = [x - base for x in xs]
    active = [d.abs() > epsilon for d in deltas]
    count = torch.zeros_like(base)
    for mask in active:
        count += mask
    return deltas, active, count
