"""Whether a merge with random masks is drawn from the distribution that it should be.

Every element is kept or dropped on its own, so that expected value and variance of a sum over
elements follow exactly by going through all outcomes of an element (2^3 with three sources).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import torch
from compare import CHANCE, DIFFERS, Inputs, Row, Tensors, same_shape
from reference import Given, combine
from rounding import eps, fused
from torch import Tensor

LIMIT = 4.5
"""Scores (in standard deviations) beyond it fail: 1 in 150 000 by chance."""
_H = 1e-3

Statistic = Callable[[Tensor, Tensor], Tensor]
STATISTICS: dict[str, Statistic] = {
    "changed elements": lambda v, s: (v != 0).to(v.dtype),
    "sum": lambda v, s: v,
    "l1 norm": lambda v, s: v.abs(),
    "overlap with the whole sum": lambda v, s: v * s,
}
"""Sums over elements of functions of what is added to the base, v, and of the unthinned sum."""


def compare_random(row: Row, method: str, inputs: Inputs, ours: Tensors, theirs: Tensors) -> None:
    """Fills a row for a recipe with random masks.

    Both programs are held against the same expectations; their masks differ, of course.
    """
    split = any(".block_sparse_moe." in name for name in ours)
    layouts = (inputs, inputs.fused() if split else inputs)
    names = same_shape(row, fused(ours) if split else ours, theirs)
    row.elements = sum(theirs[n].numel() for n in names)
    low = row.mode == "bfloat16"
    scores = []
    cache: dict[str, list[_Expected]] = {}
    for who, tensors, given in (("ours", ours, layouts[0]), ("mergekit", theirs, layouts[1])):
        axis = 1 if who == "mergekit" else -1
        inexact = eps(torch.bfloat16) if low and who == "mergekit" else 0.0
        worst, notes = _scores(method, tensors, given, axis, inexact, {} if split else cache)
        scores.append(worst)
        row.notes.extend(f"{who}: {note}" for note in notes)
    row.z = (round(scores[0], 2), round(scores[1], 2))
    if row.verdict != DIFFERS:
        row.verdict = CHANCE if max(scores) <= LIMIT else DIFFERS


def _scores(
    method: str, tensors: Tensors, inputs: Inputs, axis: int, inexact: float,
    cache: dict[str, list[_Expected]],
) -> tuple[float, list[str]]:  # fmt: skip
    """The largest score of a program, and what failed.

    Args:
        method: the operator.
        tensors: what the program wrote.
        inputs: the models in its layout.
        axis: along which della ranks where there are two or more.
        inexact: relative error of probabilities and factors that is no fault.
        cache: expectations by tensor, filled at the first call.
    """
    notes: list[str] = []
    totals = {key: [0.0, 0.0, 0.0] for key in STATISTICS}
    squares: list[float] = []
    for name, tensor in tensors.items():
        given = inputs.given(name, 0.0)
        if name not in cache:
            cache[name] = _expected(method, given, axis, tensor.dtype)
        added = tensor.to(torch.float64) - given.origin
        whole = _whole(given)
        for (key, statistic), want in zip(STATISTICS.items(), cache[name], strict=True):
            off = float(statistic(added, whole).sum()) - want.mean
            for i, term in enumerate((off, want.variance, abs(want.mean))):
                totals[key][i] += term
            plain = key == "changed elements" and not inexact and tensor.numel() > 1000
            if plain and want.variance > 0:
                squares.append(off * off / want.variance)
        if len(inputs.xs) == 1:
            notes += _lone(given, added, name, tensor.dtype, inexact)
    worst = 0.0
    for key, (off, variance, size) in totals.items():
        z = max(0.0, abs(off) - inexact * size) / math.sqrt(max(variance, 1e-30))
        worst = max(worst, z)
        if z > LIMIT:
            notes.append(f"{key}: {z:.1f} standard deviations off")
    if squares and not 0.3 < sum(squares) / len(squares) < 2.0 and len(squares) > 30:
        notes.append(
            f"scores of single tensors spread {math.sqrt(sum(squares) / len(squares)):.2f}"
        )
        worst = max(worst, 99.0)
    if any("kept value" in note for note in notes):
        worst = max(worst, 99.0)
    return worst, notes


def _whole(given: Given) -> Tensor:
    pairs = zip(given.own["weight"], given.deltas, strict=True)
    return torch.stack([w * d for w, d in pairs]).sum(dim=0)


def _chances(method: str, given: Given, axis: int) -> list[Tensor]:
    """Probability with which every element is kept, one tensor a source."""
    out = []
    for i, delta in enumerate(given.deltas):
        p = given.own["density"][i]
        if method.startswith("dare"):
            out.append(torch.full_like(delta, p))
            continue
        e = given.shared.get("epsilon", 0.15)
        along = axis if delta.dim() > 1 else 0
        ranks = delta.abs().argsort(dim=along, stable=True).argsort(dim=along).to(delta.dtype)
        out.append(p - e + 2 * e * ranks / max(1, delta.shape[along] - 1))
    return out


class _Expected:
    """Mean and variance of a statistic of one tensor."""

    def __init__(self, mean: float, variance: float) -> None:
        self.mean = mean
        self.variance = variance


def _expected(method: str, given: Given, axis: int, dtype: torch.dtype) -> list[_Expected]:
    chances = _chances(method, given, axis)
    rescale = given.shared.get("rescale", True)
    lone = len(chances) == 1
    factors, spreads = [], []
    for p, d in zip(chances, given.deltas, strict=True):
        kept = float((p * d.abs()).sum())
        factors.append(float(d.abs().sum()) / kept if rescale else 1.0)
        spreads.append(float((p * (1 - p) * d * d).sum()) / kept**2 if rescale else 0.0)
    means, variances = _moments(method, given, chances, factors, dtype)
    out = [_Expected(m, v) for m, v in zip(means, variances, strict=True)]
    for i, spread in enumerate(spreads):  # the factor varies with the masks
        if not spread:
            continue
        near = [f * (1 + _H) if j == i else f for j, f in enumerate(factors)]
        moved, _ = _moments(method, given, chances, near, None if lone else dtype)
        still = means if not lone else _moments(method, given, chances, factors, None)[0]
        for one, a, b in zip(out, moved, still, strict=True):
            one.variance += ((a - b) / _H) ** 2 * spread
    return out


def _moments(
    method: str, given: Given, chances: list[Tensor], factors: list[float],
    dtype: torch.dtype | None,
) -> tuple[list[float], list[float]]:  # fmt: skip
    """Expected value and variance of every statistic, over all outcomes."""
    ties = method in ("dare_ties", "della")
    normalize = given.shared.get("normalize", method == "della")
    origin = given.origin
    scaled = [origin + f * d for f, d in zip(factors, given.deltas, strict=True)]
    plain = replace(given, xs=scaled, shared={**given.shared, "rescale": False})
    whole = _whole(given)
    first = [torch.zeros_like(origin) for _ in STATISTICS]
    second = [torch.zeros_like(origin) for _ in STATISTICS]
    for outcome in product((False, True), repeat=len(chances)):
        p = torch.ones_like(origin)
        for kept, chance in zip(outcome, chances, strict=True):
            p = p * (chance if kept else 1 - chance)
        masks = [torch.full_like(origin, kept, dtype=torch.bool) for kept in outcome]
        out = combine(plain, masks, ties, normalize).out
        added = (out if dtype is None else out.to(dtype).to(torch.float64)) - origin
        for i, statistic in enumerate(STATISTICS.values()):
            value = statistic(added, whole)
            first[i] += p * value
            second[i] += p * value * value
    means = [float(m.sum()) for m in first]
    variances = [float((s - m * m).clamp(min=0).sum()) for m, s in zip(first, second, strict=True)]
    return means, variances


def _lone(given: Given, added: Tensor, name: str, dtype: torch.dtype, inexact: float) -> list[str]:
    """With one source the mask can be read off: norm and values have to follow from it."""
    delta = given.deltas[0]
    mask = added != 0
    if dtype != torch.float32 or not bool(mask.any()):
        return []
    factor = float(delta.abs().sum() / delta[mask].abs().sum())
    off = (added - factor * delta * mask).abs()
    room = 8 * eps(dtype) * (given.origin.abs().max() + factor * delta.abs().max())
    if bool((off > room).any()):
        return [f"{name}: a kept value is not the delta times the ratio of the l1 norms"]
    return []
