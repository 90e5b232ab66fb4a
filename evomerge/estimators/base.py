"""What all estimators have in common: a plan of one task's items, and what answers are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import CandidateError
from evomerge.types import FloatArray, ItemScores

Indices = NDArray[np.int64]
"""Places of items in the search split of a task."""

WithError = tuple[float, float]
"""A value and its standard error."""


@dataclass(frozen=True)
class Pool:
    """The search items of one task, as an estimator sees them before a candidate answers.

    Attributes:
        task: name of the task.
        ids: of its `N` items.
        seed: for what is drawn of them.
        loglik_weight: weight of the mean log-likelihood beside the score.
        digests: a hash of each item's content; empty where nobody needs it.
        texts: the prompts; empty where nobody needs them.
        sources: the sources' complete scores by name, `N` arrays; None before they are measured.
    """

    task: str
    ids: tuple[str, ...]
    seed: int
    loglik_weight: float = 0.0
    digests: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    sources: Mapping[str, FloatArray] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _at(self) -> dict[str, int]:
        return {id: place for place, id in enumerate(self.ids)}

    def places(self, part: ItemScores) -> Indices:
        """Where the items of an answer stand among those of the task."""
        return np.array([self._at[id] for id in part.ids], dtype=np.int64)


@dataclass(frozen=True)
class Estimated:
    """What the answers to some items say of all items: values with their standard errors.

    Attributes:
        value: `score + weight * loglik`, to be maximised.
        score: the plain score, in [0, 1].
        loglik: mean log-likelihood a token (nats); None where it was not asked for.
        note: the simpler estimate that was made, and why; empty if it is the one asked for.
    """

    value: WithError
    score: WithError
    loglik: WithError | None = None
    note: str = ""


class ItemPlan(Protocol):
    """Which items of one task candidates answer, and what their answers are worth."""

    @property
    def pool(self) -> Pool:
        """The task's items."""

    def choose(self, generation: int) -> Indices:
        """The items that the candidates of a generation answer, distinct."""

    def order(self, generation: int, at_random: bool) -> Indices:
        """The same items in the order in which a race asks them.

        Args:
            generation: number of the generation, from 0.
            at_random: in a random order that is the same for all candidates; otherwise those first
                that say most.
        """

    def next(self, asked: Indices, scores: FloatArray, count: int, goal: float | None) -> Indices:
        """Further items for one candidate, chosen by what it has answered so far.

        Args:
            asked: the items that it answered.
            scores: what it got for them.
            count: how many are wanted; there may be fewer.
            goal: a full score that it is to be compared with; None for its own score.
        """

    def estimate(self, part: ItemScores) -> Estimated:
        """What the answers to any of the items are worth.

        Raises:
            CandidateError: fewer than two items, or a value that is not finite; names the task.
        """


class Estimator(Protocol):
    """Makes the plan of each task.

    Attributes:
        needs_sources: whether plans need the sources' complete answers.
    """

    needs_sources: bool

    def plan(self, pool: Pool) -> ItemPlan:
        """The plan of a task.

        Raises:
            ConfigError: if its settings do not fit the task's items.
        """

    def contents(self) -> dict[str, str]:
        """Digests of the files that its settings name, by key; paths count by their content."""


@lru_cache(maxsize=64)  # every candidate of a generation asks for the same
def draw(count: int, n: int, seed: tuple[int, ...]) -> Indices:
    """`n` distinct places out of `count`, ascending, read-only; all if there are no more."""
    if n >= count:
        places = np.arange(count, dtype=np.int64)
    else:
        chosen = np.random.default_rng(seed).choice(count, size=n, replace=False, shuffle=False)
        places = np.sort(chosen).astype(np.int64)
    places.setflags(write=False)
    return places


def shuffled(places: Indices, seed: int) -> Indices:
    """The same places in a random order."""
    return np.random.default_rng([seed, 1]).permutation(places)


def further(count: int, asked: Indices, n: int, seed: int) -> Indices:
    """Up to `n` of `count` places that were not asked yet, the first of a random order."""
    order = np.random.default_rng([seed, 2]).permutation(count)
    return order[~np.isin(order, asked)][:n].astype(np.int64)


def mean_of(values: FloatArray) -> WithError:
    """Mean of at least two values and its standard error (standard deviation with ddof 1)."""
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))


def checked(part: ItemScores, loglik_weight: float) -> tuple[FloatArray, FloatArray | None]:
    """Scores, and log-likelihoods if they were asked for, all finite and of two items at least.

    Raises:
        CandidateError: for anything else; names the task.
    """
    where = f"task {part.task!r}, split {part.split!r}"
    scores = np.asarray(part.scores, dtype=np.float64)
    logliks = np.asarray(part.logliks, dtype=np.float64)
    if len(scores) < 2:
        raise CandidateError(f"{where}: {len(scores)} items; a standard error takes at least 2")
    read = bool(loglik_weight) or not np.isnan(logliks).all()
    finite = np.isfinite(scores) & (np.isfinite(logliks) if read else True)
    wrong = np.flatnonzero(~finite)
    if len(wrong):
        first = int(wrong[0])
        raise CandidateError(
            f"{where}: {len(wrong)} of {len(scores)} values are not finite; item "
            f"{part.ids[first]!r} has score {part.scores[first]} and mean log-likelihood "
            f"{part.logliks[first]}"
        )
    return scores, logliks if read else None
