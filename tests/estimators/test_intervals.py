"""Intervals and paired tests against closed forms, likelihoods and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from evomerge.estimators.intervals import (
    mcnemar_exact,
    mean_interval,
    paired_test,
    tango,
    wilson,
)

Z = 1.959963984540054


@settings(deadline=None)
@given(st.integers(1, 300), st.data())
def test_wilson_is_the_closed_form(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    p = k / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    assert wilson(k, n) == pytest.approx((centre - half, centre + half), abs=1e-9)
    found = mean_interval([1.0] * k + [0.0] * (n - k))
    assert (found.mean, found.n, found.method) == (found.mean, n, "wilson")
    assert found.mean == pytest.approx(p)
    assert found.low <= found.mean + 1e-12 and found.mean <= found.high + 1e-12


def score_statistic(wins: int, losses: int, n: int, d: float) -> float:
    """The score test of difference d, its nuisance probability found by maximising likelihood."""

    def minus_log_likelihood(q: float) -> float:  # q = P(0, 1), q + d = P(1, 0)
        rest = 1 - 2 * q - d
        terms = ((losses, q), (wins, q + d), (n - wins - losses, rest))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in terms if count)

    low, high = max(0.0, -d), (1 - d) / 2
    q = minimize_scalar(
        minus_log_likelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    ).x
    return ((wins - losses) / n - d) / math.sqrt((2 * q + d - d * d) / n)


@pytest.mark.parametrize(
    ("wins", "losses", "n"), [(40, 20, 160), (12, 2, 50), (9, 3, 50), (30, 30, 250), (5, 0, 20)]
)
def test_the_ends_of_tango_are_where_the_score_test_rejects(wins: int, losses: int, n: int) -> None:
    low, high = tango(wins, losses, n)
    assert score_statistic(wins, losses, n, low) == pytest.approx(Z, abs=2e-3)
    assert score_statistic(wins, losses, n, high) == pytest.approx(-Z, abs=2e-3)


@settings(deadline=None)
@given(st.integers(1, 80), st.data())
def test_tango_is_an_interval_and_antisymmetric(n: int, data: st.DataObject) -> None:
    wins = data.draw(st.integers(0, n))
    losses = data.draw(st.integers(0, n - wins))
    low, high = tango(wins, losses, n)
    estimate = (wins - losses) / n
    assert -1 <= low <= estimate + 1e-9 and estimate - 1e-9 <= high <= 1
    assert high - low > 1e-6
    assert tango(losses, wins, n) == pytest.approx((-high, -low), abs=1e-9)


def test_tango_covers() -> None:
    rng = np.random.default_rng(0)
    counts = rng.multinomial(60, [0.15, 0.05, 0.8], size=2000)
    hits = 0
    for wins, losses, _ in counts.tolist():
        low, high = tango(wins, losses, 60)
        hits += low <= 0.10 <= high
    assert 0.93 < hits / 2000 < 0.97


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_binomial_tail(wins: int, losses: int) -> None:
    n, k = wins + losses, min(wins, losses)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    assert mcnemar_exact(wins, losses) == pytest.approx(min(1.0, 2 * tail))


def test_binary_scores_use_the_paired_counts() -> None:
    a = np.array([1] * 30 + [1] * 12 + [0] * 2 + [0] * 6)
    b = np.array([1] * 30 + [0] * 12 + [1] * 2 + [0] * 6)
    found = paired_test(a, b)
    assert found.difference == pytest.approx(0.2) and found.n == 50
    assert (found.low, found.high) == tango(12, 2, 50)
    assert found.p == mcnemar_exact(12, 2)
    assert (found.interval_method, found.test_method) == ("tango", "mcnemar")
    same = paired_test(a, a)
    assert same.p == 1.0 and same.low < 0 < same.high


def test_bootstrap_is_near_the_t_interval_and_seeded() -> None:
    data = np.random.default_rng(1).beta(2, 3, size=200)
    found = mean_interval(data, seed=5)
    half = Z * data.std(ddof=1) / math.sqrt(200)
    assert (found.low, found.high) == pytest.approx(
        (data.mean() - half, data.mean() + half), abs=4e-3
    )
    assert found.method == "bootstrap" and found == mean_interval(data, seed=5)
    assert mean_interval(data, seed=6).low != found.low


def test_permutation_matches_all_sign_flips() -> None:
    a, b = np.array([0.9, 0.4, 0.8, 0.7, 0.6, 0.95]), np.array([0.5, 0.5, 0.3, 0.2, 0.1, 0.4])
    delta = a - b
    flips = [np.mean(delta * [1 if bits >> i & 1 else -1 for i in range(6)]) for bits in range(64)]
    upper = np.mean([flip >= delta.mean() - 1e-12 for flip in flips])
    found = paired_test(a, b)
    assert found.p == pytest.approx(min(1.0, 2 * upper))
    assert found.test_method == "permutation" and found == paired_test(a, b)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 3))
def test_intervals_are_finite_and_hold_together(values: list[float], seed: int) -> None:
    found = mean_interval(values, seed=seed)
    assert math.isfinite(found.low) and math.isfinite(found.high)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(1.0, max(values)) + 1e-9 or (
        found.method == "wilson"
    )
    pair = paired_test(values, values[::-1], seed=seed)
    assert math.isfinite(pair.low) and 0 <= pair.p <= 1


@pytest.mark.parametrize("values", [[], [[1.0]], [1.0, math.nan]])
def test_unusable_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="found"):
        mean_interval(values)
    with pytest.raises(ValueError, match="found"):
        paired_test([1.0, 0.0, 1.0], values)
