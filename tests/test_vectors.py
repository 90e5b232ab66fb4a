"""Members as vectors against the coefficients of `evomerge.pieces`, expanded in full."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evomerge.mating import Mating
from evomerge.pieces import ANGLES, INTERPOLATIONS, Piecewise, combine
from evomerge.vectors import VectorMembers, levels, normals

N, K = 200, 3


def seeds(n=N, k=K, rng=0):
    return np.random.default_rng(rng).standard_normal((k, n)).astype(np.float32)


class Dense:
    """Gram matrices straight from the vectors, in double precision."""

    def __init__(self, vectors):
        self.vectors = np.asarray(vectors, dtype=np.float64)

    def intervals(self, edges):
        parts = [self.vectors[:, a:b] for a, b in pairwise(edges)]
        return np.array([part @ part.T for part in parts])


def expand(piecewise, vectors):
    rows = np.repeat(piecewise.coefficients, np.diff(piecewise.breakpoints, prepend=0), axis=0)
    return (rows * np.asarray(vectors, dtype=np.float64).T).sum(axis=1)


def held(vectors, **options):
    members = VectorMembers(list(vectors), **options)
    for number in range(len(vectors)):
        members.make(Mating.of_seed(number))
    return members


@st.composite
def pedigrees(draw):
    """Children of earlier members, with splits at the ends among them."""
    shares = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])
    matings = []
    for member in range(K, K + draw(st.integers(1, 12))):
        parent = st.integers(0, member - 1)
        matings.append(Mating(member, draw(parent), draw(parent), draw(shares), draw(shares)))
    return matings


@given(pedigrees(), st.sampled_from(ANGLES), st.sampled_from(INTERPOLATIONS))
@settings(max_examples=100, deadline=None)
def test_children_are_those_of_the_coefficients(matings, angle, interpolation):
    vectors = seeds()
    members = held(vectors, angle=angle, interpolation=interpolation)
    pieces = [Piecewise.seed(k, K, N) for k in range(K)]
    for mating in matings:
        child = combine(
            pieces[mating.first], pieces[mating.second], mating.share,
            round(mating.split * N), Dense(vectors), angle, interpolation,
        )  # fmt: skip
        pieces.append(child)
        made = members.make(mating)
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, expand(child, vectors), rtol=0, atol=2e-4)


@pytest.mark.parametrize("angle", ANGLES)
def test_a_single_child_is_exact_to_rounding(angle):
    vectors = seeds(n=19_210, k=2)
    members = held(vectors, angle=angle)
    for member, (share, split) in enumerate([(0.3, 0.4), (0.9, 0.99), (0.5, 0.5)], start=2):
        child = combine(
            Piecewise.seed(0, 2, 19_210), Piecewise.seed(1, 2, 19_210), share,
            round(split * 19_210), Dense(vectors), angle,
        )  # fmt: skip
        made = members.make(Mating(member, 0, 1, share, split))
        size = np.abs(vectors).sum(axis=0)
        error = np.abs(made - expand(child, vectors))
        assert (error <= 3 * np.finfo(np.float32).eps * size).all()


def test_a_child_without_split_lies_on_the_arc():
    x, y = np.zeros((2, 4), dtype=np.float32)
    x[0], y[1] = 2.0, 2.0
    child = held([x, y]).make(Mating(2, 0, 1, 1 / 3, 1.0))
    expected = [2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6), 0, 0]
    np.testing.assert_allclose(child, expected, rtol=1e-6)


def test_parents_change_places_at_the_split():
    x, y = np.zeros(10, np.float32), np.ones(10, np.float32)
    child = held([x, y], interpolation="lerp").make(Mating(2, 0, 1, 0.25, 0.4))
    np.testing.assert_array_equal(child, [0.25] * 4 + [0.75] * 6)


def test_noise_is_normal_and_a_function_of_seed_and_number():
    zeros = np.zeros((2, 20_000), dtype=np.float32)
    members = held(zeros, mutation=0.01, seed=5)
    one, other = members.make(Mating(2, 0, 1, 0.5, 0.5)), members.make(Mating(3, 0, 1, 0.5, 0.5))
    for noise in (one, other):
        assert stats.kstest(noise / 0.01, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.04
    again = held(zeros, mutation=0.01, seed=5)
    np.testing.assert_array_equal(again.make(Mating(3, 1, 0, 0.1, 0.9)), other)
    changed = held(zeros, mutation=0.01, seed=6)
    assert not np.array_equal(changed.make(Mating(3, 0, 1, 0.5, 0.5)), other)


def test_noise_has_the_moments_and_tails_of_the_normal_distribution():
    drawn = np.concatenate([normals(19_210, 3, k) for k in range(200)]).astype(np.float64)
    n = len(drawn)
    assert abs(drawn.mean()) < 4 / n**0.5
    assert abs(drawn.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((drawn**4).mean() - 3) < 4 * (96 / n) ** 0.5
    for bound in (2.0, 3.0, 4.0):
        expected = n * 2 * stats.norm.sf(bound)
        assert abs((abs(drawn) > bound).sum() - expected) < 4 * expected**0.5 + 1
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 4 / n**0.5


def test_levels_are_means_of_slices():
    found = levels(0.5).astype(np.float64)
    edges = stats.norm.ppf(np.arange(65_537) / 65_536)
    for k in (0, 1, 1000, 32_768, 65_535):
        mean = stats.truncnorm(edges[k], edges[k + 1]).mean()
        assert found[k] == pytest.approx(0.5 * mean, rel=1e-5, abs=1e-7)
    assert (np.diff(found) > 0).all()
    np.testing.assert_allclose(found, -found[::-1], atol=1e-7)


def test_seeds_get_no_noise_and_are_copies():
    vectors = seeds()
    members = held(vectors, mutation=0.01)
    kept = vectors[1].copy()
    vectors[1] = 0
    np.testing.assert_array_equal(members[1], kept)
    with pytest.raises(ValueError, match="read-only"):
        members[1][0] = 1


def test_keep_forgets_all_others():
    members = held(seeds())
    members.make(Mating(3, 0, 1, 0.5, 0.5))
    members.keep([3, 1, 99])
    assert len(members) == 2
    assert 3 in members and 1 in members and 0 not in members
    with pytest.raises(ValueError, match="member 0 was not made, or is forgotten"):
        members.make(Mating(4, 0, 1, 0.5, 0.5))
    members.make(Mating(5, 3, 1, 0.5, 0.5))


def test_memory_stays_at_what_is_kept():
    members = held(seeds(), mutation=0.1)
    for number in range(3, 300):
        members.make(Mating(number, number - 1, number - 2, 0.5, 0.5))
        members.keep(range(number - 4, number + 1))
        assert len(members) <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"angle": "none"}, "segment"),
        ({"interpolation": "cubic"}, "slerp"),
        ({"mutation": -1.0}, "mutation of at least 0"),
        ({"mutation": math.nan}, "mutation of at least 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        VectorMembers(list(seeds()), **options)


def test_wrong_seeds():
    with pytest.raises(ValueError, match="one size"):
        VectorMembers([np.zeros(3, np.float32), np.zeros(4, np.float32)])
    with pytest.raises(ValueError, match="one size"):
        VectorMembers([])
    with pytest.raises(ValueError, match="one of 3 seeds, found 3"):
        held(seeds()).make(Mating.of_seed(3))
