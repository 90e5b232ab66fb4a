"""Which search items candidates answer, and what the answers are worth: estimators and races."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.build import build
from evomerge.errors import ConfigError
from evomerge.estimators.base import Estimator, ItemPlan, Pool
from evomerge.estimators.racing import NoRace, Race
from evomerge.ledger.items import item_digest
from evomerge.objectives import Goals
from evomerge.optimizers.base import Optimizer
from evomerge.seeds import derive
from evomerge.types import ItemScores, Task


def make_evaluation(
    config: Mapping[str, Any], tasks: Sequence[Task], goals: Goals
) -> tuple[Estimator, Race, dict[str, ItemPlan]]:
    """Builds what decides which items candidates answer and what the answers are worth.

    Raises:
        ConfigError: naming the key below `estimator`, `racing` or `recheck`.
    """
    estimator: Estimator = build(config["estimator"], "estimator")
    plans = item_plans(estimator, tasks, int(config["seed"]))
    race: Race = build(config["racing"], "racing")
    check_race(race, goals, plans)
    return estimator, race, plans


def item_plans(
    estimator: Estimator,
    tasks: Sequence[Task],
    seed: int,
    sources: Mapping[str, Sequence[ItemScores]] | None = None,
) -> dict[str, ItemPlan]:
    """The plan of each task of the search.

    Args:
        estimator: that makes them.
        tasks: the first is the study's main one.
        seed: of the study.
        sources: their answers to all search items by name; None before they are measured.

    Raises:
        ConfigError: if the estimator's settings do not fit a task.
    """
    plans = {}
    for number, task in enumerate(tasks):
        items = task.items("search")
        prompts = [task.prompt(item) for item in items]
        known = None
        if sources is not None:
            known = {
                name: np.asarray(part.scores, dtype=np.float64)
                for name, parts in sources.items()
                for part in parts
                if part.task == task.name
            }
        pool = Pool(
            task.name,
            tuple(item.id for item in items),
            derive(seed, "items" if number == 0 else f"items {task.name}"),
            task.loglik_weight,
            tuple(item_digest(item, text) for item, text in zip(items, prompts, strict=True)),
            tuple(prompts),
            known,
        )
        plans[task.name] = estimator.plan(pool)
    return plans


def check_race(race: Race, goals: Goals, plans: Mapping[str, ItemPlan]) -> None:
    """Checks that candidates can be raced for what a study wants.

    Raises:
        ConfigError: naming the key at fault.
    """
    if not race.against_elite:
        return
    name = type(race).__name__.lower()
    first = goals.objectives[0]
    if len(goals.objectives) > 1 or first.metric != "score" or first.sign < 0:
        raise ConfigError.of(
            "racing", f"{name}, with other goals than one score to be maximised",
            "one objective whose metric is score, as candidates are compared with the best one",
            "Use racing=halving.",
        )  # fmt: skip
    if rotating(plans):
        raise ConfigError.of(
            "racing", f"{name}, with other items in each generation",
            "the same items for all candidates", "Set estimator.rotate=false, or racing=halving.",
        )  # fmt: skip


def rotating(plans: Mapping[str, ItemPlan]) -> bool:
    """Whether another generation answers other items."""
    return any(not np.array_equal(p.choose(0), p.choose(1)) for p in plans.values())


def check_item_scores(
    name: str, optimizer: Optimizer, goals: Goals, race: Race, plans: Mapping[str, ItemPlan]
) -> None:
    """Checks that an optimiser that reads item scores gets those of the same items each time.

    Raises:
        ConfigError: naming the key at fault.
    """
    if not optimizer.uses_item_scores:
        return
    lowered = [o.name for o in goals.by_item() if o.sign < 0]
    if lowered:
        raise ConfigError.of(
            f"objectives.{lowered[0]}.goal", f"minimize; {name} lets candidates compete for items",
            "maximize for a score or a log-likelihood", "Change it, or use another optimizer.",
        )  # fmt: skip
    if not goals.by_item():
        raise ConfigError.of(
            "objectives", f"no objective with a score of each item, which {name} needs",
            "at least one objective whose metric is score or loglik",
            "Add one, or use another optimizer.",
        )  # fmt: skip
    if rotating(plans):
        raise ConfigError.of(
            "estimator", f"other items in each generation; {name} compares candidates by item",
            "the same items for all candidates", "Set estimator.rotate=false.",
        )  # fmt: skip
    if not isinstance(race, NoRace):
        raise ConfigError.of(
            "racing", f"candidates that answer fewer items; {name} compares them by item",
            "all items for all candidates", "Use racing=none, or another optimizer.",
        )  # fmt: skip
