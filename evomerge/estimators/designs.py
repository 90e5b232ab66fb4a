"""Choosing items for what they say of a model: of its ability, of its full score, of a decision.

All of it looks at how an answer would move what is wanted. For a quantity t and the answer y_i,
Cov(t, y_i)^2 / Var(y_i) is by how much the answer is expected to lower the variance of t.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from evomerge.estimators.choice import Choice, Indices, check_count
from evomerge.estimators.population import Population
from evomerge.irt.model import ItemModel
from evomerge.types import FloatArray

SIMULATED = 96
"""Simulated models whose expected variance a fixed set of items lowers."""

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
        the items, in the order of their worth, with equal weights; items beyond the pool of the
        population follow in a random order.
    """
    check_count(len(population), n)
    rng = np.random.default_rng(seed)
    p = population.table
    rows = rng.choice(len(p), SIMULATED, replace=False)
    y = rng.random((SIMULATED, p.shape[1])) < p[rows]
    target = (population.totals / len(population)).astype(np.float32)
    loglik = np.zeros((SIMULATED, len(p)), dtype=np.float32)
    left, chosen = np.ones(p.shape[1], dtype=bool), []
    for _ in range(min(n, p.shape[1])):
        w = _posterior(loglik)
        gain = _gain(w, w * (target - (w @ target)[:, None]), p).mean(axis=0)
        best = int(np.argmax(np.where(left, gain, -1.0)))
        chosen.append(best)
        left[best] = False
        loglik += np.where(y[:, best, None], np.log(p[:, best]), np.log1p(-p[:, best]))
    places = population.pool[chosen]
    rest = np.setdiff1d(np.arange(len(population)), places)
    return _equal(np.concatenate([places, rng.permutation(rest)[: n - len(places)]]))


def choose_balanced(population: Population, ease: FloatArray, n: int, seed: int) -> Choice:
    """Draws items of all difficulties evenly, informative ones more often than others.

    A systematic sample along the items' ease, in which item i has a chance in proportion to the
    root of what its answer tells of the full score. It has the balance of strata and most of the
    worth of informative items, and unlike those that are picked for their worth, drawn items are
    not just the ones whose discrimination was overestimated.

    Args:
        population: where abilities may be.
        ease: share of right answers to each item, an `N` array.
        n: number of items.
        seed: of the draw.

    Returns:
        the items in ascending order, with weights in inverse proportion to their chances.

    Source: systematic sampling with unequal probabilities (Madow 1949).
    """
    check_count(len(population), n)
    target = population.totals - population.totals.mean()
    n_items, draws = len(population), len(target)
    worth = np.empty(n_items)
    for at in range(0, n_items, 1024):
        places = np.arange(at, min(at + 1024, n_items))
        p = population.probability(places)
        mean = p.mean(axis=0)
        worth[places] = np.abs(target @ p) / draws / np.sqrt(mean * (1 - mean))
    chances = inclusion(worth + 1e-3 * worth.max() + 1e-12, n)
    order = np.argsort(ease, kind="stable")
    ends = np.cumsum(chances[order])
    points = np.random.default_rng(seed).random() + np.arange(n)
    taken = np.minimum(np.searchsorted(ends, points * ends[-1] / n, side="right"), n_items - 1)
    indices = np.sort(order[taken]).astype(np.int64)
    weights = 1 / chances[indices]
    return Choice(indices, weights / weights.sum())


def inclusion(sizes: FloatArray, n: int) -> FloatArray:
    """Chances in proportion to sizes above 0, at most 1, with sum `n`."""
    sure = np.zeros(len(sizes), dtype=bool)
    while True:
        rest = np.where(sure, 0.0, sizes)
        chances = np.where(sure, 1.0, (n - sure.sum()) * rest / max(rest.sum(), 1e-300))
        above = chances > 1 - 1e-9
        if (above == sure).all():
            return np.asarray(np.minimum(chances, 1.0))
        sure = above


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
        `count` items not asked so far, or as many as are left; those beyond the pool of the
        population last, in a random order.
    """
    n_items = len(population)
    w = population.posterior(asked, answers).astype(np.float32)
    target = population.totals / n_items
    if threshold is not None:
        target = ndtr((target - threshold) * n_items / np.sqrt(population.noise))
    target = target.astype(np.float32)
    p, places = population.table, population.pool
    left = ~np.isin(places, asked)
    mean = w @ p
    chosen: list[int] = []
    for _ in range(min(count, int(left.sum()))):
        covariance = (w * (target - w @ target)) @ p
        gain = covariance**2 / (mean * (1 - mean))
        best = int(np.argmax(np.where(left, gain, -1.0)))
        chosen.append(best)
        left[best] = False
        slope = covariance[best] / (mean[best] * (1 - mean[best]))
        target = target - slope * (p[:, best] - mean[best])
    taken = places[chosen]
    if len(taken) == count:
        return taken
    rest = np.setdiff1d(np.arange(n_items), np.concatenate([asked, taken]))
    random = np.random.default_rng(len(asked)).permutation(rest)[: count - len(taken)]
    return np.concatenate([taken, random]).astype(np.int64)


def asked_by_variance(population: Population, responses: FloatArray, n: int) -> Indices:
    """What `next_by_variance` asks models whose answers are all known, one item after the other.

    Args:
        population: where abilities may be.
        responses: complete answers of `B` models, `B x N`.
        n: number of items, at most those of the pool.

    Returns:
        the items in the order in which they are asked, a `B x n` array.
    """
    p, places = population.table, population.pool
    check_count(len(places), n)
    rows = np.arange(len(responses))
    target = (population.totals / len(population)).astype(np.float32)
    loglik = np.zeros((len(responses), len(p)), dtype=np.float32)
    left = np.ones((len(responses), len(places)), dtype=bool)
    asked = np.empty((len(responses), n), dtype=np.int64)
    for k in range(n):
        w = _posterior(loglik)
        gain = _gain(w, w * (target - (w @ target)[:, None]), p)
        best = np.where(left, gain, -1.0).argmax(axis=1)
        left[rows, best] = False
        asked[:, k] = places[best]
        y = responses[rows, asked[:, k]].astype(np.float32)[:, None]
        of_best = p[:, best].T
        loglik += y * np.log(of_best) + (1 - y) * np.log1p(-of_best)
    return asked


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


def _posterior(loglik: NDArray[np.float32]) -> NDArray[np.float32]:
    w = np.exp(loglik - loglik.max(axis=1, keepdims=True))
    return np.asarray(w / w.sum(axis=1, keepdims=True))


def _gain(w: NDArray[Any], deviation: NDArray[Any], p: NDArray[Any]) -> NDArray[Any]:
    """Cov(t, y)^2 / Var(y) from weights and weighted deviations `B x G`, and `G x N`: `B x N`."""
    mean = w @ p
    gain: NDArray[Any] = (deviation @ p) ** 2 / (mean * (1 - mean))
    return gain


def _equal(chosen: list[int] | Indices) -> Choice:
    return Choice(np.asarray(chosen, dtype=np.int64), np.full(len(chosen), 1 / len(chosen)))
