"""Candidates with their results, what they cost, and which of them are good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evomerge.pareto import non_dominated
from evomerge.recipe import Recipe
from evomerge.types import Fitness, FloatArray, Rank


@dataclass(frozen=True)
class Trial:
    """A candidate with its result.

    Attributes:
        id: its number in the study.
        genome: what was proposed.
        recipe: what the genome means.
        digest: of the recipe.
        fitness: None if it failed.
        values: each objective in its own unit, by name; empty if it failed.
        seconds: an item took; None if it failed.
        item_values: what the optimiser is told of each item; None if it does not want to know.
        complete: whether it answered all items that a candidate may be asked; one that a race
            stopped did not, and ranks below those that did.
        files: where its answers are kept, relative to the run directory.
    """

    id: int
    genome: FloatArray
    recipe: Recipe
    digest: str
    fitness: Fitness | None
    values: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    item_values: FloatArray | None = None
    complete: bool = True
    files: tuple[str, ...] = ()

    @property
    def rank(self) -> Rank:
        """As `Fitness.rank`; a failed one is behind all others."""
        return (0, 0.0) if self.fitness is None else self.fitness.rank(self.complete)


@dataclass
class Cost:
    """What a search has used so far; times in seconds.

    `stopped` are the candidates that a race stopped early; `item_evaluations` the items that
    candidates were scored on; `answered` those of them that a model answered for it: the rest was
    known from before.
    """

    candidates: int = 0
    failed: int = 0
    infeasible: int = 0
    stopped: int = 0
    item_evaluations: int = 0
    answered: int = 0
    seconds: float = 0.0
    overhead: float = 0.0


@dataclass(frozen=True)
class Limits:
    """When a search ends; None means never for that reason."""

    candidates: int | None = None
    item_evaluations: int | None = None
    seconds: float | None = None
    score: float | None = None
    patience: int | None = None


def best_trials(trials: Sequence[Trial], count: int) -> list[Trial]:
    """The fittest distinct trials that succeeded, best first; earlier ones first among equals."""
    found: dict[str, Trial] = {}
    for trial in sorted(trials, key=lambda t: t.rank, reverse=True):
        if trial.fitness is not None:
            found.setdefault(trial.digest, trial)
    return list(found.values())[:count]


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The distinct feasible trials that none dominates; the least violating one if none is."""
    distinct: dict[str, Trial] = {}
    for trial in trials:
        if trial.fitness is not None:
            distinct.setdefault(trial.digest, trial)
    feasible = [t for t in distinct.values() if t.fitness is not None and t.fitness.feasible]
    if not feasible:
        return best_trials(trials, 1)
    feasible = [t for t in feasible if t.complete] or feasible
    values = np.array([t.fitness.values for t in feasible if t.fitness is not None])
    return [t for t, keep in zip(feasible, non_dominated(values), strict=True) if keep]
