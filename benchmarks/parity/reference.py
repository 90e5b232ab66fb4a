"""What every deterministic operator means, once more, in float64 and straight from its source.

Written for small tensors and for reading: vectors are formed, sorted and averaged outright. Each
function takes float64 tensors and gives the result and where a yes-or-no decision (a rank, a sign,
a threshold) hangs on less than the rounding of the arithmetic with which a program computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Given:
    """What a recipe says of one tensor.

    Attributes:
        base: None without one.
        xs: the sources, float64.
        own: per-source parameters, one list each.
        shared: parameters of the merge.
        eps: relative rounding of the arithmetic; decides what counts as doubtful.
        ranks: relative difference up to which magnitudes of task vectors count as equal.
    """

    base: Tensor | None
    xs: Sequence[Tensor]
    own: Mapping[str, list[float]]
    shared: Mapping[str, Any]
    eps: float
    ranks: float

    @property
    def origin(self) -> Tensor:
        """The base."""
        if self.base is None:
            raise ValueError("no base")
        return self.base

    @property
    def deltas(self) -> list[Tensor]:
        """Task vectors."""
        return [x - self.origin for x in self.xs]


class Answer(NamedTuple):
    """A result.

    Attributes:
        out: float64.
        doubt: where a decision hangs on less than rounding.
        slack: how far doubtful elements may move all the others.
    """

    out: Tensor
    doubt: Tensor
    slack: float = 0.0


def _sure(out: Tensor) -> Answer:
    return Answer(out, torch.zeros_like(out, dtype=torch.bool))


def _weighted(weights: Sequence[float], xs: Sequence[Tensor]) -> Tensor:
    return torch.stack([w * x for w, x in zip(weights, xs, strict=True)]).sum(dim=0)


# -- combinations -----------------------------------------------------------------------------


def linear(g: Given) -> Answer:
    """Weighted sum, over the sum of the weights unless told otherwise."""
    w = g.own["weight"]
    return _sure(_weighted(w, g.xs) / (sum(w) if g.shared.get("normalize", True) else 1))


def task_arithmetic(g: Given) -> Answer:
    """base + lambda * weighted sum of task vectors."""
    w = g.own["weight"]
    total = _weighted(w, g.deltas) / (sum(w) if g.shared.get("normalize", False) else 1)
    return _sure(g.origin + g.shared.get("lambda", 1.0) * total)


def passthrough(g: Given) -> Answer:
    """scale * x."""
    return _sure(g.xs[0] * g.own["scale"][0])


def _arc(a: Tensor, b: Tensor, t: float, linear_above: float) -> Tensor:
    """Shoemake's formula for vectors along the last dimension."""
    norms = a.norm(dim=-1, keepdim=True) * b.norm(dim=-1, keepdim=True)
    cosine = ((a * b).sum(dim=-1, keepdim=True) / norms).clamp(-1, 1)
    theta = cosine.arccos()
    curved = (((1 - t) * theta).sin() * a + (t * theta).sin() * b) / theta.sin()
    return torch.where(cosine.abs() > linear_above, (1 - t) * a + t * b, curved)


def slerp(g: Given) -> Answer:
    """From the base to the source, linear where they are nearly parallel."""
    flat = _arc(g.origin.flatten(), g.xs[0].flatten(), float(g.shared["t"]), 0.9995)
    return _sure(flat.view_as(g.origin))


def nuslerp(g: Given) -> Answer:
    """From one source to the other; whole, along the last dimension or along the first."""
    w = g.own["weight"]
    t = w[1] / sum(w)
    a, b = g.xs if g.base is None else g.deltas
    shape = a.shape
    columns = bool(g.shared.get("nuslerp_row_wise", False))
    if g.shared.get("nuslerp_flatten", True):
        a, b = a.flatten(), b.flatten()
    elif columns:
        a, b = a.transpose(0, -1), b.transpose(0, -1)
    out = _arc(a, b, t, 1 - 1e-15)
    out = out.transpose(0, -1) if columns else out.view(shape)
    return _sure(out if g.base is None else g.base + out)


def multislerp(g: Given) -> Answer:
    """Weighted mean direction, then the exponential map of the tangents' mean, times the norm."""
    xs = [x.flatten() for x in (g.xs if g.base is None else g.deltas)]
    w = [x / sum(g.own["weight"]) for x in g.own["weight"]]
    units = [x / x.norm() for x in xs]
    mean = _weighted(w, units)
    mean = mean / mean.norm()
    tangent = _weighted(w, [u - (u @ mean) * mean for u in units])
    angle = float(tangent.norm())
    point = mean * math.cos(angle) + tangent * (math.sin(angle) / angle if angle else 1.0)
    out = (point * sum(a * float(x.norm()) for a, x in zip(w, xs, strict=True))).view_as(g.xs[0])
    return _sure(out if g.base is None else g.base + out)


