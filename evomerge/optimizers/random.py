"""Uniform random search: the control that every other optimiser has to beat."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.errors import ConfigError
from evomerge.optimizers.base import Optimizer
from evomerge.space import Dimension
from evomerge.types import FloatArray, Observation


class Random(Optimizer):
    """Draws genomes uniformly within the bounds and learns nothing."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int, batch: int = 16) -> None:
        """See `Optimizer`; `batch` is the number of candidates asked for at a time.

        Raises:
            ConfigError: for a batch below 1.
        """
        super().__init__(dimensions, seed)
        if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
            raise ConfigError.of(
                "optimizer.batch", repr(batch), "an integer of at least 1", "Correct it."
            )
        self._batch = batch

    @property
    def batch(self) -> int:
        """How many candidates it likes to ask for at a time."""
        return self._batch

    def _ask(self, n: int) -> list[FloatArray]:
        return [self.rng.uniform(self.low, self.high) for _ in range(n)]

    def _tell(self, observations: Sequence[Observation]) -> None:
        return
