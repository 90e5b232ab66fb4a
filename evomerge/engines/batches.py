"""Grouping sequences of token ids into batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def bucket(lengths: Sequence[int], extra: Sequence[int], budget: int) -> list[list[int]]:
    """Splits sequences into batches of similar length; a pure function of its arguments.

    Args:
        lengths: tokens of each sequence.
        extra: further tokens that each may grow by.
        budget: most tokens of a batch, padding included; a longer sequence goes alone.

    Returns:
        indices of the sequences of each batch, longest batch first.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    width = grown = 0
    for i in order:
        if batches:
            tallest = max(grown, extra[i])
            if (len(batches[-1]) + 1) * (width + tallest) <= budget:
                batches[-1].append(i)
                grown = tallest
                continue
        batches.append([i])
        width, grown = lengths[i], extra[i]
    return batches


def left_pad(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Pads rows on the left to one width.

    Returns:
        ids and mask (1 where a token stands), both `rows x width` int64 tensors.
    """
    width = max(map(len, rows))
    ids = [[pad] * (width - len(r)) + list(r) for r in rows]
    mask = [[0] * (width - len(r)) + [1] * len(r) for r in rows]
    return (
        torch.tensor(ids, dtype=torch.int64, device=device),
        torch.tensor(mask, dtype=torch.int64, device=device),
    )


def positions_of(mask: Tensor) -> Tensor:
    """Position of every token of a left-padded `rows x width` mask; 0 on padding."""
    return (mask.cumsum(-1) - 1).clamp_min(0)
