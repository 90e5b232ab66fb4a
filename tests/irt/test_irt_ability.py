"""Abilities and mixtures against scipy, grids and limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from evomerge.errors import ConfigError
from evomerge.irt.ability import abilities, ability, mixture
from evomerge.irt.model import ItemModel


def make(items=20, dimensions=1, seed=0):
    rng = np.random.default_rng(seed)
    alpha = 0.7 * rng.standard_normal((items, dimensions))
    alpha[:, 0] += 1
    return ItemModel(
        tuple(map(str, range(items))), alpha, rng.standard_normal(items),
        np.ones_like(alpha), np.ones(items),
    )  # fmt: skip


def loglik(model, answers, theta):
    p = 1 / (1 + np.exp(-(model.discrimination @ theta - model.difficulty)))
    terms = answers * np.log(p) + (1 - answers) * np.log(1 - p)
    return terms[~np.isnan(answers)].sum()


def scipys(model, answers, precision):
    start = np.zeros(model.dimensions)
    return minimize(
        lambda t: precision / 2 * t @ t - loglik(model, answers, t), start, method="BFGS",
        options={"gtol": 1e-8},
    ).x  # fmt: skip


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6), dimensions=st.integers(1, 4), precision=st.sampled_from([0.1, 1])
)
def test_the_mode_is_scipys(seed, dimensions, precision):
    rng = np.random.default_rng(seed)
    model = make(25, dimensions, seed)
    answers = rng.integers(0, 2, 25).astype(float)
    answers[rng.random(25) < 0.2] = np.nan
    answers[rng.random(25) < 0.2] = 0.35
    found = ability(model, answers, precision)
    np.testing.assert_allclose(found.mean, scipys(model, answers, precision), atol=1e-4)
    assert found.loglik == pytest.approx(loglik(model, answers, found.mean), rel=1e-9)
    information = model.at(np.flatnonzero(~np.isnan(answers))).information(found.mean).sum(axis=0)
    hessian = np.reshape(information, (dimensions, dimensions)) + precision * np.eye(dimensions)
    np.testing.assert_allclose(found.covariance, np.linalg.inv(hessian), rtol=1e-8)


@pytest.mark.parametrize("answer", [0.0, 1.0])
@pytest.mark.parametrize("dimensions", [1, 3])
def test_all_right_or_all_wrong_has_a_finite_mode(answer, dimensions):
    model = make(100, dimensions)
    found = ability(model, np.full(100, answer), 1e-3)
    np.testing.assert_allclose(
        found.mean, scipys(model, np.full(100, answer), 1e-3), rtol=1e-2, atol=1e-2
    )
    assert np.isfinite(found.covariance).all()


def test_steep_items_do_not_throw_the_search_off():
    """Plain Newton steps run away here: curvature vanishes on both sides of the mode."""
    model = ItemModel(
        tuple("abcd"), np.full((4, 1), 40.0), np.array([-40.0, 0.0, 40.0, 200.0]),
        np.ones((4, 1)), np.ones(4),
    )  # fmt: skip
    answers = np.array([1.0, 1.0, 0.0, 1.0])
    found = ability(model, answers, 0.01)
    grid = np.linspace(-2, 8, 200_001)
    z = model.logits(grid[:, None])
    value = (answers * z - np.logaddexp(0, z)).sum(axis=1) - 0.005 * grid**2
    assert found.mean[0] == pytest.approx(grid[value.argmax()], abs=1e-4)


def test_with_no_answer_there_is_the_prior():
    found = ability(make(5, 2), np.full(5, np.nan), 0.5)
    np.testing.assert_array_equal(found.mean, 0)
    np.testing.assert_allclose(found.covariance, 2 * np.eye(2))
    assert found.loglik == 0


def test_a_fraction_is_that_share_of_right_answers():
    """A score of 0.25 is four copies of an item, one of them right, at four times the prior."""
    model = make(6)
    scores = np.array([0.25, 0.5, 0.75, 0.25, 1.0, 0.0])
    copies = ItemModel(
        tuple(f"{i}.{c}" for i in range(6) for c in range(4)),
        np.repeat(model.discrimination, 4, axis=0), np.repeat(model.difficulty, 4),
        np.ones((24, 1)), np.ones(24),
    )  # fmt: skip
    answers = np.array([float(c < 4 * y) for y in scores for c in range(4)])
    one, four = ability(model, scores, 0.3), ability(copies, answers, 1.2)
    np.testing.assert_allclose(one.mean, four.mean, atol=1e-8)


def test_many_models_at_once_are_as_one_by_one(monkeypatch):
    model = make(15, 2)
    rng = np.random.default_rng(2)
    answers = rng.integers(0, 2, (9, 15)).astype(float)
    answers[rng.random(answers.shape) < 0.3] = np.nan
    monkeypatch.setattr("evomerge.irt.ability._BLOCK", 60)  # four models at a time
    for one, row in zip(abilities(model, answers, 0.2), answers, strict=True):
        other = ability(model, row, 0.2)
        np.testing.assert_allclose(one.mean, other.mean, atol=1e-9)
        np.testing.assert_allclose(one.covariance, other.covariance, atol=1e-9)
        assert one.loglik == pytest.approx(other.loglik)


def test_a_mixture_maximises_the_likelihood_of_its_weights():
    model = make(60, 3)
    rng = np.random.default_rng(4)
    ends = rng.standard_normal((2, 3))
    answers = (rng.random(60) < model.probability(np.array([0.7, 0.4]) @ ends)).astype(float)
    found = mixture(model, answers, ends, ridge=0.01)
    best = minimize(
        lambda w: 0.005 * np.sum((w - 0.5) ** 2) - loglik(model, answers, w @ ends), np.full(2, 0.5)
    )
    np.testing.assert_allclose(found.weights, best.x, atol=1e-3)
    np.testing.assert_allclose(found.ability, found.weights @ ends)
    assert found.loglik == pytest.approx(loglik(model, answers, found.ability))
    assert np.linalg.matrix_rank(found.covariance) == 2


def test_a_mixture_of_as_many_ends_as_dimensions_is_an_ability_without_prior():
    model = make(300, 2)
    rng = np.random.default_rng(5)
    answers = (rng.random(300) < model.probability([0.5, -0.3])).astype(float)
    ends = np.array([[1.0, 0.2], [-0.3, 1.0]])
    free = ability(model, answers, 1e-6)
    found = mixture(model, answers, ends, ridge=1e-6)
    np.testing.assert_allclose(found.ability, free.mean, atol=1e-3)
    np.testing.assert_allclose(found.covariance, free.covariance, atol=1e-3)


@pytest.mark.parametrize("answer", [0.0, 1.0])
def test_a_mixture_stays_finite_at_the_extremes_and_with_equal_ends(answer):
    model = make(40, 2)
    ends = np.array([[1.0, 0.5], [1.0, 0.5], [0.9, 0.6]])
    found = mixture(model, np.full(40, answer), ends)
    assert np.isfinite(found.ability).all() and np.abs(found.weights).max() < 10
    assert found.weights[0] == pytest.approx(found.weights[1])


def test_what_cannot_be_is_an_error():
    model = make(3)
    for precision in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match="a number above 0"):
            ability(model, np.ones(3), precision)
    with pytest.raises(ValueError, match="3 items in a row"):
        ability(model, np.ones(4))
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        ability(model, np.array([0.0, 2.0, 1.0]))
    with pytest.raises(ValueError, match=r"expected \(K, 1\)"):
        mixture(model, np.ones(3), np.ones((2, 2)))
