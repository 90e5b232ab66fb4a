"""Piecewise recipes against dense vectors: every function as a function of n numbers."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.pieces import (
    ANGLES,
    INTERPOLATIONS,
    Piecewise,
    combine,
    refine,
    simplify,
    slerp_factors,
    weights_at,
)
from evomerge.recipe.data import Pieces

N, K = 24, 3


class Dense:
    """Gram matrices straight from the vectors, summed exactly number by number."""

    def __init__(self, vectors):
        self.vectors = np.asarray(vectors, dtype=np.float64)

    def intervals(self, edges):
        return np.array(
            [
                [[math.fsum(x[a:b] * y[a:b]) for y in self.vectors] for x in self.vectors]
                for a, b in pairwise(edges)
            ]
        )


def dense_rows(piecewise):
    """The coefficients of each single parameter, n x K, by walking the intervals."""
    rows, at = [], 0
    for end, row in zip(piecewise.breakpoints, piecewise.coefficients, strict=True):
        while at < end:
            rows.append(row)
            at += 1
    return np.array(rows)


def expand(piecewise, vectors):
    return (dense_rows(piecewise) * np.asarray(vectors, dtype=np.float64).T).sum(axis=1)


def slerp(t, x, y):
    """From x to y along the arc, on the plane of x and a vector perpendicular to it."""
    lengths = np.linalg.norm(x), np.linalg.norm(y)
    if not all(lengths) or abs(x @ y / lengths[0] / lengths[1]) > 0.9995:
        return (1 - t) * x + t * y
    unit = x / lengths[0]
    other = y / lengths[1]
    across = other - (other @ unit) * unit
    across /= np.linalg.norm(across)
    angle = math.atan2(other @ across, other @ unit)
    # the point on the unit arc is a mixture of unit and other; the same mixture of x and y
    point = np.array([math.cos(t * angle), math.sin(t * angle)])
    mixture = np.linalg.solve([[1, math.cos(angle)], [0, math.sin(angle)]], point)
    return mixture[0] * x + mixture[1] * y


def child_of(x, y, weight, split, angle, interpolation):
    """The paper's child of two real vectors."""
    if interpolation == "lerp":
        before, after = (1 - weight) * x + weight * y, weight * x + (1 - weight) * y
        return np.concatenate([before[:split], after[split:]])
    if angle == "global":
        before, after = slerp(weight, x, y), slerp(1 - weight, x, y)
        return np.concatenate([before[:split], after[split:]])
    return np.concatenate(
        [slerp(weight, x[:split], y[:split]), slerp(1 - weight, x[split:], y[split:])]
    )


@st.composite
def piecewises(draw, n=N, seeds=K):
    cuts = draw(st.sets(st.integers(1, n - 1), max_size=6))
    ends = np.array([*sorted(cuts), n])
    row = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.0]), min_size=seeds, max_size=seeds)
    rows = draw(st.lists(row, min_size=len(ends), max_size=len(ends)))
    return Piecewise(ends, np.array(rows))


@given(piecewises(), piecewises())
@settings(max_examples=50, deadline=None)
def test_refine_gives_common_breakpoints_and_the_same_functions(one, other):
    first, second = refine(one, other)
    expected = sorted({*one.breakpoints.tolist(), *other.breakpoints.tolist()})
    assert first.breakpoints.tolist() == second.breakpoints.tolist() == expected
    np.testing.assert_array_equal(dense_rows(first), dense_rows(one))
    np.testing.assert_array_equal(dense_rows(second), dense_rows(other))


@given(piecewises())
@settings(max_examples=50, deadline=None)
def test_simplify_keeps_the_function_and_no_needless_breakpoint(piecewise):
    rows = dense_rows(piecewise)
    changes = [i for i in range(1, N) if (rows[i] != rows[i - 1]).any()]
    simple = simplify(piecewise)
    assert simple.breakpoints.tolist() == [*changes, N]
    np.testing.assert_array_equal(dense_rows(simple), rows)


@given(piecewises(), st.lists(st.tuples(st.integers(0, N), st.integers(0, N)), max_size=5))
@settings(max_examples=50, deadline=None)
def test_weights_at_covers_the_runs_and_nothing_else(piecewise, pairs):
    runs = [(min(p), max(p)) for p in pairs]
    rows = dense_rows(piecewise)
    parts = weights_at(piecewise, runs)
    positions = [i for a, b, _ in parts for i in range(a, b)]
    assert positions == [i for a, b in runs for i in range(a, b)]
    for a, b, row in parts:
        assert a < b
        assert (rows[a:b] == row).all()


