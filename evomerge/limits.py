"""When a search ends: what its budget still bears, and whether it has come far enough."""

from __future__ import annotations

from collections.abc import Callable

from evomerge.objectives import Goals
from evomerge.standing import Standing
from evomerge.trials import Cost, Limits

NO_LIMIT = 1 << 30
"""More candidates than any search has."""


def left(limits: Limits, cost: Cost, at_work: int, items: Callable[[], int]) -> int:
    """How many more candidates the budget bears, if they answer everything.

    Args:
        limits: of the search.
        cost: of the candidates that are done.
        at_work: candidates whose results are still to come.
        items: counts the items that a candidate answers; called if they are limited.
    """
    allowed = [NO_LIMIT]
    if limits.candidates is not None:
        allowed.append(limits.candidates - cost.candidates - at_work)
    if limits.item_evaluations is not None:
        allowed.append((limits.item_evaluations - cost.item_evaluations) // items() - at_work)
    return min(allowed)


def reached(
    limits: Limits, cost: Cost, standing: Standing, goals: Goals, told: int, batch: int
) -> bool:
    """Whether time, score or patience are at their limits.

    Args:
        limits: of the search.
        cost: of the candidates that are done.
        standing: of the candidates that are done.
        goals: the first objective is the one that `score` limits.
        told: results that the optimiser has heard.
        batch: candidates in a generation; patience is counted in these.
    """
    if limits.seconds is not None and cost.seconds >= limits.seconds:
        return True
    best = standing.best
    if limits.score is not None and best and best.fitness and best.fitness.feasible:
        first = goals.objectives[0]
        value = best.values.get(first.name)
        if value is not None and first.sign * value >= first.sign * limits.score:
            return True
    if limits.patience is not None and batch:
        return told - standing.improved >= limits.patience * batch
    return False
