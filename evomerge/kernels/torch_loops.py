"""The loops of a merge in plain torch: for GPUs, and where there is no C compiler.

The arithmetic and its order are those of `merge.c`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.kernels.masks import BITS, MaskKey, draws
from evomerge.kernels.select import SHIFT, Band, within

LEVELS = 32
_BLOCK, _LANES = 256, 16


class TorchLoops:
    """Works on one contiguous run of a tensor, which begins at its element `start`.

    Runs are 1-D tensors of float32, bfloat16 or float16 on one device; everything is computed
    in float32. What a mask is made of is known to the loops that made it only.
    """

    def combine(
        self,
        out: Tensor,
        xs: Sequence[Tensor],
        coefficients: Tensor,
        offset: float,
        start: int,
        row_length: int,
    ) -> int:
        """out = offset + sum_i c_i x_i; a term whose coefficient is 0 is left out.

        Args:
            out: the run to write.
            xs: the sources' runs.
            coefficients: float32, m numbers, or rows x m with one line a row of the tensor.
            offset: added to every element.
            start: of the run in the tensor.
            row_length: elements of a row.

        Returns:
            How many results are NaN or infinite.
        """
        total = torch.full(out.shape, offset, dtype=torch.float32, device=out.device)
        if coefficients.dim() == 1:
            for c, x in zip(coefficients.tolist(), xs, strict=True):
                if c != 0.0:
                    total += c * x.to(torch.float32)
        else:
            table = coefficients.to(out.device)
            row = torch.arange(start, start + out.numel(), device=out.device) // row_length
            for i, x in enumerate(xs):
                c = table[:, i][row]
                total += torch.where(c == 0.0, 0.0, c * x.to(torch.float32))
        return _store(out, total)

    def thin(
        self,
        out: Tensor,
        base: Tensor,
        xs: Sequence[Tensor],
        factors: Sequence[float],
        weights: Sequence[float],
        keeps: Sequence[Tensor | Band | None],
        scale: float,
        normalize: bool,
        consensus: bool,
        least: float,
        start: int,
    ) -> int:
        """out = base + scale * sum_i factors_i keep_i(x_i - base).

        With `consensus` over the sources that agree with the sum's sign (zero counts as
        positive, an exact zero agrees with nobody), then with `normalize` divided by the sum of
        their weights; a divisor of magnitude up to `least` counts as 1.

        Args:
            out: the run to write.
            base: the base's run.
            xs: the sources' runs.
            factors: what each task vector is multiplied with.
            weights: what the divisor is made of.
            keeps: for each source None (all), a mask of `chance` or `ranked`, or a band: its
                inner and its outer cut.
            scale: of the sum.
            normalize: see above.
            consensus: see above.
            least: see above.
            start: of the run in the tensor.

        Returns:
            How many results are NaN or infinite.
        """
        wide = base.to(torch.float32)
        terms = []
        total = torch.zeros_like(wide)
        for x, factor, keep in zip(xs, factors, keeps, strict=True):
            d = x.to(torch.float32) - wide
            if isinstance(keep, Tensor):
                d = torch.where(keep, d, 0.0)
            elif keep is not None:
                d = torch.where(in_band(d.abs(), keep, start), d, 0.0)
            terms.append(factor * d)
            total += terms[-1]
        if consensus:
            up = total >= 0
            mixed, divisor = torch.zeros_like(wide), torch.zeros_like(wide)
            for term, w in zip(terms, weights, strict=True):
                agrees = (up & (term > 0)) | (~up & (term < 0))
                mixed += torch.where(agrees, term, 0.0)
                divisor += torch.where(agrees, w, 0.0)
            if normalize:
                mixed /= torch.where(divisor.abs() <= least, 1.0, divisor)
            total = mixed
        return _store(out, wide + scale * total)

    def chance(
        self, key: MaskKey, limit: int, base: Tensor, x: Tensor, start: int, sums: bool
    ) -> tuple[Tensor, float, float]:
        """A mask of draws below `limit`, with sum |d| and sum |d| over the kept if asked for."""
        mask = draws(key, start, start + x.numel(), x.device) < limit
        return (mask, *_sums(base, x, mask)) if sums else (mask, 0.0, 0.0)

    def ranked(
        self,
        key: MaskKey,
        low: float,
        inverse_step: float,
        levels: int,
        table: Tensor,
        row_length: int,
        base: Tensor,
        x: Tensor,
        start: int,
        sums: bool,
    ) -> tuple[Tensor, float, float]:
        """A mask whose probability rises with the magnitude's rank in its row.

        Args:
            key: what the draws come from.
            low: probability of the smallest magnitudes.
            inverse_step: 1 over how much it rises from one level to the next.
            levels: how many levels there are, at most 32.
            table: rows x 32 rising magnitudes (float32), the first of each row -1; of elements
                that equal one, those with an even draw reach it.
            row_length: elements of a row.
            base: the base's run.
            x: the source's run.
            start: of the run in the tensor.
            sums: whether sum |d| and sum |d| over the kept are wanted.
        """
        a = (x.to(torch.float32) - base.to(torch.float32)).abs()
        drawn = draws(key, start, start + x.numel(), x.device)
        u = drawn.to(torch.float32) * 2.0**-BITS
        v = (u - _f32(low)) * _f32(inverse_step) + 1.0
        level = v.clamp(min=0.0).to(torch.int64)
        row = torch.arange(start, start + x.numel(), device=x.device) // row_length
        least = table.to(x.device)[row, level.clamp(max=LEVELS - 1)]
        mask = (level < levels) & ((a > least) | ((a == least) & (drawn % 2 == 0)))
        return (mask, *_sums(base, x, mask)) if sums else (mask, 0.0, 0.0)

    def band_sums(self, band: Band, base: Tensor, x: Tensor, start: int) -> tuple[float, float]:
        """sum |d| and sum |d| within a band, given by its inner and its outer cut."""
        a = (x.to(torch.float32) - base.to(torch.float32)).abs()
        return _sums(base, x, in_band(a, band, start))

    def histogram(self, base: Tensor | None, x: Tensor) -> Tensor:
        """Counts of |d| in every bin (see `select`), dense, int64."""
        bins = _magnitude(base, x).view(torch.int32) >> SHIFT
        return torch.bincount(bins, minlength=1 << (31 - SHIFT)).cpu()

    def gather(
        self, bins: Sequence[int], room: Sequence[int], base: Tensor | None, xs: Sequence[Tensor]
    ) -> list[Tensor]:
        """Magnitudes in one bin of each source's histogram, in order.

        Args:
            bins: one a source.
            room: the most elements that a source has there.
            base: the base's run, or None for the sources themselves.
            xs: the sources' runs.
        """
        out = []
        for x, wanted in zip(xs, bins, strict=True):
            a = _magnitude(base, x)
            out.append(a[a.view(torch.int32) >> SHIFT == wanted].cpu())
        return out

    def row_table(
        self, ranks: Sequence[int], row_length: int, base: Tensor | None, x: Tensor
    ) -> Tensor:
        """Magnitudes at some ranks of every sorted row, rows x 32 float32, then infinity.

        Where the rank before has a smaller one, it is the float32 number before it (if that is
        not the smaller one): elements equal to an entry are those on both sides of a boundary.

        Args:
            ranks: at most 32, from 0 for the smallest.
            row_length: elements of a row.
            base: the base's rows, or None for the source's own magnitudes.
            x: whole rows of the source.
        """
        ordered = _magnitude(base, x).view(-1, row_length).sort(dim=1).values
        bits = ordered.view(torch.int32)
        at = bits[:, list(ranks)]
        at -= (at - bits[:, [max(0, r - 1) for r in ranks]] > 1).to(torch.int32)
        table = torch.full((len(ordered), LEVELS), float("inf"), device=x.device)
        table[:, : len(ranks)] = at.view(torch.float32)
        return table.cpu()

    def gram(self, base: Tensor | None, xs: Sequence[Tensor]) -> Tensor:
        """m x m dot products of x_i - base (of x_i without one), float64 on the CPU."""
        ds = [x.to(torch.float32) for x in xs]
        if base is not None:
            wide = base.to(torch.float32)
            ds = [d - wide for d in ds]
        out = torch.zeros(len(xs), len(xs), dtype=torch.float64)
        for i, d in enumerate(ds):
            for k in range(i, len(ds)):
                out[i, k] = out[k, i] = _total(d * ds[k])
        return out

    def non_finite(self, x: Tensor) -> int:
        """How many values are NaN or infinite."""
        if x.element_size() == 1:  # torch cannot ask float8 for it
            x = x.to(torch.float32)
        return int((~torch.isfinite(x)).sum())


def _store(out: Tensor, total: Tensor) -> int:
    out.copy_(total)
    return TorchLoops().non_finite(out)


def _f32(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float32))


def _magnitude(base: Tensor | None, x: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    return (wide if base is None else wide - base.to(torch.float32)).abs()


def in_band(a: Tensor, band: Band, start: int) -> Tensor:
    """Which magnitudes of a run the outer cut of a band keeps but not its inner one."""
    inner, outer = band
    return within(a, outer, start) & ~within(a, inner, start)


def _sums(base: Tensor, x: Tensor, mask: Tensor) -> tuple[float, float]:
    a = _magnitude(base, x)
    return _total(a), _total(torch.where(mask, a, 0.0))


def _total(x: Tensor) -> float:
    """Sum in 16 float32 lanes over blocks of 256, then in float64, as `merge.c` does."""
    padded = torch.nn.functional.pad(x, (0, -x.numel() % _BLOCK)).view(-1, _BLOCK // _LANES, _LANES)
    lanes = torch.zeros(padded.shape[0], _LANES, dtype=torch.float32, device=x.device)
    for step in range(_BLOCK // _LANES):
        lanes += padded[:, step]
    return float(lanes.to(torch.float64).sum())
