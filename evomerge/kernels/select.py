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

Cut = tuple[float, float, int]
"""(bottom, top, limit): magnitudes from the top on are kept, and of those from the bottom up to
it the ones whose draw of 24 bits is below the limit."""

Band = tuple[Cut, Cut]
"""What an outer cut (the second) keeps but not an inner one."""

NOTHING: Cut = (float("inf"), float("inf"), 0)
EVERYTHING: Cut = (-1.0, -1.0, 0)

_MOST = 1 << 20
"""Elements of a bin that are sorted at once."""

Gather = Callable[[Sequence[int], Sequence[int]], list[Tensor]]
Magnitudes = Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class Histogram:
    """How many magnitudes fall in which bin; empty bins are left out.

    Attributes:
        bins: rising bin numbers (float32 bits >> 14), int64.
        counts: elements in each bin, int64.
    """

    bins: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, counts: Tensor) -> Histogram:
        """From dense counts, one a bin."""
        dense = counts.numpy()
        bins = np.flatnonzero(dense)
        return cls(bins, dense[bins].astype(np.int64))

    def place(self, k: int) -> tuple[int, int, int]:
        """Bin of the k-th largest (k from 1), how many of the bin count, and its size."""
        above = self.counts.sum() - np.cumsum(self.counts)
        at = int(np.flatnonzero(above < k)[0])
        return int(self.bins[at]), k - int(above[at]), int(self.counts[at])


def within(a: Tensor, cut: Cut, start: int) -> Tensor:
    """Which magnitudes of a run, which begins at an element `start`, a cut keeps."""
    bottom, top, limit = cut
    if bottom == float("inf"):  # nothing, infinity neither
        return torch.zeros_like(a, dtype=torch.bool)
    inside = a >= top
    if limit == 0:
        return inside
    draws = indexed_draws(start, start + a.numel(), a.device)
    return inside | ((a >= bottom) & (draws < limit))


def cuts(
    count: int,
    wanted: Sequence[tuple[Histogram, int]],
    gather: Gather | None,
    magnitudes: Callable[[int], Magnitudes],
) -> list[Cut]:
    """Cuts that keep the k largest.

    Elements that are as large as the k-th largest are kept with the probability that makes the
    count k on average, by draws that depend on their position alone.

    Args:
        count: number of elements.
        wanted: histogram and k for each cut.
        gather: for lists of numbers of cuts and of bins, the magnitudes in the bin of each;
            None takes all elements of a bin as equally large.
        magnitudes: for the number of a cut, all magnitudes in runs; only used where very many
            elements are in one bin.
    """
    out: list[Cut] = [NOTHING] * len(wanted)
    open_: dict[int, tuple[int, int]] = {}
    for i, (histogram, k) in enumerate(wanted):
        if k >= count:
            out[i] = EVERYTHING
        elif k > 0:
            number, rank, size = histogram.place(k)
            if number == 0:  # zeros, and numbers that are as good as zero
                out[i] = EVERYTHING
            elif gather is None:
                out[i] = _shared(number << SHIFT, (number + 1) << SHIFT, rank, size)
            elif size > _MOST:
                out[i] = _crowded(number, rank, magnitudes(i))
            else:
                open_[i] = (number, rank)
    if open_ and gather is not None:
        found = gather(list(open_), [number for number, _ in open_.values()])
        for (i, (_, rank)), values in zip(open_.items(), found, strict=True):
            out[i] = _cut(values, rank)
    return out


def _shared(bottom: int, top: int, rank: int, size: int) -> Cut:
    """The cut that keeps `rank` of the `size` elements with float32 bits in [bottom, top)."""
    low, high = torch.tensor([bottom, top], dtype=torch.int32).view(torch.float32).tolist()
    if rank >= size:
        return low, low, 0
    return low, high, -(-(rank << BITS) // size)


def _cut(values: Tensor, rank: int) -> Cut:
    """The cut after the rank-th largest of a few elements."""
    value = torch.topk(values, rank, sorted=False).values.min()
    larger, equal = int((values > value).sum()), int((values == value).sum())
    bits = int(value.view(torch.int32))
    return _shared(bits, bits + 1, rank - larger, equal)


def _crowded(number: int, rank: int, magnitudes: Magnitudes) -> Cut:
    """The same for a bin of very many elements, in one more pass."""
    counts = torch.zeros(1 << SHIFT, dtype=torch.int64)
    for a in magnitudes():
        bits = a.view(torch.int32)
        chosen = bits[bits >> SHIFT == number] & ((1 << SHIFT) - 1)
        counts += torch.bincount(chosen, minlength=1 << SHIFT).cpu()
    above = counts.sum() - counts.cumsum(0)
    low = int(torch.nonzero(above < rank)[0])
    exact = (number << SHIFT) | low
    return _shared(exact, exact + 1, rank - int(above[low]), int(counts[low]))
