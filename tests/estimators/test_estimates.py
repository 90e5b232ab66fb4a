"""Estimates of full scores, against enumeration, quadrature, other tools and simulations."""

import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import norm, t

from evomerge.errors import ConfigError
from evomerge.estimators.calibration import folds, left_out, misfit
from evomerge.estimators.catalogue import (
    ESTIMATES,
    Knowledge,
    choose,
    predict_any,
    predictor,
)
from evomerge.estimators.choice import choose_stratified
from evomerge.estimators.control import ControlVariate
from evomerge.estimators.estimate import Mean, Stratified, Weighted
from evomerge.estimators.irt_estimates import MPIRT, PIRT, Blend
from evomerge.estimators.kriging import Kriging
from evomerge.estimators.population import LAPSE, Population
from evomerge.estimators.selection import (
    ADAPTIVE,
    Configuration,
    Trial,
    cross_validated,
    learnt,
    measured_misfit,
    selected,
    tried,
)
from evomerge.irt.model import ItemModel
from evomerge.irt.responses import Responses


def world(n=80, d=1, models=40, seed=0):
    rng = np.random.default_rng(seed)
    alpha = np.abs(rng.normal(1.3, 0.4, (n, d)))
    beta = 1.5 * rng.standard_normal(n)
    model = ItemModel(tuple(f"i{k}" for k in range(n)), alpha, beta, 0 * alpha, 0 * beta)
    p = model.probability(rng.standard_normal((models, d)))
    return model, (rng.random((models, n)) < p) * 1.0


@pytest.fixture(scope="module")
def known():
    model, answers = world()
    return Knowledge(model.items, model, answers, answers[:3])


@pytest.mark.parametrize("name", ESTIMATES)
@pytest.mark.parametrize("answer", [0.0, 1.0])
@pytest.mark.parametrize("n", [1, 20])
def test_all_right_or_all_wrong_is_finite_and_not_certain(known, name, answer, n):
    choice = choose("random", known, n, 0)
    found = predictor(name, known, choice)(np.full(n, answer))
    assert 0 <= found.value <= 1
    assert 0 < found.stderr < 1


@pytest.mark.parametrize("name", ESTIMATES)
def test_every_item_answered_is_the_exact_mean(known, name):
    order = np.random.default_rng(0).permutation(80)
    answers = np.random.default_rng(1).random(80)
    found = predict_any(name, known).estimate(order, answers)
    assert found.value == pytest.approx(answers.mean(), abs=1e-12)
    assert found.stderr == 0


@pytest.mark.parametrize("name", ESTIMATES)
def test_the_order_of_the_answers_does_not_matter(known, name):
    rng = np.random.default_rng(2)
    places, answers = rng.choice(80, 25, replace=False), rng.random(25)
    built = predict_any(name, known)
    there, back = built.estimate(places, answers), built.estimate(places[::-1], answers[::-1])
    assert there.value == pytest.approx(back.value, abs=1e-8)
    assert there.stderr == pytest.approx(back.stderr, abs=1e-8)


@pytest.mark.parametrize("name", ESTIMATES)
@pytest.mark.parametrize(
    ("places", "answers"),
    [
        ([], []),
        ([0, 1], [1.0]),
        ([0, 0], [1.0, 1.0]),
        ([-1, 2], [1.0, 1.0]),
        ([80, 2], [1.0, 1.0]),
        ([0, 1], [1.0, math.nan]),
        ([0, 1], [1.0, 1.5]),
        ([*range(80), 0], [1.0] * 81),
    ],
)
def test_answers_that_cannot_be_are_refused(known, name, places, answers):
    with pytest.raises(ValueError, match="expected"):
        predict_any(name, known).estimate(np.array(places, dtype=int), np.array(answers))


@pytest.mark.parametrize(
    ("name", "missing"),
    [("p_irt", "model"), ("gp_irt", "model"), ("mp_irt", "model"), ("gmp_irt", "model"),
     ("posterior", "model"), ("control_variate", "sources"), ("kriging", "responses")],
)  # fmt: skip
def test_an_estimate_names_what_it_lacks(name, missing):
    with pytest.raises(ConfigError, match=f"no {missing}"):
        predict_any(name, Knowledge(("a", "b", "c")))


