"""What every optimiser has in common: checked ask and tell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from evomerge.space import Dimension
from evomerge.types import FloatArray, Observation


class Optimizer(ABC):
    """Proposes genomes and learns from their fitness; always maximises.

    Owns its random generator; the same seed and the same observations give the same genomes.
    A study resumes by replaying `ask` and `tell`.
    """

    def __init__(self, dimensions: Sequence[Dimension], seed: int) -> None:
        """Sets the bounds and the random generator.

        Args:
            dimensions: of the genomes, at least one.
            seed: of this optimiser's own generator.
        """
        if not dimensions:
            raise ValueError("an optimiser needs at least one dimension")
        self.dimensions = tuple(dimensions)
        self.low = np.array([d.low for d in self.dimensions])
        self.high = np.array([d.high for d in self.dimensions])
        self.start = np.array([d.start for d in self.dimensions])
        self.step = np.array([d.step for d in self.dimensions])
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self._open: list[bytes] = []

    @property
    @abstractmethod
    def batch(self) -> int:
        """How many candidates it likes to ask for at a time."""

    @abstractmethod
    def _ask(self, n: int) -> list[FloatArray]:
        """Draws `n` genomes."""

    @abstractmethod
    def _tell(self, observations: Sequence[Observation]) -> None:
        """Learns from checked observations."""

    def ask(self, n: int) -> list[FloatArray]:
        """Proposes `n` genomes, each an array of `len(dimensions)` numbers within bounds.

        Raises:
            ValueError: if `n` is not positive.
        """
        if n < 1:
            raise ValueError(f"ask({n}): expected a positive number of candidates")
        genomes = [np.clip(g, self.low, self.high) for g in self._ask(n)]
        self._open.extend(g.tobytes() for g in genomes)
        return genomes

    def replay(self, recorded: Sequence[FloatArray]) -> bool:
        """Asks again for genomes that were recorded, and goes on from the recorded ones.

        Returns:
            whether its own proposals are the recorded ones to the last bit. They may differ on
            another processor, whose linear algebra rounds in another way.
        """
        same = True
        for own, genome in zip(self.ask(len(recorded)), recorded, strict=True):
            if not np.array_equal(own, genome):
                same = False
                self._open[self._open.index(own.tobytes())] = genome.tobytes()
                self._replace(own, genome)
        return same

    def _replace(self, own: FloatArray, recorded: FloatArray) -> None:  # noqa: B027
        """Hears that a recorded genome stands in for an own proposal."""

    def tell(self, observations: Sequence[Observation]) -> None:
        """Takes the results of genomes that were asked for, in any order.

        A failed candidate has fitness None.

        Raises:
            ValueError: for a genome that is not waiting for a result, and for NaN, infinite
                or no fitness values; nothing is learnt from any of the observations then.
        """
        waiting = list(self._open)
        for observation in observations:
            key = np.asarray(observation.genome, dtype=np.float64).tobytes()
            if key not in waiting:
                raise ValueError("tell: this genome was not asked for, or was told before")
            waiting.remove(key)
            if observation.fitness is not None:
                values = observation.fitness.values
                if not len(values) or not np.isfinite(values).all():
                    raise ValueError(f"tell: fitness {values}; expected finite numbers")
        self._open = waiting
        self._tell(observations)

    def recommend(self) -> FloatArray | None:
        """A genome worth a final look though it was never asked for, or None."""
        return None
