"""Quadratic surrogates with a link, fitted in closed form (MAP, arXiv 2406.07529).

The paper has m(c) = e + b'c + 1/2 c'Ac for a metric of the merge c, put through a sigmoid where
the metric is bounded and through a softplus where it is bounded on one side. It fits by gradient
descent; on the scale of the link it is a weighted linear regression, which has one solution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from evomerge.domain import Dimension, Domain
from evomerge.types import FloatArray

LINKS = ("auto", "identity", "sigmoid", "softplus")
_STRENGTHS = np.logspace(-12, 2, 43)
_EXACT = 1e9  # items behind a share whose standard error says that it has none


@dataclass(frozen=True)
class Basis:
    """The terms of a quadratic in a genome.

    Reals and integers are numbers, scaled so that the box is [-1, 1]. A choice of k options is
    k - 1 variables that are 0 or 1 and have no square, since that would be the variable itself;
    for the same reason an integer of two values has none.

    Attributes:
        domain: of the genomes.
        low: lower corner of the box, an `n` array.
        high: upper corner, an `n` array.
        owner: the dimension of each of `v` variables.
        level: which option sets the variable of a choice to 1, a `v` array.
        first: first factor of each product, as the number of a variable.
        second: second factor.
    """

    domain: Domain
    low: FloatArray
    high: FloatArray
    owner: NDArray[np.intp]
    level: FloatArray
    first: NDArray[np.intp]
    second: NDArray[np.intp]

    @classmethod
    def of(cls, domain: Domain, low: FloatArray, high: FloatArray) -> Self:
        """The terms over a box; a dimension without width has none."""
        variables: list[tuple[int, float]] = []
        for i, dimension in enumerate(domain.dimensions):
            count = _variables(dimension, low[i], high[i])
            steps = range(1, count + 1) if dimension.kind == "choice" else range(count)
            variables += [(i, dimension.low + k) for k in steps]
        pairs = []
        for j, (one, _) in enumerate(variables):
            pairs += [(j, j)] if _squared(domain.dimensions[one], low[one], high[one]) else []
            pairs += [(j, k) for k in range(j + 1, len(variables)) if variables[k][0] != one]
        table = np.array(pairs, dtype=np.intp).reshape(-1, 2)
        owner = np.array([i for i, _ in variables], dtype=np.intp)
        level = np.array([value for _, value in variables], dtype=np.float64)
        return cls(domain, low, high, owner, level, table[:, 0], table[:, 1])

    @property
    def unknowns(self) -> int:
        """Numbers to be found: (v + 1)(v + 2) / 2 for v reals."""
        return 1 + len(self.owner) + len(self.first)

    def coordinates(self, genomes: FloatArray) -> FloatArray:
        """The variables of `m x n` genomes, an `m x v` array."""
        values = np.asarray(genomes, dtype=np.float64).reshape(-1, len(self.domain))[:, self.owner]
        width = np.where(self.high > self.low, self.high - self.low, 1.0)[self.owner]
        scaled = 2.0 * (values - self.low[self.owner]) / width - 1.0
        choice = self.domain.categorical[self.owner]
        return np.asarray(np.where(choice, (values == self.level) * 1.0, scaled))

    def expand(self, genomes: FloatArray) -> FloatArray:
        """All terms but the constant, of `m x n` genomes, an `m x (unknowns - 1)` array."""
        x = self.coordinates(genomes)
        half = np.where(self.first == self.second, 0.5, 1.0)  # of 1/2 c'Ac
        return np.hstack([x, half * x[:, self.first] * x[:, self.second]])


def unknowns(domain: Domain, low: FloatArray, high: FloatArray) -> int:
    """How many `Basis.of` would have, by a formula: its terms may be too many to be made."""
    corners = list(zip(domain.dimensions, low, high, strict=True))
    counts = [_variables(*one) for one in corners]
    v = sum(counts)
    products = (v * v - sum(k * k for k in counts)) // 2
    return 1 + v + sum(_squared(*one) for one in corners) + products


def _variables(dimension: Dimension, low: float, high: float) -> int:
    """How many variables a dimension is."""
    if dimension.kind == "choice":
        return round(dimension.high - dimension.low)
    return int(high > low)


def _squared(dimension: Dimension, low: float, high: float) -> bool:
    """Whether the variable of a dimension has a square."""
    return high - low > {"real": 0.0, "integer": 1.5, "choice": math.inf}[dimension.kind]


@dataclass(frozen=True)
class Link:
    """How the quadratic becomes a metric.

    Attributes:
        kind: identity, sigmoid (between two bounds) or softplus (beyond one bound).
        start: the lower bound of a sigmoid, the only bound of a softplus; else 0.
        unit: the width between the bounds; the scale of a softplus, negative below its bound.
    """

    kind: str = "identity"
    start: float = 0.0
    unit: float = 1.0

    @classmethod
    def of(cls, kind: str, bounds: tuple[float, float], values: FloatArray) -> Self:
        """The link of a metric.

        Args:
            kind: one of `LINKS`; `auto` chooses by the bounds.
            bounds: least and greatest value that the metric can have, infinite where open.
            values: what was measured, an `n` array; scales a softplus.

        Raises:
            ValueError: for a link that these bounds do not permit.
        """
        low, high = bounds
        closed = math.isfinite(low) + math.isfinite(high)
        kind = ("identity", "softplus", "sigmoid")[closed] if kind == "auto" else kind
        if kind == "identity":
            return cls()
        if kind == "sigmoid" and closed == 2:
            return cls(kind, low, high - low)
        if kind == "softplus" and closed:
            upward = math.isfinite(low)
            scale = float(np.std(values)) or 1.0
            return cls(kind, low if upward else high, scale if upward else -scale)
        raise ValueError(f"a {kind} link does not fit values in [{low:g}, {high:g}]")

    def value(self, eta: FloatArray) -> FloatArray:
        """Metrics of values of the quadratic."""
        from scipy.special import expit

        if self.kind == "sigmoid":
            return np.asarray(self.start + self.unit * expit(eta))
        if self.kind == "softplus":
            return np.asarray(self.start + self.unit * np.logaddexp(0.0, eta))
        return np.asarray(eta, dtype=np.float64)

    def slope(self, eta: FloatArray) -> FloatArray:
        """Derivatives of `value`, without their sign."""
        from scipy.special import expit

        share = expit(eta)
        if self.kind == "sigmoid":
            return np.asarray(self.unit * share * (1.0 - share))
        if self.kind == "softplus":
            return np.asarray(abs(self.unit) * share)
        return np.ones_like(share)

    def targets(
        self, values: FloatArray, stderr: FloatArray, items: float | None
    ) -> tuple[FloatArray, FloatArray]:
        """Values for the quadratic, and how much each of them counts; two `n` arrays.

        A share p of n items: z = logit((k + 1/2) / (n + 1)) with k = n p, whose inverse
        variance is n p (1 - p). Otherwise the delta method, slope^2 / stderr^2 around its
        median: where a softplus is flat, both are small, and only their ratio says something.

        Args:
            values: measured metrics, an `n` array.
            stderr: their standard errors; those that are not positive are taken as ordinary.
            items: behind each share; None infers it from the standard errors.
        """
        if self.kind == "sigmoid":
            shares = np.clip((values - self.start) / self.unit, 0.0, 1.0)
            n = items or items_behind(shares, stderr / self.unit)
            p = (n * shares + 0.5) / (n + 1.0)
            return np.log(p) - np.log1p(-p), n * p * (1.0 - p)
        if self.kind == "softplus":
            above = np.maximum((values - self.start) / self.unit, 1e-6)
            eta = above + np.log(-np.expm1(-above))  # the inverse of log(1 + exp)
            return eta, _precision(stderr, self.slope(eta))
        return np.asarray(values, dtype=np.float64), _precision(stderr, np.ones(len(stderr)))


def items_behind(shares: FloatArray, stderr: FloatArray) -> float:
    """How many items answered right or wrong would have these standard errors; the median.

    Those are computed with ddof=1: p (1 - p) / (n - 1). Shares of 0 and 1 say nothing.
    """
    telling = (shares > 0) & (shares < 1) & (stderr > 0)
    if not telling.any():
        return _EXACT
    p, error = shares[telling], stderr[telling]
    return max(1.0, float(np.median(p * (1.0 - p) / error**2 + 1.0)))


def _precision(stderr: FloatArray, slope: FloatArray) -> FloatArray:
    """Inverse variances on the scale of a link around 1, at most ten times more or less.

    Args:
        stderr: of the metrics, an `n` array.
        slope: of the link at each, an `n` array.
    """
    given = np.isfinite(stderr) & (stderr > 0)
    ordinary = float(np.median(stderr[given])) if given.any() else 1.0
    errors = np.where(given, stderr, ordinary) / np.maximum(slope, np.finfo(float).tiny)
    return np.asarray(np.clip((errors / np.median(errors)) ** -2.0, 0.1, 10.0))


@dataclass(frozen=True)
class Ridge:
    """Weighted ridge regression with a constant that is not penalised.

    Attributes:
        center: weighted means of the columns, a `p` array.
        scale: weighted deviations of the columns, a `p` array.
        coefficients: of centred and scaled columns, a `p` array.
        intercept: weighted mean of the targets.
        strength: the penalty on a squared coefficient, in units of the squared largest
            singular value.
        left_out: what is predicted for each target without it, an `n` array.
        rank: of the columns and the constant.
        axes: singular directions of the columns, a `k x p` array.
        variances: posterior variance along each of them, a `k` array.
        outside: posterior variance along all others.
        total: sum of the weights.
        dispersion: variance of a target of weight 1.
    """

    center: FloatArray
    scale: FloatArray
    coefficients: FloatArray
    intercept: float
    strength: float
    left_out: FloatArray
    rank: int
    axes: FloatArray
    variances: FloatArray
    outside: float
    total: float
    dispersion: float

    @classmethod
    def fit(
        cls,
        columns: FloatArray,
        targets: FloatArray,
        weights: FloatArray,
        strength: float | None = None,
        scale: FloatArray | None = None,
    ) -> Self:
        """Solves for the coefficients.

        Left-out residuals are r_i / (1 - h_i) with h the diagonal of the hat matrix; the penalty
        is the one with the least weighted sum of their squares (exact leave-one-out).

        Args:
            columns: an `n x p` array.
            targets: an `n` array.
            weights: inverse variances up to a factor, an `n` array, all positive.
            strength: of the penalty; None chooses it.
            scale: divides the columns; None takes their weighted deviations.
        """
        total = float(weights.sum())
        center = weights @ columns / total
        intercept = float(weights @ targets / total)
        centred = columns - center
        if scale is None:
            deviation = np.sqrt(weights @ centred**2 / total)
            scale = np.where(deviation > 1e-12, deviation, 1.0)
        root = np.sqrt(weights)
        u, s, vt = np.linalg.svd(root[:, None] * centred / scale, full_matrices=False)
        top = float(s[0]) if len(s) and s[0] > 0 else 1.0
        kept = s > max(columns.shape) * np.finfo(float).eps * top
        kept[len(targets) - 1 :] = False  # centring takes a direction, though s may say 1e-15
        u, s, vt = u[:, kept], s[kept], vt[kept]
        z = root * (targets - intercept)
        along = u.T @ z
        beyond = z - u @ along
        # 1 - h_i is a sum of parts that are not negative: nothing cancels where h_i is near 1.
        free = np.maximum(1.0 - (u**2).sum(axis=1) - weights / total, 0.0)

        def left_out(shrunk: FloatArray) -> tuple[FloatArray, FloatArray]:
            residual = beyond + u @ (shrunk * along)
            return residual, np.maximum(free + u**2 @ shrunk, 1e-14)

        def loss(at: float) -> float:
            residual, remaining = left_out(at * top**2 / (s**2 + at * top**2))
            return float(((residual / remaining) ** 2).sum())

        if strength is None:
            strength = float(min(_STRENGTHS, key=loss))
        penalty = strength * top**2
        residual, remaining = left_out(penalty / (s**2 + penalty))
        return cls(
            center=center,
            scale=scale,
            coefficients=np.asarray((s / (s**2 + penalty) * along) @ vt),
            intercept=intercept,
            strength=strength,
            left_out=targets - residual / remaining / root,
            rank=1 + len(s),
            axes=vt,
            variances=1.0 / (s**2 + penalty),
            outside=0.0 if len(s) == columns.shape[1] else 1.0 / penalty,
            total=total,
            dispersion=float(np.mean(residual**2 / remaining)),
        )

    def mean(self, columns: FloatArray) -> FloatArray:
        """Predictions for `m x p` columns, an `m` array."""
        return np.asarray(
            self.intercept + (columns - self.center) @ (self.coefficients / self.scale)
        )

    def stderr(self, columns: FloatArray) -> FloatArray:
        """Standard errors of `mean`, an `m` array; the penalty is taken for a normal prior."""
        away = (columns - self.center) / self.scale
        along = (away @ self.axes.T) ** 2
        rest = np.maximum((away**2).sum(axis=1) - along.sum(axis=1), 0.0)
        variance = 1.0 / self.total + along @ self.variances + rest * self.outside
        return np.asarray(np.sqrt(self.dispersion * variance))


@dataclass(frozen=True)
class Quadratic:
    """A fitted surrogate of one metric.

    Attributes:
        basis: its terms.
        link: how they become the metric.
        ridge: the regression on the scale of the link.
        left_out: metrics predicted for each observation without it, an `n` array.
    """

    basis: Basis
    link: Link
    ridge: Ridge
    left_out: FloatArray

    @classmethod
    def fit(
        cls,
        basis: Basis,
        link: Link,
        genomes: FloatArray,
        values: FloatArray,
        stderr: FloatArray,
        items: float | None = None,
    ) -> Self:
        """Fits `n x n_dimensions` genomes and their `n` metrics; see `Link.targets`."""
        targets, weights = link.targets(values, stderr, items)
        ridge = Ridge.fit(basis.expand(genomes), targets, weights)
        return cls(basis, link, ridge, link.value(ridge.left_out))

    def mean(self, genomes: FloatArray) -> FloatArray:
        """Predicted metrics of `m x n` genomes, an `m` array."""
        return self.link.value(self.ridge.mean(self.basis.expand(genomes)))

    def predict(self, genomes: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Predicted metrics and their standard errors (delta method), two `m` arrays."""
        columns = self.basis.expand(genomes)
        eta = self.ridge.mean(columns)
        return self.link.value(eta), self.link.slope(eta) * self.ridge.stderr(columns)


def r2(values: FloatArray, predicted: FloatArray) -> float | None:
    """Share of the variance of `n` values that `n` predictions explain; None without variance."""
    spread = float(((values - values.mean()) ** 2).sum())
    return 1.0 - float(((values - predicted) ** 2).sum()) / spread if spread > 0 else None