def test_mp_irt_needs_sources():
    model, _ = world(10)
    with pytest.raises(ConfigError, match="no sources"):
        predict_any("mp_irt", Knowledge(model.items, model))


def test_the_error_of_the_mean_is_that_of_all_samples():
    y = np.array([0, 1, 1, 0, 1, 0.5, 0.2])
    means = [y[list(s)].mean() for s in itertools.combinations(range(7), 3)]
    # with the population's own variance in place of the sample's smoothed one
    formula = (1 - 3 / 7) * y.var(ddof=1) / 3
    assert np.var(means) == pytest.approx(formula)
    found = Mean(7).estimate([0, 1, 2], y[:3])
    smoothed = np.array([0, 1, 1, 0, 0, 1, 1]).var()
    assert found.value == pytest.approx(2 / 3)
    wide = t.ppf(0.975, 6) / norm.ppf(0.975)
    assert found.stderr == pytest.approx(wide * math.sqrt((1 - 3 / 7) * smoothed / 3))


def test_the_weighted_mean():
    found = Weighted(10).estimate([3, 1], [1.0, 0.0], [0.75, 0.25])
    assert found.value == 0.75


def test_a_stratified_mean_weighs_strata_and_joins_those_without_answers():
    strata = np.array([0] * 2 + [1] * 3 + [2] * 5)
    found = Stratified(strata).estimate([0, 2, 3, 5, 6], [1, 1, 0, 0.2, 0.4])
    assert found.value == pytest.approx(0.2 * 1 + 0.3 * 0.5 + 0.5 * 0.3)
    joined = Stratified(strata).estimate([0, 1, 5], [1, 0, 0.2])
    assert joined.value == pytest.approx(0.5 * 0.5 + 0.5 * 0.2)


def test_p_irt_is_the_mode_found_by_another_optimiser():
    model, answers = world(30, 2)
    places, y = np.arange(9), answers[0, :9]

    def loss(theta):
        p = model.probability(theta)[:9]
        return -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum() + 0.05 * theta @ theta

    theta = minimize(loss, np.zeros(2), tol=1e-12).x
    expected = (y.sum() + model.probability(theta)[9:].sum()) / 30
    found = PIRT(model, 0.0).estimate(places, y)
    assert found.value == pytest.approx(expected, abs=1e-5)
    step = 1e-3
    hessian = [
        [
            (loss(theta + a + b) - loss(theta + a - b) - loss(theta - a + b) + loss(theta - a - b))
            / (4 * step**2)
            for a in step * np.eye(2)
        ]
        for b in step * np.eye(2)
    ]
    draws = np.random.default_rng(0).multivariate_normal(theta, np.linalg.inv(hessian), 4000)
    p = model.probability(draws)[:, 9:]
    z = (y.sum() + p.sum(axis=1)) / 30
    variance = ((z - found.value) ** 2).mean() + (p * (1 - p)).sum(axis=1).mean() / 900
    assert found.stderr == pytest.approx(math.sqrt(variance), rel=0.1)


def test_misfit_adds_to_the_error_of_what_is_unseen():
    model, answers = world(30)
    places, y = np.arange(9), answers[0, :9]
    plain, wide = (PIRT(model, m).estimate(places, y).stderr for m in (0.0, 0.1))
    assert wide**2 - plain**2 == pytest.approx((0.1 * 21 / 30) ** 2)


