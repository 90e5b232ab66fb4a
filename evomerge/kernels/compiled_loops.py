"""The loops of a merge for GPUs: what `torch_loops.py` does, fused by `torch.compile`.

Arithmetic and order are those of `TorchLoops`. Contraction to fused multiply-adds is switched
off and divisions are rounded as in eager torch where the installed torch has options for it.
"""

from __future__ import annotations

import os
import types
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from evomerge.kernels.masks import MaskKey, draws_at, indexed_draws_at
from evomerge.kernels.select import Band
from evomerge.kernels.torch_loops import TorchLoops

ROW = 1024
"""Elements of which a kernel counts the values that are not finite at a time."""

DTYPES = {
    torch.float32: float("inf"),
    torch.bfloat16: float.fromhex("0x1.ffp127"),
    torch.float16: 65520.0,
}
"""The least float32 that each dtype rounds to infinity."""

Count = int | Tensor
"""How many values are not finite; a tensor of one number where the device is not waited for."""

_WANTED = {
    "emulate_precision_casts": True,  # which forbids Triton fused multiply-adds, too
    "eager_numerics.division_rounding": True,
    "eager_numerics.disable_ftz": True,
}


class CompiledLoops(TorchLoops):
    """Works on runs as `TorchLoops`, with few kernels and without waiting for the device.

    A variant is compiled for each number of sources, their dtypes and, for `thin`, what is kept
    of each; lengths and coefficients do not matter. A mask of `chance` is not stored: three
    numbers stand for it, from which `thin` draws it again.
    """

    def combine(  # type: ignore[override]
        self,
        out: Tensor,
        xs: Sequence[Tensor],
        coefficients: Tensor,
        offset: float,
        start: int,
        row_length: int,
    ) -> Count:
        """As `TorchLoops.combine`."""
        if out.dtype not in DTYPES:
            return super().combine(out, xs, coefficients, offset, start, row_length)
        if coefficients.dim() == 2:
            table = coefficients.to(out.device, non_blocking=True)
            numbers = [offset, float(row_length)]
            return _in_parts("rows", (), out, [*xs], [table], numbers, start)
        used = [(c, x) for c, x in zip(coefficients.tolist(), xs, strict=True) if c != 0.0]
        numbers = [offset, *(c for c, _ in used)]
        return _in_parts("combine", (), out, [x for _, x in used], [], numbers, start)

    def thin(  # type: ignore[override]
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
    ) -> Count:
        """As `TorchLoops.thin`."""
        modes: list[str] = []
        masks: list[Tensor] = []
        numbers = [scale, least]
        for factor, weight, keep in zip(factors, weights, keeps, strict=True):
            numbers += [factor, weight]
            if keep is None:
                modes.append("all")
            elif not isinstance(keep, Tensor):
                modes.append("band")
                numbers += [*keep[0], *keep[1]]
            elif keep.dtype == torch.float64:
                modes.append("chance")
                numbers += keep.tolist()
            else:
                modes.append("mask")
                masks.append(keep)
        if out.dtype not in DTYPES:
            made = [
                _mask(k, start, x) if _is_chance(k) else k for k, x in zip(keeps, xs, strict=True)
            ]
            return super().thin(
                out, base, xs, factors, weights, made, scale, normalize, consensus, least, start
            )
        how = (normalize, consensus, *modes)
        return _in_parts("thin", how, out, [base, *xs, *masks], [], numbers, start)

    def chance(
        self, key: MaskKey, limit: int, base: Tensor, x: Tensor, start: int, sums: bool
    ) -> tuple[Tensor, float, float]:
        """As `TorchLoops.chance`, with three float64 numbers on the CPU for the mask."""
        state = key.state()
        mask = torch.tensor([state >> 32, state & 0xFFFFFFFF, limit], dtype=torch.float64)
        if not sums:
            return mask, 0.0, 0.0
        parts = _parts(x.numel())
        totals = sum(
            _call("sums", (), size > ROW, start + a, [base[a : a + size], x[a : a + size]], [],
                  mask.tolist())
            for a, size in parts
        )  # fmt: skip
        before, after = totals.tolist() if isinstance(totals, Tensor) else (0.0, 0.0)
        return mask, before, after

    def non_finite(self, x: Tensor) -> Count:  # type: ignore[override]
        """As `TorchLoops.non_finite`."""
        if x.element_size() == 1:  # torch cannot ask float8 for it
            x = x.to(torch.float32)
        return (~torch.isfinite(x)).sum()


