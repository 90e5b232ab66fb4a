"""Choosing items for what they say of a model: of its ability, of its full score, of a decision.

All of it looks at how an answer would move what is wanted. For a quantity t and the answer y_i,
Cov(t, y_i)^2 / Var(y_i) is by how much the answer is expected to lower the variance of t.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from evomerge.estimators.choice import Choice, Indices, check_count
from evomerge.estimators.population import Population
from evomerge.irt.model import ItemModel
from evomerge.types import FloatArray

SIMULATED = 96
"""Simulated models whose expected variance a fixed set of items lowers."""

POOL = 4096
"""Items looked at; of more, those of most information and as many at random."""

_ABILITIES = 64


def choose_information(
    model: ItemModel, abilities: FloatArray, n: int, precision: float = 1.0
) -> Choice:
    """Adds the item that most raises the mean of log det(information + precision I), n times.

    The mean is over the abilities: D-optimal for all of them together, not for one.

    Args:
        model: of `N` items.
        abilities: of models to be told apart, `A x D`.
        n: number of items.
        precision: of the prior on ability.

    Returns:
        the items, in the order of their worth, with equal weights.

    Source: maximum information (Lord 1980); sequential D-optimal design (Wynn 1970).
    """
    check_count(len(model), n)
    picked = abilities[
        np.linspace(0, len(abilities) - 1, min(len(abilities), _ABILITIES)).astype(int)
    ]
    alpha = model.discrimination
    p = model.probability(picked)
    weight = p * (1 - p)
    inverse = np.tile(np.eye(model.dimensions) / precision, (len(picked), 1, 1))
    left, chosen = np.ones(len(model), dtype=bool), []
    for _ in range(n):
        form = ((alpha @ inverse) * alpha).sum(axis=2)
        gain = np.log1p(weight * form).mean(axis=0)
        best = int(np.argmax(np.where(left, gain, -1.0)))
        chosen.append(best)
        left[best] = False
        moved = inverse @ alpha[best]  # Sherman-Morrison
        scale = weight[:, best] / (1 + weight[:, best] * form[:, best])
        inverse -= scale[:, None, None] * moved[:, :, None] * moved[:, None, :]
    return _equal(chosen)


def choose_variance(population: Population, n: int, seed: int) -> Choice:
    """Adds the item that most lowers the expected posterior variance of the full score, n times.

    The expectation is over models simulated from the population, which answer what was chosen so
    far; by its end the set suits weak models and strong ones.

    Returns:
        the items, in the order of their worth, with equal weights.
    """
    check_count(len(population), n)
    rng = np.random.default_rng(seed)
    places = pool(population, max(POOL, 2 * n), rng)
    p = population.probability(places).astype(np.float32)
    rows = rng.choice(len(p), SIMULATED, replace=False)
    y = (rng.random((SIMULATED, len(places))) < p[rows]).astype(np.float32)
    target = (population.totals / len(population)).astype(np.float32)
    loglik = np.zeros((SIMULATED, len(p)), dtype=np.float32)
    left, chosen = np.ones(len(places), dtype=bool), []
    for _ in range(n):
        w = np.exp(loglik - loglik.max(axis=1, keepdims=True))
        w /= w.sum(axis=1, keepdims=True)
        gain = _gain(w, w * (target - (w @ target)[:, None]), p).mean(axis=0)
        best = int(np.argmax(np.where(left, gain, -1.0)))
        chosen.append(best)
        left[best] = False
        right = y[:, best, None]
        loglik += right * np.log(p[:, best]) + (1 - right) * np.log1p(-p[:, best])
    return _equal(places[chosen])


def next_by_variance(
    population: Population,
    asked: Indices,
    answers: FloatArray,
    count: int,
    threshold: float | None = None,
) -> Indices:
    """The items that most lower the expected variance of one candidate's full score.

    With a threshold, that of the decision whether the full score is above it, which is
    P(score > threshold) at each ability. Of several items each is chosen with those before it taken
    into account by linear regression, as their answers are not known.

    Args:
        population: where abilities may be.
        asked: items that the candidate answered, an `n` array.
        answers: its scores, an `n` array.
        count: number of items wanted.
        threshold: a full score in [0, 1]; None for the score itself.

    Returns:
        `count` items not asked so far, or as many as are left.
    """
    n_items = len(population)
    w = population.posterior(asked, answers)
    target = population.totals / n_items
    if threshold is not None:
        target = ndtr((target - threshold) * n_items / np.sqrt(population.noise))
    left = np.ones(n_items, dtype=bool)
    left[asked] = False
    places = pool(population, POOL, np.random.default_rng(len(asked)), left)
    p = population.probability(places)
    chosen: list[int] = []
    open_ = np.ones(len(places), dtype=bool)
    for _ in range(min(count, len(places))):
        deviation = w * (target - w @ target)
        gain = _gain(w[None], deviation[None], p)[0]
        best = int(np.argmax(np.where(open_, gain, -1.0)))
        chosen.append(best)
        open_[best] = False
        mean = float(w @ p[:, best])
        slope = float(deviation @ p[:, best]) / (mean * (1 - mean))
        target = target - slope * (p[:, best] - mean)
    return places[chosen]


def next_by_information(
    model: ItemModel, theta: FloatArray, covariance: FloatArray, asked: Indices, count: int
) -> Indices:
    """The items of most Fisher information at the current ability.

    Args:
        model: of `N` items.
        theta: the ability, a `D` array.
        covariance: of the ability, `D x D`; items are chosen to lower its determinant.
        asked: items that the candidate answered.
        count: number of items wanted.

    Source: maximum information (Lord 1980); Fluid Benchmarking (2025).
    """
    p = model.probability(theta)
    inverse = covariance
    alpha, weight = model.discrimination, p * (1 - p)
    left = np.ones(len(model), dtype=bool)
    left[asked] = False
    chosen: list[int] = []
    for _ in range(min(count, int(left.sum()))):
        gain = weight * ((alpha @ inverse) * alpha).sum(axis=1)
        best = int(np.argmax(np.where(left, gain, -1.0)))
        chosen.append(best)
        left[best] = False
        moved = inverse @ alpha[best]
        inverse = inverse - np.outer(moved, moved) * weight[best] / (1 + gain[best])
    return np.array(chosen, dtype=np.int64)


def pool(
    population: Population,
    size: int,
    rng: np.random.Generator,
    left: NDArray[np.bool_] | None = None,
) -> Indices:
    """The items that a design looks at, ascending: all, or of many some good and some random ones.

    Half of `size` are those of most information at the middle of the population, a quarter each
    at its lower and upper end, and as many again at random.
    """
    free = np.arange(len(population)) if left is None else np.flatnonzero(left)
    if len(free) <= size:
        return free.astype(np.int64)
    model = population.model
    scores = np.argsort(population.totals, kind="stable")
    taken = [rng.choice(free, size // 4, replace=False)]
    for share in (0.1, 0.5, 0.9):
        theta = population.theta[scores[int(share * (len(scores) - 1))]]
        logits = model.discrimination[free] @ theta - model.difficulty[free]
        p = expit(logits)
        gain = p * (1 - p) * (model.discrimination[free] ** 2).sum(axis=1)
        taken.append(free[np.argsort(-gain, kind="stable")[: size // 4]])
    return np.unique(np.concatenate(taken)).astype(np.int64)


def _gain(w: NDArray[Any], deviation: NDArray[Any], p: NDArray[Any]) -> NDArray[Any]:
    """Cov(t, y)^2 / Var(y) from weights and weighted deviations `B x G`, and `G x N`: `B x N`."""
    mean = w @ p
    gain: NDArray[Any] = (deviation @ p) ** 2 / (mean * (1 - mean))
    return gain


def _equal(chosen: list[int] | Indices) -> Choice:
    return Choice(np.asarray(chosen, dtype=np.int64), np.full(len(chosen), 1 / len(chosen)))
