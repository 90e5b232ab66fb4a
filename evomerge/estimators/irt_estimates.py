"""The IRT family of estimates: p-IRT, gp-IRT, mp-IRT, gmp-IRT, and the posterior mean.

All share p-IRT's form, Z = (n/N) mean_S(y) + (1 - n/N) mean_U P_i(theta): what was answered counts
as it is, the rest as the model has it. Their errors have the ability's uncertainty, the coin tosses
of the unseen items, and `misfit`: by how much the model is wrong about a whole task, whatever the
number of answers.

Source: tinyBenchmarks (Polo et al., 2024), MERGE^3 (arXiv 2502.10436).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from evomerge.estimators.choice import Indices
from evomerge.estimators.estimate import Estimate, checked
from evomerge.estimators.population import Population
from evomerge.irt.ability import PRECISION, ability, mixture
from evomerge.irt.model import ItemModel, sigmoid
from evomerge.types import FloatArray

_NODES = 5
WORSE = 2.0
"""By how many nats mp-IRT's likelihood on the anchors may fall short of p-IRT's."""


@dataclass(frozen=True, eq=False)
class PIRT:
    """Completes the answers with the model's probabilities at the MAP ability.

    Z = (n/N) mean_S(y) + (1 - n/N) mean_U P_i(theta_hat);
    stderr^2 = E (Z(theta) - Z)^2 + E sum_U P (1 - P) / N^2 + (misfit (1 - n/N))^2, over
    theta ~ N(theta_hat, C), C the inverse of the information and the prior's precision.

    Attributes:
        model: of the task's `N` items.
        misfit: standard deviation of the model's error in the mean of unseen items.
        precision: of the prior on ability.
    """

    model: ItemModel
    misfit: float
    precision: float = PRECISION

    def estimate(
        self, indices: ArrayLike, answers: ArrayLike, weights: ArrayLike | None = None
    ) -> Estimate:
        """See `Predictor`; weights are not looked at."""
        places, y, _ = checked(len(self.model), indices, answers)
        found = ability(self.model.at(places), y, self.precision)
        return completed(self.model, places, y, found.mean, found.covariance, self.misfit)


@dataclass(frozen=True, eq=False)
class MPIRT:
    """Does the same at a combination of the sources' abilities, fitted to the answers.

    Where the answers are much less likely under the best combination than under p-IRT's ability
    (by `WORSE` nats), the endpoints do not fit the candidate and p-IRT's estimate is given.

    Attributes:
        model: of the task's `N` items.
        endpoints: abilities of the `K` sources, `K x D`.
        misfit: as for `PIRT`.
    """

    model: ItemModel
    endpoints: FloatArray
    misfit: float

    def estimate(
        self, indices: ArrayLike, answers: ArrayLike, weights: ArrayLike | None = None
    ) -> Estimate:
        """See `Predictor`; weights are not looked at."""
        places, y, _ = checked(len(self.model), indices, answers)
        anchors = self.model.at(places)
        free = ability(anchors, y, PRECISION)
        mixed = mixture(anchors, y, self.endpoints)
        if free.loglik - mixed.loglik > WORSE:
            plain = completed(self.model, places, y, free.mean, free.covariance, self.misfit)
            short = free.loglik - mixed.loglik
            return replace(
                plain,
                fallback=f"p_irt: a mixture of the sources explains the answers worse by "
                f"{short:.1f} nats",
            )
        return completed(self.model, places, y, mixed.ability, mixed.covariance, self.misfit)


@dataclass(frozen=True, eq=False)
class Blend:
    """Blends an estimate Z with the weighted mean: c sum_S w_i y_i + (1 - c) Z (gp- and gmp-IRT).

    gp-IRT has c = b^2 / (b^2 + v / (4 n)), which trusts the mean the more, the more answers there
    are and the worse the model is; gmp-IRT has c = 1/2. If Z is the posterior mean, the blend's
    mean squared error is Var(Z) + c^2 (mean - Z)^2, and its root is the stderr.

    Attributes:
        n_items: N.
        inner: gives Z.
        bias: b, the model's error on unseen items, in score; None for a fixed c.
        variance: v, mean variance of the answers of one model.
        fixed: c where there is no bias.
    """

    n_items: int
    inner: PIRT | MPIRT
    bias: float | None = None
    variance: float = 0.25
    fixed: float = 0.5

    def estimate(
        self, indices: ArrayLike, answers: ArrayLike, weights: ArrayLike | None = None
    ) -> Estimate:
        """See `Predictor`."""
        _, y, w = checked(self.n_items, indices, answers, weights)
        inner = self.inner.estimate(indices, answers)
        if len(y) == self.n_items:
            return inner
        c = self.share(len(y))
        mean = float(w @ y)
        error = math.hypot(inner.stderr, c * (mean - inner.value))
        return Estimate(c * mean + (1 - c) * inner.value, error, inner.fallback)

    def share(self, n: int) -> float:
        """c, the share of the weighted mean of `n` answers."""
        if self.bias is None:
            return self.fixed
        b2 = self.bias**2
        return b2 / (b2 + self.variance / (4 * n)) if b2 > 0 else 0.0


@dataclass(frozen=True, eq=False)
class PosteriorMean:
    """Takes mean and variance of the full score over all abilities that the answers allow.

    Attributes:
        population: where abilities may be.
        misfit: as for `PIRT`.
    """

    population: Population
    misfit: float

    def estimate(
        self, indices: ArrayLike, answers: ArrayLike, weights: ArrayLike | None = None
    ) -> Estimate:
        """See `Predictor`; weights are not looked at."""
        n_items = len(self.population)
        places, y, _ = checked(n_items, indices, answers)
        value, variance = self.population.full_score(places, y)
        return Estimate(value, math.hypot(math.sqrt(variance), unseen(n_items, y) * self.misfit))


def completed(
    model: ItemModel,
    places: Indices,
    answers: FloatArray,
    theta: FloatArray,
    covariance: FloatArray,
    misfit: float,
) -> Estimate:
    """Z and its error at an ability `theta` (`D`) that is known up to `covariance` (`D x D`).

    The error is the mean square over a normal ability, by Gauss-Hermite nodes along the direction
    C g in which Z is uncertain (g its gradient): far out, where all is right or wrong, Z bends too
    much for its slope to tell.
    """
    n_items = len(model)
    p = model.probability(theta)
    p[places] = answers
    value = float(p.mean())
    noise = p * (1 - p)
    noise[places] = 0.0
    along = covariance @ (noise @ model.discrimination)
    length = float(along @ np.linalg.pinv(covariance) @ along)
    variance = float(noise.sum()) / n_items**2
    if length > 0:
        slope = model.discrimination @ (along / math.sqrt(length))
        z, weights = np.polynomial.hermite_e.hermegauss(_NODES)
        # sum_U P (1 - P) = sum_U P - sum_U P^2, without another array
        q = sigmoid(model.logits(theta) + z[:, None] * slope)
        seen = q[:, places]
        score = (q.sum(axis=1) - seen.sum(axis=1) + answers.sum()) / n_items
        toss = score - (np.einsum("kn,kn->k", q, q) - (seen**2).sum(axis=1)) / n_items
        toss -= answers.sum() / n_items
        squares = (score - value) ** 2 + np.maximum(toss, 0.0) / n_items
        variance = float(weights @ squares / weights.sum()) if len(answers) < n_items else 0.0
    return Estimate(value, math.hypot(math.sqrt(variance), unseen(n_items, answers) * misfit))


def unseen(n_items: int, answers: FloatArray) -> float:
    """1 - n/N."""
    return 1 - len(answers) / n_items


def model_error(model: ItemModel, responses: FloatArray, seed: int = 0) -> tuple[float, float]:
    """b and v of gp-IRT: abilities from one half of the items, the mean of the other half.

    Args:
        model: of `N` items.
        responses: answers of earlier models, `M x N` with NaN where missing.
        seed: of the halves.

    Returns:
        mean absolute error of the unseen half's mean, and the mean variance of a model's answers.
        The models may be those of the fit, and the error is then somewhat small.
    """
    half = np.random.default_rng(seed).permutation(len(model))[: len(model) // 2]
    hidden = np.ones(len(model), dtype=bool)
    hidden[half] = False
    errors, variances = [], []
    for row in responses:
        known = ~np.isnan(row)
        if not (known & hidden).any() or not (known & ~hidden).any():
            continue
        seen = np.where(hidden, np.nan, row)
        p = model.probability(ability(model, seen).mean)
        errors.append(abs(float((p - row)[known & hidden].mean())))
        variances.append(float(row[known].var()))
    if not errors:
        return 0.0, 0.25
    return float(np.mean(errors)), float(np.mean(variances))