@cache
def compiled_loops(device: str) -> CompiledLoops | None:
    """The compiled loops for a type of device, or None where they do not work there.

    They are tried once. `EVOMERGE_KERNELS=torch` does without them.
    """
    if os.environ.get("EVOMERGE_KERNELS", "auto") == "torch":
        return None
    if device == "cuda" and find_spec("triton") is None:
        return None
    loops = CompiledLoops()
    x = torch.linspace(-3, 5, 4 * ROW + 5, device=device)
    outs = [torch.empty_like(x) for _ in range(2)]
    try:
        for one, out in zip((loops, TorchLoops()), outs, strict=True):
            one.combine(out, [x], torch.tensor([0.3]), 0.25, 0, 1)
        right = torch.allclose(outs[0], outs[1])
    except Exception as error:  # whatever compilers and drivers may say
        warnings.warn(f"merging without torch.compile on {device}: {error}", stacklevel=2)
        return None
    if not right:
        warnings.warn(f"torch.compile gives wrong results on {device}: not used", stacklevel=2)
    return loops if right else None


# -- calls --------------------------------------------------------------------------------------


def _in_parts(
    kind: str,
    how: tuple[object, ...],
    out: Tensor,
    xs: Sequence[Tensor],
    tables: Sequence[Tensor],
    numbers: Sequence[float],
    start: int,
) -> Count:
    """Does whole rows compiled and what is left over eagerly; the same functions do both."""
    bad: Count = 0
    for a, size in _parts(out.numel()):
        runs = [t[a : a + size] for t in (out, *xs)]
        bad = bad + _call(kind, how, size > ROW, start + a, runs, tables, numbers)
    return bad


def _parts(count: int) -> list[tuple[int, int]]:
    """(begin, length) of the whole rows, if there are two or more, and of the rest."""
    whole = count // ROW * ROW if count >= 2 * ROW else 0
    rest = [(a, min(ROW, count - a)) for a in range(whole, count, ROW)]
    return [(0, whole), *rest] if whole else rest


def _call(
    kind: str,
    how: tuple[object, ...],
    compiled: bool,
    start: int,
    runs: Sequence[Tensor],
    tables: Sequence[Tensor],
    numbers: Sequence[float],
) -> Tensor:
    # float64 holds every float32, every position below 2**53 and both halves of a key
    packed = torch.tensor([float(start), *numbers], dtype=torch.float64)
    packed = packed.to(runs[0].device, non_blocking=True)
    shaped = [t.view(-1, ROW) if compiled else t.view(1, -1) for t in runs]
    if not compiled:
        return _MAKERS[kind](*how)(packed, shaped, list(tables))
    dtypes = tuple(t.dtype for t in runs)
    return _variant(kind, how, dtypes)(packed, shaped, list(tables))


Function = Callable[[Tensor, list[Tensor], list[Tensor]], Tensor]


@cache
def _variant(kind: str, how: tuple[object, ...], dtypes: tuple[torch.dtype, ...]) -> Function:
    """Compiles a function for arguments of these dtypes and any length."""
    made: Any = _MAKERS[kind](*how)
    # torch counts recompilations by code object and stops at a few: every variant has its own
    own = types.FunctionType(
        made.__code__.replace(co_name=f"{kind}_{len(dtypes)}"), made.__globals__, kind,
        made.__defaults__, made.__closure__,
    )  # fmt: skip
    known = torch._inductor.list_options()
    options: Any = {k: v for k, v in _WANTED.items() if k in known}
    return torch.compile(own, dynamic=True, fullgraph=True, options=options)


# -- functions on 2-D runs ----------------------------------------------------------------------
#
# Each takes the position of the first element and other numbers (float64), runs of one shape,
# the first of them to be written to, and tables.


def _combination() -> Function:
    def function(numbers: Tensor, runs: list[Tensor], tables: list[Tensor]) -> Tensor:
        out, *xs = runs
        c = numbers.to(torch.float32)
        total = torch.zeros(out.shape, dtype=torch.float32, device=out.device) + c[1]
        for i, x in enumerate(xs):
            total = total + c[2 + i] * x.to(torch.float32)
        return _store(out, total)

    return function


def _combination_by_row() -> Function:
    def function(numbers: Tensor, runs: list[Tensor], tables: list[Tensor]) -> Tensor:
        out, *xs = runs
        row = _positions(out, numbers) // numbers[2].to(torch.int64)
        total = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
        total = total + numbers[1].to(torch.float32)
        for i, x in enumerate(xs):
            c = tables[0][row, i]
            total = total + torch.where(c == 0.0, 0.0, c * x.to(torch.float32))
        return _store(out, total)

    return function


