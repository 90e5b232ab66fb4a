"""Greedy soup (Wortsman et al., arXiv 2203.05482, recipe 1): a control."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.domain import Domain
from evomerge.optimizers._soups import best_first, check_asked, check_weights, ranks_by_number
from evomerge.optimizers.base import Optimizer, Told
from evomerge.types import FloatArray


class GreedySoup(Optimizer):
    """Adds sources to a uniform average, the best alone first, while that does not hurt.

    Asks for every source alone, then in descending order for the soup with each further source,
    which stays if the fitness is not lower. At most `2 K - 1` candidates; then it has no more
    to ask. Sources that failed alone are left out. Equals keep their order.

    Several objectives: candidates are ordered by the sum of their values, each scaled to
    [0, 1] over all that was told so far; so is the comparison with the soup without the
    addition.
    """

    multi_objective = True

    def __init__(self, domain: Domain, seed: int) -> None:
        """See `Optimizer`; draws nothing, so the seed makes no difference.

        Raises:
            ConfigError: for dimensions that are not weights in [0, 1].
        """
        super().__init__(domain, seed)
        check_weights(domain, "GreedySoup")
        self._told: dict[int, Told] = {}
        self._order: list[int] = []
        self._soup: Told | None = None

    @property
    def batch(self) -> int:
        """Sources that were not asked for yet, then 1; 0 once it has finished.

        Also 0 while it waits for results that its next proposal depends on.
        """
        alone = len(self.domain) - self._asked
        if alone > 0:
            return alone
        return 1 if self._order and len(self._told) == self._asked else 0

    def _ask(self, numbers: range) -> list[FloatArray]:
        check_asked(len(numbers), self.batch)
        if numbers.start < len(self.domain):
            return [np.eye(len(self.domain))[number] for number in numbers]
        members = [self._soup.genome] if self._soup else []
        return [np.maximum(soup, np.eye(len(soup))[self._order[0]]) for soup in members]

    def _tell(self, told: Sequence[Told]) -> None:
        self._told.update((t.number, t) for t in told)
        count = len(self.domain)
        if not told or any(number not in self._told for number in range(count)):
            return
        if self._soup is None:
            self._begin()
            return
        self._order.pop(0)
        tried = told[0]  # one soup at a time is at work
        found = ranks_by_number(self._told.values())
        if found[tried.number] >= found[self._soup.number]:
            self._soup = tried

    def _begin(self) -> None:
        """Orders the sources by their fitness alone; the best one is the first soup."""
        self._order = best_first([self._told[i].fitness for i in range(len(self.domain))])
        if self._order:
            self._soup = self._told[self._order.pop(0)]
