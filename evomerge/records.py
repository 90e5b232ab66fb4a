"""How candidates and their ratings stand in the events of a journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.evaluation import summary
from evomerge.journal import Journal
from evomerge.rating import Rating
from evomerge.setup import Items
from evomerge.types import Fitness, ItemScores


def listed(items: Items) -> dict[str, list[int] | None]:
    """Items by task as an event has them."""
    return {task: None if some is None else list(some) for task, some in items.items()}


def rated(rating: Rating, parts: Sequence[ItemScores]) -> dict[str, Any]:
    """What an event says of a rating and of the answers behind it.

    Scores are the estimated ones, log-likelihoods plain means over the items answered.
    """
    scores = {
        task: {**by_split["search"], "score": rating.scores[task]}
        for task, by_split in summary(parts).items()
    }
    fitness = rating.fitness
    limits = {"constraints": list(fitness.constraints)} if fitness.constraints else {}
    notes = {"notes": dict(rating.notes)} if rating.notes else {}
    return {
        "scores": scores, "fitness": list(fitness.values), "stderr": list(fitness.stderr), **limits,
        "values": dict(rating.values), **notes,
    }  # fmt: skip


def rating_of(event: Mapping[str, Any]) -> Rating:
    """The rating that an event holds."""
    scores = {task: of_task["score"] for task, of_task in event["scores"].items()}
    return Rating(
        Fitness.of_event(event), dict(event["values"]), scores, dict(event.get("notes", {}))
    )


def next_id(journal: Journal) -> int:
    """The number of the next candidate of a study."""
    asked = [c["id"] for e in journal.events if e["event"] == "ask" for c in e["candidates"]]
    return max(asked, default=-1) + 1
