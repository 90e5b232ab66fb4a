"""Passes over a tensor that gather statistics, and order statistics of computed values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor

from evomerge.kernels.select import SHIFT, Cut, Histogram, Magnitudes, cuts, within
from evomerge.kernels.view import View

_BLOCK = 1 << 18
"""Elements that are held in float32 at a time."""

Block = tuple[int, Tensor | None, list[Tensor]]
"""Where it begins in the flattened tensor, the base's elements and the sources', float32."""

Values = Callable[[int, Tensor | None, list[Tensor]], Tensor]
"""Makes one number of each element of a block, at least 0, float32."""

T = TypeVar("T")


def over_blocks(view: View, work: Callable[[int, Tensor | None, list[Tensor]], T]) -> list[T]:
    """Does some work for every block of a tensor; results are in order of position."""
    parts = view.over_runs(lambda a, b: [work(*block) for block in _blocks(view, a, b)])
    return [made for part in parts for made in part]


def largest(view: View, values: Values, ks: Sequence[int]) -> list[Cut]:
    """For each k, from 1 to the number of elements, the cut that keeps the k largest values.

    A cut's bottom is the k-th largest; values below 2e-41 count as 0 and are kept with it (the
    bottom of such a cut is -1).
    """
    if not view.count:
        return []
    total = torch.zeros(1 << (31 - SHIFT), dtype=torch.int64)
    lock = Lock()

    # added up at once, as one of every block of a large tensor would be much memory
    def count(start: int, base: Tensor | None, xs: list[Tensor]) -> None:
        bins = _bits(values(start, base, xs)) >> SHIFT
        part = torch.bincount(bins, minlength=len(total)).cpu()
        with lock:
            total.add_(part)

    over_blocks(view, count)
    histogram = Histogram.of(total)

    def gather(which: Sequence[int], bins: Sequence[int]) -> list[Tensor]:
        sizes = dict(zip(histogram.bins.tolist(), histogram.counts.tolist(), strict=True))
        chosen = [torch.empty(sizes[n], dtype=torch.float32) for n in bins]
        filled = [0] * len(bins)

        # into room made before: small pieces that outlive a block would split up the memory
        def work(start: int, base: Tensor | None, xs: list[Tensor]) -> None:
            a = values(start, base, xs)
            number = _bits(a) >> SHIFT
            for j, wanted in enumerate(bins):
                found = a[number == wanted].cpu()
                with lock:
                    here = slice(filled[j], filled[j] + len(found))
                    filled[j] = here.stop
                    chosen[j][here] = found

        over_blocks(view, work)
        return chosen

    def everything(_: int) -> Magnitudes:
        def blocks() -> Iterator[Tensor]:
            for a, b in view.runs():
                for block in _blocks(view, a, b):
                    yield values(*block)

        return blocks

    # one more than there are: the cut after the last element is wanted with its value, too
    return cuts(view.count + 1, [(histogram, k) for k in ks], gather, everything)


def keeps(cut: Cut, values: Tensor, start: int) -> Tensor:
    """Which elements of a block of values a cut of `largest` keeps."""
    return within(values, cut, start)


def _blocks(view: View, start: int, stop: int) -> Iterator[Block]:
    for a in range(start, stop, _BLOCK):
        base, xs = view.read(a, min(a + _BLOCK, stop))
        wide = None if base is None else base.to(torch.float32)
        yield a, wide, [x.to(torch.float32) for x in xs]


def _bits(values: Tensor) -> Tensor:
    """Bits of float32 numbers without the sign, which NaN may have."""
    return values.view(torch.int32) & 0x7FFFFFFF
