"""Candidates at work: what they are to answer, and what they have answered so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evomerge.estimators.base import Indices
from evomerge.estimators.racing import Runner
from evomerge.rating import Rating, joined
from evomerge.recipe import Recipe
from evomerge.setup import Items, Setup
from evomerge.types import FloatArray, ItemScores

TIMES = ("merge", "answer", "elapsed", "overhead")
"""Seconds that an event gives: in the worker for weights and for answers, since the event before,
and outside of merging and answering."""


@dataclass
class Open:
    """A candidate that was asked for and has no result yet.

    Attributes:
        id: its number in the study.
        genome: what was proposed.
        recipe: what it means.
        digest: of the recipe.
        generation: that it belongs to.
        items: of the stage at work, or of the last one.
        answered: items that it answered, of the task of which it answered most.
        asked: items of all tasks that it was asked, the stage at work among them.
        parts: what it answered, stage by stage.
        files: where that is kept.
        rating: of what it answered; None before the first stage ended.
        waiting: whether it has answered and waits for what comes next.
        stopped: whether its last answer was its last.
        times: seconds so far, by `TIMES`.
        fresh: items that a model really answered, less what the ledger knew.
        failure: why it failed; None if it did not.
    """

    id: int
    genome: FloatArray
    recipe: Recipe
    digest: str
    generation: int
    items: Items
    answered: int = 0
    asked: int = 0
    parts: list[ItemScores] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    rating: Rating | None = None
    waiting: bool = False
    stopped: bool = False
    times: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TIMES, 0.0))
    fresh: int = 0
    failure: str | None = None

    def fail(self, reason: str) -> None:
        """Ends it as failed."""
        self.failure, self.stopped, self.waiting = reason, True, False

    def runner(self, setup: Setup, with_answers: bool) -> Runner:
        """This candidate in a race."""
        if self.rating is None:
            raise RuntimeError(f"candidate {self.id} has answered nothing yet")
        answers = answers_of(setup, self.parts) if with_answers else {}
        return Runner(self.id, self.answered, self.rating.fitness, answers)

    def add_times(self, times: Mapping[str, Any]) -> None:
        """Adds the seconds of one event."""
        for key in TIMES:
            self.times[key] += float(times.get(key, 0.0))


def answers_of(setup: Setup, parts: Sequence[ItemScores]) -> dict[str, tuple[Indices, FloatArray]]:
    """By task, the places of the items that were answered, in order, and their plain scores."""
    return {
        part.task: (
            setup.plans[part.task].pool.places(part),
            np.asarray(part.scores, dtype=np.float64),
        )
        for part in joined(parts)
    }


def first_stage(setup: Setup, generation: int) -> Items:
    """The items that the candidates of a generation answer first."""
    planned = planned_items(setup, generation)
    size = setup.race.first(generation, planned)
    if size >= planned and not setup.race.adaptive:
        return setup.items(generation)
    return _slice(setup, generation, 0, size)


def planned_items(setup: Setup, generation: int) -> int:
    """Items of a task that a candidate answers if nothing stops it; the most of all tasks."""
    return max(len(plan.choose(generation)) for plan in setup.plans.values())


def next_stage(setup: Setup, candidate: Open, goal: float | None) -> Items:
    """The items that a candidate answers next.

    Args:
        setup: the study.
        candidate: with its answers in memory, if its race is adaptive.
        goal: the score that it has to reach; None without one.
    """
    planned = planned_items(setup, candidate.generation)
    size = setup.race.following(candidate.answered, planned)
    if not setup.race.adaptive:
        return _slice(setup, candidate.generation, candidate.answered, size)
    known = answers_of(setup, candidate.parts)
    out: dict[str, tuple[int, ...] | None] = {}
    for task, plan in setup.plans.items():
        asked, scores = known[task]
        chosen = plan.next(asked, scores, size - candidate.answered, goal)
        out[task] = tuple(int(i) for i in chosen)
    return out


def _slice(setup: Setup, generation: int, begin: int, end: int) -> Items:
    """Part of each task's items, in the order of the race."""
    return {
        task: tuple(int(i) for i in plan.order(generation, setup.race.at_random)[begin:end])
        for task, plan in setup.plans.items()
    }
