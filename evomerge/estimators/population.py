"""Where a candidate's ability may be: draws from the abilities of earlier models.

A few answers weigh the draws by their likelihood (importance weights). What is asked of the
posterior, the mean of the full score above all, is then a weighted mean over the draws, exact but
for their finite number: no plug-in ability, no normal approximation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from evomerge.estimators.choice import Indices
from evomerge.irt.model import ItemModel
from evomerge.types import FloatArray

DRAWS = 1024
LAPSE = 1e-3
"""Least probability of a right answer and of a wrong one: no single answer rules out an ability."""

POOL = 4096
"""Items that designs look at; of more, those of most information and as many at random."""

_BANDWIDTH = 0.35  # of the kernels, in standard deviations of the abilities
_BROAD = 0.1  # share of the draws that may lie beyond all earlier models
_BROADER = 1.5  # how much wider those lie
_BLOCK = 2**22  # probabilities at a time


@dataclass(frozen=True, eq=False)
class Population:
    """Draws of abilities, equally likely before an answer, and what is known of each.

    Attributes:
        model: of `N` items.
        theta: `G x D`.
        totals: sum over all items of P_i(theta_g), a `G` array.
        noise: sum over all items of P_i (1 - P_i), a `G` array.
    """

    model: ItemModel
    theta: FloatArray
    totals: FloatArray
    noise: FloatArray

    @classmethod
    def of(cls, model: ItemModel, abilities: FloatArray | None, seed: int = 0) -> Self:
        """Draws around the abilities of earlier models, or N(0, I) if none are known.

        Nine tenths of the draws are from a kernel density of the abilities that has their mean and
        covariance, one tenth from a normal distribution one and a half times as wide.

        Args:
            model: of the items.
            abilities: `M x D`; None or fewer than two for the prior of the fit.
            seed: of the draws.
        """
        rng = np.random.default_rng(seed)
        d = model.dimensions
        known = np.zeros((0, d)) if abilities is None else np.asarray(abilities, dtype=np.float64)
        noise = rng.standard_normal((DRAWS, d))
        if len(known) < 2:
            theta = noise
        else:
            root = _root(np.atleast_2d(np.cov(known.T)))
            centre, broad = known.mean(axis=0), int(_BROAD * DRAWS)
            nuclei = known[np.arange(DRAWS - broad) % len(known)] - centre
            shrunk = np.sqrt(1 - _BANDWIDTH**2) * nuclei
            near = centre + shrunk + _BANDWIDTH * noise[broad:] @ root.T
            theta = np.concatenate([centre + _BROADER * noise[:broad] @ root.T, near])
        totals, spread = np.zeros(DRAWS), np.zeros(DRAWS)
        step = max(1, _BLOCK // DRAWS)
        for at in range(0, len(model), step):
            p = _probability(model, theta, np.arange(at, min(at + step, len(model))))
            totals += p.sum(axis=1)
            spread += (p * (1 - p)).sum(axis=1)
        return cls(model, theta, totals, spread)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.model)

    @cached_property
    def pool(self) -> Indices:
        """The items that designs look at, ascending: all, or `POOL` of more.

        Up to three quarters are those of most information at the lower end, the middle and the
        upper end of the population, a quarter each, and a quarter is random.
        """
        n = len(self)
        if n <= POOL:
            return np.arange(n, dtype=np.int64)
        taken = [np.random.default_rng(n).choice(n, POOL // 4, replace=False)]
        order = np.argsort(self.totals, kind="stable")
        alpha = self.model.discrimination
        for share in (0.1, 0.5, 0.9):
            p = self.model.probability(self.theta[order[int(share * (len(order) - 1))]])
            gain = p * (1 - p) * (alpha**2).sum(axis=1)
            taken.append(np.argsort(-gain, kind="stable")[: POOL // 4])
        return np.unique(np.concatenate(taken)).astype(np.int64)

    @cached_property
    def table(self) -> NDArray[np.float32]:
        """`probability` of the pool's items, in single precision, `G x pool`."""
        return self.probability(self.pool).astype(np.float32)

    def probability(self, indices: Indices) -> FloatArray:
        """Of a right answer to some items at every draw, `G x n`."""
        return _probability(self.model, self.theta, indices)

    def posterior(self, indices: Indices, answers: FloatArray) -> FloatArray:
        """The draws' probabilities given some answers, a `G` array with sum 1.

        Answers between 0 and 1 enter as fractions of a right answer.
        """
        return weigh(self.probability(indices), answers)

    def full_score(self, indices: Indices, answers: FloatArray) -> tuple[float, float]:
        """Mean and variance of the full score given some answers.

        E = (sum_S y + E_g sum_U P) / N and Var = (Var_g sum_U P + E_g sum_U P (1 - P)) / N^2, with
        S the items answered and U the others.
        """
        p = self.probability(indices)
        w = weigh(p, answers)
        unseen = self.totals - p.sum(axis=1)
        noise = self.noise - (p * (1 - p)).sum(axis=1)
        n, mean = len(self), float(w @ unseen)
        variance = float(w @ (unseen - mean) ** 2 + w @ noise) if len(indices) < n else 0.0
        return (float(answers.sum()) + mean) / n, max(0.0, variance) / n**2


def weigh(p: FloatArray, answers: FloatArray) -> FloatArray:
    """Posterior of `G` draws from the probabilities (`G x n`) of the answers (`n`)."""
    loglik = np.log(p) @ answers + np.log1p(-p) @ (1 - answers)
    w = np.exp(loglik - loglik.max())
    return np.asarray(w / w.sum())


def _probability(model: ItemModel, theta: FloatArray, indices: Indices) -> FloatArray:
    logits = theta @ model.discrimination[indices].T - model.difficulty[indices]
    return np.asarray(LAPSE + (1 - 2 * LAPSE) * expit(logits))


def _root(covariance: FloatArray) -> FloatArray:
    """A matrix R with R R^T the covariance, which may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))
