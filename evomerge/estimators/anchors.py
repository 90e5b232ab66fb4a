"""Anchors: few items that stand for all, and an estimate of the full score from their answers."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from evomerge.errors import ConfigError
from evomerge.estimators import catalogue
from evomerge.estimators.base import (
    Estimated,
    Indices,
    Pool,
    WithError,
    checked,
    further,
    mean_of,
    shuffled,
)
from evomerge.estimators.catalogue import Choice, Knowledge, Predictor
from evomerge.estimators.mean import checked_items
from evomerge.estimators.selection import (
    ADAPTIVE,
    Configuration,
    cross_validated,
    learnt,
    measured_misfit,
)
from evomerge.irt.model import ItemModel
from evomerge.irt.responses import Responses, read_responses
from evomerge.types import FloatArray, ItemScores

_LOG = logging.getLogger(__name__)
_WITH_SOURCES = ("mp_irt", "gmp_irt", "control_variate")
_WITH_MODEL = ("p_irt", "gp_irt", "mp_irt", "gmp_irt", "posterior")
_WITH_RESPONSES = ("kriging",)
_CHOSEN_BY_MODEL = ("kmeans_items", "information", "variance", "balanced")
_WIDE, _NARROW = 1.0, 0.3  # standard deviations of the prior on discrimination
_MOST_ANSWERS, _LEAST_MODELS = 1_000_000, 20  # between which the misfit is measured
_CHOSEN_BY_RESPONSES = ("kmeans_responses",)

Paths = str | Sequence[str]


class AnchorEstimator:
    """Asks a few items, and estimates the score on all of them.

    Args:
        items: number of items of each task that a candidate answers, at least 2.
        choose: how they are chosen, one of `catalogue.CHOICES`.
        estimate: how the full score is estimated, one of `catalogue.ESTIMATES`.
        next: how a candidate's further items are chosen (`racing=adaptive`), one of
            `catalogue.NEXT`; None takes items at random.
        responses: answers of earlier models to the task's items: a path or several in any form
            that `evomerge irt fit` reads, or a mapping from task to such.
        model: a file that `evomerge irt fit` wrote, or a mapping from task to such. Without one
            a model is fitted to the responses where it is needed.
        dimensions: of a model that is fitted here. Its prior on discrimination is narrow where all
            candidates answer the same items, and wide with `next` (`selection.Configuration`).
        misfit: standard deviation of the model's error in a full score, at least 0, which standard
            errors include. None measures it for a model that is fitted here, by leaving models out,
            up to a million answers; otherwise it is `knowledge.MISFIT`.
        embeddings: folder of a local model, whose mean last hidden states stand for the texts
            where `choose` is kmeans_texts.
        rotate: other items in each generation; `choose` has to be random then.

    Raises:
        ConfigError: for a value of the wrong kind, or where something is missing that the choice or
            the estimate needs.
    """

    def __init__(
        self,
        items: int = 30,
        choose: str = "random",
        estimate: str = "mean",
        next: str | None = None,
        responses: Paths | Mapping[str, Paths] | None = None,
        model: str | Mapping[str, str] | None = None,
        dimensions: int = 2,
        misfit: float | None = None,
        embeddings: str | None = None,
        rotate: bool = False,
    ) -> None:
        if items is None:
            raise ConfigError.of(
                "estimator.items", "null", "a whole number of at least 2",
                "Set it, or use estimator=mean for all items.",
            )  # fmt: skip
        self.items = checked_items(items) or 0
        self.choose = _one_of("choose", choose, tuple(catalogue.CHOICES))
        self.estimate = _one_of("estimate", estimate, tuple(catalogue.ESTIMATES))
        self.next = None if next is None else _one_of("next", next, catalogue.NEXT)
        if not isinstance(rotate, bool) or (rotate and choose != "random"):
            raise ConfigError.of(
                "estimator.rotate", f"{rotate!r} with choose={choose}",
                "true only where items are chosen at random", "Set estimator.rotate=false.",
            )  # fmt: skip
        if not isinstance(dimensions, int) or isinstance(dimensions, bool) or dimensions < 1:
            raise ConfigError.of(
                "estimator.dimensions", repr(dimensions), "a whole number of at least 1", "Use 2."
            )
        number = isinstance(misfit, int | float) and not isinstance(misfit, bool)
        if misfit is not None and (not number or not 0 <= misfit < math.inf):
            raise ConfigError.of(
                "estimator.misfit", repr(misfit), "a number of at least 0, or null", "Use null."
            )
        self.rotate = rotate
        self.responses = responses
        self.model = model
        self.dimensions = dimensions
        self.misfit = misfit
        self.embeddings = embeddings
        self.needs_sources = estimate in _WITH_SOURCES
        named = {choose, estimate}
        self._needs_model = bool(named & {*_WITH_MODEL, *_CHOSEN_BY_MODEL}) or next is not None
        self._needs_responses = bool(named & {*_WITH_RESPONSES, *_CHOSEN_BY_RESPONSES})
        self._check_given()

    def _check_given(self) -> None:
        if self._needs_responses and self.responses is None:
            raise ConfigError.of(
                "estimator.responses", "none",
                f"answers of earlier models, for choose={self.choose} estimate={self.estimate}",
                "Give a matrix, a run directory or a ledger, or choose another estimator.",
            )  # fmt: skip
        if self._needs_model and self.model is None and self.responses is None:
            raise ConfigError.of(
                "estimator.model", "neither a fitted model nor responses",
                f"one of them, for choose={self.choose} estimate={self.estimate} next={self.next}",
                "Fit one with `python -m evomerge irt fit`, or set estimator.responses.",
            )  # fmt: skip
        if self.choose == "kmeans_texts" and self.embeddings is None:
            raise ConfigError.of(
                "estimator.embeddings", "none", "the folder of a local model, for kmeans_texts",
                "Set it, or choose items in another way.",
            )  # fmt: skip

    def plan(self, pool: Pool) -> AnchorPlan:
        """The plan of a task: reads what is known of its items, and chooses.

        Raises:
            ConfigError: for files that are missing or do not know the task's items, and for more
                items than the task has.
        """
        if self.items > len(pool):
            raise ConfigError.of(
                "estimator.items", f"{self.items}, and {pool.task} has {len(pool)} search items",
                "at most as many as there are", "Use fewer, or estimator=mean for all of them.",
            )  # fmt: skip
        return AnchorPlan(self, pool, self._knowledge(pool))

    def contents(self) -> dict[str, str]:
        """Digests of the files of responses and models, by key."""
        return {
            key: _digest(value)
            for key, value in (("responses", self.responses), ("model", self.model))
            if value is not None
        }

    def _knowledge(self, pool: Pool) -> Knowledge:
        responses, model, misfit = None, None, self.misfit
        groups: tuple[str, ...] | None = None
        names: Sequence[str] = pool.ids
        given = _for_task(self.responses, pool.task, "responses")
        if given is not None:
            paths = [given] if isinstance(given, str) else list(given)
            read = read_responses([Path(p) for p in paths], task=pool.task)
            names = _names(pool, read.items, "responses")
            own = _aligned(read, names)
            responses, groups = np.asarray(own.scores, dtype=np.float64), own.groups
            if self._needs_model and self.model is None:
                model, misfit = self._fitted(own)
        file = _for_task(self.model, pool.task, "model")
        if file is not None:
            if not isinstance(file, str):
                raise ConfigError.of(
                    "estimator.model", repr(file), "one file, or one a task", "Correct it."
                )
            fitted = ItemModel.load(Path(file))
            known = _names(pool, fitted.items, "model")
            model = replace(fitted.at(fitted.index(known)), items=tuple(names))
        if model is not None and model.items != tuple(names):
            model = model.at(model.index(names))
        sources = None
        if pool.sources is not None:
            sources = np.array(list(pool.sources.values()), dtype=np.float64)
        features = None
        if self.choose == "kmeans_texts":
            from evomerge.estimators.texts import embed

            features = embed(pool.texts, str(self.embeddings))
        return Knowledge(tuple(names), model, responses, sources, features, groups, misfit)

    def _fitted(self, responses: Responses) -> tuple[ItemModel | None, float | None]:
        """A model of the items, and how far its full scores are off."""
        adaptive = self.next is not None
        configuration = Configuration(
            ADAPTIVE if adaptive else self.choose,
            self.estimate,
            self.dimensions,
            _WIDE if adaptive else _NARROW,
        )
        misfit = self.misfit
        # Sources and texts are not at hand there, and large matrices take minutes.
        other = self.needs_sources or configuration.choose == "kmeans_texts"
        whole = np.flatnonzero(~np.isnan(responses.scores).any(axis=1))
        measurable = len(whole) >= _LEAST_MODELS and responses.scores.size <= _MOST_ANSWERS
        if misfit is None and measurable and not other:
            known = responses.select(whole)
            found = cross_validated(known, [configuration], sizes=(self.items,))
            misfit = measured_misfit(found[configuration][self.items])
        return learnt(responses, configuration).model, misfit


@dataclass(frozen=True, eq=False)
class AnchorPlan:
    """The anchors of one task, and what is known of its items."""

    estimator: AnchorEstimator
    pool: Pool
    knowledge: Knowledge

    def choose(self, generation: int) -> Indices:
        """The anchors, ascending."""
        return np.sort(self._choice(generation).indices)

    def order(self, generation: int, at_random: bool) -> Indices:
        """The anchors in the order of their choice, or at random."""
        found = self._choice(generation).indices
        return shuffled(np.sort(found), self.pool.seed) if at_random else found

    def next(self, asked: Indices, scores: FloatArray, count: int, goal: float | None) -> Indices:
        """Further items by the estimator's rule, or at random where it has none."""
        if self.estimator.next is None:
            return further(len(self.pool), asked, count, self.pool.seed)
        return catalogue.next_items(self.estimator.next, self.knowledge, asked, scores, count, goal)

    def estimate(self, part: ItemScores) -> Estimated:
        """The full score, and the weighted mean of the log-likelihoods.

        The two errors of their sum are added as if they were independent.
        """
        scores, logliks = checked(part, self.pool.loglik_weight)
        at = self.pool.places(part)
        weights = self._weights(at)
        found = self._predictor.estimate(at, scores, weights)
        if found.fallback:
            _LOG.info("%s: %s", self.pool.task, found.fallback)
        score = found.value, found.stderr
        if logliks is None:
            return Estimated(score, score, note=found.fallback)
        loglik = mean_of(logliks) if weights is None else _weighted(logliks, weights)
        weight = self.pool.loglik_weight
        mixed = score[0] + weight * loglik[0], math.hypot(score[1], weight * loglik[1])
        return Estimated(mixed if weight else score, score, loglik, found.fallback)

    def _choice(self, generation: int) -> Choice:
        if not self.estimator.rotate:
            return self._fixed
        return self._chosen(self.pool.seed + generation)

    def _chosen(self, seed: int) -> Choice:
        name, count = self.estimator.choose, self.estimator.items
        return catalogue.choose(name, self.knowledge, count, seed % 2**32)

    @cached_property
    def _fixed(self) -> Choice:
        return self._chosen(self.pool.seed)

    @cached_property
    def _predictor(self) -> Predictor:
        return catalogue.predict_any(self.estimator.estimate, self.knowledge)

    def _weights(self, at: Indices) -> FloatArray | None:
        """The choice's weights if just its items were answered, in the order of `at`."""
        if self.estimator.rotate or len(at) != len(self._fixed.indices):
            return None
        by_place = dict(zip(self._fixed.indices.tolist(), self._fixed.weights, strict=True))
        if any(place not in by_place for place in at.tolist()):
            return None
        return np.array([by_place[place] for place in at.tolist()])


