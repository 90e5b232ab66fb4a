"""Carries out a plan on one tensor."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge.kernels import select
from evomerge.kernels.compiled_loops import Count
from evomerge.kernels.loops import loops_for
from evomerge.kernels.masks import BITS, limit
from evomerge.kernels.native import NativeLoops
from evomerge.kernels.plans import (
    All,
    Band,
    Blockwise,
    Chance,
    Combination,
    Keep,
    Pieced,
    Plan,
    RankedChance,
    Thinned,
    divisor,
    least_divisor,
)
from evomerge.kernels.select import EVERYTHING, NOTHING
from evomerge.kernels.view import DEVICE_RUN, View

_BLOCK = 1 << 18
"""Elements that the function of a `Blockwise` plan gets at a time."""

_MASKS = 256 << 20
"""Bits of masks that are kept from one pass to the next: 32 MB."""


class TensorMerge:
    """Makes the values of one merged tensor, whole or in runs.

    Statistics of the whole tensor are gathered when it is made; after that every run is
    independent of the others.
    """

    def __init__(self, view: View, plan: Plan) -> None:
        self.view = view
        self._plan = plan
        self._masks: dict[tuple[int, int, int], Tensor] = {}
        # one kind of loops for all passes, as masks mean something to their makers only
        weights = [w for w in (view.base, *view.sources) if w is not None]
        self._loops = loops_for(
            [torch.empty(0, dtype=w.dtype, device=view.device) for w in weights]
        )
        if isinstance(plan, Thinned):
            self._prepare(plan)
        elif isinstance(plan, Combination):
            self._coefficients = _coefficients(view, plan)
            self._copied = _copied(self._coefficients, plan.offset)

    def write(self, out: Tensor) -> int:
        """Fills a contiguous tensor of the view's shape, rounding once to its dtype.

        Returns:
            How many of the values are NaN or infinite.
        """
        return int(self.begin(out))

    def begin(self, out: Tensor) -> Count:
        """Does the same as `write`, but does not wait for a GPU.

        Returns:
            How many of the values are NaN or infinite; on a GPU a tensor of one number.
        """
        flat = out.view(-1)
        return sum(self.view.over_runs(lambda a, b: self.run(flat[a:b], a)))

    def run(self, out: Tensor, start: int) -> Count:
        """Fills one run, which begins at element `start` of the tensor, as `begin`."""
        plan = self._plan
        base, xs = self.view.read(start, start + out.numel())
        if isinstance(plan, Combination):
            inputs = xs if base is None else [base, *xs]
            if self._copied is not None:  # adding to 0 would turn -0 into 0
                out.copy_(inputs[self._copied])
                return loops_for([out]).non_finite(out)
            return loops_for([out, *inputs]).combine(
                out, inputs, self._coefficients, plan.offset, start, self.view.row_length
            )
        if isinstance(plan, Blockwise):
            return _blockwise(plan, out, base, xs, start)
        if isinstance(plan, Pieced):
            return _pieces(plan, out, xs, start)
        return self._thin(plan, out, base, xs, start)

    def read(self, start: int, stop: int) -> Tensor:
        """Elements [start, stop) in float32, not rounded any further."""
        out = torch.empty(stop - start, dtype=torch.float32, device=self.view.device)
        self.run(out, start)
        return out

    # -- thinned task vectors -----------------------------------------------------------------

    def _prepare(self, plan: Thinned) -> None:
        """Finds cuts, row tables and rescaling factors."""
        wanted = []
        for i, keep in enumerate(plan.keeps):
            if isinstance(keep, Band):
                wanted += [(i, keep.skip), (i, keep.skip + keep.keep)]
        found = iter(self.view.cuts(wanted) if wanted else [])
        self._bands: dict[int, select.Band] = {}
        self._tables: dict[int, tuple[Tensor, int]] = {}
        for i, keep in enumerate(plan.keeps):
            if isinstance(keep, Band):
                inner, outer = next(found), next(found)
                if (inner, outer) != (NOTHING, EVERYTHING):
                    self._bands[i] = (inner, outer)
            elif isinstance(keep, RankedChance) and 0 < keep.density < 1 and self.view.count:
                self._tables[i] = self.view.row_table(i)
        self._factors = [float(w) * self._rescaling(plan, i) for i, w in enumerate(plan.weights)]

    def _rescaling(self, plan: Thinned, i: int) -> float:
        keep = plan.keeps[i]
        if plan.rescale == "none" or isinstance(keep, All) or plan.weights[i] == 0:
            return 1.0
        if plan.rescale == "density":
            share = keep.keep / max(1, self.view.count) if isinstance(keep, Band) else keep.density
            return 1.0 / max(share, 2.0**-BITS) if share < 1 else 1.0
        if isinstance(keep, Chance | RankedChance) and not 0 < keep.density < 1:
            return 1.0
        sums = self.view.over_runs(lambda a, b: self._sums(keep, i, a, b))
        before, after = (sum(s[j] for s in sums) for j in (0, 1))
        return before / after if after > 0 else 1.0

    def _sums(self, keep: Keep, i: int, start: int, stop: int) -> tuple[float, float]:
        assert self.view.base is not None
        base, x = self.view.base.read(start, stop), self.view.sources[i].read(start, stop)
        if isinstance(keep, Band):
            band = self._bands.get(i, (NOTHING, EVERYTHING))
            return self._loops.band_sums(band, base, x, start)
        mask, before, after = self._mask(keep, i, base, x, start, True)
        bits = 1 if isinstance(self._loops, NativeLoops) else 8
        if self.view.count * len(self.view.sources) * bits <= _MASKS:
            self._masks[i, start, stop] = mask
        return before, after

    def _mask(
        self, keep: Keep, i: int, base: Tensor, x: Tensor, start: int, sums: bool
    ) -> tuple[Tensor, float, float]:
        loops = self._loops
        if isinstance(keep, Chance):
            return loops.chance(self.view.keys[i], limit(keep.density), base, x, start, sums)
        assert isinstance(keep, RankedChance)
        table, levels = self._tables[i]
        # a lone level, and a spread of nothing, leave every element its mean probability
        epsilon = keep.epsilon if levels > 1 else 0.0
        if epsilon <= 0:
            return loops.chance(self.view.keys[i], limit(keep.density), base, x, start, sums)
        step = 2 * epsilon / (levels - 1)
        return loops.ranked(
            self.view.keys[i], keep.density - epsilon, 1 / step, levels, table,
            self.view.row_length, base, x, start, sums,
        )  # fmt: skip

    def _thin(
        self, plan: Thinned, out: Tensor, base: Tensor | None, xs: Sequence[Tensor], start: int
    ) -> Count:
        assert base is not None
        stop = start + out.numel()
        used: list[int] = []
        keeps: list[Tensor | select.Band | None] = []
        for i, keep in enumerate(plan.keeps):
            gone = isinstance(keep, Chance | RankedChance) and keep.density <= 0
            if plan.weights[i] == 0 or gone:
                continue
            used.append(i)
            if isinstance(keep, Band):
                keeps.append(self._bands.get(i))
            elif isinstance(keep, All) or keep.density >= 1:
                keeps.append(None)
            else:
                mask = self._masks.get((i, start, stop))
                if mask is None:
                    mask = self._mask(keep, i, base, xs[i], start, False)[0]
                keeps.append(mask)
        scale = plan.scale
        if plan.normalize and not plan.consensus:
            scale /= divisor(plan.weights)
        # a dtype that the compiled loops cannot write takes a detour over float32
        detour = isinstance(self._loops, NativeLoops) and not isinstance(
            loops_for([out]), NativeLoops
        )
        target = torch.empty(out.shape, dtype=torch.float32) if detour else out
        bad = self._loops.thin(
            target, base, [xs[i] for i in used], [self._factors[i] for i in used],
            [plan.weights[i] for i in used], keeps, scale, plan.normalize, plan.consensus,
            least_divisor(plan.weights), start,
        )  # fmt: skip
        if not detour:
            return bad
        out.copy_(target)
        return loops_for([out]).non_finite(out)


def _blockwise(
    plan: Blockwise, out: Tensor, base: Tensor | None, xs: Sequence[Tensor], start: int
) -> Count:
    """Makes a run in blocks, so that few elements are held in float32 at once."""
    bad: Count = 0
    step = _BLOCK if out.device.type == "cpu" else DEVICE_RUN
    for a in range(0, out.numel(), step):
        part = out[a : a + step]
        wide = None if base is None else base[a : a + step].to(torch.float32)
        sources = [x[a : a + step].to(torch.float32) for x in xs]
        part.copy_(plan.function(start + a, wide, sources))
        found = (~torch.isfinite(part)).sum()
        bad = bad + (int(found) if out.device.type == "cpu" else found)
    return bad


def _pieces(plan: Pieced, out: Tensor, xs: Sequence[Tensor], start: int) -> Count:
    """Fills one run piece by piece."""
    bad: Count = 0
    at, stop = start, start + out.numel()
    piece = bisect_right(plan.stops, start)
    while at < stop:
        end = min(stop, plan.stops[piece])
        here = slice(at - start, end - start)
        chosen = plan.coefficients[piece]
        only = [i for i, c in enumerate(chosen) if c != 0]
        if len(only) == 1 and chosen[only[0]] == 1:  # a copy, signs of zeros included
            out[here].copy_(xs[only[0]][here])
            bad = bad + loops_for([out]).non_finite(out[here])
            at, piece = end, piece + 1
            continue
        inputs = [x[here] for x in xs]
        coefficients = torch.tensor(chosen, dtype=torch.float32)
        bad = bad + loops_for([out, *inputs]).combine(out[here], inputs, coefficients, 0.0, at, 0)
        at, piece = end, piece + 1
    return bad


def _coefficients(view: View, plan: Combination) -> Tensor:
    """float32, one a tensor or one line a row, the base's first."""
    given = list(plan.sources) if view.base is None else [plan.base, *plan.sources]
    if all(isinstance(c, float | int) for c in given):
        return torch.tensor(given, dtype=torch.float32)
    columns = [np.broadcast_to(np.asarray(c, dtype=np.float64), (view.rows,)) for c in given]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def _copied(coefficients: Tensor, offset: float) -> int | None:
    """Which input a combination returns as it is, if it does."""
    if coefficients.dim() != 1 or offset != 0:
        return None
    used = [(i, c) for i, c in enumerate(coefficients.tolist()) if c != 0]
    return used[0][0] if len(used) == 1 and used[0][1] == 1 else None
