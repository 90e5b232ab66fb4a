"""The plain estimator: the mean over all items, or over a seeded subset."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.errors import ConfigError
from evomerge.estimators.base import (
    Estimated,
    Indices,
    Pool,
    checked,
    draw,
    further,
    mean_of,
    shuffled,
)
from evomerge.types import FloatArray, ItemScores


class MeanEstimator:
    """Averages scores, and gives the standard error of the average.

    Args:
        items: number of items that a candidate answers; None for all. At least 2, as one item
            has no standard error.
        rotate: draw other items in every generation, rather than one subset for the whole study.
            Then values of different generations are not strictly comparable; a genome that is
            evaluated again is worth the mean over all items that it ever answered.

    Raises:
        ConfigError: `items` or `rotate` is not of that kind.
    """

    needs_sources = False

    def __init__(self, items: int | None = None, rotate: bool = False) -> None:
        self.items = checked_items(items)
        if not isinstance(rotate, bool):
            raise ConfigError.of("estimator.rotate", repr(rotate), "true or false", "Use false.")
        self.rotate = rotate

    def plan(self, pool: Pool) -> MeanPlan:
        """The plan of a task."""
        return MeanPlan(pool, self.items, self.rotate)

    def contents(self) -> dict[str, str]:
        """No files."""
        return {}


@dataclass(frozen=True)
class MeanPlan:
    """The same random items for all candidates of a generation, and their mean."""

    pool: Pool
    items: int | None
    rotate: bool

    def choose(self, generation: int) -> Indices:
        """`min(items, N)` items, ascending; they depend on the seed and the generation only."""
        seed = (self.pool.seed, generation) if self.rotate else (self.pool.seed,)
        return draw(len(self.pool), self.items or len(self.pool), seed)

    def order(self, generation: int, at_random: bool) -> Indices:
        """The items in a random order: none says more than another."""
        return shuffled(self.choose(generation), self.pool.seed)

    def next(self, asked: Indices, scores: FloatArray, count: int, goal: float | None) -> Indices:
        """Random items: means do not know which would say more."""
        return further(len(self.pool), asked, count, self.pool.seed)

    def estimate(self, part: ItemScores) -> Estimated:
        """The means; see `mean_estimate`."""
        return mean_estimate(part, self.pool.loglik_weight)


def mean_estimate(part: ItemScores, loglik_weight: float) -> Estimated:
    """Means over the items that were answered.

    The value of an item is `score + weight * loglik`. Standard errors are the standard deviation
    (ddof 1) over the root of the number of items. A log-likelihood that was not asked for is not
    looked at if its weight is 0.

    Raises:
        CandidateError: fewer than two items, or a value that is not finite; names the task.
    """
    scores, logliks = checked(part, loglik_weight)
    score = mean_of(scores)
    if logliks is None:
        return Estimated(score, score)
    mixed = mean_of(scores + loglik_weight * logliks) if loglik_weight else score
    return Estimated(mixed, score, mean_of(logliks))


def checked_items(items: object) -> int | None:
    """The number of items that candidates answer.

    Raises:
        ConfigError: if it is neither None nor a whole number of at least 2.
    """
    if items is None:
        return None
    if not isinstance(items, int) or isinstance(items, bool) or items < 2:
        raise ConfigError.of(
            "estimator.items", repr(items), "null or a whole number of at least 2", "Use null."
        )
    return items
