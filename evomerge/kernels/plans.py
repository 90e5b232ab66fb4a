"""What an operator does to one tensor, as data.

An operator looks at a tensor's shape, and at statistics of it where it needs some, and answers
with a plan; `TensorMerge` carries it out run by run, on any device, natively where it can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

RowFactors = NDArray[np.float64]
"""One coefficient a row of the tensor (its first dimension)."""


@dataclass(frozen=True)
class Combination:
    """out = offset + base * b + sum_i sources[i] * x_i.

    Attributes:
        sources: a coefficient a source, the same for the whole tensor or one a row.
        base: that of the base; 0 where there is none.
        offset: added to every element.
    """

    sources: tuple[float | RowFactors, ...]
    base: float | RowFactors = 0.0
    offset: float = 0.0


@dataclass(frozen=True)
class Pieced:
    """A combination whose coefficients change along the flattened tensor.

    Attributes:
        stops: where pieces end, rising; the last is the number of elements.
        coefficients: for each piece one number a source.
    """

    stops: tuple[int, ...]
    coefficients: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class All:
    """Keeps every element."""


@dataclass(frozen=True)
class Band:
    """Keeps elements by the rank of their magnitude in the tensor.

    Elements at the boundary that count as equally large (see `View.cuts`) are kept by draws that
    depend on their position, as many as are wanted on average.

    Attributes:
        keep: how many elements.
        skip: how many that are still larger are dropped.
    """

    keep: int
    skip: int = 0


@dataclass(frozen=True)
class Chance:
    """Keeps every element with the probability `density`."""

    density: float


@dataclass(frozen=True)
class RankedChance:
    """Keeps elements with probabilities that rise with the magnitude's rank in its row.

    They rise from `density - epsilon` to `density + epsilon` in at most 32 steps of equally
    many elements. Equal magnitudes have the mean of what their ranks would give, half of them
    the least and half of them the most.
    """

    density: float
    epsilon: float


Keep = All | Band | Chance | RankedChance


@dataclass(frozen=True)
class Thinned:
    """out = base + scale * sum_i weights[i] * f_i * keep_i(x_i - base).

    Attributes:
        weights: one a source.
        keeps: which elements of each task vector take part.
        scale: of the whole sum.
        normalize: whether the sum is divided by the weights that took part.
        consensus: whether only the sources take part that agree with the sum's sign.
        rescale: f_i: `none` 1; `l1` makes the l1 norm what it was before; `density` divides
            by the probability with which an element was kept.
    """

    weights: tuple[float, ...]
    keeps: tuple[Keep, ...]
    scale: float = 1.0
    normalize: bool = False
    consensus: bool = False
    rescale: str = "none"


@dataclass(frozen=True)
class Blockwise:
    """out = function(start, base, sources) on float32 blocks of any size.

    Attributes:
        function: takes where the block begins in the flattened tensor, the base's block (None
            without a base) and the sources', all 1-D, and gives one of that length. An element
            of the result depends on its position and on the elements at that position only,
            and on what the function knows of the whole tensor. Called from several threads.
    """

    function: Callable[[int, Tensor | None, list[Tensor]], Tensor]


_ROUNDING = 1e-6
"""Of a float32 sum of weights, relative to the sum of their magnitudes."""


def least_divisor(weights: Sequence[float]) -> float:
    """A sum of these weights that is no larger than this in magnitude is zero up to rounding."""
    return max(1e-8, _ROUNDING * sum(abs(w) for w in weights))


def divisor(weights: Sequence[float]) -> float:
    """Sum of the weights; 1 where they cancel out (up to rounding), so that nothing blows up."""
    total = float(sum(weights))
    return total if abs(total) > least_divisor(weights) else 1.0


Plan = Combination | Pieced | Thinned | Blockwise
