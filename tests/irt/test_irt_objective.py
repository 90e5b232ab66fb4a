"""Loss, gradient and curvature against plain float64 sums and finite differences."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.irt import objective as module
from evomerge.irt.gauge import settle
from evomerge.irt.lbfgs import minimise
from evomerge.irt.objective import Objective, Priors

PRIORS = Priors(0.7, 1.2, 0.8, 2.5)


def plain_loss(scores, theta, items, priors=PRIORS):
    """The negative log-posterior, an answer at a time as the model is written down."""
    total = 0.0
    for row, ability in zip(scores.astype(np.float64), theta, strict=True):
        for y, item in zip(row, items, strict=True):
            if not np.isnan(y):
                p = 1 / (1 + np.exp(-(item[:-1] @ ability - item[-1])))
                total -= y * np.log(p) + (1 - y) * np.log(1 - p)
    total += priors.ability_precision / 2 * np.sum(theta**2)
    mean = np.eye(items.shape[1])[0] * priors.discrimination_mean
    alpha = items[:, :-1] - mean[:-1]
    total += np.sum(alpha**2) / (2 * priors.discrimination_sd**2)
    return total + np.sum(items[:, -1] ** 2) / (2 * priors.difficulty_sd**2)


def problem(models=7, items=9, dimensions=2, missing=0.2, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 2, (models, items)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.2] = 0.3
    scores[rng.random(scores.shape) < missing] = np.nan
    theta = rng.standard_normal((models, dimensions))
    return scores, theta, rng.standard_normal((items, dimensions + 1))


def differences(function, x, step=1e-5):
    """Central differences of a function of an array, at every element."""
    out = []
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        out.append((function(up) - function(down)) / (2 * step))
    return np.array(out).reshape(*x.shape, *np.shape(out[0]))


@pytest.fixture(params=["one tile", "many tiles"])
def tiles(request, monkeypatch):
    if request.param == "many tiles":
        monkeypatch.setattr(module, "_ROWS", 3)
        monkeypatch.setattr(module, "_COLUMNS", 4)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dimensions", [1, 3])
def test_loss_and_gradient_are_those_of_the_formula(dimensions):
    scores, theta, items = problem(dimensions=dimensions)
    found = Objective(scores, PRIORS).gradient(theta, items)
    assert found.loss == pytest.approx(plain_loss(scores, theta, items), rel=1e-7)
    by_theta = differences(lambda t: plain_loss(scores, t, items), theta)
    by_item = differences(lambda i: plain_loss(scores, theta, i), items)
    np.testing.assert_allclose(found.ability, by_theta, atol=1e-6)
    np.testing.assert_allclose(found.item, by_item, atol=1e-6)


@pytest.mark.usefixtures("tiles")
def test_curvature_is_the_change_of_the_gradient():
    scores, theta, items = problem()
    objective = Objective(scores, PRIORS)
    found = objective.curvature(theta, items)
    by_theta = differences(lambda t: objective.gradient(t, items).ability, theta)
    by_item = differences(lambda i: objective.gradient(theta, i).item, items)
    for m in range(len(theta)):
        np.testing.assert_allclose(found.ability[m], by_theta[m][:, m], atol=1e-5)
    for n in range(len(items)):
        np.testing.assert_allclose(found.item[n], by_item[n][:, n], atol=1e-5)


@pytest.mark.usefixtures("tiles")
def test_single_precision_is_near_double(monkeypatch):
    scores, theta, items = problem(60, 80)
    exact = Objective(scores, PRIORS)
    monkeypatch.setattr(module, "_EXACT", 0)
    single = Objective(scores, PRIORS)
    assert exact.exact and not single.exact
    one, other = exact.gradient(theta, items), single.gradient(theta, items)
    assert other.loss == pytest.approx(one.loss, rel=1e-6)
    np.testing.assert_allclose(other.ability, one.ability, atol=1e-4)
    np.testing.assert_allclose(other.item, one.item, atol=1e-4)


def test_far_away_nothing_overflows():
    scores, theta, items = problem(missing=0)
    found = Objective(scores, PRIORS).gradient(1e3 * theta, items)
    assert np.isfinite(found.loss) and np.isfinite(found.ability).all()


@pytest.mark.usefixtures("tiles")
def test_residuals_are_multiplied_from_both_sides():
    scores, theta, items = problem()
    objective = Objective(scores, PRIORS)
    p = 1 / (1 + np.exp(-(theta @ items[:, :-1].T - items[:, -1])))
    residuals = np.where(np.isnan(scores), 0, scores.astype(np.float64) - p)
    rng = np.random.default_rng(1)
    right, left = rng.standard_normal((9, 2)), rng.standard_normal((7, 2))
    np.testing.assert_allclose(objective.pull(theta, items, right), residuals @ right)
    np.testing.assert_allclose(objective.pull_items(theta, items, left), residuals.T @ left)


@pytest.mark.parametrize("dimensions", [1, 3])
def test_scale_origin_and_axes_are_settled_without_a_change_of_probabilities(dimensions):
    scores, theta, items = problem(20, 15, dimensions, missing=0)
    moved, other = settle(3 * theta + 1, items, PRIORS)

    def logits(a, b):
        return a @ b[:, :-1].T - b[:, -1]

    np.testing.assert_allclose(logits(moved, other), logits(3 * theta + 1, items), atol=1e-9)
    best = plain_loss(scores, moved, other)
    assert best < plain_loss(scores, 3 * theta + 1, items)
    # no small change of scale, axes or origin is better
    for place in np.ndindex(dimensions, dimensions):
        for size in (-1e-3, 1e-3):
            turn = np.eye(dimensions)
            turn[place] += size
            back = np.column_stack([other[:, :-1] @ np.linalg.inv(turn), other[:, -1]])
            assert plain_loss(scores, moved @ turn.T, back) >= best - 1e-9
    for d in range(dimensions):
        for size in (-1e-3, 1e-3):
            away = size * np.eye(dimensions)[d]
            shifted = np.column_stack([other[:, :-1], other[:, -1] + other[:, :-1] @ away])
            assert plain_loss(scores, moved + away, shifted) >= best - 1e-9


def test_the_search_finds_the_minimum_of_a_curved_valley():
    def rosenbrock(x):
        from scipy.optimize import rosen, rosen_der

        return float(rosen(x)), rosen_der(x)

    found = minimise(rosenbrock, np.zeros(6), 1e-9, 500)
    np.testing.assert_allclose(found.x, 1, atol=1e-7)
    assert found.largest <= 1e-9


def test_the_search_goes_on_where_values_are_only_noise():
    rng = np.random.default_rng(0)
    scales = np.linspace(0.05, 1, 20)

    def noisy(x):
        return 1e6 + 0.5 * float(scales @ x**2) + 1e-3 * rng.standard_normal(), scales * x

    found = minimise(noisy, np.ones(20), 1e-6, 200, noise=1e-8)
    assert found.largest <= 1e-6


def test_the_search_says_when_it_was_cut_short():
    found = minimise(lambda x: (float(x @ x), 2 * x), np.full(3, 9.0), 1e-9, 0)
    assert found.iterations == 0 and found.largest == 18
