"""Selective merging (the heuristic of Model-GLUE, arXiv 2410.05357): a control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.domain import Domain
from evomerge.errors import ConfigError
from evomerge.optimizers._soups import best_first, check_asked, check_weights, ranks_by_number
from evomerge.optimizers.base import Optimizer, Told
from evomerge.types import FloatArray


class SelectiveMerging(Optimizer):
    """Interpolates towards one source after the other, the best alone first.

    Asks for every source alone; the best one is the first merge. Then, in descending order, each
    further source is tried at every coefficient a of a grid, as `(1 - a) merge + a source`; the
    best of these becomes the merge if its fitness is higher. At most `K + (K - 1) g`
    candidates with g coefficients; then it has no more to ask. Sources that failed alone are
    left out. Equals keep their order.

    Several objectives: candidates are ordered by the sum of their values, each scaled to
    [0, 1] over all that was told so far.
    """

    multi_objective = True

    def __init__(
        self, domain: Domain, seed: int, coefficients: Sequence[float] = (0.25, 0.5, 0.75)
    ) -> None:
        """See `Optimizer`; draws nothing, so the seed makes no difference.

        Args:
            domain: one weight in [0, 1] for each source.
            seed: not used.
            coefficients: the grid, numbers between 0 and 1.

        Raises:
            ConfigError: for other dimensions or coefficients.
        """
        super().__init__(domain, seed)
        check_weights(domain, "SelectiveMerging")
        self._grid = _check(coefficients)
        self._told: dict[int, Told] = {}
        self._order: list[int] = []
        self._merge: Told | None = None
        self._first = 0  # ask number with which the trials of the present source begin

    @property
    def batch(self) -> int:
        """Sources that were not asked for yet, then coefficients; 0 once it has finished.

        Also 0 while it waits for results that its next proposal depends on.
        """
        if self._merge is None:
            return len(self.domain) - self._asked
        return len(self._grid) - (self._asked - self._first) if self._order else 0

    def _ask(self, numbers: range) -> list[FloatArray]:
        check_asked(len(numbers), self.batch)
        alone = np.eye(len(self.domain))
        if self._merge is None:
            return [alone[number] for number in numbers]
        merge, source = self._merge.genome, alone[self._order[0]]
        grid = [self._grid[number - self._first] for number in numbers]
        return [(1.0 - a) * merge + a * source for a in grid]

    def _tell(self, told: Sequence[Told]) -> None:
        self._told.update((t.number, t) for t in told)
        if self._merge is None:
            self._begin()
        elif all(self._first + i in self._told for i in range(len(self._grid))):
            self._step(self._merge)

    def _begin(self) -> None:
        """Orders the sources once all were told; the best one is the first merge."""
        count = len(self.domain)
        if len(self._told) < count:
            return
        self._order = best_first([self._told[i].fitness for i in range(count)])
        if self._order:
            self._merge = self._told[self._order.pop(0)]
        self._first = count

    def _step(self, merge: Told) -> None:
        """Takes the best trial of a source, if it is better than the merge without it."""
        found = ranks_by_number(self._told.values())
        for i in range(len(self._grid)):
            trial = self._told[self._first + i]
            if found[trial.number] > found[merge.number]:
                merge = trial
        self._merge = merge
        self._order.pop(0)
        self._first += len(self._grid)


def _check(coefficients: Any) -> tuple[float, ...]:
    values = tuple(coefficients) if isinstance(coefficients, list | tuple) else ()
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    good = numbers and len(numbers) == len(values) == len(set(values))
    if not good or not all(0.0 < v < 1.0 for v in numbers):
        raise ConfigError.of(
            "optimizer.coefficients", repr(coefficients), "different numbers between 0 and 1",
            "For example [0.25, 0.5, 0.75].",
        )  # fmt: skip
    return tuple(map(float, numbers))