def karcher(g: Given) -> Answer:
    """Gradient descent for the mean direction, with unit steps, times the mean norm."""
    xs = [x.flatten() for x in g.xs]
    units = [x / x.norm() for x in xs]
    mean = torch.stack(units).mean(dim=0)
    mean = mean / mean.norm()
    for _ in range(10):
        tangents = []
        for unit in units:
            angle = math.acos(max(-1.0, min(1.0, float(unit @ mean))))
            if angle >= 1e-5:
                tangents.append(angle / math.sin(angle) * (unit - math.cos(angle) * mean))
        step = torch.stack([*tangents, torch.zeros_like(mean)]).sum(dim=0) / len(units)
        length = float(step.norm())
        if length < 1e-5:
            break
        mean = math.cos(length) * mean + math.sin(length) / length * step
        mean = mean / mean.norm()
    norm = sum(float(x.norm()) for x in xs) / len(xs)
    return _sure((norm * mean).view_as(g.xs[0]))


def model_stock(g: Given) -> Answer:
    """Between base and mean, by the mean cosine of the task vectors."""
    whole = not g.shared.get("filter_wise", False)
    deltas = [d.flatten() if whole else d for d in g.deltas]
    n = len(deltas)
    pairs = [
        torch.cosine_similarity(deltas[i], deltas[j], dim=-1)
        for i in range(n)
        for j in range(i + 1, n)
    ]
    c = torch.stack(pairs).mean(dim=0).unsqueeze(-1)
    t = n * c / (1 + (n - 1) * c)
    mean = torch.stack([x.flatten() if whole else x for x in g.xs]).mean(dim=0)
    base = g.origin.flatten() if whole else g.origin
    return _sure((t * mean + (1 - t) * base).view_as(g.origin))


# -- thinned task vectors ---------------------------------------------------------------------


def _band(delta: Tensor, keep: int, skip: int, fine: float) -> tuple[Tensor, Tensor]:
    """Keeps elements by rank of magnitude; doubtful are those as large as the first or last."""
    size = delta.abs().flatten()
    order = size.argsort(descending=True, stable=True)
    mask = torch.zeros_like(size, dtype=torch.bool)
    mask[order[skip : skip + keep]] = True
    doubt = torch.zeros_like(mask)
    if keep:
        for at in {at for at in (skip, skip + keep) if 0 < at < len(size)}:
            edge = size[order[at - 1]], size[order[at]]  # the last on one side, the first beyond
            doubt |= (size <= edge[0] * (1 + fine)) & (size >= edge[1] * (1 - fine))
    return mask.view_as(delta), doubt.view_as(delta)


def combine(
    g: Given, masks: Sequence[Tensor], signs: bool, normalize: bool, wobble: float = 0.0
) -> Answer:
    """base + lambda * sum of masked task vectors, with or without an election of signs.

    `wobble` is the relative uncertainty of the factors that rescale.
    """
    parts = []
    for delta, mask in zip(g.deltas, masks, strict=True):
        part = torch.where(mask, delta, 0.0)
        if g.shared.get("rescale", False) and float(part.abs().sum()):
            part = part * (delta.abs().sum() / part.abs().sum())
        parts.append(part)
    w = g.own["weight"]
    terms = torch.stack([a * p for a, p in zip(w, parts, strict=True)])
    total = terms.sum(dim=0)
    doubt = torch.zeros_like(total, dtype=torch.bool)
    divisor: Tensor | float = sum(w)
    if signs:
        close = total.abs() <= (4 * g.eps + wobble) * terms.abs().sum(dim=0)
        doubt = close & (terms != 0).any(dim=0)
        elected = torch.where(total >= 0, 1.0, -1.0)
        agree = terms.sign() == elected
        total = torch.where(agree, terms, 0.0).sum(dim=0)
        weights = torch.tensor(w, dtype=total.dtype).view(-1, *[1] * (terms.dim() - 1))
        divisor = (weights * agree).sum(dim=0)
        divisor = torch.where(divisor == 0, 1.0, divisor)
    if normalize:
        total = total / divisor
    return Answer(g.origin + g.shared.get("lambda", 1.0) * total, doubt)


def ties(g: Given) -> Answer:
    """The largest of each tensor, then the election."""
    return _banded(g, [0.0] * len(g.xs), True, g.shared.get("normalize", True))


def breadcrumbs(g: Given) -> Answer:
    """Without the largest and without the smallest."""
    return _banded(g, g.own["gamma"], False, g.shared.get("normalize", False))


def breadcrumbs_ties(g: Given) -> Answer:
    """The same with the election."""
    return _banded(g, g.own["gamma"], True, g.shared.get("normalize", False))


