"""Vectors that a tensor is made of: along its last dimension, or down its first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.kernels.view import View

_BLOCK = 1 << 18
"""Elements that are held in float32 at a time."""

Grams = NDArray[np.float64]
"""Dot products, lines x m x m."""


def line_length(view: View) -> int:
    """Elements of a line: those of the last dimension, or of a tensor without dimensions."""
    return view.shape[-1] if view.shape else view.count


def line_runs(view: View) -> list[tuple[int, int]]:
    """Runs of whole lines, or of parts of one where a line is long; they cover the tensor."""
    length = line_length(view)
    if not view.count:
        return []
    if length <= _BLOCK:
        step = _BLOCK // length * length
        return [(a, min(a + step, view.count)) for a in range(0, view.count, step)]
    return [
        (a, min(a + _BLOCK, line + length))
        for line in range(0, view.count, length)
        for a in range(line, line + length, _BLOCK)
    ]


def line_grams(view: View) -> Iterator[Grams]:
    """Dot products of each line's task vectors (of the sources without a base), in order.

    Computed in float64. What is yielded at a time covers whole lines.
    """
    length = line_length(view)
    size = len(view.sources)
    partial = np.zeros((1, size, size))
    for a, b in line_runs(view):
        ds = [d.view(-1, min(length, b - a)) for d in deltas(view, a, b)]
        parts = np.empty((len(ds[0]), size, size))
        for i, one in enumerate(ds):
            for k in range(i, size):
                dots = (one * ds[k]).sum(dim=1).cpu().numpy()
                parts[:, i, k] = parts[:, k, i] = dots
        if b - a < length:
            partial += parts
            if b % length == 0:
                yield partial
                partial = np.zeros((1, size, size))
        else:
            yield parts


def column_gram(view: View) -> Grams:
    """Dot products of the vectors down the first dimension, row length x m x m, float64.

    A tensor of one dimension has one such vector: itself.
    """
    size = len(view.sources)
    if len(view.shape) < 2:
        return view.gram()[None]
    out = np.zeros((view.row_length, size, size))
    step = max(1, _BLOCK // max(1, view.row_length))
    for row in range(0, view.rows, step):
        rows = min(step, view.rows - row)
        for at in range(0, view.row_length, _BLOCK):
            to = min(at + _BLOCK, view.row_length)
            first = row * view.row_length
            ds = [d.view(rows, -1) for d in deltas(view, first + at, first + at + rows * (to - at))]
            for i, one in enumerate(ds):
                for k in range(i, size):
                    out[at:to, i, k] += (one * ds[k]).sum(dim=0).cpu().numpy()
                    out[at:to, k, i] = out[at:to, i, k]
    return out


def deltas(view: View, start: int, stop: int) -> list[Tensor]:
    """Task vectors of one run (the sources without a base), 1-D float64.

    Differences are rounded to float32, as wherever task vectors are made.
    """
    base, xs = view.read(start, stop)
    wide = [x.to(torch.float32) for x in xs]
    if base is not None:
        wide = [x - base.to(torch.float32) for x in wide]
    return [x.to(torch.float64) for x in wide]
