"""From the answers of a candidate to its fitness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from evomerge.estimators.base import Estimated
from evomerge.estimators.mean import mean_estimate
from evomerge.objectives import Goals, measure
from evomerge.setup import Setup
from evomerge.space import SearchSpace
from evomerge.types import Fitness, FloatArray, ItemScores


@dataclass(frozen=True)
class Rating:
    """What a candidate is worth.

    Attributes:
        fitness: what the optimiser is told.
        values: each objective in its own unit, by name.
        scores: by task, the estimated plain score.
        notes: by task, where a simpler estimate had to be made, and why.
    """

    fitness: Fitness
    values: Mapping[str, float]
    scores: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def rate(
    setup: Setup,
    goals: Goals,
    space: SearchSpace,
    genome: FloatArray,
    parts: Sequence[ItemScores],
    seconds: float | None,
) -> Rating:
    """Rates what was answered, of search items with the study's estimator.

    Scores and log-likelihoods are the estimator's, answer lengths plain means; other splits are
    answered in full, and all is plain means.

    Args:
        setup: the study.
        goals: with bounds that are numbers.
        space: that gives the genome its meaning.
        genome: of the candidate.
        parts: item scores, one a task of the search, all of one split.
        seconds: that all answers took; None if it was not measured.

    Raises:
        CandidateError: for values that are not finite or fewer than two items.
    """
    measured = measure(parts, seconds, setup.traits(space, genome))
    found = {part.task: _estimate(setup, part) for part in parts}
    values, errors = dict(measured.values), dict(measured.stderr)
    for task, estimated in found.items():
        for metric, pair in (("score", estimated.score), ("loglik", estimated.loglik)):
            if pair is not None:
                values[task, metric], errors[task, metric] = pair
    measured = replace(measured, values=values, stderr=errors)
    estimates = {task: estimated.value for task, estimated in found.items()}
    return Rating(
        goals.fitness(measured, estimates),
        goals.raw(measured),
        {task: estimated.score[0] for task, estimated in found.items()},
        {task: estimated.note for task, estimated in found.items() if estimated.note},
    )


def _estimate(setup: Setup, part: ItemScores) -> Estimated:
    if part.split == "search":
        return setup.plans[part.task].estimate(part)
    return mean_estimate(part, setup.loglik_weights[part.task])


def joined(parts: Sequence[ItemScores]) -> list[ItemScores]:
    """Answers to different items put together, one a task and split; a repeated item counts once.

    Of an item that was answered several times the first answer stays.
    """
    groups: dict[tuple[str, str], list[ItemScores]] = {}
    for part in parts:
        groups.setdefault((part.task, part.split), []).append(part)
    return [group[0] if len(group) == 1 else _joined(group) for group in groups.values()]


def _joined(group: Sequence[ItemScores]) -> ItemScores:
    ids = [id for part in group for id in part.ids]
    first = {id: place for place, id in reversed(list(enumerate(ids)))}
    kept = np.array(sorted(first.values()), dtype=np.int64)
    texts = [text for part in group for text in part.texts]
    return ItemScores(
        group[0].task,
        group[0].split,
        tuple(ids[i] for i in kept),
        np.concatenate([part.scores for part in group])[kept],
        np.concatenate([part.logliks for part in group])[kept],
        tuple(texts[i] for i in kept),
        np.concatenate([part.tokens for part in group])[kept],
    )
