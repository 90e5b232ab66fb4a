"""Whether a source is better than the base at anything that a study asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from evomerge.estimators.intervals import paired_test

SIGNIFICANCE = 0.05
"""Two-sided p-value below which a gain counts."""

BASE = "base"
"""The base's name among the scores."""

Scores = Mapping[str, Mapping[str, ArrayLike]]
"""Model to task to the values of the search items, larger is better."""


@dataclass(frozen=True)
class Gain:
    """How much better than the base a source is on the same items.

    Attributes:
        gain: mean paired difference, in the task's unit.
        stderr: its standard error; None for a single item.
        p: two-sided p-value of no difference.
        items: how many.
    """

    gain: float
    stderr: float | None
    p: float
    items: int

    @property
    def significant(self) -> bool:
        """Whether the source is better, and chance alone would seldom say so."""
        return self.gain > 0 and self.p < SIGNIFICANCE


def gains(names: Sequence[str], scores: Scores) -> Iterator[tuple[str, dict[str, Gain]]]:
    """The gains of each source on each task.

    A source without scores (it could not be measured) has no gains; nothing is held against it.

    Raises:
        ValueError: if the base lacks scores that a source has, or for scores that are not
            finite or of different lengths.
    """
    base = scores.get(BASE, {})
    for name in names:
        own = scores.get(name, {})
        lacking = [task for task in own if task not in base]
        if lacking:
            raise ValueError(f"scores of {name} on {lacking[0]}, but none of the base")
        yield name, {task: paired_gain(values, base[task]) for task, values in own.items()}


def paired_gain(source: ArrayLike, base: ArrayLike) -> Gain:
    """Compares the values of the same items, two `n` arrays.

    Raises:
        ValueError: as `paired_test`.
    """
    test = paired_test(source, base)
    delta = np.asarray(source, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    error = float(delta.std(ddof=1)) / math.sqrt(test.n) if test.n > 1 else None
    return Gain(test.difference, error, test.p, test.n)
