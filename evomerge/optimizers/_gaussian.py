"""Gaussian-process regression (Rasmussen and Williams 2006, chapters 2, 4 and 5) for surrogates.

For a few hundred points in tens of dimensions: the gradient with respect to all length-scales is
one matrix product (`_gradient`), where scikit-learn builds an `n x n x d` array and takes several
times as long; and it has neither priors nor noise that differs and is fitted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.domain import Domain
from evomerge.types import FloatArray

_ROOT5 = math.sqrt(5.0)
_JITTER = 1e-10
_LENGTHS = (1e-2, 1e3)
_SIGNAL = (1e-2, 1e2)
_NOISE = (1e-6, 2.0)
_STEPS = 60


def features(domain: Domain, genomes: FloatArray) -> FloatArray:
    """Coordinates that a kernel may measure distances in.

    Args:
        domain: of the genomes.
        genomes: an `m x n` array.

    Returns:
        An `m x f` array: reals and integers in [0, 1], each choice as one column an option
        (one-hot), after them.
    """
    unit = domain.to_unit(np.asarray(genomes, dtype=np.float64).reshape(-1, len(domain)))
    columns = [unit[:, ~domain.categorical]]
    for i in np.flatnonzero(domain.categorical):
        options = np.arange(domain.low[i], domain.high[i] + 1)
        columns.append((np.reshape(genomes, (-1, len(domain)))[:, i, None] == options) * 1.0)
    return np.hstack(columns)


@dataclass(frozen=True)
class Hyperparameters:
    """What a Gaussian process believes before it sees values, in standardised units.

    Attributes:
        lengths: length-scale of each coordinate, an `f` array.
        signal: variance of the function.
        noise: variance of an observation of ordinary precision.
    """

    lengths: FloatArray
    signal: float
    noise: float

    @classmethod
    def prior(cls, count: int) -> Hyperparameters:
        """Medians of the prior in `count` coordinates; see `_fitted`."""
        return _of(_center(count))


class GaussianProcess:
    """Matern 5/2 kernel with a length-scale for each coordinate, and observation noise.

    Targets are standardised. Standard errors, where given, say which observations are noisier
    than others; how noisy all are is fitted, because candidates that answered the same items
    share most of their sampling error.

    Attributes:
        hyper: the hyperparameters in use.
        evidence: log marginal likelihood of the standardised targets.
    """

    def __init__(
        self,
        x: FloatArray,
        y: FloatArray,
        stderr: FloatArray | None = None,
        hyper: Hyperparameters | None = None,
    ) -> None:
        """Conditions on observations.

        Args:
            x: an `n x f` array of coordinates.
            y: an `n` array.
            stderr: standard errors of `y`, an `n` array; those that are not positive are taken
                as ordinary.
            hyper: hyperparameters; None fits them to these observations.

        Raises:
            ValueError: without observations, or for NaN or infinity.
        """
        self._x = np.asarray(x, dtype=np.float64)
        y = np.asarray(y, dtype=np.float64)
        if not len(y) or not np.isfinite(y).all() or not np.isfinite(self._x).all():
            raise ValueError("a Gaussian process needs at least one, and finite, observations")
        self._center, spread = float(y.mean()), float(y.std())
        self._scale = spread if spread > 1e-12 * max(1.0, abs(self._center)) else 1.0
        self._y = (y - self._center) / self._scale
        self._precision = _shape(stderr, len(y))
        self.hyper = hyper or _fitted(self._x, self._y, self._precision)
        self._factor, self._alpha, self.evidence = _condition(
            self.hyper, self._x, self._y, self._precision
        )

    @property
    def deviation(self) -> float:
        """Prior standard deviation of the function, in the targets' unit."""
        return math.sqrt(self.hyper.signal) * self._scale

    def predict(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Posterior means and variances of the function, without noise, two `m` arrays."""
        seen = self.see(x)
        return seen.mean, seen.variance

    def mean(self, x: FloatArray) -> FloatArray:
        """Posterior means alone, an `m` array, without the cost of variances."""
        prior = _kernel(self.hyper, self._x, x)
        return np.asarray(self._center + self._scale * (self._alpha @ prior))

    def covariance(self, a: FloatArray, b: FloatArray) -> FloatArray:
        """Posterior covariance of the function between `p x f` and `q x f`, a `p x q` array."""
        return self.between(self.see(a), self.see(b))

    def see(self, x: FloatArray) -> Seen:
        """What the posterior knows of each of the points of an `m x f` array."""
        from scipy.linalg import solve_triangular

        prior = _kernel(self.hyper, self._x, x)
        whitened = solve_triangular(self._factor, prior, lower=True, check_finite=False)
        variance = np.maximum(self.hyper.signal - (whitened**2).sum(axis=0), 0.0)
        mean = self._center + self._scale * (self._alpha @ prior)
        return Seen(x, mean, variance * self._scale**2, whitened)

    def between(self, a: Seen, b: Seen) -> FloatArray:
        """Posterior covariance between points, a `p x q` array."""
        prior = _kernel(self.hyper, a.x, b.x)
        return np.asarray((prior - a.whitened.T @ b.whitened) * self._scale**2)


@dataclass(frozen=True)
class Seen:
    """Points and their posterior.

    Attributes:
        x: an `m x f` array.
        mean: of the function, an `m` array.
        variance: of the function, an `m` array.
        whitened: L^-1 k(observed, x) for the Cholesky factor L, an `n x m` array.
    """

    x: FloatArray
    mean: FloatArray
    variance: FloatArray
    whitened: FloatArray


class JointSamples:
    """Samples a posterior jointly at base points, and at any point together with those.

    Attributes:
        values: samples at the base points, an `s x b` array.
    """

    def __init__(self, process: GaussianProcess, base: FloatArray, normals: FloatArray) -> None:
        """Draws the base.

        Args:
            process: the posterior.
            base: a `b x f` array; `b` may be 0.
            normals: standard normal numbers, an `s x (b + 1)` array; the last column serves
                for every further point, so that these can be compared with each other.
        """
        self._process, self._base, self._normals = process, process.see(base), normals
        self._factor = _cholesky(process.between(self._base, self._base))
        self.values: FloatArray = self._base.mean + normals[:, :-1] @ self._factor.T

    def at(self, x: FloatArray) -> FloatArray:
        """Samples at `m x f` points given those at the base, an `s x m` array."""
        from scipy.linalg import solve_triangular

        points = self._process.see(x)
        cross = self._process.between(self._base, points)
        part = solve_triangular(self._factor, cross, lower=True, check_finite=False)
        left = np.sqrt(np.maximum(points.variance - (part**2).sum(axis=0), 0.0))
        normals = self._normals
        return np.asarray(points.mean + normals[:, :-1] @ part + np.outer(normals[:, -1], left))


def _shape(stderr: FloatArray | None, count: int) -> FloatArray:
    """Relative noise variances around 1, an `n` array; at most 10 times more or less."""
    if stderr is None:
        return np.ones(count)
    variance = np.asarray(stderr, dtype=np.float64) ** 2
    given = np.isfinite(variance) & (variance > 0)
    if not given.any():
        return np.ones(count)
    ordinary = float(np.median(variance[given]))
    return np.where(given, np.clip(np.where(given, variance, 1.0) / ordinary, 0.1, 10.0), 1.0)


def _distances(lengths: FloatArray, a: FloatArray, b: FloatArray) -> FloatArray:
    """Scaled Euclidean distances, a `p x q` array."""
    a, b = a / lengths, b / lengths
    square = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2.0 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(square, 0.0)))


def _kernel(hyper: Hyperparameters, a: FloatArray, b: FloatArray) -> FloatArray:
    """Matern covariance of smoothness 5/2 (eq. 4.17), a `p x q` array."""
    r = _ROOT5 * _distances(hyper.lengths, a, b)
    return np.asarray(hyper.signal * (1.0 + r + r**2 / 3.0) * np.exp(-r))


def _cholesky(matrix: FloatArray) -> FloatArray:
    """Lower factor of a matrix that is positive definite but for rounding."""
    size = len(matrix)
    if not size:
        return matrix
    mean = max(float(np.trace(matrix)) / size, 1e-300)
    jitter = _JITTER
    while True:
        try:
            return np.asarray(np.linalg.cholesky(matrix + jitter * mean * np.eye(size)))
        except np.linalg.LinAlgError:
            jitter *= 10.0
            if jitter > 1.0:
                raise


def _condition(
    hyper: Hyperparameters, x: FloatArray, y: FloatArray, precision: FloatArray
) -> tuple[FloatArray, FloatArray, float]:
    """Cholesky factor, K^-1 y and log marginal likelihood (algorithm 2.1)."""
    from scipy.linalg import cho_solve

    covariance = _kernel(hyper, x, x) + np.diag(hyper.noise * precision)
    factor = _cholesky(covariance)
    alpha = np.asarray(cho_solve((factor, True), y, check_finite=False))
    half_logdet = float(np.log(np.diag(factor)).sum())
    evidence = -0.5 * float(y @ alpha) - half_logdet - 0.5 * len(y) * math.log(2.0 * math.pi)
    return factor, alpha, evidence


def _fitted(x: FloatArray, y: FloatArray, precision: FloatArray) -> Hyperparameters:
    """Maximises the log marginal likelihood plus log priors, from a smooth and a rough start.

    The length-scales' prior grows with the root of the dimension (Hvarfner, Hellsten and Nardi
    2024), so that few observations in many dimensions are not overfitted; those of signal and
    noise (medians 1 and exp(-5) of the targets' variance) are wide, and ours.
    """
    from scipy.optimize import minimize

    count = x.shape[1]
    center = _center(count)
    width = np.append(np.full(count, math.sqrt(3.0)), [1.0, 2.0])
    bounds = [tuple(map(math.log, b)) for b in (*[_LENGTHS] * count, _SIGNAL, _NOISE)]

    def objective(theta: FloatArray) -> tuple[float, FloatArray]:
        value, gradient = _gradient(_of(theta), x, y, precision)
        offset = (theta - center) / width
        return -(value - 0.5 * float(offset @ offset)), -(gradient - offset / width)

    best: Any = None
    for shift in (0.0, -1.5):
        start = center + np.append(np.full(count, shift), [0.0, 0.0])
        found = minimize(
            objective, start, jac=True, bounds=bounds, method="L-BFGS-B",
            options={"maxiter": _STEPS, "ftol": 1e-6},
        )  # fmt: skip
        if np.isfinite(found.fun) and (best is None or found.fun < best.fun):
            best = found
    return _of(center if best is None else np.asarray(best.x))


def _center(count: int) -> FloatArray:
    """Medians of the prior, logarithms of lengths, signal and noise."""
    return np.append(np.full(count, math.sqrt(2.0) + 0.5 * math.log(count)), [0.0, -5.0])


def _of(theta: FloatArray) -> Hyperparameters:
    values = np.exp(theta)
    return Hyperparameters(values[:-2], float(values[-2]), float(values[-1]))


def _gradient(
    hyper: Hyperparameters, x: FloatArray, y: FloatArray, precision: FloatArray
) -> tuple[float, FloatArray]:
    """Log marginal likelihood and its gradient by the logarithms of lengths, signal and noise.

    Eq. 5.9: half the trace of (alpha alpha' - K^-1) dK. By the logarithm of length-scale d,
    dK = S * (x_id - x_jd)^2 / l_d^2 element by element with one S for all d, so that all
    traces follow from the row sums of a matrix and one product with x.
    """
    from scipy.linalg.lapack import dpotri

    r = _ROOT5 * _distances(hyper.lengths, x, x)
    decay = hyper.signal * np.exp(-r)
    kernel = (1.0 + r + r**2 / 3.0) * decay
    factor = _cholesky(kernel + np.diag(hyper.noise * precision))
    inverse = np.asarray(dpotri(factor, lower=1)[0])
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    alpha = inverse @ y
    half_logdet = float(np.log(np.diag(factor)).sum())
    value = -0.5 * float(y @ alpha) - half_logdet - 0.5 * len(y) * math.log(2.0 * math.pi)
    inner = np.outer(alpha, alpha) - inverse
    mixed = inner * (5.0 / 3.0) * (1.0 + r) * decay
    scaled = x / hyper.lengths
    lengths = (mixed.sum(axis=1) @ scaled**2) - (scaled * (mixed @ scaled)).sum(axis=0)
    signal = 0.5 * float((inner * kernel).sum())
    noise = 0.5 * hyper.noise * float(np.diag(inner) @ precision)
    return value, np.append(lengths, [signal, noise])
