"""Compares two written merges, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from recipes import Case
from reference import OPERATORS, Answer, Given
from rounding import eps, fused, largest_unit, read_tensors, unit
from torch import Tensor

EQUAL, ROUNDING, CHANCE = "equal", "equal up to rounding", "in distribution"
PURPOSE, DIFFERS, FAILS = "differs on purpose", "DIFFERS", "mergekit fails"

_OWN_SLACK = 8
"""Units of float32 at a tensor's largest magnitude that a float32 sum may be off."""
_LOW_SLACK = 4
"""Units at a tensor's largest magnitude that a merge computed in bfloat16 may be off."""

_POOR_SLACK = 12
"""The same against float64, where a bfloat16 cosine of very short vectors (experts) is poor."""
_FEW = 1e-3
"""Share of elements that may differ by a decision within rounding without further ado."""

_BIN = 2.0**-9
"""Relative size of a bin in which ours takes magnitudes of 16-bit files as equal."""

Tensors = dict[str, Tensor]


@dataclass
class Row:
    """What came of one recipe with one architecture and mode.

    Attributes:
        case: name of the recipe.
        architecture: of the models.
        mode: in what type it was computed and written.
        kind: of the case.
        verdict: one of the constants of this module.
        elements: compared ones.
        same: share of them that are equal to the bit.
        units: largest difference in units of the written type at the tensor's largest magnitude,
            doubtful elements aside.
        apart: share of elements that differ by more than one unit at the element itself.
        doubtful: elements that differ and hang on a decision within rounding.
        ours: our largest error against float64 in those units; None without a reference.
        theirs: mergekit's.
        nearer: who is nearer to float64 on average: `ours`, `theirs` or `same`.
        z: largest score of the statistics of a random operator: ours, mergekit's.
        wide: whether mergekit wrote float32 where bfloat16 was asked for.
        explained: whether mergekit's result is what its way of holding the model makes of it.
        reason: why it differs on purpose.
        notes: what there is to say.
    """

    case: str
    architecture: str
    mode: str
    kind: str
    verdict: str = EQUAL
    elements: int = 0
    same: float = 1.0
    units: float = 0.0
    apart: float = 0.0
    doubtful: int = 0
    ours: float | None = None
    theirs: float | None = None
    nearer: str | None = None
    z: tuple[float, float] | None = None
    wide: bool = False
    explained: bool = True
    reason: str | None = None
    notes: list[str] = field(default_factory=list)

    def fail(self, note: str) -> None:
        """Makes the row differ."""
        self.verdict = DIFFERS
        if len(self.notes) < 8:
            self.notes.append(note)

    def plain(self) -> dict[str, Any]:
        """For the JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Inputs:
    """The models of a recipe.

    Attributes:
        base: None where the operator takes none.
        xs: sources in order.
        own: per-source parameters that are the same for all tensors.
        shared: the others.
    """

    base: Tensors | None
    xs: list[Tensors]
    own: dict[str, list[float]]
    shared: dict[str, Any]

    def fused(self) -> Inputs:
        """The same with experts in one tensor."""
        base = None if self.base is None else fused(self.base)
        return Inputs(base, [fused(x) for x in self.xs], self.own, self.shared)

    def given(self, name: str, rounding: float, ranks: float = 0.0) -> Given:
        """One tensor of all models; the last two as in `Given`."""
        base = None if self.base is None else self.base[name].to(torch.float64)
        xs = [x[name].to(torch.float64) for x in self.xs]
        return Given(base, xs, self.own, self.shared, rounding, ranks)


def read_inputs(case: Case, folder: Path) -> Inputs:
    """Reads the models of a case whose parameters are plain numbers."""
    recipe = case.recipe
    base = read_tensors(folder / recipe["base_model"]) if "base_model" in recipe else None
    models = recipe["models"]
    own: dict[str, list[float]] = {}
    for key in {k for m in models for k in m.get("parameters", {})}:
        own[key] = [m["parameters"][key] for m in models]
    xs = [read_tensors(folder / m["model"]) for m in models]
    return Inputs(base, xs, own, recipe.get("parameters", {}))


def same_shape(row: Row, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """Names that can be compared; others make the row differ."""
    only = sorted(set(ours) ^ set(theirs))
    if only:
        row.fail(f"tensors of one side only: {', '.join(only[:4])} ({len(only)})")
    names = [n for n in theirs if n in ours]
    for name in list(names):
        a, b = ours[name], theirs[name]
        if a.shape != b.shape:
            row.fail(f"{name}: shape {list(a.shape)} against {list(b.shape)}")
            names.remove(name)
        elif a.dtype != b.dtype and b.dtype == torch.float32 and row.mode == "bfloat16":
            row.wide = True
        elif a.dtype != b.dtype:
            row.fail(f"{name}: {a.dtype} against {b.dtype}")
        elif not bool(a.isfinite().all() & b.isfinite().all()):
            row.fail(f"{name}: not finite")
    return names


def compare_exact(
    row: Row, method: str, inputs: Inputs | None, ours: Tensors, theirs: Tensors
) -> None:
    """Fills a row for a recipe without chance.

    Args:
        row: gets verdict and figures.
        method: the operator.
        inputs: for the float64 reference; None for recipes that have none.
        ours: as our files hold them.
        theirs: as mergekit's files hold them.
    """
    low = row.mode == "bfloat16"
    arithmetic = eps(torch.bfloat16) if low else eps(torch.float32)
    refs = None if inputs is None else _References(method, inputs, ours, theirs, arithmetic)
    ours = ours if refs is None else refs.ours
    same = apart = 0
    total = [0.0, 0.0]
    agree = True
    for name in same_shape(row, ours, theirs):
        a, b = ours[name], theirs[name]
        x, y = a.to(torch.float64), b.to(torch.float64)
        gap = (x - y).abs()
        scale, own = largest_unit(y, a.dtype), unit(y, a.dtype)
        allowed = own + 2 * _OWN_SLACK * largest_unit(y, torch.float32)
        if low:
            allowed = torch.full_like(allowed, _LOW_SLACK * scale)
        doubt = torch.zeros_like(gap, dtype=torch.bool)
        if refs is not None:
            found = refs.judge(name, x, y, a.dtype, low)
            doubt = found.doubt
            allowed += found.slack
            total = [t + e for t, e in zip(total, found.total, strict=True)]
            row.ours = max(row.ours or 0.0, found.worst[0] / scale)
            row.theirs = max(row.theirs or 0.0, found.worst[1] / scale)
            row.explained &= found.explained
            if not found.right:
                row.fail(f"{name}: ours is not what the float64 reference gives")
        row.elements += gap.numel()
        same += int((a == b.to(a.dtype)).sum())
        apart += int((gap > 1.01 * own).sum())
        row.doubtful += int((doubt & (gap > allowed)).sum())
        sure = torch.where(doubt, 0.0, gap)
        row.units = max(row.units, float(sure.max()) / scale)
        agree &= not bool((sure > allowed).any())
    row.same = same / max(1, row.elements)
    row.apart = apart / max(1, row.elements)
    if refs is not None:
        row.nearer = _nearer(total)
    if row.verdict != DIFFERS:
        many = row.doubtful > _FEW * row.elements
        row.verdict = EQUAL if row.same == 1 else ROUNDING
        if row.wide or many or not agree:
            row.verdict = PURPOSE


def _nearer(total: Sequence[float]) -> str:
    if abs(total[0] - total[1]) <= 0.02 * max(total):
        return "same"
    return "ours" if total[0] < total[1] else "theirs"


@dataclass(frozen=True)
class _Judged:
    """One tensor against float64.

    Attributes:
        doubt: where they may differ.
        slack: by how much doubtful elements move the others.
        right: whether ours is the reference's result, rounded once.
        explained: whether mergekit's is that of its own layout, up to its arithmetic.
        worst: largest errors, ours and mergekit's.
        total: sums of the errors.
    """

    doubt: Tensor
    slack: float
    right: bool
    explained: bool
    worst: tuple[float, float]
    total: tuple[float, float]


class _References:
    """Float64 results in both layouts, all tensors; ours in mergekit's layout for comparing."""

    def __init__(
        self, method: str, inputs: Inputs, ours: Tensors, theirs: Tensors, arithmetic: float
    ) -> None:
        operator = OPERATORS[method]
        single = eps(torch.float32)

        def results(
            given: Inputs, names: list[str], rounding: float, ranks: float
        ) -> dict[str, Answer]:
            return {n: operator(given.given(n, rounding, ranks)) for n in names}

        stored = inputs.xs[0][next(iter(ours))].dtype
        ranks = 2 * single if stored == torch.float32 else _BIN

        self.split = any(".block_sparse_moe." in name for name in ours)
        mine = results(inputs, list(ours), single, ranks)
        self.ours = fused(ours) if self.split else ours
        self.mine = {n: a.out for n, a in mine.items()}
        self.mine_doubt = {n: a.doubt for n, a in mine.items()}
        slacks = {n: torch.tensor(a.slack) for n, a in mine.items()}
        if self.split:
            slacks = {n: s.expand(self.mine[n].shape) for n, s in slacks.items()}
            parts = (self.mine, self.mine_doubt, slacks)
            self.mine, self.mine_doubt, slacks = (fused(part) for part in parts)
            inputs = inputs.fused()
        self.slack = {n: float(s.max()) for n, s in slacks.items()}
        if self.split or arithmetic != single or ranks != 2 * single:
            mine = results(inputs, list(theirs), arithmetic, 2 * arithmetic)
        self.other = mine

    def judge(
        self, name: str, ours: Tensor, theirs: Tensor, dtype: torch.dtype, low: bool
    ) -> _Judged:
        """One tensor; `low`: whether mergekit computes in bfloat16."""
        mine, other = self.mine[name], self.other[name]
        slack = self.slack[name]
        fine = _OWN_SLACK * largest_unit(mine, torch.float32)
        error = torch.where(self.mine_doubt[name], 0.0, (ours - mine).abs())
        right = bool((error <= 0.501 * unit(mine, dtype) + fine + slack).all())
        doubt = self.mine_doubt[name] | other.doubt
        off = torch.where(doubt, 0.0, (theirs - other.out).abs())
        limit = 0.501 * unit(other.out, dtype) + 4 * fine + other.slack
        if low:
            limit = limit + _POOR_SLACK * largest_unit(other.out, dtype)
        error = torch.where(doubt, 0.0, error)
        return _Judged(
            doubt,
            slack + other.slack,
            right,
            bool((off <= limit).all()),
            (float(error.max()), float(off.max())),
            (float(error.sum()), float(off.sum())),
        )
