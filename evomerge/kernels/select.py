"""The k-th largest of values that are never held at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.kernels.masks import BITS, indexed_draws

SHIFT = 14
"""A bin of a histogram holds magnitudes whose float32 bits agree but for the last 14."""

Cut = tuple[float, int]
"""Of larger magnitude than a value, or equal to it with a draw of 24 bits below a limit."""

Band = tuple[Cut, Cut]
"""What an outer cut (the second) keeps but not an inner one."""

NOTHING: Cut = (float("inf"), 0)
EVERYTHING: Cut = (-1.0, 0)

_MOST = 1 << 20
"""Elements of a bin that are sorted at once."""

Gather = Callable[[Sequence[int], Sequence[int]], list[Tensor]]
Magnitudes = Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class Histogram:
    """How many magnitudes fall in which bin; empty bins are left out.

    Differences of bfloat16 numbers have few values, so that most bins hold one value many
    times; then nothing more has to be known of a bin.

    Attributes:
        bins: rising bin numbers (float32 bits >> 14), int64.
        counts: elements in each bin, int64.
        lowest: least float32 bits in each bin, int64.
        highest: largest float32 bits in each bin, int64.
    """

    bins: NDArray[np.int64]
    counts: NDArray[np.int64]
    lowest: NDArray[np.int64]
    highest: NDArray[np.int64]

    @classmethod
    def of(cls, counts: Tensor, lowest: Tensor, highest: Tensor) -> Histogram:
        """From dense numbers, one a bin."""
        dense = counts.numpy()
        bins = np.flatnonzero(dense)
        arrays = (x.numpy()[bins].astype(np.int64) for x in (counts, lowest, highest))
        return cls(bins, *arrays)

    def place(self, k: int) -> tuple[int, int]:
        """Index of the bin of the k-th largest (k from 1), and how many of it count."""
        above = self.counts.sum() - np.cumsum(self.counts)
        at = int(np.flatnonzero(above < k)[0])
        return at, k - int(above[at])


def dense_counts(bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, least and largest of float32 bits in every bin, three int64 tensors."""
    bins = bits >> SHIFT
    size = 1 << (31 - SHIFT)
    wide = bits.to(torch.int64)
    counts = torch.bincount(bins, minlength=size)
    lowest = torch.full((size,), 2**31, dtype=torch.int64, device=bits.device)
    highest = torch.zeros(size, dtype=torch.int64, device=bits.device)
    index = bins.to(torch.int64)
    lowest.scatter_reduce_(0, index, wide, "amin")
    highest.scatter_reduce_(0, index, wide, "amax")
    return counts.cpu(), lowest.cpu(), highest.cpu()


def joined(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Histogram:
    """The histogram of a tensor from dense counts of its runs."""
    size = 1 << (31 - SHIFT)
    counts = torch.zeros(size, dtype=torch.int64)
    lowest = torch.full((size,), 2**31, dtype=torch.int64)
    highest = torch.zeros(size, dtype=torch.int64)
    for c, low, high in parts:
        counts += c
        lowest = torch.minimum(lowest, low)
        highest = torch.maximum(highest, high)
    return Histogram.of(counts, lowest, highest)


def within(a: Tensor, cut: Cut, start: int) -> Tensor:
    """Which magnitudes of a run, which begins at an element `start`, a cut keeps."""
    value, limit = cut
    inside = a > value
    if limit == 0:
        return inside
    draws = indexed_draws(start, start + a.numel(), a.device)
    return inside | ((a == value) & (draws < limit))


def cuts(
    count: int,
    wanted: Sequence[tuple[Histogram, int]],
    gather: Gather,
    magnitudes: Callable[[int], Magnitudes],
) -> list[Cut]:
    """Cuts that keep the k largest.

    Where several elements equal the k-th largest, each is kept with the probability that makes
    the count k on average, by draws that depend on its position alone.

    Args:
        count: number of elements.
        wanted: histogram and k for each cut.
        gather: for lists of numbers of cuts and of bins, the magnitudes in the bin of each.
        magnitudes: for the number of a cut, all magnitudes in runs; only used where very many
            different elements are in one bin.
    """
    out: list[Cut] = [NOTHING] * len(wanted)
    open_: dict[int, tuple[int, int]] = {}
    for i, (histogram, k) in enumerate(wanted):
        if k >= count:
            out[i] = EVERYTHING
        elif k > 0:
            at, rank = histogram.place(k)
            number, size = int(histogram.bins[at]), int(histogram.counts[at])
            lowest = int(histogram.lowest[at])
            if number == 0:  # zeros, and numbers that are as good as zero
                out[i] = EVERYTHING
            elif lowest == int(histogram.highest[at]):
                out[i] = _shared(lowest, rank, size)
            elif size > _MOST:
                out[i] = _crowded(number, rank, magnitudes(i))
            else:
                open_[i] = (number, rank)
    if open_:
        found = gather(list(open_), [number for number, _ in open_.values()])
        for (i, (_, rank)), values in zip(open_.items(), found, strict=True):
            out[i] = _cut(values, rank)
    return out


def _shared(bits: int, rank: int, size: int) -> Cut:
    """The cut that keeps `rank` of `size` equal elements, given their float32 bits."""
    value = float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
    return value, -(-(rank << BITS) // size)


def _cut(values: Tensor, rank: int) -> Cut:
    """The cut after the rank-th largest of a few elements."""
    value = torch.topk(values, rank, sorted=False).values.min()
    larger, equal = int((values > value).sum()), int((values == value).sum())
    return _shared(int(value.view(torch.int32)), rank - larger, equal)


def _crowded(number: int, rank: int, magnitudes: Magnitudes) -> Cut:
    """The same for a bin of very many elements, in one more pass."""
    counts = torch.zeros(1 << SHIFT, dtype=torch.int64)
    for a in magnitudes():
        bits = a.view(torch.int32)
        chosen = bits[bits >> SHIFT == number] & ((1 << SHIFT) - 1)
        counts += torch.bincount(chosen, minlength=1 << SHIFT).cpu()
    above = counts.sum() - counts.cumsum(0)
    low = int(torch.nonzero(above < rank)[0])
    return _shared((number << SHIFT) | low, rank - int(above[low]), int(counts[low]))