def test_weights_at_a_breakpoint_begins_with_the_next_interval():
    rows = np.array([[1.0], [2.0]])
    parts = weights_at(Piecewise(np.array([3, 8]), rows), [(0, 3), (3, 5), (8, 8), (2, 4)])
    found = [(a, b, float(row[0])) for a, b, row in parts]
    assert found == [(0, 3, 1.0), (3, 5, 2.0), (2, 3, 1.0), (3, 4, 2.0)]


@given(piecewises())
@settings(max_examples=20, deadline=None)
def test_the_recipe_s_form_gives_back_the_same(piecewise):
    pieces = piecewise.to_pieces()
    assert all(type(b) is int for b in pieces.breakpoints)
    back = Piecewise.from_pieces(pieces)
    assert back == piecewise
    assert hash(back) == hash(piecewise)


@given(
    piecewises(),
    piecewises(),
    st.floats(0, 1),
    st.integers(0, N),
    st.sampled_from(ANGLES),
    st.sampled_from(INTERPOLATIONS),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=200, deadline=None)
def test_child_is_the_slerp_of_the_expanded_parents(
    one, other, weight, split, angle, interpolation, seed
):
    vectors = np.random.default_rng(seed).normal(size=(K, N))
    child = combine(one, other, weight, split, Dense(vectors), angle, interpolation)
    x, y = expand(one, vectors), expand(other, vectors)
    expected = child_of(x, y, weight, split, angle, interpolation)
    scale = np.linalg.norm(x) + np.linalg.norm(y)
    assert np.abs(expand(child, vectors) - expected).max() <= 1e-11 * scale
    assert {*child.breakpoints} <= {*one.breakpoints, *other.breakpoints, split}


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_weight_is_the_share_of_the_second_parent_before_the_split(angle, interpolation):
    grams = Dense(np.random.default_rng(0).normal(size=(2, N)))
    one, other = Piecewise.seed(0, 2, N), Piecewise.seed(1, 2, N)
    swapped = combine(one, other, 1.0, 10, grams, angle, interpolation)
    assert swapped == Piecewise(np.array([10, N]), np.array([[0, 1], [1, 0]]))
    kept = combine(one, other, 0.0, 10, grams, angle, interpolation)
    assert kept == Piecewise(np.array([10, N]), np.array([[1, 0], [0, 1]]))
    before = combine(one, other, 0.3, N, grams, angle, interpolation).coefficients
    after = combine(one, other, 0.3, 0, grams, angle, interpolation).coefficients
    assert before.shape == after.shape == (1, 2)
    assert before[0, 0] > before[0, 1]
    np.testing.assert_allclose(after, before[:, ::-1], rtol=1e-14)