def test_the_blend_has_the_published_share():
    model, answers = world(30)
    inner = PIRT(model, 0.0)
    blend = Blend(30, inner, bias=0.05, variance=0.2)
    y, w = answers[0, :8], np.array([0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    c = 0.05**2 / (0.05**2 + 0.2 / (4 * 8))
    z = inner.estimate(np.arange(8), y).value
    found = blend.estimate(np.arange(8), y, w)
    assert found.value == pytest.approx(c * (w @ y) + (1 - c) * z)
    assert Blend(30, inner).share(8) == 0.5


def test_mp_irt_falls_back_to_p_irt_when_the_sources_do_not_explain_the_answers():
    model, _ = world(60)
    ends = np.array([[0.0]])  # all combinations are far too weak
    found = MPIRT(model, ends, 0.0).estimate(np.arange(40), np.ones(40))
    plain = PIRT(model, 0.0).estimate(np.arange(40), np.ones(40))
    assert found.fallback.startswith("p_irt")
    assert (found.value, found.stderr) == (plain.value, plain.stderr)


def test_mp_irt_keeps_to_the_line_between_two_sources():
    model, _ = world(60, 3)
    ends = np.array([[0.5, 0.1, -0.2], [-0.6, 0.3, 0.4]])
    truth = 0.3 * ends[0] + 0.7 * ends[1]
    y = model.probability(truth)  # fractions of right answers: the likelihood's own mode
    found = MPIRT(model, ends, 0.0).estimate(np.arange(40), y[:40])
    assert not found.fallback
    assert found.value == pytest.approx(y.mean(), abs=5e-3)


def test_the_posterior_mean_is_the_integral():
    model, answers = world(40)
    population = Population.of(model, None)
    y = answers[0, :10]

    def p(theta):
        return LAPSE + (1 - 2 * LAPSE) * model.probability(np.array([theta]))

    def weight(theta):
        q = p(theta)[:10]
        return norm.pdf(theta) * np.prod(np.where(y > 0, q, 1 - q))

    whole = quad(weight, -8, 8)[0]

    def mean_of(f):
        return quad(lambda t: weight(t) * f(t), -8, 8)[0] / whole

    expected = (y.sum() + mean_of(lambda t: p(t)[10:].sum())) / 40
    second = mean_of(lambda t: p(t)[10:].sum() ** 2 + (p(t) * (1 - p(t)))[10:].sum())
    variance = (second - mean_of(lambda t: p(t)[10:].sum()) ** 2) / 1600
    value, found = population.full_score(np.arange(10), y)
    assert value == pytest.approx(expected, abs=0.01)
    assert found == pytest.approx(variance, rel=0.1)


def test_draws_have_the_mean_and_spread_of_the_earlier_models():
    model, _ = world(10, 2)
    abilities = np.random.default_rng(0).multivariate_normal([1, -1], [[2, 0.8], [0.8, 1]], 60)
    theta = Population.of(model, abilities).theta
    assert np.allclose(theta.mean(axis=0), abilities.mean(axis=0), atol=0.15)
    assert np.allclose(np.cov(theta.T), np.cov(abilities.T), rtol=0.35, atol=0.1)


def test_control_variates_that_explain_everything_leave_no_error():
    rng = np.random.default_rng(0)
    sources = rng.random((2, 100))
    truth = 0.4 * sources[0] + 0.5 * sources[1] + 0.05
    places = rng.choice(100, 15, replace=False)
    found = ControlVariate(sources).estimate(places, truth[places])
    plain = Mean(100).estimate(places, truth[places])
    assert found.value == pytest.approx(truth.mean(), abs=1e-3)
    assert found.stderr < 0.2 * plain.stderr


def test_control_variates_that_explain_nothing_are_left_alone():
    sources = np.ones((2, 50))
    y = np.array([1.0, 0, 0, 1, 1])
    assert ControlVariate(sources).estimate(range(5), y).value == pytest.approx(0.6)


def test_kriging_is_the_conditional_gaussian():
    _, answers = world(25, models=30)
    kriging = Kriging(answers.mean(0), answers - answers.mean(0), 0.4, 1.0)
    own = 0.4 * np.maximum(answers.mean(0) * (1 - answers.mean(0)), 0.01)
    sigma = np.cov(answers.T) + np.diag(own)
    seen, one = np.arange(6), np.full(25, 1 / 25)
    y = answers[3, :6]
    gain = sigma[:, seen] @ np.linalg.inv(sigma[np.ix_(seen, seen)])
    mean = answers.mean(0) + gain @ (y - answers.mean(0)[seen])
    after = sigma - gain @ sigma[seen]
    value, variance = kriging.predict(seen, y[None])
    assert value[0] == pytest.approx(mean.mean())
    assert variance == pytest.approx(one @ after @ one)


def test_kriging_needs_three_models():
    with pytest.raises(ConfigError, match="2 models"):
        predict_any("kriging", Knowledge(("a", "b"), responses=np.eye(2)))


def test_groups_stay_together_in_folds():
    groups = [f"g{k // 3}" for k in range(30)]
    found = folds(30, groups, 4, 0)
    for k in range(10):
        assert len(set(found[3 * k : 3 * k + 3])) == 1


def test_models_are_tried_on_what_was_learnt_without_them():
    data = np.arange(12.0)[:, None] * np.ones((12, 2))

    def run(inside, groups, outside):
        assert not set(inside[:, 0]) & set(outside[:, 0])
        return outside[:, 0]

    assert left_out(data, None, run, 3).tolist() == list(range(12))


def test_the_misfit_covers_as_many_errors_as_it_should():
    rng = np.random.default_rng(0)
    errors, stderrs = 0.05 * rng.standard_normal(4000), np.full(4000, 0.03)
    found = misfit(errors, stderrs, 0.8)
    assert found == pytest.approx(0.04 / 0.8, rel=0.1)
    assert misfit(0.1 * errors, stderrs, 0.8) == 0


def test_equal_configurations_are_told_apart_by_their_order():
    rng = np.random.default_rng(0)
    truth = rng.random(50)

    def trial(scale):
        return {
            30: Trial(truth[None] + scale * rng.standard_normal((1, 50)), truth[None], truth, 0.9)
        }

    good, same, bad = (Configuration(dimensions=d) for d in (1, 2, 3))
    found = {bad: trial(0.3), same: trial(0.051), good: trial(0.05)}
    assert selected(found) == same


def test_cross_validation_prefers_a_model_where_there_is_one():
    model, answers = world(100, models=60, seed=3)
    names = tuple(map(str, range(60)))
    responses = Responses(names, model.items, answers.astype(np.float32))
    ways = (Configuration("random", "mean", 0), Configuration(ADAPTIVE, "posterior", 1, 0.3))
    found = cross_validated(responses, ways, (20,), k=3, draws=2)
    assert found[ways[0]][20].values.shape == (2, 60)
    assert selected(found) == ways[1]
    assert measured_misfit(found[ways[1]][20]) >= 0


@pytest.mark.parametrize(
    "name",
    ["mean", "weighted", "p_irt", "gp_irt", "mp_irt", "gmp_irt", "control_variate", "kriging",
     "posterior"],
)  # fmt: skip
@pytest.mark.parametrize("items", [20, 30])
def test_intervals_cover_in_a_simulation(name, items):
    covered = []
    for seed in range(6):
        model, answers = world(300, models=160, seed=seed)
        known = Knowledge(model.items, model, answers[:100], answers[:3], misfit=0.0)
        built = predict_any(name, known)
        for draw, row in enumerate(answers[100:]):
            for k in range(2):
                places = choose("random", known, items, 1000 * seed + 2 * draw + k).indices
                found = built.estimate(places, row[places])
                covered.append(abs(found.value - row.mean()) <= 1.96 * found.stderr)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_stratified_intervals_cover_in_a_simulation():
    covered = []
    for seed in range(200):
        model, answers = world(200, models=50, seed=seed % 4)
        known = Knowledge(model.items, None, answers[:40])
        choice = choose("stratified", known, 30, seed)
        estimate = predictor("stratified", known, choice)
        for row in answers[40:]:
            found = estimate(row[choice.indices])
            covered.append(abs(found.value - row.mean()) <= 1.96 * found.stderr)
    assert 0.91 <= np.mean(covered) <= 0.98


def test_trials_of_fixed_and_adaptive_items():
    model, answers = world(60, models=30)
    responses = Responses(tuple(map(str, range(20))), model.items, answers[:20].astype(np.float32))
    for way in (Configuration(dimensions=1), Configuration("balanced", dimensions=1)):
        known = learnt(responses, way)
        found = tried(known, way, answers[20:], (10, 60), draws=2)
        assert found[60].errors == pytest.approx(0, abs=1e-6)
        assert found[10].values.shape == (1 if way.choose == ADAPTIVE else 2, 10)


def test_a_stratified_choice_without_any_knowledge_says_what_it_takes():
    with pytest.raises(ConfigError, match="neither responses"):
        choose("stratified", Knowledge(("a", "b", "c")), 2, 0)
    assert len(choose_stratified([0, 0, 1], 2, np.random.default_rng(0))) == 2
