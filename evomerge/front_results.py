"""The Pareto front as `results.json` holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.estimators.intervals import NORMAL, mean_interval
from evomerge.evaluation import Splits
from evomerge.objectives import Goals, Measured, Objective, measure
from evomerge.pareto import hypervolume
from evomerge.proof import Proof
from evomerge.types import FloatArray


def held_out(goals: Goals, splits: Splits, others: Mapping[str, float] | None = None) -> Measured:
    """Raw metrics on test items; those of the whole candidate are taken from `others`."""
    tasks = goals.tasks()
    parts = [part for (task, split), part in sorted(splits.items()) if split == "test"]
    measured = measure([part for part in parts if part.task in tasks])
    known: dict[tuple[str | None, str], float] = {
        (None, o.metric): others[o.name]
        for o in goals.objectives
        if o.task is None and others and o.name in others
    }
    return Measured({**measured.values, **known}, measured.stderr)


def objective_values(goals: Goals, measured: Measured) -> dict[str, float]:
    """Raw value of each objective that was measured, by name."""
    return {
        o.name: measured.values[o.task, o.metric]
        for o in goals.objectives
        if (o.task, o.metric) in measured.values
    }


def front_results(proof: Proof) -> dict[str, Any]:
    """Points of the front with their held-out values, and hypervolumes by budget."""
    main, front = proof.searches[0], proof.front
    if front is None:
        raise ValueError("a study with one objective has no front")
    goals = main.goals
    points = []
    for number, splits in front.splits.items():
        trial = front.trials[number]
        measured = held_out(goals, splits, trial.values)
        low, high = _intervals(goals, measured, splits)
        points.append(
            {
                "name": f"candidate {number}",
                "candidate": number,
                "digest": trial.digest,
                "chosen": trial.digest == proof.winner.digest,
                "values": {
                    "search": dict(trial.values),
                    "test": objective_values(goals, measured),
                },
                "low": low,
                "high": high,
                "violation": trial.fitness.violation if trial.fitness else 0.0,
                "genome": trial.genome.tolist(),
            }
        )
    budgets = {str(b): [i for i in ids if i in front.splits] for b, ids in front.budgets.items()}
    sources = [
        objective_values(goals, held_out(goals, proof.splits[name]))
        for name, subject in proof.subjects.items()
        if subject.role == "source"
    ]
    return {"points": points, "budgets": budgets, **_volumes(goals, points, budgets, sources)}


def _intervals(
    goals: Goals, measured: Measured, splits: Splits
) -> tuple[dict[str, float], dict[str, float]]:
    low, high = {}, {}
    for o in goals.objectives:
        if o.task is None:
            continue
        if o.metric == "score":
            interval = mean_interval(splits[o.task, "test"].scores)
            low[o.name], high[o.name] = interval.low, interval.high
        else:
            value, error = measured.values[o.task, o.metric], measured.stderr[o.task, o.metric]
            low[o.name], high[o.name] = value - NORMAL * error, value + NORMAL * error
    return low, high


def _volumes(
    goals: Goals,
    points: Sequence[Mapping[str, Any]],
    budgets: Mapping[str, Sequence[int]],
    sources: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """Hypervolume of each budget's front, as a share of the box from the worst to the best.

    The worst and the best value of each objective are those of the points and, on test items,
    the sources.
    """
    out: dict[str, dict[str, float]] = {}
    reference: dict[str, float] = {}
    for split in ("search", "test"):
        kept = [p for p in points if p["violation"] == 0]
        rows = {p["candidate"]: _row(goals.objectives, p["values"][split]) for p in kept}
        others = [_row(goals.objectives, s) for s in sources] if split == "test" else []
        every = np.array([r for r in (*rows.values(), *others) if np.isfinite(r).all()])
        if not len(every):
            continue
        worst, best = every.min(axis=0), every.max(axis=0)
        span = np.where(best > worst, best - worst, 1.0)
        if split == "test":
            signs = [o.sign for o in goals.objectives]
            names = [o.name for o in goals.objectives]
            reference = {n: float(s * w) for n, s, w in zip(names, signs, worst, strict=True)}
        out[split] = {
            budget: hypervolume(
                np.array([(rows[i] - worst) / span for i in ids if i in rows]).reshape(
                    -1, len(worst)
                ),
                np.full(len(worst), -1e-9),
            )
            for budget, ids in budgets.items()
        }
    return {"reference": reference, "hypervolume": out}


def _row(objectives: Sequence[Objective], values: Mapping[str, float]) -> FloatArray:
    return np.array([o.sign * values.get(o.name, math.nan) for o in objectives])
