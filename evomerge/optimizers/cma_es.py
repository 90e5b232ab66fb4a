"""CMA-ES (Hansen, arXiv 1604.00772) on the `cma` package, as in arXiv 2403.13187."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.domain import Domain
from evomerge.errors import ConfigError
from evomerge.optimizers.base import Optimizer, Told
from evomerge.optimizers.ranking import losses
from evomerge.types import FloatArray


class CmaEs(Optimizer):
    """Adapts a normal distribution to the best candidates of each generation.

    Works in coordinates scaled to [0, 1]; bounds are kept by `cma`'s smooth transformation.
    A failed candidate ranks below every other of its generation; a generation without any
    result is passed over. A generation is the first `population` candidates that were told;
    within it the order of telling makes no difference.
    """

    def __init__(
        self,
        domain: Domain,
        seed: int,
        population: int | None = None,
        sigma: float = 1.0,
    ) -> None:
        """Starts at the dimensions' `start` with their `step` as standard deviation.

        Args:
            domain: what is searched.
            seed: of this optimiser's own generator.
            population: candidates a generation; default 4 + floor(3 ln n).
            sigma: scales all steps. No step is larger than a third of its range.

        Raises:
            ConfigError: for a population below 3 or a sigma that is not positive.
        """
        super().__init__(domain, seed)
        import cma

        n = len(self.dimensions)
        if population is None:
            population = 4 + math.floor(3 * math.log(n))
        _check(population, sigma)
        self._population = population
        # cma does not run in one dimension: a second, idle coordinate stands in.
        self._padding = 1 if n == 1 else 0
        width = self.domain.high - self.domain.low + self.domain.whole
        options: dict[str, Any] = {
            "bounds": [0.0, 1.0],
            "CMA_stds": self._pad(self.domain.step / width, 0.1).tolist(),
            "popsize": self._population,
            "CMA_mirrors": 0,  # they would need each generation in one ask
            "randn": self._randn,
            "seed": float("nan"),  # leave numpy's global generator alone
            "verbose": -9,
            "verb_log": 0,
        }
        start = self._pad(self.domain.to_unit(self.domain.start), 0.5)
        self._cma = cma.CMAEvolutionStrategy(start, sigma, options)
        self._sampled = False
        self._points: dict[int, FloatArray] = {}
        self._told: list[Told] = []

    @property
    def batch(self) -> int:
        """The population."""
        return self._population

    def _ask(self, numbers: range) -> list[FloatArray]:
        self._sampled = True
        points = self._cma.ask(number=len(numbers))
        self._points.update(zip(numbers, points, strict=True))
        return [self._genome(point) for point in points]

    def _replace(self, number: int, recorded: FloatArray) -> None:
        self._points[number] = self._pad(self.domain.to_unit(recorded), 0.5)

    def _tell(self, told: Sequence[Told]) -> None:
        self._told.extend(told)
        while len(self._told) >= self._population:
            generation = sorted(self._told[: self._population], key=lambda t: t.number)
            self._told = self._told[self._population :]
            points = [self._points.pop(t.number) for t in generation]
            fitnesses = [t.fitness for t in generation]
            if any(f is not None for f in fitnesses):
                if not self._sampled:
                    self._cma.ask(number=1)  # cma wants an ask between two tells
                self._cma.tell(points, losses(fitnesses).tolist())
                self._sampled = False

    def recommend(self) -> FloatArray | None:
        """The distribution's mean, once it has learnt from a generation."""
        if self._cma.countiter == 0:
            return None
        return self.domain.snap(self._genome(np.asarray(self._cma.result.xfavorite)))

    def _randn(self, *shape: int) -> FloatArray:
        return self.rng.standard_normal(shape)

    def _pad(self, values: FloatArray, filler: float) -> FloatArray:
        return np.append(values, [filler] * self._padding)

    def _genome(self, point: FloatArray) -> FloatArray:
        return self.domain.from_unit(point[: len(self.domain)])


def _check(population: Any, sigma: Any) -> None:
    if not isinstance(population, int) or isinstance(population, bool) or population < 3:
        raise ConfigError.of(
            "optimizer.population", repr(population), "an integer of at least 3, or null",
            "Correct it.",
        )  # fmt: skip
    if not isinstance(sigma, int | float) or not 0 < sigma < math.inf:
        raise ConfigError.of("optimizer.sigma", repr(sigma), "a positive number", "Correct it.")
