"""Arcee fusion: takes over the changes that matter most."""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.kernels.lines import line_length, line_runs
from evomerge.kernels.passes import largest
from evomerge.kernels.plans import Blockwise
from evomerge.operators.parameters import Pair

_EPS = 1e-8


def arcee_fusion(view: Pair) -> Blockwise:
    """The source's element where its importance is high, else the base's.

    Importance is |x - base| * KL(softmax of x's vector, softmax of base's) over vectors along
    the last dimension. It is high from median + 1.5 * (third - first quartile) on, quartiles
    being elements of the whole tensor in order (the lower one where they fall between two). A
    tensor whose vectors have one element has no divergence anywhere: all are taken over.

    Args:
        view: a base and one source.
    """
    divergence = _divergence(view)
    length = line_length(view)

    def importance(start: int, base: Tensor | None, xs: list[Tensor]) -> Tensor:
        assert base is not None
        at = torch.arange(start, start + len(base), device=base.device) // length
        return (xs[0] - base).abs() * divergence[at]

    last = view.count - 1
    ranks = [view.count - q * last // 4 for q in (1, 2, 3)]
    quartiles = [max(0.0, cut[0]) for cut in largest(view, importance, ranks)]
    first, median, third = quartiles or (0.0, 0.0, 0.0)
    threshold = median + 1.5 * (third - first)

    def function(start: int, base: Tensor | None, xs: list[Tensor]) -> Tensor:
        assert base is not None
        return torch.where(importance(start, base, xs) >= threshold, xs[0], base)

    return Blockwise(function)


def _divergence(view: Pair) -> Tensor:
    """Kullback-Leibler divergence of every line, float32; at least 0.

    In float64, since that of similar lines is a small difference of large terms.
    """
    assert view.base is not None
    length = line_length(view)
    lines = view.count // length if length else 0
    device = view.base.read(0, 0).device
    norms = torch.full((2, lines), -torch.inf, dtype=torch.float64, device=device)
    for a, b in line_runs(view):
        for j, scores in enumerate(_scores(view, a, b, length)):
            here = slice(a // length, a // length + len(scores))
            norms[j, here] = torch.logaddexp(norms[j, here], scores.logsumexp(dim=1))
    out = torch.zeros(lines, dtype=torch.float64, device=device)
    for a, b in line_runs(view):
        base, x = _scores(view, a, b, length)
        here = slice(a // length, a // length + len(x))
        q = (base - norms[0, here, None]).exp() + _EPS
        p = (x - norms[1, here, None]).exp() + _EPS
        out[here] += (p * (p / q).log()).sum(dim=1)
    return out.clamp(min=0.0).to(torch.float32)


def _scores(view: Pair, start: int, stop: int, length: int) -> list[Tensor]:
    """Base and source, lines x elements, float64; one line where that is not held whole."""
    base, xs = view.read(start, stop)
    assert base is not None
    width = min(length, stop - start)
    return [t.to(torch.float64).view(-1, width) for t in (base, *xs)]
