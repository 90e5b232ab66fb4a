"""Takes the source where it is near the base (alchemonaut's QuartetAnemoi-70B)."""

from __future__ import annotations

from torch import Tensor

from evomerge.kernels.plans import Blockwise
from evomerge.operators.parameters import Pair, Size

_TINY = 1e-6


def nearswap(view: Pair, *, t: Size) -> Blockwise:
    """(1 - s) base + s x with s = min(1, t / |x - base|) for every element.

    So no element moves by more than t. Distances below 1e-6 count as 1e-6.

    Args:
        view: a base and one source.
        t: how far an element may move, in the weights' own unit.
    """

    def function(start: int, base: Tensor | None, xs: list[Tensor]) -> Tensor:
        assert base is not None
        share = (t / (xs[0] - base).abs().clamp(min=_TINY)).clamp(0.0, 1.0)
        return share * xs[0] + (1 - share) * base

    return Blockwise(function)
