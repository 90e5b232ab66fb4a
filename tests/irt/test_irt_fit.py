"""The fit against scipy, the truth of drawn answers, and what its priors and signs promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from evomerge.errors import ConfigError
from evomerge.irt import objective
from evomerge.irt.fit import fit_items
from evomerge.irt.responses import Responses

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "irt_math500.npz"


def responses(scores):
    scores = np.asarray(scores, dtype=np.float32)
    return Responses(
        tuple(f"m{i}" for i in range(scores.shape[0])),
        tuple(f"i{i}" for i in range(scores.shape[1])),
        scores,
    )


def drawn(models, items, dimensions=1, missing=0.0, seed=0):
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal((models, dimensions))
    alpha = rng.standard_normal((items, dimensions)) * 0.8
    alpha[:, 0] = np.abs(1 + 0.5 * rng.standard_normal(items))
    beta = 1.2 * rng.standard_normal(items)
    p = 1 / (1 + np.exp(beta - theta @ alpha.T))
    scores = (rng.random(p.shape) < p).astype(np.float32)
    scores[rng.random(p.shape) < missing] = np.nan
    return responses(scores), theta, alpha, beta


def loss(scores, theta, alpha, beta):
    """Written down once more in float64: the priors that the issue and the paper state."""
    y, z = scores.astype(np.float64), theta @ alpha.T - beta
    terms = np.logaddexp(0, z) - np.nan_to_num(y) * z
    mean = np.eye(alpha.shape[1])[0]
    return (
        terms[~np.isnan(y)].sum() + (theta**2).sum() / 2
        + ((alpha - mean) ** 2).sum() / 2 + (beta**2).sum() / 18
    )  # fmt: skip


def unpacked(x, models, items, dimensions):
    theta = x[: models * dimensions].reshape(models, dimensions)
    rest = x[models * dimensions :].reshape(items, dimensions + 1)
    return theta, rest[:, :-1], rest[:, -1]


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_gradient_of_the_formula_is_zero_at_the_fit(dimensions, missing):
    answers, *_ = drawn(25, 12, dimensions, missing)
    fit = fit_items(answers, dimensions, tolerance=1e-7)
    assert fit.converged
    parts = fit.abilities, fit.model.discrimination, fit.model.difficulty
    assert fit.loss == pytest.approx(loss(answers.scores, *parts), rel=1e-9)
    for place, part in enumerate(parts):
        for at in np.ndindex(part.shape):
            moved = []
            for step in (1e-5, -1e-5):
                other = [p.copy() for p in parts]
                other[place][at] += step
                moved.append(loss(answers.scores, *other))
            assert abs(moved[0] - moved[1]) / 2e-5 < 1e-4


def test_scipy_finds_nothing_better_on_a_small_matrix_from_many_starts():
    answers, *_ = drawn(12, 6, missing=0.1, seed=3)
    fit = fit_items(answers, tolerance=1e-7)
    assert not fit.model.settings["constant"]
    rng = np.random.default_rng(0)
    found = [
        minimize(
            lambda x: loss(answers.scores, *unpacked(x, 12, 6, 1)), rng.standard_normal(12 + 12),
            method="BFGS",
        )
        for _ in range(8)
    ]  # fmt: skip
    best = min(found, key=lambda result: result.fun)
    assert fit.loss == pytest.approx(best.fun, abs=1e-6)
    theta, alpha, beta = unpacked(best.x, 12, 6, 1)
    np.testing.assert_allclose(fit.abilities, theta, atol=2e-3)
    np.testing.assert_allclose(fit.model.discrimination, alpha, atol=2e-3)
    np.testing.assert_allclose(fit.model.difficulty, beta, atol=2e-3)


def test_known_items_and_abilities_are_recovered():
    answers, theta, alpha, beta = drawn(600, 150, missing=0.2)
    fit = fit_items(answers)
    assert np.corrcoef(fit.abilities[:, 0], theta[:, 0])[0, 1] > 0.97
    assert np.corrcoef(fit.model.difficulty, beta)[0, 1] > 0.99
    assert np.corrcoef(fit.model.discrimination[:, 0], alpha[:, 0])[0, 1] > 0.93
    error = (fit.model.difficulty - beta) / fit.model.difficulty_error
    assert 0.7 < error.std() < 1.6  # the stated errors are about those made


def test_two_dimensions_are_recovered_up_to_a_turn():
    answers, theta, alpha, _ = drawn(500, 200, 2)
    fit = fit_items(answers, 2)
    for found, truth in ((fit.abilities, theta), (fit.model.discrimination, alpha)):
        turn, *_ = np.linalg.lstsq(found, truth, rcond=None)
        for d in range(2):
            assert np.corrcoef((found @ turn)[:, d], truth[:, d])[0, 1] > 0.9


def test_standard_errors_are_from_the_curvature_of_each_item_and_model():
    answers, *_ = drawn(15, 10)
    fit = fit_items(answers, tolerance=1e-7)
    parts = [fit.abilities, fit.model.discrimination, fit.model.difficulty]

    def block(change):
        """The Hessian of the loss as two or one numbers are changed."""
        n, h = len(change), 1e-4
        steps = h * np.eye(n)

        def value(step):
            other = [p.copy() for p in parts]
            for (place, at), d in zip(change, step, strict=True):
                other[place][at] += d
            return loss(answers.scores, *other)

        return np.array([
            [
                (value(a + b) - value(a - b) - value(b - a) + value(-a - b)) / (4 * h * h)
                for b in steps
            ]
            for a in steps
        ])  # fmt: skip

    item = np.sqrt(np.diag(np.linalg.inv(block([(1, (4, 0)), (2, (4,))]))))
    found = fit.model.discrimination_error[4, 0], fit.model.difficulty_error[4]
    np.testing.assert_allclose(found, item, rtol=1e-4)
    model = np.sqrt(1 / block([(0, (7, 0))])[0, 0])
    np.testing.assert_allclose(fit.ability_errors[7, 0], model, rtol=1e-4)


def test_the_first_dimension_rises_with_the_mean_score_and_the_others_stay_apart():
    answers, *_ = drawn(120, 80, 3)
    fit = fit_items(answers, 3, tolerance=1e-6)
    alpha = fit.model.discrimination
    assert np.corrcoef(fit.abilities[:, 0], answers.scores.mean(axis=1))[0, 1] > 0.8
    # where the prior's mean is the first axis, a mode has no mean along the others
    np.testing.assert_allclose(alpha.mean(axis=0)[1:], 0, atol=1e-4)
    gram = alpha[:, 1:].T @ alpha[:, 1:]
    assert abs(gram[0, 1]) < 1e-6 * gram[0, 0] and gram[0, 0] > gram[1, 1]
    for column in alpha[:, 1:].T:
        assert column[np.abs(column).argmax()] > 0


def test_the_order_of_models_and_items_does_not_matter():
    answers, *_ = drawn(60, 40, 2, missing=0.1)
    rng = np.random.default_rng(5)
    rows, columns = rng.permutation(60), rng.permutation(40)
    other = fit_items(responses(answers.scores[rows][:, columns]), 2, tolerance=1e-6)
    fit = fit_items(answers, 2, tolerance=1e-6)
    np.testing.assert_allclose(other.abilities, fit.abilities[rows], atol=1e-3)
    np.testing.assert_allclose(
        other.model.discrimination, fit.model.discrimination[columns], atol=1e-3
    )


def test_one_seed_gives_one_fit():
    answers, *_ = drawn(40, 30, 2)
    one, other = (fit_items(answers, 2, seed=3) for _ in range(2))
    assert np.array_equal(one.abilities, other.abilities)
    assert np.array_equal(one.model.discrimination, other.model.discrimination)


def test_large_matrices_in_single_precision_give_the_same_fit(monkeypatch):
    answers, *_ = drawn(150, 100, missing=0.1)
    exact = fit_items(answers)
    monkeypatch.setattr(objective, "_EXACT", 0)
    single = fit_items(answers)
    assert single.converged
    np.testing.assert_allclose(single.abilities, exact.abilities, atol=2e-3)
    np.testing.assert_allclose(single.model.difficulty, exact.model.difficulty, atol=2e-3)


def test_constant_items_stay_out_and_get_what_their_rate_and_prior_give():
    answers, *_ = drawn(30, 12)
    columns = np.column_stack([np.zeros(30), answers.scores, np.ones(30), np.full(30, 0.25)])
    columns[:20, 13] = np.nan
    fit, plain = fit_items(responses(columns)), fit_items(answers)
    np.testing.assert_allclose(fit.model.difficulty[1:13], plain.model.difficulty, atol=1e-9)
    assert fit.model.settings["constant"] == ["i0", "i13", "i14"]
    assert (fit.model.discrimination[[0, 13, 14]] == 0).all()
    for place, rate, count in ((0, 0.0, 30), (13, 1.0, 10), (14, 0.25, 30)):
        best = minimize(
            lambda b, r=rate, c=count: c * (np.logaddexp(0, -b[0]) + r * b[0]) + b[0] ** 2 / 18,
            [0.0], tol=1e-10,
        )  # fmt: skip
        assert fit.model.difficulty[place] == pytest.approx(best.x[0], abs=1e-4)
        p = 1 / (1 + np.exp(best.x[0]))
        error = (count * p * (1 - p) + 1 / 9) ** -0.5
        assert fit.model.difficulty_error[place] == pytest.approx(error, rel=1e-3)
    assert "3 of 15 items" in fit.notes[0]


def test_models_with_all_right_or_all_wrong_stay_finite_and_are_named():
    answers, *_ = drawn(20, 30)
    scores = np.vstack([answers.scores, np.ones(30), np.zeros(30)])
    fit = fit_items(responses(scores))
    assert fit.abilities[:, 0].argmax() == 20 and fit.abilities[:, 0].argmin() == 21
    assert np.abs(fit.abilities).max() < 6
    assert any("m20, m21" in note for note in fit.notes)


def test_fractions_count_as_that_share_of_a_right_answer():
    answers, *_ = drawn(40, 25)
    halves = answers.scores.copy()
    halves[::2, :5] = 0.5
    fit = fit_items(responses(halves), tolerance=1e-7)
    p = fit.model.probability(fit.abilities)
    # at a mode, an item's scores and probabilities have the same sum but for the prior
    excess = (halves - p).sum(axis=0) + fit.model.difficulty / 9
    np.testing.assert_allclose(excess, 0, atol=1e-4)
    assert fit.model.settings["scores"].startswith("quasi-likelihood")
    assert fit_items(answers).model.settings["scores"] == "right or wrong"


def test_the_prior_of_abilities_sets_their_scale():
    answers, *_ = drawn(60, 40)
    narrow, wide = (fit_items(answers, ability_precision=p) for p in (4.0, 0.25))
    assert wide.abilities.std() > 1.5 * narrow.abilities.std()


def test_progress_is_reported_pass_by_pass():
    seen = []
    answers, *_ = drawn(20, 15)
    fit_items(answers, report=lambda passes, largest: seen.append((passes, largest)))
    assert [n for n, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][1] < 1e-3 < seen[0][1]


def test_too_few_iterations_are_said():
    answers, *_ = drawn(20, 15)
    fit = fit_items(answers, max_iterations=2)
    assert not fit.converged and "did not converge" in fit.notes[-1]
    assert fit.model.settings["converged"] is False


@pytest.mark.parametrize(
    ("scores", "dimensions", "says"),
    [
        ([[1, 0], [0, 1]], 2, "2 with 2 models"),
        ([[1, 0], [0, 1]], 0, "1 or more"),
        ([[1, 0], [1, 0], [1, 0]], 1, "each with one score for all models"),
        ([[1, np.nan], [0, np.nan], [1, np.nan]], 1, "items with no answer: i1"),
        ([[1, 0], [np.nan, np.nan], [0, 1]], 1, "models with no answer: m1"),
    ],
)
def test_what_cannot_be_fitted_is_an_error(scores, dimensions, says):
    with pytest.raises(ConfigError, match=says):
        fit_items(responses(scores), dimensions)


@pytest.mark.parametrize(
    "prior", ["ability_precision", "discrimination_sd", "difficulty_sd", "tolerance"]
)
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_prior_that_is_none_is_an_error(prior, value):
    answers, *_ = drawn(5, 4)
    with pytest.raises(ConfigError, match=prior):
        fit_items(answers, **{prior: value})


@pytest.fixture
def real():
    if not DATA.is_file():
        pytest.skip("needs ../shared/data/irt_math500.npz")
    with np.load(DATA) as file:
        return responses(file["correct"])


def test_answers_of_real_models_are_predicted_better_than_by_their_means(real):
    held = np.random.default_rng(0).random(real.scores.shape) < 0.1
    known = np.where(held, np.nan, real.scores).astype(np.float32)
    fit = fit_items(responses(known))
    assert fit.converged
    assert len(fit.model.settings["constant"]) >= 11  # that many are in the whole matrix
    means = np.nanmean(known, axis=0), np.nanmean(known, axis=1)
    logit = [np.log((m + 0.01) / (1.01 - m)) for m in means]
    additive = 1 / (1 + np.exp(-(logit[0] + logit[1][:, None] - logit[1].mean())))
    y = real.scores[held]

    def brier(p):
        return float(((p[held] - y) ** 2).mean())

    assert brier(fit.model.probability(fit.abilities)) < 0.95 * brier(additive)