def test_the_two_angles_differ_where_the_sides_do():
    x = np.array([1.0, 0.0, 1.0, 0.0])
    y = np.array([0.0, 1.0, 1.0, 1.0])  # 90 degrees before the split, 45 after it
    one, other = Piecewise.seed(0, 2, 4), Piecewise.seed(1, 2, 4)
    segment = combine(one, other, 0.5, 2, Dense([x, y])).coefficients
    np.testing.assert_allclose(segment[0], math.sqrt(0.5))
    np.testing.assert_allclose(segment[1], 0.5 / math.cos(math.pi / 8))
    whole = combine(one, other, 0.5, 2, Dense([x, y]), "global")
    angle = math.acos(1 / math.sqrt(6))
    np.testing.assert_allclose(whole.coefficients, [[0.5 / math.cos(angle / 2)] * 2])
    assert len(whole) == 1


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("split", [0, 1, N // 2, N])
def test_clones_give_themselves(angle, weight, split):
    vectors = np.random.default_rng(1).normal(size=(2, N))
    parent = Piecewise(np.array([5, N]), np.array([[0.2, 0.8], [0.5, 0.5]]))
    child = combine(parent, parent, weight, split, Dense(vectors), angle)
    np.testing.assert_allclose(dense_rows(child), dense_rows(parent), rtol=1e-15)


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("split", [0, N // 2, N])
def test_opposite_parents_are_interpolated_linearly_then_their_child(angle, weight, split):
    x = np.random.default_rng(2).normal(size=N)
    vectors = np.stack([x, -x])
    one, other = Piecewise.seed(0, 2, N), Piecewise.seed(1, 2, N)
    child = combine(one, other, weight, split, Dense(vectors), angle)
    expected = child_of(x, -x, weight, split, angle, "lerp")
    np.testing.assert_allclose(expand(child, vectors), expected, atol=1e-15)
    grandchild = combine(child, other, 0.25, 7, Dense(vectors), angle)
    expected = child_of(expected, -x, 0.25, 7, angle, "slerp")
    np.testing.assert_allclose(expand(grandchild, vectors), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("seed", range(10))
def test_a_combination_that_cancels_but_for_rounding_counts_as_zero(seed):
    """0.3 a - 0.1 b with b = 3 a is a rounding error long; its direction means nothing."""
    a, z = np.random.default_rng(seed).normal(size=(2, N))
    grams = Dense([a, 3 * a, z])
    nothing = Piecewise(np.array([N]), np.array([[0.3, -0.1, 0.0]]))
    child = combine(nothing, Piecewise.seed(2, 3, N), 0.25, N, grams)
    np.testing.assert_array_equal(child.coefficients, [[0.75 * 0.3, 0.75 * -0.1, 0.25]])


def test_slerp_of_a_seed_that_is_zero_is_linear():
    grams = Dense([np.zeros(N), np.ones(N)])
    child = combine(Piecewise.seed(0, 2, N), Piecewise.seed(1, 2, N), 0.25, N, grams)
    np.testing.assert_array_equal(child.coefficients, [[0.75, 0.25]])


@pytest.mark.parametrize("cosine", [0.9994, 0.9996, -0.9994, -0.9996, 0.0, 0.5])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_slerp_factors_keep_the_length_of_unit_vectors_up_to_the_threshold(cosine, share):
    first, second = slerp_factors(share, 1.0, cosine, 1.0)
    length = first**2 + 2 * first * second * cosine + second**2
    if abs(cosine) <= 0.9995:
        assert length == pytest.approx(1.0, abs=1e-12)
    else:
        assert (first, second) == (1 - share, share)
    if share in (0.0, 1.0):
        assert (first, second) == (1 - share, share)


def test_slerp_factors_do_not_depend_on_lengths_not_even_extreme_ones():
    expected = slerp_factors(0.3, 1.0, 0.5, 1.0)
    assert slerp_factors(0.3, 1e-300, 0.5, 1e300) == pytest.approx(expected)
    assert slerp_factors(0.3, 1e-200, 0.5e-200, 1e-200) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ends", "rows"),
    [
        ((), ()),
        ((0, 4), ((1.0,), (1.0,))),
        ((4, 4), ((1.0,), (1.0,))),
        ((4, 2), ((1.0,), (1.0,))),
        ((4,), ((1.0,), (1.0,))),
        ((2, 4), ((1.0,), (1.0, 2.0))),
        ((2.5, 4), ((1.0,), (1.0,))),
        ((4,), ((math.nan,),)),
        ((4,), ((),)),
        ((4,), (("a",),)),
        ((2**70,), ((1.0,),)),
    ],
)
def test_a_recipe_s_pieces_that_do_not_fit_are_refused(ends, rows):
    with pytest.raises(RecipeError, match="pieces"):
        Piecewise.from_pieces(Pieces(ends, rows))


@pytest.mark.parametrize(
    "changes",
    [{"weight": -0.1}, {"weight": math.nan}, {"split": N + 1}, {"split": -1},
     {"angle": "x"}, {"interpolation": "x"}, {"other": Piecewise.seed(0, 2, N + 1)},
     {"other": Piecewise.seed(0, 3, N)}],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(changes):
    given = {"one": Piecewise.seed(0, 2, N), "other": Piecewise.seed(1, 2, N), "weight": 0.5,
             "split": 3, "grams": Dense(np.ones((2, N)))}  # fmt: skip
    with pytest.raises(ValueError, match="expected"):
        combine(**{**given, **changes})


def test_seeds_and_runs_out_of_range_are_refused():
    with pytest.raises(ValueError, match="below 2"):
        Piecewise.seed(2, 2, N)
    with pytest.raises(ValueError, match="run"):
        weights_at(Piecewise.seed(0, 2, N), [(0, N + 1)])
    with pytest.raises(ValueError, match="parameters"):
        refine(Piecewise.seed(0, 2, N), Piecewise.seed(0, 2, N + 1))


def test_numbers_cannot_be_changed_behind_its_back():
    ends, rows = np.array([N]), np.ones((1, 2))
    piecewise = Piecewise(ends, rows)
    rows[0, 0] = 5.0
    assert piecewise.coefficients[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        piecewise.coefficients[0, 0] = 2.0
