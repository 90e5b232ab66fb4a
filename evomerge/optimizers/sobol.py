"""Scrambled Sobol points: a control that covers the domain more evenly than chance does."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.domain import Domain
from evomerge.optimizers import settings
from evomerge.optimizers.base import Optimizer, Told
from evomerge.optimizers.designs import InitialDesign
from evomerge.types import FloatArray


class Sobol(Optimizer):
    """Proposes the domain's anchors and then a scrambled Sobol sequence; learns nothing."""

    multi_objective = True
    asynchronous = True

    def __init__(self, domain: Domain, seed: int, batch: int = 16, anchors: bool = True) -> None:
        """Starts the sequence.

        Args:
            domain: what is searched.
            seed: of the scrambling.
            batch: number of candidates kept at work.
            anchors: whether the domain's anchors come first.

        Raises:
            ConfigError: for a batch below 1, or anchors that are neither true nor false.
        """
        super().__init__(domain, seed)
        self._batch = settings.whole("batch", batch, 1)
        scrambling = int(self.rng.integers(2**63))
        self._design = InitialDesign(domain, scrambling, settings.flag("anchors", anchors))

    @property
    def batch(self) -> int:
        """How many candidates it likes to ask for at a time."""
        return self._batch

    def _ask(self, numbers: range) -> list[FloatArray]:
        return self._design.take(len(numbers))

    def _tell(self, told: Sequence[Told]) -> None:
        return
