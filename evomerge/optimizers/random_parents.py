"""Random parents and random coefficients ("Recycling LoRAs in the wild"): a control."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb

import numpy as np

from evomerge.domain import Domain
from evomerge.optimizers._soups import check_asked, check_weights
from evomerge.optimizers.base import Optimizer, Told
from evomerge.optimizers.settings import one_of, whole
from evomerge.types import FloatArray

_TRIES = 64
"""Draws of a subset before those that are left are listed; more repeats mean few are left."""

_ENDLESS = 1 << 30
"""Stands for any number of genomes."""


class RandomParents(Optimizer):
    """Draws which sources take part, and with random coefficients how much; learns nothing.

    The number of sources is uniform among 2 to K, then which they are. With uniform
    coefficients all weigh the same, no subset is asked for twice, and after the
    `2^K - K - 1` there are it has no more to ask. Random coefficients are uniform on the
    simplex of the subset (Dirichlet with all parameters 1) and never come to an end.
    """

    multi_objective = True

    def __init__(
        self, domain: Domain, seed: int, coefficients: str = "uniform", batch: int = 16
    ) -> None:
        """See `Optimizer`.

        Args:
            domain: one weight in [0, 1] for each source.
            seed: of this optimiser's own generator.
            coefficients: uniform or random.
            batch: how many candidates it likes to ask for at a time.

        Raises:
            ConfigError: for other dimensions or settings.
        """
        super().__init__(domain, seed)
        check_weights(domain, "RandomParents")
        self._random = one_of("coefficients", coefficients, ("uniform", "random")) == "random"
        self._batch = whole("batch", batch, 1)
        self._seen: dict[int, set[tuple[int, ...]]] = {
            size: set() for size in range(2, len(domain) + 1)
        }

    @property
    def batch(self) -> int:
        """The setting, or how many subsets are left; 0 with a single source."""
        return min(self._batch, self._left())

    def _ask(self, numbers: range) -> list[FloatArray]:
        check_asked(len(numbers), self._left())
        return [self._draw() for _ in numbers]

    def _replace(self, number: int, recorded: FloatArray) -> None:
        members = tuple(np.flatnonzero(recorded).tolist())
        self._seen.get(len(members), set()).add(members)

    def _tell(self, told: Sequence[Told]) -> None:
        return

    def _left(self) -> int:
        """How many genomes can still be asked for."""
        if self._random:
            return _ENDLESS if self._seen else 0
        return sum(map(self._unseen, self._seen))

    def _unseen(self, size: int) -> int:
        """How many subsets of a size were not asked for yet."""
        return comb(len(self.domain), size) - len(self._seen[size])

    def _draw(self) -> FloatArray:
        sizes = [size for size in self._seen if self._random or self._unseen(size)]
        size = sizes[int(self.rng.integers(len(sizes)))]
        genome = np.zeros(len(self.domain))
        if self._random:
            members = self._members(size)
            genome[list(members)] = self.rng.dirichlet(np.ones(size))
            return genome
        members = self._fresh(size)
        self._seen[size].add(members)
        genome[list(members)] = 1.0
        return genome

    def _members(self, size: int) -> tuple[int, ...]:
        drawn = self.rng.choice(len(self.domain), size, replace=False)
        return tuple(sorted(drawn.tolist()))

    def _fresh(self, size: int) -> tuple[int, ...]:
        """A subset that was not asked for yet, all of them equally likely."""
        for _ in range(_TRIES):
            members = self._members(size)
            if members not in self._seen[size]:
                return members
        every = combinations(range(len(self.domain)), size)
        left = [members for members in every if members not in self._seen[size]]
        return left[int(self.rng.integers(len(left)))]
