"""What answers to some items say of all of them, without any model of the items."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evomerge.estimators.choice import Indices, join_strata, quantile_strata
from evomerge.types import FloatArray


@dataclass(frozen=True)
class Estimate:
    """The mean score over all items of a task, as far as some answers tell.

    Attributes:
        value: in [0, 1].
        stderr: its standard error; 0 where every item was answered.
        fallback: the simpler estimate that was made, and why; empty if it is the one asked for.
    """

    value: float
    stderr: float
    fallback: str = ""


class Predictor(Protocol):
    """Estimates full scores from the answers to any items of one task."""

    def estimate(
        self, indices: ArrayLike, answers: ArrayLike, weights: ArrayLike | None = None
    ) -> Estimate:
        """The full score.

        Args:
            indices: places of the items answered, distinct, an `n` array.
            answers: their scores in [0, 1], in the same order, an `n` array.
            weights: of the items in a weighted mean, with sum 1; None for equal ones.

        Raises:
            ValueError: for none, answers that are not finite or outside [0, 1], or items that are
                not distinct or not of the task.
        """


def checked(
    n_items: int, indices: ArrayLike, answers: ArrayLike, weights: ArrayLike | None = None
) -> tuple[Indices, FloatArray, FloatArray]:
    """Places, answers and weights as arrays that fit each other; see `Predictor.estimate`."""
    places = np.asarray(indices, dtype=np.int64)
    scores = np.asarray(answers, dtype=np.float64)
    n = len(places) if places.ndim == 1 else 0
    if not n or scores.shape != (n,):
        raise ValueError(
            f"found items of shape {places.shape} and answers of shape {scores.shape}; "
            "expected n of each, n at least 1"
        )
    if n > n_items or places.min() < 0 or places.max() >= n_items or _twice(places, n_items):
        raise ValueError(f"found {n} items; expected distinct places from 0 to {n_items - 1}")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("found answers outside [0, 1] or not finite; expected scores in [0, 1]")
    share = np.full(n, 1 / n) if weights is None else np.asarray(weights, dtype=np.float64)
    if share.shape != (n,) or not (share >= 0).all() or not math.isclose(share.sum(), 1.0):
        raise ValueError(f"found weights of shape {share.shape}; expected {n} with sum 1")
    return places, scores, share


def _twice(places: Indices, n_items: int) -> bool:
    return bool((np.bincount(places, minlength=n_items) > 1).any())


def spread(values: FloatArray) -> float:
    """The variance of scores in [0, 1], with two more at each end.

    For scores of 0 and 1 it is p(1 - p) with p = (k + 2) / (n + 4), which is not 0 where all are
    right or all wrong.

    Source: Agresti and Coull 1998, The American Statistician 52, 119-126.
    """
    return float(np.concatenate([values, [0.0, 0.0, 1.0, 1.0]]).var())


@lru_cache(maxsize=256)
def widening(n: int) -> float:
    """By how much standard errors from the `spread` of n answers grow, for their own uncertainty.

    1.96 of them are then what Student's t with n + 3 degrees of freedom takes for a 95% interval,
    so that few answers do not look more certain than they are.
    """
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(n + 3, 0.975) / ndtri(0.975))


@dataclass(frozen=True, eq=False)
class Mean:
    """Takes the mean of the answers, of items drawn at random.

    stderr^2 = t^2 (1 - n/N) s^2 / n, with `spread` as s^2 (Cochran, Sampling Techniques, eq. 2.20)
    and t the `widening`.

    Attributes:
        n_items: N.
    """

    n_items: int

    def estimate(
        self, indices: ArrayLike, answers: ArrayLike, weights: ArrayLike | None = None
    ) -> Estimate:
        """See `Predictor`; weights are not looked at."""
        places, y, _ = checked(self.n_items, indices, answers)
        n = len(places)
        error = widening(n) * math.sqrt((1 - n / self.n_items) * spread(y) / n)
        return Estimate(float(y.mean()), error)


@dataclass(frozen=True, eq=False)
class Weighted:
    """Takes the weighted mean of the answers.

    stderr^2 = t^2 (1 - n/N) s^2 sum(w^2): as if the items were drawn with these weights. For
    anchors of clusters, which are not drawn, this is on the safe side as far as clusters are alike.

    Attributes:
        n_items: N.
    """

    n_items: int

    def estimate(
        self, indices: ArrayLike, answers: ArrayLike, weights: ArrayLike | None = None
    ) -> Estimate:
        """See `Predictor`."""
        places, y, w = checked(self.n_items, indices, answers, weights)
        n = len(places)
        if n == self.n_items:
            return Estimate(float(y.mean()), 0.0)
        factor = (1 - n / self.n_items) * float((w**2).sum())
        return Estimate(min(1.0, float(w @ y)), widening(n) * math.sqrt(factor * spread(y)))


@dataclass(frozen=True, eq=False)
class Stratified:
    """Takes each stratum's mean of the answers, weighted by its share of the items.

    value = sum_h W_h mean_h; stderr^2 = sum_h W_h^2 (1 - n_h/N_h) s_h^2 / n_h (Cochran, eq. 5.7),
    where s_h^2 is pooled over strata in proportion to a binomial variance, as two or three items
    have none of their own worth the name. A stratum without an answer joins its
    nearest neighbour.

    Attributes:
        strata: of each item, from 0, neighbours alike, an `N` array.
    """

    strata: Indices

    def estimate(
        self, indices: ArrayLike, answers: ArrayLike, weights: ArrayLike | None = None
    ) -> Estimate:
        """See `Predictor`; weights follow from the strata."""
        places, y, _ = checked(len(self.strata), indices, answers)
        count = int(self.strata.max()) + 1
        answered = np.bincount(self.strata[places], minlength=count) > 0
        strata = join_strata(self.strata, answered)
        sizes, of_each = np.bincount(strata, minlength=count), strata[places]
        n = np.maximum(np.bincount(of_each, minlength=count), 1)
        means = np.bincount(of_each, y, minlength=count) / n
        share = sizes / len(strata)
        variance = self._within(y, of_each, n) * (share**2 * (1 - n / np.maximum(sizes, n)) / n)
        return Estimate(min(1.0, float(share @ means)), math.sqrt(float(variance.sum())))

    @staticmethod
    def _within(y: FloatArray, of_each: Indices, n: NDArray[np.int64]) -> FloatArray:
        """v_h r of each stratum, with v_h = p_h (1 - p_h) and r = sum e^2 / sum (1 - 1/n_h) v_h.

        p_h is drawn towards the mean of all answers by three answers' worth and r to 1 by four,
        so that strata that happen to be all right or all wrong do not pass for certain.
        """
        p = (np.bincount(of_each, y, minlength=len(n)) + 3 * y.mean()) / (n + 3)
        overall = spread(y)
        v = np.maximum(p * (1 - p), 0.3 * overall)
        means = np.bincount(of_each, y, minlength=len(n)) / n
        squares = float(((y - means[of_each]) ** 2).sum()) + 4 * overall
        expected = float(((1 - 1 / n) * v)[of_each].sum()) + 4 * overall
        return v * squares / expected


def default_strata(difficulty: FloatArray, n: int) -> Indices:
    """Strata of like difficulty, two chosen items each."""
    return quantile_strata(difficulty, max(1, n // 2))
