"""The plain estimator: the mean over all items, or over a seeded subset."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import CandidateError, ConfigError
from evomerge.types import Fitness, FloatArray, ItemScores


class MeanEstimator:
    """Averages scores, and gives the standard error of the average.

    Args:
        items: number of items that a candidate answers; None for all. At least 2, as one item
            has no standard error.
        rotate: draw other items in every generation, rather than one subset for the whole study.
            Then values of different generations are not strictly comparable.

    Raises:
        ConfigError: `items` or `rotate` is not of that kind.
    """

    def __init__(self, items: int | None = None, rotate: bool = False) -> None:
        whole = isinstance(items, int) and not isinstance(items, bool)
        if items is not None and (not whole or items < 2):
            raise ConfigError.of(
                "estimator.items", repr(items), "null or a whole number of at least 2", "Use null."
            )
        if not isinstance(rotate, bool):
            raise ConfigError.of("estimator.rotate", repr(rotate), "true or false", "Use false.")
        self.items = items
        self.rotate = rotate

    def choose(self, n_items: int, generation: int, rng_seed: int) -> NDArray[np.int64]:
        """Which items the candidates of a generation answer; the same for all of them.

        Args:
            n_items: number of items of the split.
            generation: number of the generation, from 0.
            rng_seed: seed of the study for this purpose, not negative.

        Returns:
            Indices of the items, ascending and distinct: `min(items, n_items)` of them. They
            depend on the arguments only.
        """
        if self.items is None or self.items >= n_items:
            return np.arange(n_items, dtype=np.int64)
        rng = np.random.default_rng([rng_seed, generation] if self.rotate else [rng_seed])
        chosen = rng.choice(n_items, size=self.items, replace=False, shuffle=False)
        return np.sort(chosen).astype(np.int64)

    def estimate(self, scores: Sequence[ItemScores], loglik_weights: Sequence[float]) -> Fitness:
        """The fitness of a candidate, one value a task.

        The value of an item is `score + weight * loglik`; that of a task is the mean of its items,
        and its standard error is their standard deviation (ddof 1) over the root of their number.
        A log-likelihood whose weight is 0 is not looked at.

        Args:
            scores: the item scores of each task.
            loglik_weights: the weight of each task.

        Raises:
            CandidateError: fewer than two items, or a value that is not finite; names the task.
        """
        means, errors = [], []
        for of_task, weight in zip(scores, loglik_weights, strict=True):
            values = _item_values(of_task, weight)
            means.append(float(values.mean()))
            errors.append(float(values.std(ddof=1)) / math.sqrt(len(values)))
        return Fitness(tuple(means), tuple(errors))


def _item_values(scores: ItemScores, weight: float) -> FloatArray:
    """`score + weight * loglik` of each item, an `n` array; all finite, at least two."""
    where = f"task {scores.task!r}, split {scores.split!r}"
    values = np.asarray(scores.scores, dtype=np.float64)
    if weight != 0:
        values = values + weight * np.asarray(scores.logliks, dtype=np.float64)
    if len(values) < 2:
        raise CandidateError(f"{where}: {len(values)} items; a standard error takes at least 2")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        first = int(wrong[0])
        raise CandidateError(
            f"{where}: {len(wrong)} of {len(values)} values are not finite; item "
            f"{scores.ids[first]!r} has score {scores.scores[first]} and mean log-likelihood "
            f"{scores.logliks[first]}"
        )
    return values
