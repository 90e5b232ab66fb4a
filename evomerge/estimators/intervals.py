"""Confidence intervals of means, and the paired comparison of two models on the same items.

Scores that are all 0 or 1 get the methods made for proportions: Wilson's interval for one mean,
Tango's for a paired difference, McNemar's exact test for its p-value. Other scores get seeded
bootstraps (bias-corrected and accelerated) and the sign-flip permutation test. An exact test and a
score interval are different methods and may disagree at the margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from evomerge.types import FloatArray

RESAMPLES = 9999
"""Bootstrap samples and, at most, permutations."""

NORMAL = 1.959964
"""Standard errors on each side of a mean to the ends of its normal 95% interval."""


@dataclass(frozen=True)
class MeanInterval:
    """A mean with its confidence interval.

    Attributes:
        mean: the mean.
        low: lower end of the interval.
        high: upper end.
        n: number of values behind it.
        method: "wilson", "bootstrap", or "constant" where all values are the same and not 0 or 1,
            so that the data say nothing of their spread.
    """

    mean: float
    low: float
    high: float
    n: int
    method: str


@dataclass(frozen=True)
class PairedTest:
    """How much better `a` is than `b` on the same items.

    Attributes:
        difference: mean of `a - b`.
        low: lower end of its confidence interval.
        high: upper end.
        p: two-sided p-value of no difference.
        n: number of items.
        interval_method: "tango", "bootstrap" or "constant".
        test_method: "mcnemar" (exact) or "permutation".
    """

    difference: float
    low: float
    high: float
    p: float
    n: int
    interval_method: str
    test_method: str


def mean_interval(values: ArrayLike, confidence: float = 0.95, seed: int = 0) -> MeanInterval:
    """The mean of an `n` array and its interval; Wilson's if all values are 0 or 1.

    Raises:
        ValueError: an empty or not one-dimensional array, or values that are not finite.
    """
    data = _vector(values)
    mean, n = float(data.mean()), len(data)
    if _binary(data):
        low, high = wilson(int(data.sum()), n, confidence)
        return MeanInterval(mean, low, high, n, "wilson")
    low, high, method = _bootstrap(data, confidence, seed)
    return MeanInterval(mean, low, high, n, method)


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, without continuity correction.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212.
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def paired_test(a: ArrayLike, b: ArrayLike, confidence: float = 0.95, seed: int = 0) -> PairedTest:
    """Compares two models by their scores of the same items, both `n` arrays in the same order.

    Raises:
        ValueError: arrays of different lengths, empty ones, or values that are not finite.
    """
    first, second = _vector(a), _vector(b)
    if len(first) != len(second):
        raise ValueError(f"found {len(first)} and {len(second)} scores; expected as many of each")
    delta = first - second
    n, difference = len(delta), float(delta.mean())
    if _binary(first) and _binary(second):
        wins, losses = int((delta > 0).sum()), int((delta < 0).sum())
        low, high = tango(wins, losses, n, confidence)
        p = mcnemar_exact(wins, losses)
        return PairedTest(difference, low, high, p, n, "tango", "mcnemar")
    low, high, method = _bootstrap(delta, confidence, seed)
    return PairedTest(difference, low, high, _sign_flip(delta, seed), n, method, "permutation")


def mcnemar_exact(wins: int, losses: int) -> float:
    """Two-sided exact p-value of McNemar's test: a binomial test on the discordant pairs.

    Source: McNemar 1947, Psychometrika 12, 153-157.
    """
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def tango(wins: int, losses: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's score interval for the difference of two paired proportions.

    Holds the differences d that a score test does not reject. Unlike a bootstrap it keeps its
    width when there are no discordant pairs.

    Args:
        wins: number of pairs with 1 and 0.
        losses: number of pairs with 0 and 1.
        n: number of pairs.
        confidence: such as 0.95.

    Source: Tango 1998, Statistics in Medicine 17, 891-908.
    """
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + confidence / 2))

    def excess(d: float) -> float:
        a, b, c = 2 * n, -wins - losses + (2 * n - wins + losses) * d, -losses * d * (1 - d)
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)  # P(0, 1) given d, by likelihood
        variance = n * (2 * q + d * (1 - d))
        return (wins - losses - n * d) / math.sqrt(variance) if variance > 0 else math.nan

    estimate = (wins - losses) / n
    low = _solve(lambda d: excess(d) - z, -1.0, estimate)
    high = _solve(lambda d: excess(d) + z, estimate, 1.0)
    return low, high


def _solve(function: Callable[[float], float], low: float, high: float) -> float:
    """The root of a falling function, by bisection; an end at which it is not defined stands."""
    left, right = low, high
    for _ in range(60):
        middle = 0.5 * (left + right)
        if function(middle) > 0:
            left = middle
        else:
            right = middle
    return 0.5 * (left + right)


def _bootstrap(data: FloatArray, confidence: float, seed: int) -> tuple[float, float, str]:
    """Bootstrap interval of the mean (BCa), with its method."""
    from scipy.stats import bootstrap

    if np.ptp(data) == 0:
        return float(data[0]), float(data[0]), "constant"
    result = bootstrap(
        (data,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 2**22 // len(data)),
        confidence_level=confidence,
        rng=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    ends = np.array([interval.low, interval.high])
    if not np.isfinite(ends).all():  # BCa is undefined; fall back to percentiles
        ends = np.quantile(
            result.bootstrap_distribution, [0.5 - confidence / 2, 0.5 + confidence / 2]
        )
    return float(ends[0]), float(ends[1]), "bootstrap"


def _sign_flip(delta: FloatArray, seed: int) -> float:
    """Two-sided p-value of the permutation test that flips the signs of differences."""
    from scipy.stats import permutation_test

    if not delta.any():
        return 1.0
    result = permutation_test(
        (delta,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 2**22 // len(delta)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _binary(data: FloatArray) -> bool:
    return bool(np.isin(data, (0.0, 1.0)).all())


def _vector(values: ArrayLike) -> FloatArray:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0:
        raise ValueError(f"found an array of shape {data.shape}; expected n values, n at least 1")
    if not np.isfinite(data).all():
        raise ValueError("found values that are not finite; expected numbers")
    return data