def _weighted(values: FloatArray, weights: FloatArray) -> WithError:
    """Weighted mean of values and its standard error, as if they were drawn with the weights."""
    mean = float(weights @ values)
    return mean, math.sqrt(float(np.square(weights).sum()) * float(values.var(ddof=1)))


def _one_of(key: str, value: object, names: Sequence[str]) -> str:
    if value not in names:
        raise ConfigError.of(
            f"estimator.{key}", repr(value), f"one of {', '.join(names)}", "Choose one of these."
        )
    return str(value)


def _for_task(value: Paths | Mapping[str, Paths] | None, task: str, key: str) -> Paths | None:
    """What a setting says for one task."""
    if not isinstance(value, Mapping):
        return value
    if task not in value:
        raise ConfigError.of(
            f"estimator.{key}", f"nothing for {task}; there is {', '.join(map(str, value))}",
            "a path for each task of the search", f"Add estimator.{key}.{task}.",
        )  # fmt: skip
    return value[task]


def _names(pool: Pool, known: Sequence[str], key: str) -> Sequence[str]:
    """The ids by which earlier answers know the task's items: its own, or hashes of content.

    Raises:
        ConfigError: if they know the items by neither.
    """
    have = set(known)
    for names in (pool.ids, pool.digests):
        if names and have.issuperset(names):
            if len(set(names)) < len(names):
                raise ConfigError.of(
                    f"estimator.{key}", f"{len(names) - len(set(names))} items of {pool.task} with "
                    "the content of another", "items that differ", "Drop the repeated items.",
                )  # fmt: skip
            return names
    missing = [id for id in pool.ids if id not in have]
    raise ConfigError.of(
        f"estimator.{key}",
        f"{len(missing)} of the {len(pool)} search items of {pool.task} unknown, such as "
        f"{missing[0] if missing else pool.ids[0]!r}",
        "answers to just these items, by the task's ids or by their content",
        "Items have changed since, or these are another task's: answer and fit them again.",
    )


def _aligned(responses: Responses, names: Sequence[str]) -> Responses:
    """The answers to some items, in their order."""
    at = {name: place for place, name in enumerate(responses.items)}
    columns = [at[name] for name in names]
    return Responses(responses.models, tuple(names), responses.scores[:, columns], responses.groups)


def _digest(value: Paths | Mapping[str, Paths]) -> str:
    """sha256 of the files that a setting names, folders with all that they hold."""
    digest = hashlib.sha256()
    named = value if isinstance(value, Mapping) else {"": value}
    for task, given in sorted(named.items()):
        for path in [given] if isinstance(given, str) else given:
            root = Path(path)
            files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
            for file in files:
                if file.is_file():
                    content = hashlib.sha256(file.read_bytes()).hexdigest()
                    digest.update(f"{task}\0{file.name}\0{content}\n".encode())
    return digest.hexdigest()
