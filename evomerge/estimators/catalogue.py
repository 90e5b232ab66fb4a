"""All ways to choose items and to estimate full scores, by name.

    knowledge = Knowledge(items, model=model, responses=matrix)
    choice = choose("variance", knowledge, n=30, seed=0)
    estimate = predictor("posterior", knowledge, choice)        # once a task
    estimate(answers)                                           # each candidate: Estimate

    any_items = predict_any("posterior", knowledge)             # sets of items that grow
    any_items.estimate(indices, answers)
    next_items("variance", knowledge, indices, answers, count=5)

What a way needs and is not known is a ConfigError. docs/estimators.md says what each is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from evomerge.errors import ConfigError
from evomerge.estimators.choice import (
    Choice,
    Indices,
    check_count,
    choose_random,
    choose_stratified,
)
from evomerge.estimators.clusters import choose_kmeans, item_features, response_features
from evomerge.estimators.control import ControlVariate
from evomerge.estimators.designs import (
    choose_balanced,
    choose_information,
    choose_variance,
    next_by_information,
    next_by_variance,
)
from evomerge.estimators.estimate import (
    Estimate,
    Mean,
    Predictor,
    Stratified,
    Weighted,
    checked,
    default_strata,
)
from evomerge.estimators.irt_estimates import MPIRT, PIRT, Blend, PosteriorMean
from evomerge.estimators.knowledge import Knowledge
from evomerge.irt.ability import PRECISION, ability
from evomerge.irt.model import ItemModel
from evomerge.types import FloatArray

T = TypeVar("T")
Chooser = Callable[[Knowledge, int, int], Choice]
Builder = Callable[[Knowledge, Choice | None], Predictor]

__all__ = [
    "CHOICES",
    "ESTIMATES",
    "NEXT",
    "Choice",
    "Estimate",
    "Knowledge",
    "Predictor",
    "choose",
    "next_items",
    "predict_any",
    "predictor",
]


def _random(knowledge: Knowledge, n: int, seed: int) -> Choice:
    return choose_random(len(knowledge), n, np.random.default_rng(seed))


def _stratified(knowledge: Knowledge, n: int, seed: int) -> Choice:
    strata = default_strata(knowledge.ease, n)
    return choose_stratified(strata, n, np.random.default_rng(seed))


def _kmeans_items(knowledge: Knowledge, n: int, seed: int) -> Choice:
    model = _model(knowledge, "choice")
    return choose_kmeans(item_features(model.discrimination, model.difficulty), n, seed)


def _kmeans_responses(knowledge: Knowledge, n: int, seed: int) -> Choice:
    knowledge.need("responses", "choice")
    assert knowledge.responses is not None
    return choose_kmeans(response_features(knowledge.responses), n, seed)


def _kmeans_texts(knowledge: Knowledge, n: int, seed: int) -> Choice:
    knowledge.need("features", "choice")
    assert knowledge.features is not None
    return choose_kmeans(knowledge.features, n, seed)


def _information(knowledge: Knowledge, n: int, seed: int) -> Choice:
    return choose_information(_model(knowledge, "choice"), knowledge.population.theta, n)


def _variance(knowledge: Knowledge, n: int, seed: int) -> Choice:
    _model(knowledge, "choice")
    return choose_variance(knowledge.population, n, seed)


def _balanced(knowledge: Knowledge, n: int, seed: int) -> Choice:
    _model(knowledge, "choice")
    return choose_balanced(knowledge.population, knowledge.ease, n, seed)


CHOICES: Mapping[str, Chooser] = MappingProxyType(
    {
        "random": _random,
        "stratified": _stratified,
        "kmeans_items": _kmeans_items,
        "kmeans_responses": _kmeans_responses,
        "kmeans_texts": _kmeans_texts,
        "information": _information,
        "variance": _variance,
        "balanced": _balanced,
    }
)
"""Ways to choose the items that all candidates answer."""


def _mean(knowledge: Knowledge, choice: Choice | None) -> Predictor:
    return Mean(len(knowledge))


def _weighted(knowledge: Knowledge, choice: Choice | None) -> Predictor:
    return Weighted(len(knowledge))


def _by_strata(knowledge: Knowledge, choice: Choice | None) -> Predictor:
    if choice is not None and choice.strata is not None:
        return Stratified(choice.strata)
    n = 20 if choice is None else len(choice)
    return Stratified(default_strata(knowledge.ease, n))


def _p_irt(knowledge: Knowledge, choice: Choice | None) -> PIRT:
    return PIRT(_model(knowledge, "estimate"), knowledge.error)


def _mp_irt(knowledge: Knowledge, choice: Choice | None) -> MPIRT:
    model = _model(knowledge, "estimate")
    knowledge.need("sources", "estimate")
    return MPIRT(model, knowledge.endpoints, knowledge.error)


def _gp_irt(knowledge: Knowledge, choice: Choice | None) -> Predictor:
    inner = _p_irt(knowledge, choice)
    bias, variance = knowledge.bias_and_variance
    return Blend(len(knowledge), inner, bias, variance)


def _gmp_irt(knowledge: Knowledge, choice: Choice | None) -> Predictor:
    return Blend(len(knowledge), _mp_irt(knowledge, choice))


def _control_variate(knowledge: Knowledge, choice: Choice | None) -> Predictor:
    knowledge.need("sources", "estimate")
    assert knowledge.sources is not None
    return ControlVariate(knowledge.sources)


def _kriging(knowledge: Knowledge, choice: Choice | None) -> Predictor:
    knowledge.need("responses", "estimate")
    return knowledge.kriging


def _posterior(knowledge: Knowledge, choice: Choice | None) -> Predictor:
    _model(knowledge, "estimate")
    return PosteriorMean(knowledge.population, knowledge.error)


ESTIMATES: Mapping[str, Builder] = MappingProxyType(
    {
        "mean": _mean,
        "weighted": _weighted,
        "stratified": _by_strata,
        "p_irt": _p_irt,
        "gp_irt": _gp_irt,
        "mp_irt": _mp_irt,
        "gmp_irt": _gmp_irt,
        "control_variate": _control_variate,
        "kriging": _kriging,
        "posterior": _posterior,
    }
)
"""Ways to estimate a full score."""

NEXT = ("information", "variance")
"""Ways to choose a candidate's next items by its answers so far."""


