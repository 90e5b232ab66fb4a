"""The choice of a search's winner: its best candidates again, on validation items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.evaluation import Splits, Subject
from evomerge.executors.worker import Request
from evomerge.objectives import Goals, measure
from evomerge.pareto import preference
from evomerge.rating import rate
from evomerge.recipe import Recipe
from evomerge.search import Search
from evomerge.setup import source_recipes
from evomerge.trials import Trial, front
from evomerge.types import Fitness, FloatArray

Measure = Callable[[Sequence[Subject], Sequence[Request], str], dict[str, Splits]]
"""Measures subjects on requests under a label for the progress."""


@dataclass(frozen=True)
class Finalist:
    """A merge that may be chosen.

    Attributes:
        name: in the journal.
        recipe: the merge.
        genome: where it came from.
        seconds: an item, as measured in the search; None if it was never run.
        digest: of the recipe.
    """

    name: str
    recipe: Recipe
    genome: FloatArray
    digest: str
    seconds: float | None = None


def choose(search: Search, measure_all: Measure) -> Finalist | None:
    """The finalist that is best on validation items; a search item may have been lucky.

    Feasible ones come first. With several objectives the best is the one whose largest weighted
    shortfall from the best value of each objective is smallest (`pareto.preference`).

    Returns:
        None if no candidate succeeded.
    """
    finalists = _finalists(search)
    if not finalists:
        return None
    requests = [
        Request(task.name, "validation", loglik=search.setup.wants_loglik(task))
        for task in search.setup.search_tasks
    ]
    subjects = [Subject(f.name, "finalist", f.recipe) for f in finalists]
    label = f"finalists of {search.name} on validation items"
    splits = measure_all(subjects, requests, label)
    goals = _bounded(search, requests, measure_all)
    fitness = {
        f.name: _fitness(search, goals, f, splits[f.name]) for f in finalists if f.name in splits
    }
    measured = [f for f in finalists if f.name in fitness]
    if not measured:
        return finalists[0]
    return measured[_first(search, [fitness[f.name] for f in measured])]


def _finalists(search: Search) -> list[Finalist]:
    """Search's best trials, its optimiser's recommendation, and where a search of routes began.

    That is the first source, which may itself be the result of a search: the choice is then at
    least as good on validation items.
    """
    count = search.setup.config["finalists"]
    trials = _ranked(search)[:count] if search.goals.pareto else search.best(count)
    timed = search.goals.reads(None, "seconds")
    found = [
        Finalist(f"{search.name} finalist {t.id}", t.recipe, t.genome, t.digest, t.seconds)
        for t in trials
    ]
    mean = search.optimizer.recommend()
    if not found or timed:
        return found
    start = np.array([d.start for d in search.space.dimensions])
    more = [("mean", mean)] if mean is not None else []
    more += [("start", start)] if search.space.decode(start).route is not None else []
    for name, genome in more:
        recipe = search.space.decode(genome)
        digest = recipe.digest(search.identities)
        found.append(Finalist(f"{search.name} finalist {name}", recipe, genome, digest))
    return found


def _ranked(search: Search) -> list[Trial]:
    """The front, the preferred ones first."""
    trials = front(search.trials)
    if not trials:
        return []
    values = np.array([t.fitness.values for t in trials if t.fitness is not None])
    order = np.argsort(-preference(values, weights(search)), kind="stable")
    return [trials[int(i)] for i in order]


def weights(search: Search) -> FloatArray:
    """The objectives' weights, an array."""
    return np.array([o.weight for o in search.goals.objectives])


def _bounded(search: Search, requests: Sequence[Request], measure_all: Measure) -> Goals:
    """The goals with bounds that name a model taken from its own validation items."""
    named = search.setup.goals
    if not named.models():
        return search.goals
    recipes = source_recipes(search.setup.config)
    subjects = [Subject(name, "source", recipe) for name, recipe in recipes.items()]
    splits = measure_all(subjects, requests, "sources, for the constraints")
    values = {name: measure(list(parts.values())).values for name, parts in splits.items()}
    return named.bounded(values) if named.can_bound(values) else search.goals


def _fitness(search: Search, goals: Goals, finalist: Finalist, splits: Splits) -> Fitness:
    parts = [splits[task.name, "validation"] for task in search.setup.search_tasks]
    items = sum(len(part) for part in parts)
    seconds = None if finalist.seconds is None else finalist.seconds * items
    return rate(search.setup, goals, search.space, finalist.genome, parts, seconds).fitness


def _first(search: Search, found: Sequence[Fitness]) -> int:
    """Index of the best fitness; the first among equals."""
    feasible = [i for i, f in enumerate(found) if f.feasible]
    if not feasible:
        return int(np.argmin([f.violation for f in found]))
    values = np.array([found[i].values for i in feasible])
    if not search.goals.pareto:
        return feasible[int(values[:, 0].argmax())]
    # Few finalists may lie close together in one objective: the whole front gives the scale.
    among = [t.fitness.values for t in front(search.trials) if t.fitness is not None]
    scale = np.array([*among, *values.tolist()])
    return feasible[int(preference(values, weights(search), scale).argmax())]
