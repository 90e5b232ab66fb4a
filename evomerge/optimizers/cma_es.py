"""CMA-ES (Hansen, arXiv 1604.00772) on the `cma` package, as in arXiv 2403.13187."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.optimizers.base import Optimizer
from evomerge.space import Dimension
from evomerge.types import FloatArray, Observation


class CmaEs(Optimizer):
    """Adapts a normal distribution to the best candidates of each generation.

    Works in coordinates scaled to [0, 1]; bounds are kept by `cma`'s smooth transformation.
    A failed candidate ranks below every other of its generation.
    """

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        seed: int,
        population: int | None = None,
        sigma: float = 1.0,
    ) -> None:
        """Starts at the dimensions' `start` with their `step` as standard deviation.

        Args:
            dimensions: of the genomes.
            seed: of this optimiser's own generator.
            population: candidates a generation; default 4 + floor(3 ln n).
            sigma: scales all steps.
        """
        super().__init__(dimensions, seed)
        import cma

        n = len(self.dimensions)
        self._population = population or 4 + math.floor(3 * math.log(n))
        # cma does not run in one dimension: a second, idle coordinate stands in.
        self._padding = 1 if n == 1 else 0
        width = self.high - self.low
        options: dict[str, Any] = {
            "bounds": [0.0, 1.0],
            "CMA_stds": self._pad(self.step / width, 0.1).tolist(),
            "popsize": self._population,
            "randn": self._randn,
            "seed": float("nan"),  # leave numpy's global generator alone
            "verbose": -9,
            "verb_log": 0,
        }
        start = self._pad((self.start - self.low) / width, 0.5)
        self._cma = cma.CMAEvolutionStrategy(start, sigma, options)
        self._waiting: dict[bytes, FloatArray] = {}
        self._told: list[tuple[FloatArray, float | None]] = []

    @property
    def batch(self) -> int:
        """The population."""
        return self._population

    def _ask(self, n: int) -> list[FloatArray]:
        genomes = []
        for scaled in self._cma.ask(number=n):
            genome = self._unscale(scaled)
            self._waiting[genome.tobytes()] = scaled
            genomes.append(genome)
        return genomes

    def _tell(self, observations: Sequence[Observation]) -> None:
        for observation in observations:
            scaled = self._waiting.pop(np.asarray(observation.genome, np.float64).tobytes())
            value = observation.fitness.values[0] if observation.fitness else None
            self._told.append((scaled, value))
        while len(self._told) >= self._population:
            generation = self._told[: self._population]
            self._told = self._told[self._population :]
            values = [v for _, v in generation if v is not None]
            below = min(values) - 1.0 if values else 0.0
            losses = [-(below if v is None else v) for _, v in generation]
            self._cma.tell([x for x, _ in generation], losses)

    def recommend(self) -> FloatArray | None:
        """The distribution's mean, once it has learnt from a generation."""
        if self._cma.countiter == 0:
            return None
        return self._unscale(np.asarray(self._cma.result.xfavorite))

    def _randn(self, *shape: int) -> FloatArray:
        return self.rng.standard_normal(shape)

    def _pad(self, values: FloatArray, filler: float) -> FloatArray:
        return np.append(values, [filler] * self._padding)

    def _unscale(self, scaled: FloatArray) -> FloatArray:
        inner = scaled[: len(self.dimensions)]
        genome = np.clip(self.low + inner * (self.high - self.low), self.low, self.high)
        return np.asarray(genome, dtype=np.float64)
