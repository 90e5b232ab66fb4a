"""The k-th largest of values that are never held at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHIFT = 14
"""A bin of a histogram holds magnitudes whose float32 bits agree but for the last 14."""

Cut = tuple[float, int]
"""Of larger magnitude than a value, or equal to it before a position in the tensor."""

Band = tuple[Cut, Cut]
"""What an outer cut (the second) keeps but not an inner one."""

NOTHING: Cut = (float("inf"), 0)
EVERYTHING: Cut = (-1.0, 0)

_MOST = 1 << 20
"""Elements of a bin that are sorted at once."""

Gather = Callable[[Sequence[int], Sequence[int]], list[tuple[Tensor, Tensor]]]
Magnitudes = Callable[[], Iterator[tuple[int, Tensor]]]


@dataclass(frozen=True)
class Histogram:
    """How many magnitudes fall in which bin; empty bins are left out.

    Attributes:
        bins: rising bin numbers (float32 bits >> 14), int64.
        above: how many elements lie in higher bins, int64.
        counts: elements in each bin, int64.
    """

    bins: NDArray[np.int64]
    above: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, counts: Tensor) -> Histogram:
        """From dense counts, one a bin."""
        dense = counts.numpy()
        bins = np.flatnonzero(dense)
        kept = dense[bins].astype(np.int64)
        return cls(bins, kept.sum() - np.cumsum(kept), kept)

    def place(self, k: int) -> tuple[int, int, int]:
        """Bin of the k-th largest (k from 1), how many of the bin count, and its size."""
        at = int(np.flatnonzero(self.above < k)[0])
        return int(self.bins[at]), k - int(self.above[at]), int(self.counts[at])


def cuts(
    count: int,
    wanted: Sequence[tuple[Histogram, int]],
    gather: Gather,
    magnitudes: Callable[[int], Magnitudes],
) -> list[Cut]:
    """Cuts that keep exactly the k largest; equal magnitudes count in order of position.

    Args:
        count: number of elements.
        wanted: histogram and k for each cut.
        gather: for lists of numbers of cuts and of bins, magnitudes and positions in the bin
            of each, in order of position.
        magnitudes: for the number of a cut, all magnitudes in runs with their starts; only
            used where very many elements are in one bin.
    """
    out: list[Cut] = [NOTHING] * len(wanted)
    small: dict[int, tuple[int, int]] = {}
    for i, (histogram, k) in enumerate(wanted):
        if k >= count:
            out[i] = EVERYTHING
        elif k > 0:
            number, rank, size = histogram.place(k)
            if number == 0:  # zeros, and numbers that are as good as zero
                out[i] = EVERYTHING
            elif size > _MOST:
                out[i] = _crowded(number, rank, magnitudes(i))
            else:
                small[i] = (number, rank)
    if small:
        found = gather(list(small), [number for number, _ in small.values()])
        for (i, (_, rank)), (values, places) in zip(small.items(), found, strict=True):
            out[i] = _cut(values, places, rank)
    return out


def _cut(values: Tensor, places: Tensor, rank: int) -> Cut:
    """The cut after the rank-th largest of a few elements, given in order of position."""
    value = float(torch.topk(values, rank, sorted=False).values.min())
    larger = int((values > value).sum())
    equal = places[values == value]
    return value, int(equal[rank - larger - 1]) + 1


def _crowded(number: int, rank: int, magnitudes: Magnitudes) -> Cut:
    """The same for a bin of very many elements, in two more passes."""
    counts = torch.zeros(1 << SHIFT, dtype=torch.int64)
    for _, a in magnitudes():
        bits = a.view(torch.int32)
        chosen = bits[bits >> SHIFT == number] & ((1 << SHIFT) - 1)
        counts += torch.bincount(chosen, minlength=1 << SHIFT).cpu()
    low, rank, _ = Histogram.of(counts).place(rank)
    exact = (number << SHIFT) | low
    for start, a in magnitudes():
        equal = torch.nonzero(a.view(torch.int32) == exact).flatten()
        if len(equal) >= rank:
            value = torch.tensor(exact, dtype=torch.int32).view(torch.float32)
            return float(value), start + int(equal[rank - 1]) + 1
        rank -= len(equal)
    raise ValueError("the magnitudes changed between two passes")