def _banded(g: Given, gamma: Sequence[float], signs: bool, normalize: bool) -> Answer:
    n = g.origin.numel()
    masks, doubts = [], []
    for delta, p, q in zip(g.deltas, g.own["density"], gamma, strict=True):
        keep = int(p * n)
        mask, doubt = _band(delta, keep, min(int(q * n), n - keep), g.ranks)
        masks.append(mask)
        doubts.append(doubt)
    wobble = slack = 0.0
    if g.shared.get("rescale", False):  # the factors hang on what is kept
        for delta, mask, doubt in zip(g.deltas, masks, doubts, strict=True):
            size = delta.abs()
            kept = float(size[mask].sum())
            wobble = max(wobble, float(size[doubt].sum()) / kept)
            slack += wobble * float(size.sum() * size.max()) / kept
    found = combine(g, masks, signs, normalize, wobble)
    return Answer(found.out, found.doubt | torch.stack(doubts).any(dim=0), slack)


# -- element by element -----------------------------------------------------------------------


def sce(g: Given) -> Answer:
    """Select by variance, weigh by mean squares, erase minorities."""
    deltas = torch.stack(g.deltas)
    doubt = torch.zeros_like(g.origin, dtype=torch.bool)
    share, slack = g.shared.get("select_topk", 1.0), 0.0
    if share < 1:
        variance = deltas.var(dim=0, correction=0)
        keep = int(int((variance > 0).sum()) * share)
        mask, doubt = _band(variance, keep, 0, 8 * g.eps)
        moved = (deltas * doubt).square().sum() / (deltas * mask).square().sum()
        slack = float(moved * deltas.abs().max())
        deltas = deltas * mask
    weights = deltas.square().flatten(1).mean(dim=1)
    total = float(weights.sum())
    weights = weights / total if total >= 1e-6 else torch.full_like(weights, 1 / len(weights))
    summed = deltas.sum(dim=0)
    doubt |= (summed.abs() <= 4 * g.eps * deltas.abs().sum(dim=0)) & (deltas != 0).any(dim=0)
    agree = deltas.sign() == torch.where(summed >= 0, 1.0, -1.0)
    factors = weights.view(-1, *[1] * (deltas.dim() - 1)) * agree
    mixed = (deltas * factors).sum(dim=0) / factors.sum(dim=0).clamp(min=1e-6)
    return Answer(g.origin + mixed, doubt, slack)


def nearswap(g: Given) -> Answer:
    """Towards the source by no more than t."""
    delta = g.deltas[0]
    share = (float(g.shared["t"]) / delta.abs().clamp(min=1e-6)).clamp(max=1)
    return _sure(g.origin + share * delta)


def arcee_fusion(g: Given) -> Answer:
    """The source's elements of more than usual importance."""
    p = g.xs[0].softmax(dim=-1) + 1e-8
    q = g.origin.softmax(dim=-1) + 1e-8
    divergence = (p * (p / q).log()).sum(dim=-1, keepdim=True)
    score = g.deltas[0].abs() * divergence
    order = score.flatten().sort().values
    first, median, third = (order[int(s * (len(order) - 1))] for s in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (third - first)
    # the divergence of similar rows is a small difference of terms that sum to 1
    noise = float((g.eps / divergence.clamp(min=1e-30)).median())
    doubt = (score - threshold).abs() <= (4 * g.eps + noise) * threshold + g.deltas[0].abs() * g.eps
    return Answer(torch.where(score >= threshold, g.xs[0], g.origin), doubt)


def _ram(g: Given, plus: bool) -> Answer:
    deltas = torch.stack(g.deltas)
    active = deltas.abs() > 1e-5
    doubt = ((deltas.abs() - 1e-5).abs() <= 4 * g.eps * 1e-5).any(dim=0)
    count = active.sum(dim=0)
    parts = []
    for delta, mask in zip(deltas, active, strict=True):
        unique, shared = mask & (count == 1), mask & (count > 1)
        factor = 1.0
        if plus:
            ratio = int(shared.sum()) / max(1, int(unique.sum()))
            factor = 1 + g.shared["r"] * min(g.shared["alpha"], ratio)
        parts.append(torch.where(unique, factor * delta, 0.0))
        parts.append(torch.where(shared, delta / count.clamp(min=1), 0.0))
    return Answer(g.origin + torch.stack(parts).sum(dim=0), doubt)


def ram(g: Given) -> Answer:
    """The mean of the changes."""
    return _ram(g, plus=False)


def ramplus_tl(g: Given) -> Answer:
    """The mean of the changes, those of one source alone amplified."""
    return _ram(g, plus=True)


OPERATORS: dict[str, Callable[[Given], Answer]] = {
    f.__name__: f
    for f in (
        linear, task_arithmetic, passthrough, slerp, nuslerp, multislerp, karcher, model_stock,
        ties, breadcrumbs, breadcrumbs_ties, sce, nearswap, arcee_fusion, ram, ramplus_tl,
    )
}  # fmt: skip
