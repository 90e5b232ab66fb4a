"""Tests by betting on a finite set: their error, their power, and what is certain."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.estimators.sequential import Wealth, unreachable


def paired(total: int, ahead: int, behind: int) -> np.ndarray:
    """Differences of `total` items, of which some are won and some are lost."""
    return np.array([1.0] * ahead + [-1.0] * behind + [0.0] * (total - ahead - behind))


@pytest.mark.parametrize(
    ("ahead", "behind"), [(10, 10), (30, 30), (50, 50), (1, 1), (0, 0), (12, 20)]
)
def test_an_equal_model_is_stopped_seldom_however_often_one_looks(ahead: int, behind: int) -> None:
    """Ville: over random orders the capital ever reaches 1 / alpha at most in a share alpha."""
    rng = np.random.default_rng(0)
    differences = paired(100, ahead, behind)
    largest = np.array([Wealth(100).after(rng.permutation(differences)) for _ in range(1000)])
    for alpha in (0.05, 0.2):
        share = float((largest >= 1 / alpha).mean())
        assert share <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 1000)


def test_scores_between_0_and_1_keep_the_error_too() -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(0, 1, 80) - rng.uniform(0, 1, 80)
    values -= values.mean()  # the null hypothesis' border
    largest = [Wealth(80).after(rng.permutation(values)) for _ in range(1000)]
    assert np.mean(np.array(largest) >= 20) <= 0.05 + 0.02


def test_a_much_worse_model_is_found_out_early() -> None:
    rng = np.random.default_rng(2)
    differences = paired(200, 100, 4)
    found = [
        next(n for n in range(1, 201) if Wealth(200).after(order[:n]) >= 20)
        for order in (rng.permutation(differences) for _ in range(50))
    ]
    assert np.median(found) < 40


@settings(deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), max_size=30), st.integers(0, 30))
def test_capital_is_positive_and_never_falls_as_its_maximum(values: list, rest: int) -> None:
    wealth = Wealth(len(values) + rest)
    found = [wealth.after(np.array(values[:n])) for n in range(len(values) + 1)]
    assert found[0] == 1.0
    assert all(b >= a for a, b in itertools.pairwise(found))


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=12),
    st.lists(st.sampled_from([-1, 0, 1]), max_size=6),
)
def test_unreachable_is_what_full_marks_cannot_change(seen: list[int], rest: list[int]) -> None:
    """By brute force: even with every further item won by the candidate it stays behind."""
    total = len(seen) + len(rest)
    best_case = sum(seen) - len(rest)
    assert unreachable(np.array(seen, dtype=float), total, 1.0) == (best_case > 0)


def test_certainty_is_infinite_capital() -> None:
    assert Wealth(10).after(np.ones(6)) == float("inf")
