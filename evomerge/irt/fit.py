"""Fitting items and abilities to a matrix of answers: MAP of the two-parameter logistic model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.irt.files import shown
from evomerge.irt.gauge import settle
from evomerge.irt.lbfgs import Minimum, minimise
from evomerge.irt.model import ItemModel, sigmoid
from evomerge.irt.objective import Curvature, Objective, Priors
from evomerge.irt.responses import Responses
from evomerge.seeds import derive
from evomerge.types import FloatArray

Report = Callable[[int, float], None]
"""Called with (passes over the matrix so far, largest gradient in standard errors)."""

CONTINUOUS = "quasi-likelihood: y log P + (1 - y) log(1 - P)"
CONSTANT = "discrimination 0, difficulty from the answers' rate and the prior"


_ROUNDS = (1.0, 0.1, 0.01)
"""Tolerances at which scale, origin and axes are settled before the search goes on."""


@dataclass(frozen=True)
class Fit:
    """Items and abilities at the mode of the posterior.

    Attributes:
        model: the items.
        abilities: of the models, `M x D`.
        ability_errors: their standard errors, `M x D`.
        loss: negative log-posterior (nats) without its constants, of the items that are not
            constant.
        iterations: of L-BFGS.
        converged: whether no element of the gradient, in units of one over its standard error,
            exceeds the tolerance.
        notes: what a reader should know: constant items and models, and the like.
    """

    model: ItemModel
    abilities: FloatArray
    ability_errors: FloatArray
    loss: float
    iterations: int
    converged: bool
    notes: tuple[str, ...]


def fit_items(
    responses: Responses,
    dimensions: int = 1,
    *,
    ability_precision: float = 1.0,
    discrimination_mean: float = 1.0,
    discrimination_sd: float = 1.0,
    difficulty_sd: float = 3.0,
    tolerance: float = 1e-3,
    max_iterations: int = 2000,
    seed: int = 0,
    source: str = "",
    report: Report | None = None,
) -> Fit:
    """Finds the items and abilities that are likeliest given answers and priors.

    The mode of theta ~ N(0, 1 / ability_precision), alpha_1 ~ N(1, 1), other alphas ~ N(0, 1),
    beta ~ N(0, 9) is found by L-BFGS in rounds, in coordinates in which the diagonal blocks of the
    Hessian at the start of a round are the identity. Standard errors are from the inverses of its
    diagonal blocks at the mode (observed information and prior): those of an item as if the
    abilities were known, and the other way round.

    Of several dimensions, the prior's mean ties the first to the direction in which items
    discriminate on average, so that it rises with the mean score. The others, which the
    posterior leaves free to rotate, are laid along the principal axes of their alphas, the
    widest first, each with its largest alpha positive.

    Args:
        responses: of `M` models on `N` items. Items with the same score everywhere stay out of the
            fit and get discrimination 0 and the difficulty that their rate and prior give.
        dimensions: D, below M.
        ability_precision: of the prior of abilities.
        discrimination_mean: of the prior of alpha_1.
        discrimination_sd: standard deviation of the prior of alpha.
        difficulty_sd: standard deviation of the prior of beta.
        tolerance: largest gradient at which the fit has converged, in standard errors.
        max_iterations: of L-BFGS.
        seed: of the start, where there are two dimensions or more.
        source: where the answers came from, for the model's settings.
        report: called after each pass over the matrix.

    Raises:
        ConfigError: for too few models, models or items with no answer, items that are all
            constant, or a prior that is none.
    """
    priors = Priors(ability_precision, discrimination_mean, discrimination_sd, difficulty_sd)
    varying = _check(responses, dimensions, priors, tolerance)
    scores = responses.scores if varying.all() else responses.scores[:, varying]
    objective = Objective(scores, priors)
    theta, items = _start(objective, scores, dimensions, seed)
    theta, items, minimum = _minimise(objective, theta, items, tolerance, max_iterations, report)
    theta, items = _turned(theta, items)
    curvature = objective.curvature(theta, items)
    converged = minimum.largest <= tolerance
    notes = _notes(responses, varying, converged, minimum.largest)
    settings = {
        "source": source,
        "models": len(responses.models),
        "answers": int((~np.isnan(responses.scores)).sum()),
        "dimensions": dimensions,
        "priors": priors.plain(),
        "scores": CONTINUOUS if _continuous(responses.scores) else "right or wrong",
        "constant": [i for i, v in zip(responses.items, varying, strict=True) if not v],
        "constant_rule": CONSTANT,
        "errors": "inverse diagonal blocks of the Hessian, prior included",
        "converged": converged,
        "seed": seed,
        "abilities": dict(zip(responses.models, np.round(theta, 5).tolist(), strict=True)),
    }
    return Fit(
        model=_model(responses, varying, items, curvature, priors, settings),
        abilities=theta,
        ability_errors=_errors(curvature.ability),
        loss=minimum.value,
        iterations=minimum.iterations,
        converged=converged,
        notes=notes,
    )


def _check(
    responses: Responses, dimensions: int, priors: Priors, tolerance: float
) -> NDArray[np.bool_]:
    """Which items vary, after everything that can be wrong was looked for."""
    for name, value in {**priors.plain(), "tolerance": tolerance}.items():
        if not np.isfinite(value) or (value <= 0 and name != "discrimination_mean"):
            raise ConfigError.of(name, str(value), "a number above 0", "Correct it.")
    if dimensions < 1:
        raise ConfigError.of("dimensions", str(dimensions), "1 or more", "Correct it.")
    if len(responses.models) <= dimensions:
        raise ConfigError.of(
            "dimensions", f"{dimensions} with {len(responses.models)} models",
            "more models than dimensions", "Take fewer dimensions, or answers of more models.",
        )  # fmt: skip
    low, high, count = _extent(responses.scores)
    empty = [i for i, n in zip(responses.items, count, strict=True) if n == 0]
    unheard = [
        m for m, row in zip(responses.models, responses.scores, strict=True) if np.isnan(row).all()
    ]
    for kind, names in (("items", empty), ("models", unheard)):
        if names:
            raise ConfigError.of(
                "responses", f"{kind} with no answer: {shown(names)}", "an answer for each",
                "Leave them out: --min-answers 1, or Responses.answered(1).",
            )  # fmt: skip
    varying = np.asarray(low < high)
    if not varying.any():
        raise ConfigError.of(
            "responses", f"{len(varying)} items, each with one score for all models",
            "items on which models differ", "Take other items, or answers of more models.",
        )  # fmt: skip
    return varying


def _extent(scores: NDArray[np.float32]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Lowest and highest score of each item, and how many it has."""
    low, high = np.full(scores.shape[1], np.inf), np.full(scores.shape[1], -np.inf)
    count = np.zeros(scores.shape[1])
    for row in scores:
        low, high = np.fmin(low, row), np.fmax(high, row)
        count += ~np.isnan(row)
    return low, high, count


