"""Quadratic surrogates: exact recovery, leave-one-out by refitting, and when they give way."""

import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.optimizers._gaussian import GaussianProcess, features
from evomerge.optimizers._quadratic import (
    Basis,
    Link,
    Quadratic,
    Ridge,
    items_behind,
    r2,
    unknowns,
)
from evomerge.optimizers._rounds import design
from evomerge.optimizers._surrogates import read_fitting
from evomerge.testing.optimizers import mixed_domain
from evomerge.types import Fitness

INF = float("inf")


def box(n, objectives=1, constraints=0, ranges=(), low=-0.25, high=1.25):
    made = tuple(Dimension(f"weight/s{i}/all", low, high, 0.5, 0.2) for i in range(n))
    anchors = (*np.eye(n), np.full(n, 1 / n))
    return Domain(made, objectives, constraints, anchors, ranges=ranges)


def quadratic(n, seed=0):
    """A random quadratic of order 1 over the box."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, n)) / n, rng.normal(size=n)
    return lambda c: 0.3 + c @ b + 0.5 * np.einsum("mi,ij,mj->m", c, a + a.T, c)


def points(domain, count, seed=0):
    return np.array(design(domain, domain.low, domain.high, seed, count))


def records(genomes, *columns, stderr=0.0, constraints=()):
    rows = zip(*columns, strict=True)
    errors = (stderr,) * len(columns)
    limits = constraints or [()] * len(genomes)
    return [
        (g, Fitness(tuple(map(float, row)), errors, tuple(map(float, c))))
        for g, row, c in zip(genomes, rows, limits, strict=True)
    ]


def fit(domain, rows, box=None, link="auto", items=None, gate=0.5):
    return read_fitting(domain, box, link, items, gate).fit(domain, rows)


# --- terms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 8, 18])
def test_unknowns_of_reals(n):
    domain = box(n)
    basis = Basis.of(domain, domain.low, domain.high)
    assert basis.unknowns == (n + 1) * (n + 2) // 2
    assert basis.expand(points(domain, 7)).shape == (7, basis.unknowns - 1)


@pytest.mark.parametrize("made", [box(1), box(7), mixed_domain()])
def test_unknowns_are_known_without_the_terms(made):
    assert unknowns(made, made.low, made.high) == Basis.of(made, made.low, made.high).unknowns
    flat = np.where(made.categorical, made.high, made.low)
    assert unknowns(made, made.low, flat) == Basis.of(made, made.low, flat).unknowns


def test_terms_of_integers_and_choices():
    """Two reals, two integers of which one has two values, and a choice of four."""
    domain = mixed_domain()
    basis = Basis.of(domain, domain.low, domain.high)
    # 7 variables, squares of three, and 21 products less the 3 of the choice with itself.
    assert basis.unknowns == 1 + 7 + 3 + 18
    genomes = points(domain, 200)
    columns = np.hstack([np.ones((200, 1)), basis.expand(genomes)])
    assert np.linalg.matrix_rank(columns) == basis.unknowns
    chosen = basis.coordinates(genomes)[:, -3:]
    assert np.array_equal(chosen, (genomes[:, -1:] == [1, 2, 3]) * 1.0)


def test_dimension_without_width_has_no_term():
    domain = Domain((Dimension("weight/a/all", 1.0, 1.0, 1.0, 0.1), *box(1).dimensions))
    assert Basis.of(domain, domain.low, domain.high).unknowns == 3


def test_design_of_eight_weights_tells_all_45_unknowns_apart():
    """A grid whose points share few distinct levels in groups of dimensions does not."""
    domain = box(8)
    basis = Basis.of(domain, domain.low, domain.high)
    assert basis.unknowns == 45
    for seed in range(5):
        columns = basis.expand(points(domain, 60, seed))
        assert np.linalg.matrix_rank(np.hstack([np.ones((60, 1)), columns])) == 45
        least = basis.expand(points(domain, 45, seed))
        assert np.linalg.matrix_rank(np.hstack([np.ones((45, 1)), least])) == 45
    # The corners of a grid of two levels a dimension: each square is a constant.
    corners = np.array(np.meshgrid(*[[0.0, 1.0]] * 8)).reshape(8, -1).T
    rank = np.linalg.matrix_rank(np.hstack([np.ones((256, 1)), basis.expand(corners)]))
    assert rank == 45 - 8 == 37


# --- links -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "kind"),
    [
        ((0.0, 1.0), "sigmoid"), ((-2.0, 5.0), "sigmoid"), ((0.0, INF), "softplus"),
        ((-INF, 0.0), "softplus"), ((-INF, INF), "identity"),
    ],
)  # fmt: skip
def test_auto_link_goes_by_the_bounds(bounds, kind):
    values = np.linspace(-0.9, -0.1, 9) if bounds[1] == 0.0 else np.linspace(0.1, 0.9, 9)
    link = Link.of("auto", bounds, values)
    assert link.kind == kind
    targets, weights = link.targets(values, np.zeros(9), None)
    np.testing.assert_allclose(link.value(targets), values, rtol=1e-6)
    assert (weights > 0).all() and np.isfinite(targets).all()
    eta, step = np.linspace(-3, 3, 13), 1e-5
    numeric = (link.value(eta + step) - link.value(eta - step)) / (2 * step)
    np.testing.assert_allclose(link.slope(eta), np.abs(numeric), rtol=1e-6)
    assert (link.value(eta) >= bounds[0]).all() and (link.value(eta) <= bounds[1]).all()


@pytest.mark.parametrize(("kind", "bounds"), [("sigmoid", (0.0, INF)), ("softplus", (-INF, INF))])
def test_links_that_do_not_fit(kind, bounds):
    with pytest.raises(ValueError, match=kind):
        Link.of(kind, bounds, np.ones(2))
    domain = box(2, ranges=(bounds,))
    with pytest.raises(ConfigError, match=r"optimizer\.link"):
        read_fitting(domain, None, kind, None, 0.5)


def test_shares_have_the_empirical_logit_and_its_weight():
    """z = logit((k + 1/2) / (n + 1)), weight n p (1 - p); finite for 0 and for all right."""
    shares = np.array([0, 5, 20, 40]) / 40
    stderr = np.sqrt(shares * (1 - shares) / 39)
    targets, weights = Link("sigmoid").targets(shares, stderr, None)
    p = (np.array([0, 5, 20, 40]) + 0.5) / 41
    np.testing.assert_allclose(targets, logit(p), atol=1e-12)
    np.testing.assert_allclose(weights, 40 * p * (1 - p))
    other, _ = Link("sigmoid").targets(shares, stderr, 10)
    np.testing.assert_allclose(other, logit((10 * shares + 0.5) / 11), atol=1e-12)
    below, _ = Link("sigmoid", -100.0, 200.0).targets(200 * shares - 100, 200 * stderr, None)
    np.testing.assert_allclose(below, targets, atol=1e-12)


def test_the_best_values_near_the_bound_of_a_softplus_are_fitted():
    """There the link is flat and the errors are small: on its scale they count as any other."""
    domain = box(2, ranges=((-INF, 1.0),))
    genomes = points(domain, 18)
    away = ((genomes - 0.8) ** 2).sum(axis=1)
    values = 1.0 - np.exp(np.minimum(8 * away + 1.5 * away**2 - 7, 1.5))
    stderr = 0.1 * (1.0 - values)
    rows = [(g, Fitness((v,), (e,))) for g, v, e in zip(genomes, values, stderr, strict=True)]
    best = np.argsort(-values)[:4]
    assert values[best].min() > 0.995
    mean, _ = fit(domain, rows, gate=-1e6).predict(genomes[best])
    np.testing.assert_allclose(mean[:, 0], values[best], atol=0.005)
    _, weights = Link.of("softplus", (-INF, 1.0), values).targets(values, stderr, None)
    assert weights.min() > 0.05 * np.median(weights)


def test_items_are_inferred_from_standard_errors():
    rng = np.random.default_rng(0)
    scores = rng.random((30, 57)) < rng.random((30, 1))
    shares, stderr = scores.mean(axis=1), scores.std(axis=1, ddof=1) / np.sqrt(57)
    assert items_behind(shares, stderr) == pytest.approx(57)
    assert items_behind(np.array([0.0, 1.0]), np.zeros(2)) == 1e9


# --- the regression ----------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.integers(3, 25), st.integers(1, 14), st.sampled_from([1e-6, 1e-3, 0.1, 10.0]),
    st.integers(0, 10**6),
)  # fmt: skip
@example(3, 3, 1e-6, 1)  # the singular value that centring makes zero came out as 5e-15
def test_leave_one_out_is_refitting(n, p, strength, seed):
    rng = np.random.default_rng(seed)
    columns, targets = rng.normal(size=(n, p)), rng.normal(size=n)
    weights = rng.uniform(0.1, 10, n)
    ridge = Ridge.fit(columns, targets, weights, strength)
    top = np.linalg.svd(
        np.sqrt(weights)[:, None] * (columns - ridge.center) / ridge.scale, compute_uv=False
    )[0]
    for i in range(n):
        rest = np.arange(n) != i
        assert ridge.left_out[i] == pytest.approx(
            _solved(columns[rest], targets[rest], weights[rest], ridge.scale, strength * top**2)(
                columns[i]
            ),
            rel=1e-5,
            abs=1e-6,
        )


def _solved(columns, targets, weights, scale, penalty):
    """Penalised normal equations, the constant being free."""
    a = np.hstack([np.ones((len(columns), 1)), columns / scale])
    free = np.diag([0.0] + [penalty] * columns.shape[1])
    found = np.linalg.solve(a.T @ (weights[:, None] * a) + free, a.T @ (weights * targets))
    return lambda x: float(found[0] + found[1:] @ (x / scale))


@pytest.mark.parametrize("count", [30, 8])
def test_predictions_and_their_errors_are_those_of_the_normal_equations(count):
    """With more columns than rows as well, where a direction is known from the penalty alone."""
    rng = np.random.default_rng(3)
    columns, targets = rng.normal(size=(count, 12)), rng.normal(size=count)
    weights = rng.uniform(0.5, 2, count)
    ridge = Ridge.fit(columns, targets, weights, 1e-2)
    a = (columns - ridge.center) / ridge.scale
    gram = a.T @ (weights[:, None] * a)
    penalty = 1e-2 * np.linalg.eigvalsh(gram)[-1]
    inverse = np.linalg.inv(gram + penalty * np.eye(12))
    new = rng.normal(size=(5, 12))
    at = (new - ridge.center) / ridge.scale
    expected = at @ inverse @ a.T @ (weights * targets) + weights @ targets / weights.sum()
    np.testing.assert_allclose(ridge.mean(new), expected, rtol=1e-8)
    variance = 1 / weights.sum() + np.einsum("ij,jk,ik->i", at, inverse, at)
    np.testing.assert_allclose(ridge.stderr(new), np.sqrt(ridge.dispersion * variance), rtol=1e-8)


def test_strength_has_the_least_leave_one_out_error():
    rng = np.random.default_rng(5)
    columns = rng.normal(size=(20, 15))
    targets = columns[:, 0] + rng.normal(size=20)
    weights = np.ones(20)

    def press(strength):
        fitted = Ridge.fit(columns, targets, weights, strength)
        return float(((targets - fitted.left_out) ** 2).sum())

    chosen = Ridge.fit(columns, targets, weights).strength
    assert chosen > 1e-4  # noise wants a penalty
    assert press(chosen) <= min(map(press, np.logspace(-10, 2, 30))) * 1.02
    exact = Ridge.fit(columns, columns @ rng.normal(size=15), weights)
    assert exact.strength < 1e-8


def test_standard_errors_cover():
    """Two standard errors around the prediction hold the truth about 95 times in 100."""
    domain, truth = box(3), quadratic(3)
    genomes, rng = points(domain, 40), np.random.default_rng(1)
    new = np.random.default_rng(2).uniform(-0.25, 1.25, (50, 3))
    hits = []
    for _ in range(40):
        noisy = truth(genomes) + 0.1 * rng.normal(size=40)
        model = fit(domain, records(genomes, noisy, stderr=0.1))
        mean, error = model.predict(new)
        hits.append(np.abs(mean[:, 0] - truth(new)) < 2 * error[:, 0])
    assert 0.85 < np.mean(hits) < 0.99


def test_expected_errors_hold_the_misfit():
    """Where the truth is no quadratic, two standard errors hold it all the same."""
    domain, truth = box(3), quadratic(3)
    genomes, rng = points(domain, 60), np.random.default_rng(1)
    new = np.random.default_rng(2).uniform(-0.25, 1.25, (400, 3))

    def bent(c):
        return truth(c) + 0.5 * np.sin(6 * c).sum(axis=1)

    noisy = bent(genomes) + 0.1 * rng.normal(size=60)
    model = fit(domain, records(genomes, noisy, stderr=0.1), gate=-100.0)
    mean, error = model.expect(new)
    far = np.abs(mean[:, 0] - bent(new))
    assert 0.88 < np.mean(far < 2 * error[:, 0]) <= 1.0
    assert np.mean(far < 2 * model.predict(new)[1][:, 0]) < 0.85
    right = fit(domain, records(genomes, truth(genomes) + 0.1 * rng.normal(size=60), stderr=0.1))
    np.testing.assert_allclose(right.expect(new)[1], right.predict(new)[1], atol=0.05)


# --- surrogates --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("link", ["identity", "sigmoid"])
def test_a_quadratic_without_noise_is_recovered(n, link):
    """From twice the unknowns, at points that were not seen."""
    domain = box(n, ranges=((0.0, 1.0) if link == "sigmoid" else (-INF, INF),))
    inner = quadratic(n, seed=n)
    truth = inner if link == "identity" else lambda c: expit(inner(c))
    genomes = points(domain, (n + 1) * (n + 2))
    model = fit(domain, records(genomes, truth(genomes)))
    new = np.random.default_rng(9).uniform(-0.25, 1.25, (50, n))
    mean, error = model.predict(new)
    np.testing.assert_allclose(mean[:, 0], truth(new), atol=1e-6)
    np.testing.assert_array_equal(model.means(new), mean)
    assert (error < 1e-4).all()
    assert model.objectives[0].link == link and model.kinds == ("quadratic",)
    assert model.r2[0] > 1 - 1e-6
    assert model.rank == model.unknowns and model.notes == ()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_softplus_keeps_to_its_bound(sign):
    domain = box(3, ranges=((2.0, INF) if sign > 0 else (-INF, 2.0),))
    inner, genomes = quadratic(3), points(domain, 40)
    model = fit(domain, records(genomes, 2.0 + sign * np.exp(inner(genomes))))
    assert model.objectives[0].link == "softplus" and model.r2[0] > 0.98
    new = np.random.default_rng(9).uniform(-3, 3, (200, 3))
    assert (sign * (model.means(new) - 2.0) >= 0).all()


def test_shares_of_few_items_are_fitted_well():
    """Binomial noise of 100 items: the sigmoid predicts what was not seen, 0 and 1 included."""
    domain = box(4, ranges=((0.0, 1.0),))
    inner, rng = quadratic(4), np.random.default_rng(0)
    genomes = points(domain, 60)
    shares = rng.binomial(100, expit(4 * inner(genomes) - 1)) / 100
    errors = np.sqrt(shares * (1 - shares) / 99)
    rows = [(g, Fitness((s,), (e,))) for g, s, e in zip(genomes, shares, errors, strict=True)]
    new = rng.uniform(-0.25, 1.25, (200, 4))
    missed = {
        link: np.abs(fit(domain, rows, link=link).means(new)[:, 0] - expit(4 * inner(new) - 1))
        for link in ("auto", "identity")
    }
    assert missed["auto"].mean() < 0.03
    assert missed["auto"].mean() < 0.5 * missed["identity"].mean()


@pytest.mark.parametrize("count", [12, 30])
def test_left_out_values_are_those_of_refitting(count):
    """The whole way through the link, with the penalty that was chosen."""
    domain = box(3, ranges=((0.0, 1.0),))
    inner, genomes = quadratic(3), points(domain, count)
    rng = np.random.default_rng(count)
    values = np.clip(expit(inner(genomes)) + 0.05 * rng.normal(size=count), 0.01, 0.99)
    basis = Basis.of(domain, domain.low, domain.high)
    link = Link.of("auto", (0.0, 1.0), values)
    found = Quadratic.fit(basis, link, genomes, values, np.full(count, 0.05))
    targets, weights = link.targets(values, np.full(count, 0.05), None)
    columns, ridge = basis.expand(genomes), found.ridge
    a = np.sqrt(weights)[:, None] * (columns - ridge.center) / ridge.scale
    penalty = ridge.strength * np.linalg.svd(a, compute_uv=False)[0] ** 2
    expected = []
    for i in range(count):
        rest = np.arange(count) != i
        solved = _solved(columns[rest], targets[rest], weights[rest], ridge.scale, penalty)
        expected.append(expit(solved(columns[i])))
    np.testing.assert_allclose(found.left_out, expected, atol=1e-6)
    missing = ((values - expected) ** 2).sum() / ((values - values.mean()) ** 2).sum()
    assert r2(values, found.left_out) == pytest.approx(1 - missing, abs=1e-5)


def test_a_constant_metric_needs_no_surrogate():
    domain = box(2, 2)
    genomes = points(domain, 15)
    truth = quadratic(2)
    model = fit(domain, records(genomes, np.full(15, 0.25), truth(genomes)))
    assert model.kinds == ("constant", "quadratic")
    assert model.r2[0] is None and model.r2[1] is not None
    mean, error = model.predict(genomes[:3])
    assert (mean[:, 0] == 0.25).all() and (error[:, 0] == 0).all()
    assert "objective 0 never changed" in model.notes[0]


def test_ripples_call_for_a_gaussian_process():
    domain = box(2)
    genomes = points(domain, 60)

    def ripple(c):
        return np.sin(7 * c[:, 0]) * np.cos(6 * c[:, 1])

    model = fit(domain, records(genomes, ripple(genomes)))
    [one] = model.objectives
    assert model.kinds == ("gp",) and one.quadratic_r2 < 0.5 < one.r2
    assert "Gaussian process" in model.notes[0]
    new = np.random.default_rng(0).uniform(0, 1, (100, 2))
    mean, error = model.predict(new)
    assert np.abs(mean[:, 0] - ripple(new)).mean() < 0.1
    assert (error >= 0).all()
    kept = fit(domain, records(genomes, ripple(genomes)), gate=-100.0)
    assert kept.kinds == ("quadratic",)


def test_a_process_sees_at_most_200_results(monkeypatch):
    """Its time grows with their cube; what it has not seen is left out by itself."""
    domain, seen = box(2), []

    class Watched(GaussianProcess):
        def __init__(self, x, *rest):
            seen.append(len(x))
            super().__init__(x, *rest)

    monkeypatch.setattr("evomerge.optimizers._surrogates.GaussianProcess", Watched)
    genomes = points(domain, 230)
    values = np.sin(7 * genomes[:, 0]) * np.cos(6 * genomes[:, 1])
    values += 0.05 * np.random.default_rng(0).normal(size=230)
    [one] = fit(domain, records(genomes, values)).objectives
    assert one.kind == "gp" and seen == [200] and one.left_out.shape == (230,)
    assert one.r2 == pytest.approx(r2(values, one.left_out)) and one.r2 > 0.9
    mean, _ = one.predict(domain, genomes)
    assert (mean == one.left_out).sum() == 30


def test_left_out_values_of_a_process_are_those_of_refitting():
    domain = box(2)
    genomes = points(domain, 14)
    values = np.sin(6 * genomes[:, 0]) + 0.1 * np.random.default_rng(0).normal(size=14)
    [one] = fit(domain, records(genomes, values), gate=2.0).objectives
    x, process = features(domain, genomes), one.model
    scale = np.std(values)
    for i in range(14):
        rest = np.arange(14) != i
        # The same process: standardised as the whole is.
        y = (values - values.mean()) / scale
        kernel = process.hyper.signal * _matern(x, process.hyper.lengths)
        noisy = kernel + process.hyper.noise * np.eye(14)
        weights = np.linalg.solve(noisy[np.ix_(rest, rest)], y[rest])
        expected = values.mean() + scale * kernel[i, rest] @ weights
        assert one.left_out[i] == pytest.approx(expected, abs=1e-5)
    assert isinstance(process, GaussianProcess)


def _matern(x, lengths):
    r = np.sqrt(5 * (((x[:, None] - x) / lengths) ** 2).sum(axis=2))
    return (1 + r + r**2 / 3) * np.exp(-r)


def test_constraints_have_surrogates_without_a_link():
    domain = box(2, 1, 1, ranges=((0.0, 1.0),))
    genomes = points(domain, 20)
    limits = [(c[0] + c[1] - 0.8,) for c in genomes]
    model = fit(domain, records(genomes, np.full(20, 0.5), constraints=limits))
    new = np.random.default_rng(0).uniform(0, 1, (9, 2))
    np.testing.assert_allclose(model.constraints(new)[:, 0], new.sum(axis=1) - 0.8, atol=1e-6)
    assert fit(box(2), records(genomes, genomes[:, 0])).constraints(new).shape == (9, 0)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 20])
def test_fewer_results_than_unknowns(count):
    domain = box(6, ranges=((0.0, 1.0),))
    genomes = points(domain, count)
    rows = [*records(genomes, expit(genomes.sum(axis=1))), (genomes[0] + 0.1, None)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fit(domain, rows)
        mean, error = model.predict(points(domain, 30, 4))
    assert np.isfinite(mean).all() and np.isfinite(error).all()
    assert f"{count} results for 28 unknowns" in model.notes[0]
    assert len(model.genomes) == count


def test_results_that_do_not_tell_the_unknowns_apart():
    domain = box(2)
    line = np.linspace(0, 1, 20)[:, None] * np.ones(2)
    model = fit(domain, records(line, line[:, 0] ** 2))
    assert model.rank == 3 and "3 of 6 unknowns" in model.notes[0]
    assert np.isfinite(model.predict(points(domain, 9))[1]).all()


def test_no_success_no_surrogate():
    assert fit(box(2), [(np.zeros(2), None)]) is None


def test_box_bounds_the_real_dimensions():
    domain = mixed_domain()
    fitting = read_fitting(domain, [0.0, 0.5], "auto", None, 0.5)
    assert fitting.low.tolist() == [0.0, 0.0, 0.0, -2.0, 0.0]
    assert fitting.high.tolist() == [0.5, 0.5, 7.0, -1.0, 3.0]
    for wrong in ([0.5, 0.5], [1.0], [0, "1"], 3, [0.0, INF], [5.0, 9.0], [True, 2]):
        with pytest.raises(ConfigError, match=r"optimizer\.box"):
            read_fitting(domain, wrong, "auto", None, 0.5)
