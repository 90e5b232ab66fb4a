"""CMA-ES (Hansen, arXiv 1604.00772) on the `cma` package, as in arXiv 2403.13187."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.errors import ConfigError
from evomerge.optimizers.base import Optimizer
from evomerge.space import Dimension
from evomerge.types import FloatArray, Observation


class CmaEs(Optimizer):
    """Adapts a normal distribution to the best candidates of each generation.

    Works in coordinates scaled to [0, 1]; bounds are kept by `cma`'s smooth transformation.
    A failed candidate ranks below every other of its generation; a generation without any
    result is passed over. A generation is the first `population` candidates that were told;
    within it the order of telling makes no difference.
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
            sigma: scales all steps. No step is larger than a third of its range.

        Raises:
            ConfigError: for a population below 3 or a sigma that is not positive.
        """
        super().__init__(dimensions, seed)
        import cma

        n = len(self.dimensions)
        if population is None:
            population = 4 + math.floor(3 * math.log(n))
        _check(population, sigma)
        self._population = population
        # cma does not run in one dimension: a second, idle coordinate stands in.
        self._padding = 1 if n == 1 else 0
        width = self.high - self.low
        options: dict[str, Any] = {
            "bounds": [0.0, 1.0],
            "CMA_stds": self._pad(self.step / width, 0.1).tolist(),
            "popsize": self._population,
            "CMA_mirrors": 0,  # they would need each generation in one ask
            "randn": self._randn,
            "seed": float("nan"),  # leave numpy's global generator alone
            "verbose": -9,
            "verb_log": 0,
        }
        start = self._pad((self.start - self.low) / width, 0.5)
        self._cma = cma.CMAEvolutionStrategy(start, sigma, options)
        self._asked = 0
        self._sampled = False
        self._waiting: dict[bytes, deque[tuple[int, FloatArray]]] = defaultdict(deque)
        self._told: list[tuple[int, FloatArray, float | None]] = []

    @property
    def batch(self) -> int:
        """The population."""
        return self._population

    def _ask(self, n: int) -> list[FloatArray]:
        genomes = []
        self._sampled = True
        for scaled in self._cma.ask(number=n):
            genome = self._unscale(scaled)
            self._waiting[genome.tobytes()].append((self._asked, scaled))
            self._asked += 1
            genomes.append(genome)
        return genomes

    def _replace(self, own: FloatArray, recorded: FloatArray) -> None:
        number, _ = self._take(own)
        scaled = self._pad((recorded - self.low) / (self.high - self.low), 0.5)
        self._waiting[recorded.tobytes()].append((number, scaled))

    def _take(self, genome: FloatArray) -> tuple[int, FloatArray]:
        """Ask number and scaled form of a genome that waits for its result."""
        key = np.asarray(genome, np.float64).tobytes()
        taken = self._waiting[key].popleft()
        if not self._waiting[key]:
            del self._waiting[key]
        return taken

    def _tell(self, observations: Sequence[Observation]) -> None:
        for observation in observations:
            number, scaled = self._take(observation.genome)
            value = observation.fitness.values[0] if observation.fitness else None
            self._told.append((number, scaled, value))
        while len(self._told) >= self._population:
            generation = sorted(self._told[: self._population], key=lambda told: told[0])
            self._told = self._told[self._population :]
            values = [v for _, _, v in generation if v is not None]
            if values:
                below = min(values) - 1.0
                losses = [-(below if v is None else v) for _, _, v in generation]
                if not self._sampled:
                    self._cma.ask(number=1)  # cma wants an ask between two tells
                self._cma.tell([x for _, x, _ in generation], losses)
                self._sampled = False

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


def _check(population: Any, sigma: Any) -> None:
    if not isinstance(population, int) or isinstance(population, bool) or population < 3:
        raise ConfigError.of(
            "optimizer.population", repr(population), "an integer of at least 3, or null",
            "Correct it.",
        )  # fmt: skip
    if not isinstance(sigma, int | float) or not 0 < sigma < math.inf:
        raise ConfigError.of("optimizer.sigma", repr(sigma), "a positive number", "Correct it.")
