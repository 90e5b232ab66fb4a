"""What a search wants: objectives, constraints, and how raw metrics become fitness."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evomerge.errors import CandidateError, ConfigError
from evomerge.types import Fitness, FloatArray, ItemScores

METRICS = ("score", "loglik", "tokens", "seconds", "sparsity", "blocks")
"""What can be measured: mean score, mean log-likelihood a token (nats) of the right answers, mean
length of an answer (tokens), seconds an item, the share of the sources' changes left out, and the
number of transformer blocks that run."""

TASKLESS = ("seconds", "sparsity", "blocks")
"""Metrics of a candidate, not of one task."""

GOALS = ("maximize", "minimize")
SCALARIZATIONS = ("weighted_sum", "chebyshev")
BEST_SOURCE = "best source"
_IDEAL = {"score": 1.0, "sparsity": 1.0}
_AUGMENTATION = 0.05  # share of the sum in the Chebyshev scalarization, so that ties are broken


@dataclass(frozen=True)
class Objective:
    """One thing that a search optimises.

    Attributes:
        name: in journals and reports.
        task: whose items it is measured on; None for metrics of the whole candidate.
        metric: one of `METRICS`.
        goal: maximize or minimize.
        weight: importance when objectives are scalarized, and when one merge is chosen of a
            front.
    """

    name: str
    task: str | None
    metric: str = "score"
    goal: str = "maximize"
    weight: float = 1.0

    @property
    def sign(self) -> float:
        """1 for a maximised metric, -1 for a minimised one."""
        return 1.0 if self.goal == "maximize" else -1.0


@dataclass(frozen=True)
class Constraint:
    """A bound that a merge has to keep.

    Attributes:
        name: in journals and reports.
        task: whose items it is measured on; None for metrics of the whole candidate.
        metric: one of `METRICS`.
        sense: at_least or at_most.
        bound: a number, or a model whose own value on the search items is the bound: the name
            of a source, `base`, or `best source`.
        margin: by how much a model's value may be missed.
    """

    name: str
    task: str | None
    metric: str
    sense: str
    bound: float | str
    margin: float = 0.0

    def excess(self, value: float) -> float:
        """How far a raw value lies beyond the bound, 0 or below where it is kept."""
        if isinstance(self.bound, str):
            raise ValueError(
                f"constraint {self.name}: the bound {self.bound!r} is not measured yet"
            )
        return self.bound - value if self.sense == "at_least" else value - self.bound


@dataclass(frozen=True)
class Measured:
    """Raw metrics of one candidate, by (task, metric), with standard errors."""

    values: Mapping[tuple[str | None, str], float]
    stderr: Mapping[tuple[str | None, str], float]


@dataclass(frozen=True)
class Goals:
    """All objectives and constraints of a study.

    Attributes:
        objectives: at least one.
        constraints: may be none.
        scalarize: None for a Pareto search, or one of `SCALARIZATIONS`.
    """

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()
    scalarize: str | None = None

    @property
    def count(self) -> int:
        """Values that the optimiser is told."""
        return 1 if self.scalarize else len(self.objectives)

    @property
    def pareto(self) -> bool:
        """Whether a front is searched for."""
        return self.count > 1

    def tasks(self) -> set[str]:
        """Names of the tasks whose items candidates have to answer."""
        return {task for task, _ in self._read() if task is not None}

    def models(self) -> set[str]:
        """Names of the models whose values constraints refer to."""
        return {c.bound for c in self.constraints if isinstance(c.bound, str)}

    def reads(self, task: str | None, metric: str) -> bool:
        """Whether an objective or a constraint looks at a metric."""
        return (task, metric) in self._read()

    def by_item(self) -> tuple[Objective, ...]:
        """The objectives that are means over items."""
        return tuple(o for o in self.objectives if o.metric in ("score", "loglik"))

    def ranges(self, loglik_weights: Mapping[str, float]) -> tuple[tuple[float, float], ...]:
        """Bounds of each value that the optimiser is told; empty where objectives are scalarised.

        Args:
            loglik_weights: by task, the weight that the log-likelihood has beside the score.
        """
        if self.scalarize:
            return ()
        return tuple(_range(o, loglik_weights.get(o.task or "", 0.0)) for o in self.objectives)

    def can_bound(self, values: Mapping[str, object]) -> bool:
        """Whether every model that a bound names was measured."""
        needed = self.models() - {BEST_SOURCE}
        return needed <= set(values) and bool(set(values) - {"base"})

    def wants_loglik(self, task: str) -> bool:
        """Whether a goal reads the log-likelihood of a task."""
        return self.reads(task, "loglik")

    def _read(self) -> set[tuple[str | None, str]]:
        return {(o.task, o.metric) for o in self.objectives} | {
            (c.task, c.metric) for c in self.constraints
        }

    def raw(self, measured: Measured) -> dict[str, float]:
        """Value of each objective in its own unit, by name."""
        return {o.name: measured.values[o.task, o.metric] for o in self.objectives}

    def fitness(
        self, measured: Measured, estimates: Mapping[str, tuple[float, float]] | None = None
    ) -> Fitness:
        """What the optimiser is told.

        Args:
            measured: raw metrics of the candidate.
            estimates: by task name, value and standard error that stand for its score, such as
                those of an estimator with a tie-break between equal scores.
        """
        values, errors = [], []
        for objective in self.objectives:
            key = objective.task, objective.metric
            value, error = measured.values[key], measured.stderr[key]
            if estimates and objective.metric == "score":
                value, error = estimates[objective.task or ""]
            values.append(objective.sign * value)
            errors.append(error)
        limits = tuple(c.excess(measured.values[c.task, c.metric]) for c in self.constraints)
        if self.scalarize:
            values, errors = self._scalar(values, errors)
        return Fitness(tuple(values), tuple(errors), limits)

    def _scalar(
        self, values: Sequence[float], errors: Sequence[float]
    ) -> tuple[list[float], list[float]]:
        weights = np.array([o.weight for o in self.objectives])
        weights = weights / weights.sum()
        error = math.sqrt(float(np.square(weights * np.array(errors)).sum()))
        if self.scalarize == "weighted_sum":
            return [float(weights @ np.array(values))], [error]
        ideal = np.array([_IDEAL.get(o.metric, 0.0) * (o.sign > 0) for o in self.objectives])
        short = weights * (ideal - np.array(values))
        return [-float(short.max() + _AUGMENTATION * short.sum())], [error]

    def bounded(self, values: Mapping[str, Mapping[tuple[str | None, str], float]]) -> Goals:
        """Puts numbers in the place of bounds that name a model.

        Args:
            values: raw metrics on search items by model; all sources and the base.
        """
        constraints = []
        for c in self.constraints:
            if isinstance(c.bound, str):
                sign = 1.0 if c.sense == "at_least" else -1.0
                if c.bound == BEST_SOURCE:
                    own = [v[c.task, c.metric] for name, v in values.items() if name != "base"]
                    found = max(own) if sign > 0 else min(own)
                else:
                    found = values[c.bound][c.task, c.metric]
                c = replace(c, bound=found - sign * c.margin)
            constraints.append(c)
        return replace(self, constraints=tuple(constraints))


def item_values(
    objectives: Sequence[Objective],
    scores: Sequence[ItemScores],
    loglik_weights: Mapping[str, float],
) -> FloatArray:
    """What a candidate has of each item, at least 0, of objectives one after the other.

    Of a score the value of an item is `score + weight * exp(loglik)`, with the mean
    log-likelihood a token (nats) of the right answer; of a log-likelihood `exp(loglik)`.

    Args:
        objectives: means over items that are maximised.
        scores: one a task, in any order.
        loglik_weights: by task, the weight that the log-likelihood has beside the score.

    Returns:
        an `n` array.
    """
    found = {part.task: part for part in scores}
    parts = []
    for objective in objectives:
        part = found[objective.task or ""]
        weight = loglik_weights.get(part.task, 0.0)
        plain = np.asarray(part.scores, dtype=np.float64)
        if objective.metric == "loglik":
            parts.append(np.exp(part.logliks))
        else:
            parts.append(plain + weight * np.exp(part.logliks) if weight else plain)
    return np.concatenate(parts)


def _range(objective: Objective, loglik_weight: float) -> tuple[float, float]:
    """Bounds of a value as it is maximised."""
    inf = math.inf
    raw = {"score": (0.0, 1.0), "sparsity": (0.0, 1.0), "loglik": (-inf, 0.0)}
    low, high = raw.get(objective.metric, (0.0, inf))
    if objective.metric == "score" and loglik_weight:
        low = -inf  # the mean log-likelihood is a part of it, and has no lower bound
    return (low, high) if objective.sign > 0 else (-high, -low)


def measure(
    scores: Sequence[ItemScores],
    seconds: float | None = None,
    traits: Mapping[str, float] | None = None,
) -> Measured:
    """Raw metrics of what a candidate answered.

    Args:
        scores: one a task, all of one split.
        seconds: that all answers took.
        traits: metrics that are known of the candidate's genome, such as its sparsity.

    Raises:
        CandidateError: for a value that is not finite, fewer than two items, or a
            log-likelihood that was not asked for where one is read; names the task.
    """
    values: dict[tuple[str | None, str], float] = {}
    errors: dict[tuple[str | None, str], float] = {}
    for part in scores:
        columns = {"score": part.scores, "loglik": part.logliks, "tokens": part.tokens}
        for metric, column in columns.items():
            numbers = np.asarray(column, dtype=np.float64)
            if metric == "loglik" and np.isnan(numbers).all():
                continue  # not asked for
            if len(numbers) < 2 or not np.isfinite(numbers).all():
                raise CandidateError(
                    f"task {part.task!r}, split {part.split!r}: {len(numbers)} values of "
                    f"{metric}, {int((~np.isfinite(numbers)).sum())} of them not finite; "
                    "at least two finite ones are needed"
                )
            values[part.task, metric] = float(numbers.mean())
            errors[part.task, metric] = float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    items = sum(len(part) for part in scores)
    if seconds is not None and items:
        values[None, "seconds"], errors[None, "seconds"] = seconds / items, 0.0
    for name, value in (traits or {}).items():
        values[None, name], errors[None, name] = value, 0.0
    return Measured(values, errors)


def read_goals(config: Mapping[str, Any], tasks: Sequence[str], models: Sequence[str]) -> Goals:
    """The goals that a config names; without any, the score of every task.

    Args:
        config: with keys objectives, constraints and scalarize.
        tasks: names of the tasks that the search answers.
        models: names that a constraint's bound may have.

    Raises:
        ConfigError: naming the key at fault.
    """
    nodes = config["objectives"] or {task: {"task": task} for task in tasks}
    objectives = tuple(_objective(name, node, tasks) for name, node in nodes.items())
    constraints = tuple(
        _constraint(name, node, tasks, models) for name, node in config["constraints"].items()
    )
    scalarize = config["scalarize"]
    if scalarize is not None and scalarize not in SCALARIZATIONS:
        raise ConfigError.of(
            "scalarize", repr(scalarize), f"{', '.join(SCALARIZATIONS)} or null", "Correct it."
        )
    if not any(o.weight > 0 for o in objectives):
        raise ConfigError.of("objectives", "no weight above 0", "at least one", "Correct them.")
    return Goals(objectives, constraints, scalarize)


def _objective(name: str, node: Any, tasks: Sequence[str]) -> Objective:
    field = f"objectives.{name}"
    allowed = ("task", "metric", "goal", "weight")
    task, metric = _metric(field, node, tasks, allowed)
    usual = "maximize" if metric in ("score", "loglik", "sparsity") else "minimize"
    goal = node.get("goal") or usual
    if goal not in GOALS:
        raise ConfigError.of(f"{field}.goal", repr(goal), " or ".join(GOALS), "Correct it.")
    weight = _amount(node.get("weight", 1.0), f"{field}.weight")
    return Objective(name, task, metric, goal, weight)


def _constraint(name: str, node: Any, tasks: Sequence[str], models: Sequence[str]) -> Constraint:
    field = f"constraints.{name}"
    allowed = ("task", "metric", "at_least", "at_most", "margin")
    task, metric = _metric(field, node, tasks, allowed)
    senses = [s for s in ("at_least", "at_most") if node.get(s) is not None]
    if len(senses) != 1:
        raise ConfigError.of(
            field, f"{len(senses)} bounds", "exactly one of at_least and at_most",
            f"For example constraints.{name}.at_least=0.9, or 'best source'.",
        )  # fmt: skip
    bound = node[senses[0]]
    known = [BEST_SOURCE, *models]
    number = isinstance(bound, int | float) and not isinstance(bound, bool) and math.isfinite(bound)
    if not number and bound not in known:
        raise ConfigError.of(
            f"{field}.{senses[0]}", repr(bound), f"a number, or one of {', '.join(known)}",
            "Correct it.",
        )  # fmt: skip
    if not number and metric in TASKLESS:
        raise ConfigError.of(
            f"{field}.{senses[0]}", repr(bound), f"a number, since {metric} of a model is unknown",
            "Give one.",
        )  # fmt: skip
    margin = _amount(node.get("margin", 0.0), f"{field}.margin")
    if number and margin:
        raise ConfigError.of(
            f"{field}.margin", repr(margin), "none beside a bound that is a number",
            "Put it into the bound.",
        )  # fmt: skip
    return Constraint(name, task, metric, senses[0], float(bound) if number else bound, margin)


def _metric(
    field: str, node: Any, tasks: Sequence[str], allowed: Sequence[str]
) -> tuple[str | None, str]:
    if not isinstance(node, Mapping):
        raise ConfigError.of(
            field, repr(node), f"a mapping with {', '.join(allowed)}", "Correct it."
        )
    unknown = [key for key in node if key not in allowed]
    if unknown:
        raise ConfigError.of(
            f"{field}.{unknown[0]}", "an unknown key", f"one of {', '.join(allowed)}", "Correct it."
        )
    metric = node.get("metric") or "score"
    if metric not in METRICS:
        raise ConfigError.of(
            f"{field}.metric", repr(metric), f"one of {', '.join(METRICS)}", "Correct it."
        )
    task = node.get("task")
    if metric in TASKLESS:
        if task is not None:
            raise ConfigError.of(
                f"{field}.task", repr(task), f"no task, since {metric} is the whole candidate's",
                "Remove it.",
            )  # fmt: skip
        return None, metric
    if task is None and len(tasks) == 1:
        task = tasks[0]
    if task not in tasks:
        raise ConfigError.of(
            f"{field}.task", repr(task), f"one of {', '.join(tasks)}",
            "Name one, or add a task: +task@tasks.NAME=NAME.",
        )  # fmt: skip
    return task, metric


def _amount(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError.of(field, repr(value), "a number of at least 0", "Correct it.")
    return float(value)
