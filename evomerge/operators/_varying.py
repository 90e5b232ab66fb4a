"""Combinations whose coefficients differ from line to line or from column to column."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.kernels.lines import line_length
from evomerge.kernels.plans import Blockwise, Combination
from evomerge.kernels.view import View

Floats = NDArray[np.float64]


def by_line(view: View, sources: Sequence[Floats], base: Floats) -> Combination | Blockwise:
    """out = base * b + sum_i sources[i] * x_i with one coefficient a line (last dimension)."""
    if len(view.shape) == 2:
        return Combination(tuple(sources), base)
    length = line_length(view)
    return _varying(sources, base, lambda at: at // length)


def by_column(view: View, sources: Sequence[Floats], base: Floats) -> Combination | Blockwise:
    """The same with one coefficient for each position in a row."""
    length = view.row_length
    return _varying(sources, base, lambda at: at % length)


def _varying(
    sources: Sequence[Floats], base: Floats, index: Callable[[Tensor], Tensor]
) -> Blockwise:
    tables = [torch.from_numpy(np.asarray(c, dtype=np.float32)) for c in (base, *sources)]

    def function(start: int, b: Tensor | None, xs: list[Tensor]) -> Tensor:
        device = xs[0].device
        at = index(torch.arange(start, start + len(xs[0]), device=device))
        out = torch.zeros_like(xs[0]) if b is None else b * tables[0].to(device)[at]
        for x, table in zip(xs, tables[1:], strict=True):
            out += x * table.to(device)[at]
        return out

    return Blockwise(function)
