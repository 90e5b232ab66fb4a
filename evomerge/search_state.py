"""What a search tells of itself to those who watch it."""

from __future__ import annotations

from evomerge.live.state import Budget, Searching
from evomerge.objectives import Goals
from evomerge.standing import Standing
from evomerge.trials import Cost, Limits

__all__ = ["Searching", "searching"]


def searching(standing: Standing, goals: Goals, cost: Cost, limits: Limits) -> Searching:
    """How a search stands."""
    best = standing.best
    fitness = None if best is None else best.fitness
    budgets = (
        Budget("candidates", cost.candidates, limits.candidates or 0),
        Budget("items", cost.item_evaluations, limits.item_evaluations or 0),
        Budget("hours", cost.seconds / 3600, (limits.seconds or 0) / 3600),
    )
    return Searching(
        best=dict(best.values) if best is not None else {},
        feasible=fitness is None or fitness.feasible,
        front=standing.front_size if goals.pareto else None,
        constraints=bool(goals.constraints),
        failed=cost.failed,
        infeasible=cost.infeasible,
        stopped=cost.stopped,
        budgets=tuple(b for b in budgets if b.limit),
    )
