"""Reinforced agent merging with unique changes amplified, tensor by tensor (arXiv 2601.13572)."""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.kernels.passes import over_blocks
from evomerge.kernels.plans import Blockwise
from evomerge.operators._shared import changed
from evomerge.operators.parameters import Deltas, Size, Small


def ramplus_tl(
    view: Deltas, *, r: Size = 0.1, alpha: Size = 0.2, epsilon: Small = 1e-5
) -> Blockwise:
    """As `ram`, where changes that one source alone makes are multiplied.

    The factor of source i is 1 + r * min(alpha, shared_i / unique_i), with the numbers of its
    changed elements that other sources change, too, and that none does.

    Args:
        view: a base and its fine-tuned sources.
        r: how much the ratio amplifies.
        alpha: largest ratio that counts.
        epsilon: largest magnitude that does not count as a change.
    """

    def tally(start: int, base: Tensor | None, xs: list[Tensor]) -> Tensor:
        _, active, count = changed(base, xs, epsilon)
        shared, unique = count > 1, count == 1
        rows = [torch.stack([(mask & kind).sum() for kind in (shared, unique)]) for mask in active]
        return torch.stack(rows).cpu()

    zero = torch.zeros(len(view.sources), 2, dtype=torch.int64)
    counts = sum(over_blocks(view, tally), zero).tolist()
    factors = [1 + r * min(alpha, shared / max(1, unique)) for shared, unique in counts]

    def function(start: int, base: Tensor | None, xs: list[Tensor]) -> Tensor:
        assert base is not None
        deltas, active, count = changed(base, xs, epsilon)
        total = torch.zeros_like(base)
        for d, mask, factor in zip(deltas, active, factors, strict=True):
            total += torch.where(mask, d, 0.0) * torch.where(count == 1, factor, 1.0)
        return base + total / count.clamp(min=1)

    return Blockwise(function)
