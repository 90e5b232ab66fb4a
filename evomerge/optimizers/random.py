"""Uniform random search: the control that every other optimiser has to beat."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.domain import Domain
from evomerge.mating import Mating
from evomerge.optimizers import settings
from evomerge.optimizers.base import Optimizer, Told
from evomerge.types import FloatArray


class Random(Optimizer):
    """Draws genomes uniformly within the bounds and learns nothing.

    In a domain of matings the seeds come first; then any two earlier members mate, whatever
    became of them, with a uniform share and split.
    """

    multi_objective = True
    asynchronous = True
    mates = True

    def __init__(self, domain: Domain, seed: int, batch: int = 16) -> None:
        """See `Optimizer`; `batch` is the number of candidates kept at work.

        Raises:
            ConfigError: for a batch below 1.
        """
        super().__init__(domain, seed)
        self._batch = settings.whole("batch", batch, 1)

    @property
    def batch(self) -> int:
        """How many candidates it likes to ask for at a time."""
        return self._batch

    def _ask(self, numbers: range) -> list[FloatArray]:
        if self.domain.seeds:
            return [self._mating(number).to_genome() for number in numbers]
        points = self.rng.random((len(numbers), len(self.domain)))
        return list(self.domain.from_unit(points))

    def _mating(self, number: int) -> Mating:
        """A seed, or a mating of two earlier members, different ones if there are two."""
        if number < self.domain.seeds:
            return Mating.of_seed(number)
        first = int(self.rng.integers(number))
        second = (first + int(self.rng.integers(1, max(number, 2)))) % number
        return Mating(number, first, second, self.rng.random(), self.rng.random())

    def _tell(self, told: Sequence[Told]) -> None:
        return