def choose(name: str, knowledge: Knowledge, n: int, seed: int) -> Choice:
    """Chooses `n` items.

    Args:
        name: one of `CHOICES`.
        knowledge: of the task.
        n: number of items, at most all.
        seed: of what is random about it.

    Raises:
        ConfigError: for another name, more items than there are, or knowledge that is missing.
    """
    check_count(len(knowledge), n)
    return _known(CHOICES, name, "choice")(knowledge, n, seed)


def predictor(name: str, knowledge: Knowledge, choice: Choice) -> Callable[[FloatArray], Estimate]:
    """A function from the answers to the chosen items, in their order, to the estimate.

    Args:
        name: one of `ESTIMATES`.
        knowledge: of the task.
        choice: the items.

    Raises:
        ConfigError: for another name, or knowledge that is missing.
    """
    built = _known(ESTIMATES, name, "estimate")(knowledge, choice)

    def estimate(answers: FloatArray) -> Estimate:
        return built.estimate(choice.indices, answers, choice.weights)

    return estimate


def predict_any(name: str, knowledge: Knowledge) -> Predictor:
    """What estimates from the answers to any items; arguments and errors as for `predictor`."""
    return _known(ESTIMATES, name, "estimate")(knowledge, None)


def next_items(
    name: str,
    knowledge: Knowledge,
    indices: ArrayLike,
    answers: ArrayLike,
    count: int,
    threshold: float | None = None,
) -> Indices:
    """A candidate's next items, by its answers so far.

    Args:
        name: `information` takes those that say most of its ability, `variance` of its full score.
        knowledge: of the task; with a model.
        indices: items answered so far, perhaps none, an `n` array.
        answers: its scores, an `n` array.
        count: number of items wanted.
        threshold: a full score in [0, 1], such as the best so far: `variance` then takes the items
            that say most of whether the candidate is above it.

    Returns:
        up to `count` items not answered so far, those that say most first.

    Raises:
        ConfigError: for another name, or without a model.
    """
    if name not in NEXT:
        raise ConfigError.of(
            "estimator.next", repr(name), f"one of {', '.join(NEXT)}", "Choose one of these."
        )
    model = _model(knowledge, "next")
    places = np.asarray(indices, dtype=np.int64)
    y = np.asarray(answers, dtype=np.float64)
    if len(places):
        places, y, _ = checked(len(knowledge), places, y)
    if name == "variance":
        return next_by_variance(knowledge.population, places, y, count, threshold)
    if len(places):
        found = ability(model.at(places), y)
        theta, covariance = found.mean, found.covariance
    else:
        theta, covariance = (
            knowledge.population.theta.mean(axis=0),
            np.eye(model.dimensions) / PRECISION,
        )
    return next_by_information(model, theta, covariance, places, count)


def _known(table: Mapping[str, T], name: str, kind: str) -> T:
    if name not in table:
        raise ConfigError.of(
            f"estimator.{kind}", repr(name), f"one of {', '.join(table)}", "Choose one of these."
        )
    return table[name]


def _model(knowledge: Knowledge, wanted_by: str) -> ItemModel:
    knowledge.need("model", wanted_by)
    assert knowledge.model is not None
    return knowledge.model
