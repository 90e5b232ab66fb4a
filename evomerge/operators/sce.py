"""SCE: select, calculate, erase (FuseChat, arXiv 2408.07990)."""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.kernels.passes import keeps, largest, over_blocks
from evomerge.kernels.plans import Blockwise
from evomerge.kernels.select import NOTHING, Cut
from evomerge.operators.parameters import Deltas, Share, Unused

_TINY = 1e-6


def sce(view: Deltas, *, select_topk: Share = 1.0, int8_mask: Unused = False) -> Blockwise:
    """base + weighted mean of selected task vectors over the sources that agree in sign.

    Selected are the elements whose variance over the sources is largest: the share
    `select_topk` of those where it is not 0, rounded down; of equal ones at the boundary as many
    as it takes on average, by draws that depend on their position. One source alone, and equal
    sources, have no variance, so that less than the whole selects nothing and gives the base.
    Weights are the mean squares of what was selected, equal ones where these sum to less than
    1e-6. The elected sign is that of the plain sum, zero counting as positive; an exact zero
    agrees with nobody.

    Args:
        view: a base and its fine-tuned sources.
        select_topk: 1 selects everything, 0 nothing.
        int8_mask: no effect.
    """
    cut = _selection(view, select_topk) if select_topk < 1 else None

    def selected(start: int, base: Tensor | None, xs: list[Tensor]) -> list[Tensor]:
        deltas = _deltas(base, xs)
        if cut is None:
            return deltas
        variance = _variance(start, base, xs)
        mask = keeps(cut, variance, start) & (variance > 0)
        return [torch.where(mask, d, 0.0) for d in deltas]

    def squares(start: int, base: Tensor | None, xs: list[Tensor]) -> Tensor:
        deltas = selected(start, base, xs)
        return torch.stack([d.to(torch.float64).square().sum() for d in deltas]).cpu()

    zero = torch.zeros(len(view.sources), dtype=torch.float64)
    means = (sum(over_blocks(view, squares), zero) / max(1, view.count)).tolist()
    total = sum(means)
    weights = [m / total if total >= _TINY else 1.0 / len(means) for m in means]

    def function(start: int, base: Tensor | None, xs: list[Tensor]) -> Tensor:
        assert base is not None
        deltas = selected(start, base, xs)
        elected = torch.zeros_like(base)
        for d in deltas:
            elected += d
        up = elected >= 0
        mixed, divisor = torch.zeros_like(base), torch.zeros_like(base)
        for d, w in zip(deltas, weights, strict=True):
            agrees = (up & (d > 0)) | (~up & (d < 0))
            mixed += torch.where(agrees, w * d, 0.0)
            divisor += torch.where(agrees, w, 0.0)
        return base + mixed / divisor.clamp(min=_TINY)

    return Blockwise(function)


def _selection(view: Deltas, share: float) -> Cut:
    """The cut that keeps the share of elements with the largest variances."""

    def nonzero(start: int, base: Tensor | None, xs: list[Tensor]) -> int:
        return int(torch.count_nonzero(_variance(start, base, xs)))

    k = int(sum(over_blocks(view, nonzero)) * share)
    return largest(view, _variance, [k])[0] if k else NOTHING


def _deltas(base: Tensor | None, xs: list[Tensor]) -> list[Tensor]:
    assert base is not None
    return [x - base for x in xs]


def _variance(start: int, base: Tensor | None, xs: list[Tensor]) -> Tensor:
    """Over the sources, of every element; float64 until the end, so that order is exact."""
    deltas = _deltas(base, xs)
    mean = torch.zeros_like(deltas[0], dtype=torch.float64)
    for d in deltas:
        mean += d
    mean /= len(deltas)
    out = torch.zeros_like(mean)
    for d in deltas:
        out += (d - mean).square()
    return (out / len(deltas)).to(torch.float32)
