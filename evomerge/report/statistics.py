"""Statistics over repetitions: intervals of means and rank tests between groups of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

LEVEL = 0.05
"""The p-value from which on a difference is called not significant."""

FEWEST = 3
"""The fewest common seeds for Friedman's test, and the fewest of a group for any test."""

PAIRED_FROM = 6
"""The fewest pairs with which a two-sided signed-rank test can go below 0.05 (2 / 2^6 = 0.031)."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95% t interval; None where it cannot be had."""

    value: float | None
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True)
class PairTest:
    """A two-sided rank test of two groups.

    Attributes:
        first, second: names of the groups.
        difference: median of the first minus that of the second, or of the differences if paired.
        p: the p-value by itself.
        adjusted: after Holm's correction for all pairs.
    """

    first: str
    second: str
    difference: float
    p: float
    adjusted: float

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.adjusted < LEVEL


@dataclass(frozen=True)
class Tests:
    """All tests between groups.

    Attributes:
        method: what the pairs were tested by; empty if nothing was tested.
        pairs: one test a pair of groups.
        friedman: the p-value of Friedman's test over the common seeds; None if not done.
        seeds: the seeds that all groups have in common.
        warnings: what the tests cannot show.
    """

    method: str = ""
    pairs: tuple[PairTest, ...] = ()
    friedman: float | None = None
    seeds: int = 0
    warnings: tuple[str, ...] = ()


def mean_over_seeds(values: Sequence[float | None]) -> Mean:
    """Mean and 95% t interval of the known values; no interval of fewer than two."""
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if not len(known):
        return Mean(None, None, None, 0)
    mean = float(known.mean())
    if len(known) < 2:
        return Mean(mean, None, None, 1)
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known)))
    return Mean(mean, mean - half, mean + half, len(known))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979): adjusted p-values in the order given."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, at in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = running
    return adjusted


def rank_tests(groups: Mapping[str, Mapping[str, float]]) -> Tests:
    """Tests whether groups differ: Friedman over seeds, and every pair with Holm's correction.

    Pairs are tested by Wilcoxon's signed-rank test if all groups have the same seeds, six or more
    (fewer pairs cannot reach 0.05); else by the Mann-Whitney U test. Which one depends on the
    seeds alone, never on the values.

    Args:
        groups: value by seed, by name of the group.
    """
    names = list(groups)
    if len(names) < 2:
        return Tests()
    common = sorted(set.intersection(*(set(groups[name]) for name in names)))
    fewest = min(len(groups[name]) for name in names)
    if fewest < FEWEST:
        some = "1 seed" if fewest == 1 else f"{fewest} seeds"
        text = f"A group has only {some}: with fewer than {FEWEST} nothing is tested."
        return Tests(seeds=len(common), warnings=(text,))
    paired = len(common) >= PAIRED_FROM and all(len(g) == len(common) for g in groups.values())
    results = []
    for first, second in combinations(names, 2):
        if paired:
            gaps = np.array([groups[first][seed] - groups[second][seed] for seed in common])
            results.append((first, second, float(np.median(gaps)), _wilcoxon(gaps)))
        else:
            a, b = (np.array(list(groups[name].values())) for name in (first, second))
            gap = float(np.median(a) - np.median(b))
            results.append((first, second, gap, _mann_whitney(a, b)))
    adjusted = holm([p for *_, p in results])
    pairs = tuple(PairTest(*r, adjusted=q) for r, q in zip(results, adjusted, strict=True))
    friedman = None
    if len(names) >= 3 and len(common) >= FEWEST:
        friedman = _friedman([[groups[name][seed] for seed in common] for name in names])
    method = "Wilcoxon's signed-rank test over common seeds" if paired else "Mann-Whitney U test"
    sizes = [len(groups[name]) for name in names]
    return Tests(method, pairs, friedman, len(common), tuple(_warnings(sizes, len(pairs), paired)))


def smallest_p(first: int, second: int, paired: bool) -> float:
    """The smallest two-sided p-value that so many seeds can give, without ties."""
    return 2 / 2**first if paired else 2 / math.comb(first + second, first)


def _warnings(sizes: Sequence[int], pairs: int, paired: bool) -> list[str]:
    least = sorted(sizes)[:2]
    reach = smallest_p(least[0], least[-1], paired)
    if reach * pairs < LEVEL:
        return []
    corrected = f", {min(1.0, reach * pairs):.2g} after the correction" if pairs > 1 else ""
    return [
        f"Too few seeds to find anything in the smallest groups: with {least[0]} and {least[-1]} "
        f"seeds the smallest p-value that this test can give is {reach:.2g}{corrected}. That no "
        "difference is found then says nothing."
    ]


def _wilcoxon(gaps: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    if not gaps.any():
        return 1.0
    from scipy import stats

    return float(stats.wilcoxon(gaps).pvalue)


def _mann_whitney(
    a: np.ndarray[tuple[int], np.dtype[np.float64]], b: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> float:
    if np.ptp(np.concatenate([a, b])) == 0:
        return 1.0
    from scipy import stats

    ties = len(np.unique(np.concatenate([a, b]))) < len(a) + len(b)
    test = stats.mannwhitneyu(a, b, method="asymptotic" if ties else "exact")
    return float(test.pvalue)


def _friedman(columns: Sequence[Sequence[float]]) -> float:
    """P-value by the chi-squared approximation; 1 if every seed ties all groups."""
    from scipy import stats

    if all(len(set(row)) == 1 for row in zip(*columns, strict=True)):
        return 1.0
    return float(stats.friedmanchisquare(*columns).pvalue)
