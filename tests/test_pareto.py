"""Fronts and choices against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.pareto import hypervolume, joined, non_dominated, normalised, preference, spread

TABLES = st.integers(1, 3).flatmap(
    lambda k: st.integers(1, 8).flatmap(
        lambda m: arrays(np.float64, (m, k), elements=st.integers(0, 4).map(float))
    )
)


def beats(a, b):
    return (a >= b).all() and (a > b).any()


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_non_dominated_is_what_no_row_beats(table):
    expected = [not any(beats(other, row) for other in table) for row in table]
    assert non_dominated(table).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_a_front_that_is_joined_row_by_row_is_that_of_all_rows(table):
    front = []
    for row in map(tuple, table.tolist()):
        before, front = front, joined(front, row)
        assert (front is before) == any(np.all(np.array(f) >= row) for f in before)
    expected = {tuple(row.tolist()) for row in table[non_dominated(table)]}
    assert set(front) == expected and len(front) == len(expected)


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_hypervolume_counts_unit_cells(table):
    """On whole numbers it is the number of unit cells below any row."""
    cells = itertools.product(range(4), repeat=table.shape[1])
    count = sum(any((row >= np.array(cell) + 1).all() for row in table) for cell in cells)
    assert hypervolume(table, np.zeros(table.shape[1])) == pytest.approx(count)


def test_hypervolume_of_nothing_is_nothing():
    assert hypervolume(np.empty((0, 2)), np.zeros(2)) == 0
    assert hypervolume(np.array([[-1.0, 5.0]]), np.zeros(2)) == 0


def test_normalised_runs_from_worst_to_best():
    table = np.array([[1.0, 7.0, 3.0], [3.0, 7.0, 2.0], [2.0, 7.0, 1.0]])
    expected = [[0, 1, 1], [1, 1, 0.5], [0.5, 1, 0]]
    assert normalised(table).tolist() == expected


def test_preference_takes_the_balanced_point_and_follows_the_weights():
    table = np.array([[1.0, 0.0], [0.7, 0.6], [0.0, 1.0]])
    assert preference(table, np.array([1.0, 1.0])).argmax() == 1
    assert preference(table, np.array([9.0, 1.0])).argmax() == 0
    assert preference(table, np.array([0.0, 1.0])).argmax() == 2


def test_a_preference_keeps_the_scale_of_the_whole_front():
    """Of two rows that hardly differ in one column, that column does not decide."""
    front = np.array([[1.0, 0.0], [0.0, 1.0]])
    close = np.array([[0.50, 0.80], [0.51, 0.40]])
    weights = np.array([1.0, 1.0])
    assert preference(close, weights).tolist() == pytest.approx([-0.525, -0.525])  # as bad
    assert preference(close, weights, front).argmax() == 0


@settings(max_examples=60, deadline=None)
@given(TABLES, st.integers(0, 2**31))
def test_the_preferred_row_is_never_beaten(table, seed):
    weights = np.random.default_rng(seed).uniform(0.1, 1, table.shape[1])
    best = table[preference(table, weights).argmax()]
    assert not any(beats(row, best) for row in table)


@settings(max_examples=40, deadline=None)
@given(TABLES, st.integers(1, 8))
def test_spread_takes_that_many_with_the_best_of_each_column(table, count):
    kept = spread(table, count)
    assert len(set(kept.tolist())) == min(count, len(table))
    if count >= table.shape[1]:
        assert (table[kept].max(axis=0) == table.max(axis=0)).all()


def test_spread_covers_a_line():
    line = np.stack([np.linspace(0, 1, 101), np.linspace(1, 0, 101)], axis=1)
    assert spread(line, 5).tolist() == [0, 25, 50, 75, 100]
