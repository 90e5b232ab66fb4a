"""Steps that the operators on task vectors share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.operators.masks import MaskKey, bernoulli

_TINY = 1e-8
_SMALLEST = 2.0**-24  # density that a mask of 24 random bits can tell from 0
_ROUNDING = 1e-6  # of a float32 sum of weights, relative to the sum of their magnitudes


def trim(delta: Tensor, density: float) -> Tensor:
    """Keeps the `int(density * n)` elements largest in magnitude, zeroes the rest.

    Source: TIES-Merging (arXiv 2306.01708), step 1.
    """
    if density >= 1:
        return delta
    flat = delta.flatten()
    kept = torch.topk(flat.abs(), int(density * flat.numel()), sorted=False).indices
    out = torch.zeros_like(flat)
    out[kept] = flat[kept]
    return out.view(delta.shape)


def drop(delta: Tensor, density: float, key: MaskKey, rescale: bool, rescale_norm: str) -> Tensor:
    """Keeps each element with probability `density` (DARE, arXiv 2311.03099).

    `rescale_norm` l1 keeps the tensor's l1 norm (as mergekit does), density divides by the
    density (as in the paper); neither has an effect unless `rescale`.
    """
    if density >= 1:
        return delta
    out = delta * bernoulli(key, delta, density)
    if not rescale or density <= 0:
        return out
    if rescale_norm == "density":
        return out / max(density, _SMALLEST)
    before, after = delta.abs().sum(), out.abs().sum()
    return out * (before / after) if float(after) > 0 else out


def combine(
    base: Tensor,
    deltas: Sequence[Tensor],
    weight: Sequence[float],
    scale: float,
    normalize: bool,
    consensus: bool,
) -> Tensor:
    """base + scale * sum_i w_i d_i, over agreeing sources only where `consensus`.

    An element's sign is that of sum_i w_i d_i, zero counting as positive; an exact zero
    agrees with nobody. With `normalize` the sum is divided by the (signed) sum of the
    weights that took part; a sum that is zero up to rounding counts as 1.
    Source: TIES-Merging (arXiv 2306.01708), steps 2 and 3.
    """
    weighted = [float(w) * d for w, d in zip(weight, deltas, strict=True)]
    total = torch.zeros_like(base)
    for term in weighted:
        total += term
    if not consensus:
        divisor = sum(float(w) for w in weight) if normalize else 1.0
        return base + total * (scale / (divisor if abs(divisor) >= _TINY else 1.0))
    sign = torch.where(total >= 0, 1.0, -1.0)
    mixed = torch.zeros_like(base)
    divisors = torch.zeros_like(base)
    for w, term in zip(weight, weighted, strict=True):
        agrees = term.sign() == sign
        mixed += term * agrees
        if normalize:
            divisors += float(w) * agrees
    if normalize:
        least = _ROUNDING * sum(abs(float(w)) for w in weight)
        mixed /= torch.where(divisors.abs() <= least, 1.0, divisors)
    return base + scale * mixed
