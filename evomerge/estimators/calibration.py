"""How far a way to choose and estimate is off, measured on earlier models left out by groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from evomerge.estimators.choice import Indices
from evomerge.types import FloatArray


def folds(count: int, groups: Sequence[str] | None, k: int, seed: int) -> Indices:
    """The fold of each of `count` models, from 0 to at most k - 1; groups stay together."""
    names = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    each = np.random.default_rng(seed).permutation(int(names.max()) + 1) % k
    return np.asarray(each[names], dtype=np.int64)


def left_out(
    responses: FloatArray,
    groups: Sequence[str] | None,
    run: Callable[[FloatArray, tuple[str, ...] | None, FloatArray], FloatArray],
    k: int = 5,
    seed: int = 0,
) -> FloatArray:
    """What `run` gives for each model if its group is not among those it learns from.

    Args:
        responses: `M x N`.
        groups: of the models; None if each is its own.
        run: takes answers and groups to learn from and answers to try, `m x N`, and gives an array
            whose first axis is of length m.
        k: number of folds.
        seed: of the folds.
    """
    fold = folds(len(responses), groups, k, seed)
    parts, rows = [], []
    for j in np.unique(fold):
        inside = np.flatnonzero(fold != j)
        named = None if groups is None else tuple(groups[i] for i in inside)
        rows.append(np.flatnonzero(fold == j))
        parts.append(run(responses[inside], named, responses[rows[-1]]))
    return np.concatenate(parts)[np.argsort(np.concatenate(rows))]


def misfit(errors: FloatArray, stderrs: FloatArray, unseen: float, coverage: float = 0.95) -> float:
    """The standard deviation of a model's error that makes intervals cover as often as they say.

    With stderr'^2 = stderr^2 + (unseen misfit)^2, the least misfit at which a share `coverage` of
    the errors, rounded up by one as in conformal prediction, lies within their interval.

    Args:
        errors: estimates minus full scores, of models that were left out, an `m` array.
        stderrs: of the estimates, without misfit, an `m` array.
        unseen: 1 - n/N, the share of the items that were not answered.
        coverage: such as 0.95.
    """
    if unseen <= 0:
        return 0.0
    half = _half_width(coverage)
    needed = np.sort(np.maximum((errors / half) ** 2 - stderrs**2, 0.0))
    place = min(len(needed), math.ceil(coverage * (len(needed) + 1))) - 1
    return math.sqrt(float(needed[place])) / unseen


def _half_width(coverage: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(0.5 + coverage / 2)
