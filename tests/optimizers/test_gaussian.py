"""The Gaussian process against scikit-learn's, finite differences and its own definition."""

import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from evomerge.optimizers._gaussian import (
    GaussianProcess,
    Hyperparameters,
    JointSamples,
    _gradient,
    _of,
    features,
)
from evomerge.testing.optimizers import domain, mixed_domain

HYPER = Hyperparameters(np.array([0.3, 0.8, 2.0]), 1.7, 0.05)


def data(count=25, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((count, 3))
    return x, 5.0 + 3.0 * np.sin(6 * x[:, 0]) + x[:, 1] + 0.1 * rng.standard_normal(count)


def reference(x, y):
    """scikit-learn's process with the same hyperparameters."""
    matern = Matern(HYPER.lengths, nu=2.5)
    kernel = ConstantKernel(HYPER.signal) * matern + WhiteKernel(HYPER.noise)
    return GaussianProcessRegressor(kernel, alpha=0, optimizer=None, normalize_y=True).fit(x, y)


def test_posterior_is_scikit_learns():
    x, y = data()
    new = np.random.default_rng(1).random((7, 3))
    process, other = GaussianProcess(x, y, hyper=HYPER), reference(x, y)
    mean, covariance = other.predict(new, return_cov=True)
    covariance -= np.eye(len(new)) * HYPER.noise * y.var()  # theirs is of an observation
    assert np.allclose(process.predict(new)[0], mean, rtol=1e-7)
    assert np.allclose(process.mean(new), mean, rtol=1e-7)
    assert np.allclose(process.covariance(new, new), covariance, atol=1e-7)
    assert np.allclose(process.predict(new)[1], np.diag(covariance), atol=1e-7)


def test_evidence_is_scikit_learns():
    x, y = data()
    expected = reference(x, y).log_marginal_likelihood_value_
    assert GaussianProcess(x, y, hyper=HYPER).evidence == pytest.approx(expected, rel=1e-7)


def test_gradient_of_the_evidence():
    x, y = data()
    y = (y - y.mean()) / y.std()
    precision = np.random.default_rng(2).uniform(0.2, 5.0, len(y))
    theta = np.log([0.3, 0.8, 2.0, 1.7, 0.05])
    error = check_grad(
        lambda t: _gradient(_of(t), x, y, precision)[0],
        lambda t: _gradient(_of(t), x, y, precision)[1],
        theta,
    )
    assert error < 1e-4 * np.linalg.norm(_gradient(_of(theta), x, y, precision)[1])


def test_evidence_with_unequal_noise_is_a_normal_density():
    x, y = data(12)
    stderr = np.where(np.arange(12) % 2, 0.1, 0.2)
    process = GaussianProcess(x, y, stderr, HYPER)
    ratio = stderr**2 / np.median(stderr**2)
    prior = GaussianProcess(np.full((1, 3), 1e6), np.array([0.0]), hyper=HYPER)
    covariance = prior.covariance(x, x) + np.diag(HYPER.noise * ratio)
    z = (y - y.mean()) / y.std()
    expected = multivariate_normal(np.zeros(12), covariance).logpdf(z)
    assert process.evidence == pytest.approx(expected, rel=1e-6)


def test_fit_is_better_than_any_other_that_was_guessed():
    """Evidence far above the prior's, and scikit-learn's own optimum is hardly better."""
    x, y = data(60)
    fitted = GaussianProcess(x, y)
    assert fitted.evidence > GaussianProcess(x, y, hyper=Hyperparameters.prior(3)).evidence + 5
    kernel = ConstantKernel(1.0) * Matern(np.ones(3), nu=2.5) + WhiteKernel(0.01)
    best = GaussianProcessRegressor(kernel, normalize_y=True).fit(x, y)
    assert fitted.evidence > best.log_marginal_likelihood_value_ - 2.0


def test_fit_finds_what_matters_and_the_noise():
    x, y = data(80)
    hyper = GaussianProcess(x, y).hyper
    assert hyper.lengths[0] < hyper.lengths[1] < hyper.lengths[2]
    assert 0.05 < np.sqrt(hyper.noise) * y.std() < 0.2


def test_noisier_observations_count_less():
    """Two clusters of contradicting values: the precise ones decide."""
    x = np.full((10, 1), 0.5)
    y = np.array([0.0] * 5 + [1.0] * 5)
    hyper = Hyperparameters(np.array([1.0]), 1.0, 0.1)
    stderr = np.array([0.01] * 5 + [1.0] * 5)
    plain, weighted = (GaussianProcess(x, y, s, hyper).predict(x[:1])[0][0] for s in (None, stderr))
    assert plain == pytest.approx(0.5)
    assert weighted < 0.1


def test_standard_errors_of_zero_are_ordinary():
    x, y = data(10)
    plain = GaussianProcess(x, y, hyper=HYPER).predict(x)[0]
    assert np.array_equal(GaussianProcess(x, y, np.zeros(10), HYPER).predict(x)[0], plain)
    mixed = np.where(np.arange(10) < 5, 0.0, 0.3)
    assert np.allclose(GaussianProcess(x, y, mixed, HYPER).predict(x)[0], plain)


def test_joint_samples_have_the_posterior_s_moments():
    x, y = data(10)
    process = GaussianProcess(x, y, hyper=HYPER)
    rng = np.random.default_rng(3)
    base, new = rng.random((4, 3)), rng.random((2, 3))
    joint = JointSamples(process, base, rng.standard_normal((200_000, 5)))
    for i in range(2):
        one = new[i : i + 1]
        points = np.concatenate([base, one])
        samples = np.hstack([joint.values, joint.at(one)])
        expected = process.covariance(points, points)
        assert np.allclose(samples.mean(axis=0), process.predict(points)[0], atol=0.03)
        assert np.allclose(np.cov(samples.T), expected, atol=0.02 * expected.max())


def test_joint_samples_go_through_their_base():
    x, y = data(10)
    process = GaussianProcess(x, y, hyper=HYPER)
    rng = np.random.default_rng(4)
    base = rng.random((6, 3))
    joint = JointSamples(process, base, rng.standard_normal((9, 7)))
    assert np.allclose(joint.at(base), joint.values, atol=1e-3)
    alone = JointSamples(process, base[:0], rng.standard_normal((9, 1)))
    assert alone.values.shape == (9, 0)
    assert alone.at(base).shape == (9, 6)


def test_exact_values_are_interpolated():
    x = np.random.default_rng(0).random((30, 2))
    y = np.sin(4 * x[:, 0]) * x[:, 1]
    process = GaussianProcess(x, y)
    assert np.allclose(process.predict(x)[0], y, atol=0.01)
    assert process.hyper.noise < 1e-3


@pytest.mark.parametrize("y", [[3.0], [0.5] * 6, [1.0, 1.0 + 1e-15, 1.0]])
def test_few_or_constant_values(y):
    x = np.linspace(0, 1, len(y))[:, None]
    mean, variance = GaussianProcess(x, np.array(y)).predict(np.array([[0.3], [0.9]]))
    assert np.allclose(mean, y[0])
    assert np.isfinite(variance).all()
    assert (variance >= 0).all()


def test_equal_points_and_many_dimensions():
    x = np.repeat(np.random.default_rng(0).random((5, 100)), 4, axis=0)
    process = GaussianProcess(x, np.tile([0.0, 1.0, 2.0, 3.0], 5))
    assert np.allclose(process.predict(x)[0], 1.5, atol=0.1)


@pytest.mark.parametrize(("x", "y"), [([[0.0]], [np.nan]), ([[np.inf]], [0.0]), ([], [])])
def test_nan_is_refused(x, y):
    with pytest.raises(ValueError, match="finite"):
        GaussianProcess(np.array(x), np.array(y))


def test_fit_takes_the_same_way_twice():
    x, y = data(30)
    one, two = GaussianProcess(x, y).hyper, GaussianProcess(x, y).hyper
    assert np.array_equal(one.lengths, two.lengths)
    assert (one.signal, one.noise) == (two.signal, two.noise)


def test_features_of_reals():
    made = domain(4)
    genomes = made.from_unit(np.random.default_rng(0).random((5, 4)))
    assert np.allclose(features(made, genomes), made.to_unit(genomes))


def test_choices_are_as_far_from_each_other_as_can_be():
    made = mixed_domain()
    genomes = np.tile(made.start, (4, 1))
    genomes[:, 4] = range(4)
    found = features(made, genomes)
    assert found.shape == (4, 4 + 4)
    assert ((found >= 0) & (found <= 1)).all()
    assert np.array_equal(found[:, 4:], np.eye(4))