def _continuous(scores: NDArray[np.float32]) -> bool:
    return any(((row > 0) & (row < 1)).any() for row in scores)


def _start(
    objective: Objective, scores: NDArray[np.float32], dimensions: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Logits of the means of rows and columns, then singular vectors of what they leave over."""
    right, wrong = _counts(scores, 1)
    theta = np.zeros((len(right), dimensions))
    level = np.log((right + 0.5) / (wrong + 0.5))
    theta[:, 0] = (level - level.mean()) / max(level.std(), 1e-6)
    theta[:, 0] /= np.sqrt(objective.priors.ability_precision)
    right, wrong = _counts(scores, 0)
    items = np.zeros((len(right), dimensions + 1))
    items[:, 0] = max(objective.priors.discrimination_mean, 0.1)
    items[:, -1] = np.log((wrong + 0.5) / (right + 0.5))
    extra = dimensions - 1
    if extra:
        rng = np.random.default_rng(derive(seed, "irt start"))
        width = min(extra + 5, len(theta))
        basis = np.linalg.qr(rng.standard_normal((len(theta), width)))[0]
        for _ in range(4):  # subspace iteration
            across = objective.pull_items(theta, items, basis)
            basis = np.linalg.qr(objective.pull(theta, items, across))[0]
        across = objective.pull_items(theta, items, basis)
        u, s, v = np.linalg.svd(across.T, full_matrices=False)
        scale = np.sqrt(len(theta) / objective.priors.ability_precision)
        theta[:, 1:] = scale * (basis @ u[:, :extra])
        # dP = P (1 - P) dz, and P (1 - P) is some 0.2
        items[:, 1:-1] = np.clip((s[:, None] * v)[:extra].T / (0.2 * scale), -2, 2)
    return theta, items


def _counts(scores: NDArray[np.float32], axis: int) -> tuple[FloatArray, FloatArray]:
    right: FloatArray = np.asarray(np.nansum(scores, axis=axis, dtype=np.float64))
    return right, _known(scores, axis) - right


def _known(scores: NDArray[np.float32], axis: int) -> FloatArray:
    return np.asarray(np.sum(~np.isnan(scores), axis=axis, dtype=np.float64))


def _minimise(
    objective: Objective,
    theta: FloatArray,
    items: FloatArray,
    tolerance: float,
    max_iterations: int,
    report: Report | None,
) -> tuple[FloatArray, FloatArray, Minimum]:
    """Abilities and items at the minimum, and the minimum in scaled coordinates.

    In rounds, each in new coordinates and from where scale, origin and axes suit the priors.
    """
    passes = taken = 0

    def tell(largest: float) -> None:
        nonlocal passes
        passes += 1
        if report is not None:
            report(passes, largest)

    for level in (*(t for t in _ROUNDS if t > tolerance), tolerance):
        theta, items = settle(theta, items, objective.priors)
        theta, items, found = _descend(objective, theta, items, level, max_iterations - taken, tell)
        taken += found.iterations
    return theta, items, replace(found, iterations=taken)


def _descend(
    objective: Objective,
    theta: FloatArray,
    items: FloatArray,
    tolerance: float,
    max_iterations: int,
    tell: Callable[[float], None],
) -> tuple[FloatArray, FloatArray, Minimum]:
    """L-BFGS in coordinates in which the diagonal blocks of the Hessian are the identity."""
    blocks = objective.curvature(theta, items)
    scales = [np.linalg.inv(np.linalg.cholesky(h)) for h in (blocks.ability, blocks.item)]
    start = theta, items
    cut = theta.size

    def place(u: FloatArray) -> tuple[FloatArray, FloatArray]:
        parts = u[:cut].reshape(theta.shape), u[cut:].reshape(items.shape)
        moved = [np.einsum("nji,nj->ni", c, v) for c, v in zip(scales, parts, strict=True)]
        return start[0] + moved[0], start[1] + moved[1]

    def value(u: FloatArray) -> tuple[float, FloatArray]:
        found = objective.gradient(*place(u))
        parts = found.ability, found.item
        moved = [np.einsum("nij,nj->ni", c, g).ravel() for c, g in zip(scales, parts, strict=True)]
        scaled = np.concatenate(moved)
        tell(float(np.abs(scaled).max()))
        return found.loss, scaled

    noise = 1e-15 if objective.exact else 1e-9
    found = minimise(
        value, np.zeros(theta.size + items.size), tolerance, max_iterations, noise=noise
    )
    return *place(found.x), found


def _turned(theta: FloatArray, items: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The dimensions after the first along the principal axes of their alphas."""
    theta, items = theta.copy(), items.copy()
    others = items[:, 1:-1]
    if others.shape[1]:
        axes = np.linalg.eigh(others.T @ others)[1][:, ::-1]  # the widest first
        turned = others @ axes
        largest = turned[np.abs(turned).argmax(axis=0), np.arange(turned.shape[1])]
        axes = axes * np.where(largest < 0, -1.0, 1.0)
        items[:, 1:-1], theta[:, 1:] = others @ axes, theta[:, 1:] @ axes
    return theta, items


def _errors(hessians: FloatArray) -> FloatArray:
    return np.sqrt(np.diagonal(np.linalg.inv(hessians), axis1=1, axis2=2))


def _model(
    responses: Responses,
    varying: NDArray[np.bool_],
    items: FloatArray,
    curvature: Curvature,
    priors: Priors,
    settings: dict[str, Any],
) -> ItemModel:
    """All items, the constant ones in their places."""
    n, d = len(varying), items.shape[1] - 1
    values, errors = np.zeros((n, d + 1)), np.zeros((n, d + 1))
    values[varying], errors[varying] = items, _errors(curvature.item)
    if not varying.all():
        rest = responses.scores[:, ~varying]
        known = _known(rest, 0)
        rate = np.nanmax(rest, axis=0).astype(np.float64)
        values[~varying, -1], errors[~varying, -1] = _at_rate(rate, known, priors.difficulty_sd)
        errors[~varying, :-1] = priors.discrimination_sd
    return ItemModel(
        items=responses.items,
        discrimination=values[:, :-1],
        difficulty=values[:, -1],
        discrimination_error=errors[:, :-1],
        difficulty_error=errors[:, -1],
        settings=settings,
    )


def _at_rate(rate: FloatArray, count: FloatArray, sd: float) -> tuple[FloatArray, FloatArray]:
    """MAP difficulty, and its error, of items with discrimination 0, by bisection.

    The slope count (rate - sigmoid(-beta)) + beta / sd^2 rises with beta.
    """
    low, high = np.full(len(rate), -100.0), np.full(len(rate), 100.0)
    for _ in range(60):
        beta = 0.5 * (low + high)
        above = count * (rate - sigmoid(-beta)) + beta / sd**2 > 0
        low, high = np.where(above, low, beta), np.where(above, beta, high)
    p = sigmoid(-beta)
    return beta, (count * p * (1 - p) + sd**-2.0) ** -0.5


def _notes(
    responses: Responses, varying: NDArray[np.bool_], converged: bool, largest: float
) -> tuple[str, ...]:
    notes = []
    constant = [i for i, v in zip(responses.items, varying, strict=True) if not v]
    if constant:
        notes.append(
            f"{len(constant)} of {len(varying)} items have the same score for every model and tell "
            f"none from another: {CONSTANT} ({shown(constant)})"
        )
    flat = [
        m
        for m, row in zip(responses.models, responses.scores, strict=True)
        if np.nanmin(row) == np.nanmax(row)
    ]
    if flat:
        notes.append(
            f"{len(flat)} models have the same score on every item; the prior alone keeps their "
            f"abilities finite ({shown(flat)})"
        )
    if not converged:
        notes.append(
            f"did not converge: a gradient of {largest:.2g} standard errors is left; allow more "
            "iterations"
        )
    return tuple(notes)
