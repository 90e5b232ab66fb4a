"""The ability of a model from its answers to some items, by damped Newton steps.

The objective is concave and the prior makes it strictly so: there is one answer, also where all
answers are right or all are wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.irt.model import ItemModel, sigmoid
from evomerge.types import FloatArray

PRECISION = 0.1
"""Of the prior on ability; with 1 the estimates from few answers are worse than a plain mean."""

RIDGE = 0.1
"""Precision of the weights of a mixture about equal weights: little beside what 20 answers say
(some 10), enough to keep them within a few units where all answers are right or wrong."""

_STEPS, _HALVINGS, _TOLERANCE = 200, 40, 1e-10
_BLOCK = 2**22  # answers at a time


@dataclass(frozen=True)
class Ability:
    """Where a model stands.

    Attributes:
        mean: the MAP ability, a `D` array.
        covariance: inverse of the information there, prior included, a `D x D` array.
        loglik: log-likelihood (nats) of the answers at the mean, without the prior.
    """

    mean: FloatArray
    covariance: FloatArray
    loglik: float


@dataclass(frozen=True)
class Mixture:
    """An ability that is a combination of `K` others: theta = sum_k lambda_k theta_k.

    Attributes:
        weights: lambda, a `K` array; any real numbers.
        ability: the combination, a `D` array.
        covariance: of the ability, from that of the weights, a `D x D` array of rank K at most.
        loglik: log-likelihood (nats) of the answers there.
    """

    weights: FloatArray
    ability: FloatArray
    covariance: FloatArray
    loglik: float


def ability(model: ItemModel, answers: FloatArray, precision: float = PRECISION) -> Ability:
    """The MAP ability under theta ~ N(0, 1 / precision).

    Args:
        model: of `N` items.
        answers: scores in [0, 1] in the items' order, NaN where not asked, an `N` array; scores
            between 0 and 1 enter as fractions of a right answer. None known gives the prior.
        precision: of the prior, above 0.
    """
    return abilities(model, np.asarray(answers, dtype=np.float64)[None], precision)[0]


def abilities(model: ItemModel, answers: FloatArray, precision: float = PRECISION) -> list[Ability]:
    """As `ability`, of the rows of an `m x N` array at once."""
    y = _checked(model, answers, 2)
    _positive("precision", precision)
    start = np.zeros(model.dimensions)
    out: list[Ability] = []
    rows = max(1, _BLOCK // max(1, y.shape[1]))
    for at in range(0, len(y), rows):
        theta, covariance, loglik = _solve(
            model.discrimination, model.difficulty, y[at : at + rows], start, precision
        )
        out += [Ability(*one) for one in zip(theta, covariance, loglik.tolist(), strict=True)]
    return out


def mixture(
    model: ItemModel, answers: FloatArray, endpoints: FloatArray, ridge: float = RIDGE
) -> Mixture:
    """The combination of known abilities under which the answers are likeliest (mp-IRT).

    The weights are not restricted. Where K >= D the endpoints may span every ability, and the
    result is nearly that of `ability` without a prior. A ridge about equal weights keeps them
    finite where all answers are right or wrong or endpoints coincide.

    Args:
        model: of `N` items.
        answers: as for `ability`, an `N` array.
        endpoints: abilities of the sources, a `K x D` array.
        ridge: precision of the weights, above 0.

    Source: MERGE^3 (arXiv 2502.10436), merged-performance IRT.
    """
    y = _checked(model, np.asarray(answers, dtype=np.float64)[None], 2)
    _positive("ridge", ridge)
    ends = np.asarray(endpoints, dtype=np.float64)
    if ends.ndim != 2 or ends.shape[1] != model.dimensions or not len(ends):
        raise ValueError(f"found endpoints of shape {ends.shape}; expected (K, {model.dimensions})")
    equal = np.full(len(ends), 1 / len(ends))
    weights, covariance, loglik = _solve(
        model.discrimination @ ends.T, model.difficulty, y, equal, ridge
    )
    return Mixture(
        weights=weights[0],
        ability=weights[0] @ ends,
        covariance=ends.T @ covariance[0] @ ends,
        loglik=float(loglik[0]),
    )


def _solve(
    slopes: FloatArray,
    difficulty: FloatArray,
    answers: FloatArray,
    centre: FloatArray,
    prior: float,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Maximises log-likelihood - prior / 2 |x - centre|^2 for each row of answers.

    Args:
        slopes: `N x D`; the logits are slopes . x - difficulty.
        difficulty: `N`.
        answers: `m x N` with NaN.
        centre: mean of the prior, `D`.
        prior: its precision.

    Returns:
        x (`m x D`), inverse Hessians (`m x D x D`) and log-likelihoods (`m`).
    """
    known = ~np.isnan(answers)
    asked = known.any(axis=0)  # a few of many items, as a rule
    slopes, difficulty = slopes[asked], difficulty[asked]
    known, answers = known[:, asked], answers[:, asked]
    y = np.where(known, answers, 0.0)
    pairs = slopes[:, :, None] * slopes[:, None, :]
    eye = np.eye(slopes.shape[1])

    def value(x: FloatArray, rows: NDArray[np.int64]) -> tuple[FloatArray, FloatArray, FloatArray]:
        z = x @ slopes.T - difficulty
        loglik = ((y[rows] * z - np.logaddexp(0, z)) * known[rows]).sum(axis=1)
        return z, loglik, loglik - 0.5 * prior * ((x - centre) ** 2).sum(axis=1)

    x = np.tile(centre, (len(y), 1))
    z, loglik, goal = value(x, np.arange(len(y)))
    open_ = np.arange(len(y))
    for _ in range(_STEPS):
        p = sigmoid(z[open_])
        gradient = ((y[open_] - p) * known[open_]) @ slopes - prior * (x[open_] - centre)
        hessian = np.tensordot(p * (1 - p) * known[open_], pairs, 1) + prior * eye
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        decrement = (gradient * step).sum(axis=1)
        going = decrement > _TOLERANCE
        open_, step, decrement = open_[going], step[going], decrement[going]
        if not len(open_):
            break
        size = np.ones(len(open_))
        short = np.ones(len(open_), dtype=bool)
        for _ in range(_HALVINGS):
            rows = open_[short]
            tried = x[rows] + size[short, None] * step[short]
            new = value(tried, rows)
            good = new[2] >= goal[rows] + 1e-4 * size[short] * decrement[short]
            for kept, found in ((x, tried), (z, new[0]), (loglik, new[1]), (goal, new[2])):
                kept[rows[good]] = found[good]
            short[np.flatnonzero(short)[good]] = False
            size[short] /= 2
            if not short.any():
                break
        open_ = open_[~short]  # no step helps: as near as the arithmetic gets
    p = sigmoid(z)
    hessian = np.tensordot(p * (1 - p) * known, pairs, 1) + prior * eye
    return x, np.asarray(np.linalg.inv(hessian), dtype=np.float64), loglik


def _checked(model: ItemModel, answers: FloatArray, ndim: int) -> FloatArray:
    y = np.asarray(answers, dtype=np.float64)
    if y.ndim != ndim or y.shape[-1] != len(model):
        raise ValueError(f"found answers of shape {y.shape}; expected {len(model)} items in a row")
    if ((y < 0) | (y > 1) | np.isinf(y)).any():
        raise ValueError("found answers outside [0, 1]; expected scores in [0, 1], NaN if missing")
    return y


def _positive(name: str, value: float) -> None:
    if not 0 < value < np.inf:
        raise ConfigError.of(
            name, str(value), "a number above 0",
            "Without a prior an ability diverges where all answers are right or wrong.",
        )  # fmt: skip
