"""Reinforced agent merging (arXiv 2601.13572)."""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.kernels.plans import Blockwise
from evomerge.operators._shared import changed
from evomerge.operators.parameters import Deltas, Small


def ram(view: Deltas, *, epsilon: Small = 1e-5) -> Blockwise:
    """base + the mean of those task vectors that change the element, element by element.

    Args:
        view: a base and its fine-tuned sources.
        epsilon: largest magnitude that does not count as a change.
    """

    def function(start: int, base: Tensor | None, xs: list[Tensor]) -> Tensor:
        assert base is not None
        deltas, active, count = changed(base, xs, epsilon)
        total = torch.zeros_like(base)
        for d, mask in zip(deltas, active, strict=True):
            total += torch.where(mask, d, 0.0)
        return base + total / count.clamp(min=1)

    return Blockwise(function)
