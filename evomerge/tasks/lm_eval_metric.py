"""Which number of a harness's task is an item's score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

from evomerge.errors import NotFiniteError, TaskError

TOKEN_PROBABILITY = "token_probability"
"""Our own metric of tasks that score one text: exp of its mean log-likelihood a token."""

_TEXTS = ("loglikelihood", "loglikelihood_rolling")


@dataclass(frozen=True)
class Metric:
    """A metric whose mean over items is what the harness reports.

    Attributes:
        name: the harness's, or `TOKEN_PROBABILITY`.
        filter: name of the harness's filter whose answers are scored.
        low: the value whose score is 0, or 1 where less is better.
        high: the value at the other end.
        higher_is_better: whether more is better.
    """

    name: str
    filter: str
    low: float = 0.0
    high: float = 1.0
    higher_is_better: bool = True

    def score(self, value: Any, key: str) -> float:
        """The score in [0, 1] of an item's value.

        Raises:
            TaskError: if the value is no number, or out of range.
            NotFiniteError: if it is not finite.
        """
        if not isinstance(value, Number) and not hasattr(value, "item"):
            raise TaskError.of(
                f"{key}.metric", f"{self.name}, which is {type(value).__name__} for an item",
                "a metric that is a number for each item", "Choose another metric.",
            )  # fmt: skip
        number = float(value)
        if not math.isfinite(number):
            raise NotFiniteError(f"{key}: {self.name} of an item is {number}")
        share = (number - self.low) / (self.high - self.low)
        if not 0.0 <= share <= 1.0:
            raise TaskError.of(
                f"{key}.metric_range", f"{self.name} {number:g} of an item",
                f"values from {self.low:g} to {self.high:g}",
                f"Set {key}.metric_range to the least and the greatest value, such as [0, 100].",
            )  # fmt: skip
        return share if self.higher_is_better else 1.0 - share


def choose_metric(
    tasks: Mapping[str, Any],
    group: Any,
    metric: str | None,
    filter: str | None,
    bounds: Sequence[float],
    key: str,
) -> Metric:
    """The metric of a task, or one that all members of a group have.

    Args:
        tasks: the harness's tasks by name.
        group: the harness's group; None without one.
        metric: None takes the first one that can be used.
        filter: None takes the first one.
        bounds: the least and the greatest value.
        key: config key of the task, for messages.

    Raises:
        TaskError: if it is no mean of the items' values, or there is no such metric or filter.
    """
    usable = list(dict.fromkeys(n for task in tasks.values() for n in _usable(task)))
    usable = [n for n in usable if all(n in _usable(task) for task in tasks.values())]
    reported = [one.metric for one in getattr(group, "aggregate_metric_list", None) or ()]
    if metric is None:
        metric = next((n for n in (*reported, *usable) if n in usable), None)
    if metric not in usable:
        have = list(dict.fromkeys(n for task in tasks.values() for n in task.aggregation()))
        found = repr(metric) if metric is not None else "none"
        if metric in have:
            found += ", which is not the mean of the items' values"
        elif metric is None:
            found += f" that can be used of {', '.join(have)}"
        raise TaskError.of(
            f"{key}.metric", found,
            "a metric that is the mean of the items' values, of every task: "
            + (", ".join(usable) or "there is none"),
            "Choose one of these." if usable else "Use another task.",
        )  # fmt: skip
    filters = [one.name for one in next(iter(tasks.values()))._filters]
    filters = [n for n in filters if all(n in _filters(task) for task in tasks.values())]
    if filter is None and metric in reported:
        listed = group.aggregate_metric_list[reported.index(metric)].filter_list
        filter = listed[0] if listed else None
    if (filter or (filters or [""])[0]) not in filters:
        raise TaskError.of(
            f"{key}.filter", repr(filter), f"one of {', '.join(filters) or 'none in common'}",
            "Choose one of these." if filters else "Use the members of the group one by one.",
        )  # fmt: skip
    low, high = bounds
    higher = metric == TOKEN_PROBABILITY or all(
        bool(task.higher_is_better().get(metric, True)) for task in tasks.values()
    )
    return Metric(metric, filter or filters[0], float(low), float(high), higher)


def check_weights(
    group: Any, metric: Metric, sizes: Mapping[str, Mapping[str, int]], weighting: str | None,
    key: str,
) -> None:  # fmt: skip
    """Checks that the mean over all items is what the harness reports of a group.

    Args:
        group: the harness's group; None without one.
        metric: chosen for it.
        sizes: items by split and member.
        weighting: `items` takes the mean over all items whatever the harness does.
        key: config key of the task, for messages.

    Raises:
        TaskError: if the group is the plain mean of members of different sizes.
    """
    lists = getattr(group, "aggregate_metric_list", None) or ()
    plain = any(one.metric == metric.name and not one.weight_by_size for one in lists)
    if not plain or weighting == "items":
        return
    for split, members in sizes.items():
        if len(set(members.values())) > 1:
            raise TaskError.of(
                f"{key}.group_weighting",
                f"a group that counts its tasks alike, with {min(members.values())} to "
                f"{max(members.values())} items each in {split}",
                "tasks with as many items each, or the mean over all items",
                f"Set {key}.group_weighting=items, or {key}.{split} to a mapping with "
                f"per_task: {min(members.values())}.",
            )


def _usable(task: Any) -> list[str]:
    """Names of a task's metrics that are means of the items' values."""
    from lm_eval.api.registry import get_aggregation

    own = [TOKEN_PROBABILITY] if task.OUTPUT_TYPE in _TEXTS else []
    mean = get_aggregation("mean")
    return [name for name, how in task.aggregation().items() if how is mean] + own


def _filters(task: Any) -> list[str]:
    return [one.name for one in task._filters]