def _thinning(normalize: bool, consensus: bool, *modes: str) -> Function:
    def function(numbers: Tensor, runs: list[Tensor], tables: list[Tensor]) -> Tensor:
        out, base, *others = runs
        xs, masks = others[: len(modes)], others[len(modes) :]
        c = numbers.to(torch.float32)
        wide = base.to(torch.float32)
        at = _positions(out, numbers)
        indexed = indexed_draws_at(at) if "band" in modes else at
        terms: list[Tensor] = []
        weights: list[Tensor] = []
        total = torch.zeros_like(wide)
        next_number, next_mask = 3, 0
        for x, mode in zip(xs, modes, strict=True):
            n = next_number
            d = x.to(torch.float32) - wide
            if mode == "mask":
                d = torch.where(masks[next_mask], d, 0.0)
                next_mask += 1
            elif mode == "band":
                a = d.abs()
                inner = (a >= c[n + 3]) | ((a >= c[n + 2]) & (indexed < numbers[n + 4]))
                outer = (a >= c[n + 6]) | ((a >= c[n + 5]) & (indexed < numbers[n + 7]))
                d = torch.where(outer & ~inner, d, 0.0)
            elif mode == "chance":
                d = torch.where(_chosen(numbers[n + 2 : n + 5], at), d, 0.0)
            next_number += {"band": 8, "chance": 5}.get(mode, 2)
            terms.append(c[n] * d)
            weights.append(c[n + 1])
            total = total + terms[-1]
        if consensus:
            up = total >= 0
            mixed, divisor = torch.zeros_like(wide), torch.zeros_like(wide)
            for term, w in zip(terms, weights, strict=True):
                agrees = (up & (term > 0)) | (~up & (term < 0))
                mixed = mixed + torch.where(agrees, term, 0.0)
                divisor = divisor + torch.where(agrees, w, 0.0)
            if normalize:
                mixed = mixed / torch.where(divisor.abs() <= c[2], 1.0, divisor)
            total = mixed
        return _store(out, wide + c[1] * total)

    return function


def _summing() -> Function:
    def function(numbers: Tensor, runs: list[Tensor], tables: list[Tensor]) -> Tensor:
        base, x = runs
        a = (x.to(torch.float32) - base.to(torch.float32)).abs()
        kept = torch.where(_chosen(numbers[1:], _positions(x, numbers)), a, 0.0)
        return torch.stack([_total(a), _total(kept)])

    return function


_MAKERS: dict[str, Callable[..., Function]] = {
    "combine": _combination,
    "rows": _combination_by_row,
    "thin": _thinning,
    "sums": _summing,
}


def _positions(run: Tensor, numbers: Tensor) -> Tensor:
    """Positions of a run's elements in the tensor, int64."""
    count = torch.arange(run.numel(), device=run.device).view(run.shape)
    return count + numbers[0].to(torch.int64)


def _chosen(mask: Tensor, at: Tensor) -> Tensor:
    """Which elements a mask of `chance` keeps."""
    high, low, limit = (mask[i].to(torch.int64) for i in range(3))
    return draws_at((high << 32) + low, at) < limit


def _store(out: Tensor, total: Tensor) -> Tensor:
    """Rounds once; counts in rows first, so that a kernel that writes them counts them, too."""
    out.copy_(total)
    # a comparison, as the compiler may take what it has written for not rounded
    return (~(total.abs() < DTYPES[out.dtype])).sum(dim=1, dtype=torch.int32).sum()


def _total(x: Tensor) -> Tensor:
    """Sum in 16 float32 lanes over blocks of 256, then in float64, as `TorchLoops` has it."""
    flat = x.reshape(-1)
    short = -x.shape[1] % 256
    if short:
        flat = torch.nn.functional.pad(flat, (0, short))
    blocks = flat.view(-1, 16, 16)
    lanes = blocks[:, 0]
    for step in range(1, 16):
        lanes = lanes + blocks[:, step]
    return lanes.to(torch.float64).sum()


def _is_chance(keep: Tensor | Band | None) -> bool:
    return isinstance(keep, Tensor) and keep.dtype == torch.float64


def _mask(keep: Any, start: int, x: Tensor) -> Tensor:
    """The mask that three numbers stand for."""
    at = torch.arange(start, start + x.numel(), device=x.device)
    return _chosen(keep.to(x.device), at)
