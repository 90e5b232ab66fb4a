"""CMA-ES (Hansen, arXiv 1604.00772) on the `cma` package, as in arXiv 2403.13187."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np

from evomerge.domain import Domain
from evomerge.optimizers import settings
from evomerge.optimizers.base import Optimizer, Told
from evomerge.optimizers.ranking import losses
from evomerge.types import Fitness, FloatArray, Observation

_ROUNDING = 1e-9  # of a range: what other processors may make of one sample


class CmaEs(Optimizer):
    """Adapts a normal distribution to the best candidates of each generation.

    Works in coordinates scaled to [0, 1]; bounds are kept by `cma`'s smooth transformation.
    A failed candidate ranks below every other of its generation; a generation without any
    result is passed over. A generation is the first `population` candidates that were told;
    within it the order of telling makes no difference.

    Restarts (IPOP; Auger & Hansen 2005, "A restart CMA evolution strategy with increasing
    population size"): a run that meets a stop criterion of `cma` is followed by one with a
    larger population from a uniform random point. Results that were asked for before a restart
    and come after it are dropped.

    Elites: the first places of each generation go to the best genomes of the run so far, which
    are evaluated anew. A genome is worth the mean of all its evaluations, so that a lucky one
    does not lead for long where items rotate. Elites enter the update as injected solutions
    (Hansen, arXiv 1110.4181).

    Integers and choices are cells of equal width; neighbouring cells of a choice are taken to
    be alike though their order means nothing. As in CMA-ES with margin (Hamano et al., arXiv
    2205.13482) no cell holds the search for good: the standard deviation stays so large that a
    mean in the middle of a cell leaves it with probability 1 / (n population), and a mean in an
    outermost cell stays so near to its inner edge that it leaves with half of that.

    Warm start: the mean begins at the best feasible genome that was learnt. Its standard
    deviation in each dimension is the root mean square distance from there of the best quarter
    of the feasible ones (at least two), no less than a tenth of the domain's step and no more
    than the step. Learnt fitness serves for nothing else, since it may be of other items.
    """

    diagonal: ClassVar[bool] = False
    """Whether the covariance matrix is kept diagonal."""

    def __init__(
        self,
        domain: Domain,
        seed: int,
        population: int | None = None,
        sigma: float = 1.0,
        restarts: int = 0,
        growth: float = 2.0,
        elites: int = 0,
    ) -> None:
        """Starts at the dimensions' `start` with their `step` as standard deviation.

        Args:
            domain: what is searched.
            seed: of this optimiser's own generator.
            population: candidates a generation; default 4 + floor(3 ln n).
            sigma: scales all steps. No step is larger than a third of its range.
            restarts: how often it begins anew at most.
            growth: factor of the population at a restart.
            elites: genomes that each generation evaluates anew, at most half of it.

        Raises:
            ConfigError: for a population below 3, a sigma that is not positive, a negative
                number of restarts, a growth below 1 or too many elites.
        """
        super().__init__(domain, seed)
        if population is None:
            population = 4 + math.floor(3 * math.log(len(domain)))
        self._population = settings.whole("population", population, 3)
        self._sigma = settings.positive("sigma", sigma)
        self._restarts = settings.whole("restarts", restarts, 0)
        self._growth = settings.within("growth", growth, 1, 100)
        settings.within("elites", settings.whole("elites", elites, 0), 0, population // 2)
        self._wanted_elites = elites
        # cma does not run in one dimension: a second, idle coordinate stands in.
        self._padding = 1 if len(domain) == 1 else 0
        self._width = domain.high - domain.low + domain.whole
        self._next = 0
        self._learnt: list[Observation] = []
        self._ended: list[tuple[Fitness | None, FloatArray]] = []
        self._begin(domain.to_unit(domain.start), domain.step / self._width)

    def _begin(self, start: FloatArray, step: FloatArray) -> None:
        """Starts a run at a point of the unit cube with these standard deviations."""
        import cma

        deviations = self._least_deviations()
        options: dict[str, Any] = {
            "bounds": [0.0, 1.0],
            "CMA_diagonal": self.diagonal,
            "CMA_stds": np.maximum(self._pad(step, 0.1), deviations / self._sigma).tolist(),
            "minstd": deviations.tolist(),
            "popsize": self._population,
            "CMA_mirrors": 0,  # they would need each generation in one ask
            "randn": self._randn,
            "seed": float("nan"),  # leave numpy's global generator alone
            "signals_filename": "",
            "verbose": -9,
            "verb_log": 0,
        }
        self._cma = cma.CMAEvolutionStrategy(self._pad(start, 0.5), self._sigma, options)
        self._celled = self._pad(np.where(self.domain.whole, self._width, 0.0), 0.0) > 1
        cell = self._pad(1 / np.maximum(self._width, 1.0), 1.0)
        self._bounds, self._edges = (  # in coordinates without bounds
            [self._cma.boundary_handler.inverse(at) for at in (low, 1.0 - low)]
            for low in (np.zeros_like(cell), np.where(self._celled, cell, 0.0))
        )
        self._first = self._next
        self._sampled = False
        self._middle: Fitness | None = None
        self._points: dict[int, FloatArray] = {}
        self._told: list[Told] = []
        self._records: dict[bytes, _Record] = {}
        self._elites: list[_Record] = []

    @property
    def batch(self) -> int:
        """The population."""
        return self._population

    def _ask(self, numbers: range) -> list[FloatArray]:
        self._next = numbers.stop
        places = {number: (number - self._first) % self._population for number in numbers}
        elites = {n: self._elites[p] for n, p in places.items() if p < len(self._elites)}
        fresh = [number for number in numbers if number not in elites]
        points = self._cma.ask(number=len(fresh)) if fresh else []
        self._sampled = self._sampled or bool(fresh)
        self._points.update({n: record.point for n, record in elites.items()})
        self._points.update(zip(fresh, points, strict=True))
        return [elites[n].genome if n in elites else self._genome(self._points[n]) for n in numbers]

    def _replace(self, number: int, recorded: FloatArray) -> None:
        point = np.array(self._points[number])
        own = self.domain.snap(self._genome(point))
        differ = np.flatnonzero(np.abs(own - recorded) > _ROUNDING * self._width)
        if len(differ):  # cma takes any other point than its own as an injected one
            point[differ] = self.domain.to_unit(recorded)[differ]
            self._points[number] = point

    def _tell(self, told: Sequence[Told]) -> None:
        self._told.extend(t for t in told if t.number >= self._first)
        while len(self._told) >= self._population:
            generation = sorted(self._told[: self._population], key=lambda t: t.number)
            self._told = self._told[self._population :]
            self._update(generation)
            if self._restarts and self._cma.countiter and self._cma.stop():
                self._restart()

    def _update(self, generation: Sequence[Told]) -> None:
        """Moves the distribution towards the best of a generation."""
        points = [self._points.pop(t.number) for t in generation]
        fitnesses = [t.fitness for t in generation]
        if self._wanted_elites:
            fitnesses = self._average(generation, points)
        if all(f is None for f in fitnesses):
            return
        if not self._sampled:
            self._cma.ask(number=1)  # cma wants an ask between two tells
        ranks = losses(fitnesses)
        self._cma.tell(points, ranks.tolist())
        if self._celled.any():
            self._keep_margin()
        self._middle = fitnesses[np.argsort(ranks, kind="stable")[len(ranks) // 2]]
        self._sampled = False

    def _keep_margin(self) -> None:
        """Moves the mean back to where it can leave the outermost cells."""
        reach = self._quantile * np.asarray(self._cma.stds)
        low = np.maximum(self._bounds[0], self._edges[0] - reach)
        high = np.minimum(self._bounds[1], self._edges[1] + reach)
        clipped = np.clip(self._cma.mean, low, high)
        self._cma.mean = np.where(self._celled, clipped, self._cma.mean)

    def _average(
        self, generation: Sequence[Told], points: Sequence[FloatArray]
    ) -> list[Fitness | None]:
        """Means of all that is known of each genome of a generation; chooses the elites."""
        keys = [t.genome.tobytes() for t in generation]
        for key, told, point in zip(keys, generation, points, strict=True):
            self._records.setdefault(key, _Record(point, told.genome)).add(told.fitness)
        records = [r for r in self._records.values() if r.mean is not None]
        best = np.argsort(losses([r.mean for r in records]), kind="stable")
        self._elites = [records[i] for i in best[: self._wanted_elites]]
        means = [self._records[key].mean for key in keys]
        self._records = {k: r for k, r in self._records.items() if r.mean is not None}
        if len(best) > 20 * self._population:  # those below would not be asked for again
            kept = {id(records[i]) for i in best[: 10 * self._population]}
            self._records = {k: r for k, r in self._records.items() if id(r) in kept}
        return means

    def _restart(self) -> None:
        """Begins anew at a random point with a larger population."""
        self._ended.append((self._middle, self._mean))
        self._restarts -= 1
        self._population = round(self._population * self._growth)
        self._begin(self.rng.random(len(self.domain)), self.domain.step / self._width)

    def _learn(self, observations: Sequence[Observation]) -> None:
        self._learnt.extend(observations)
        feasible = [o for o in self._learnt if o.fitness is not None and o.fitness.feasible]
        if not feasible:
            return
        best = np.argsort(losses([o.fitness for o in feasible]), kind="stable")
        quarter = best[: max(2, math.ceil(len(feasible) / 4))]
        points = self.domain.to_unit(np.array([feasible[i].genome for i in quarter]))
        step = self.domain.step / self._width
        spread = np.sqrt(np.square(points[1:] - points[0]).mean(0)) if len(points) > 1 else step
        self._begin(points[0], np.clip(spread, step / 10, step))

    def recommend(self) -> FloatArray | None:
        """The distribution's mean, once it has learnt from a generation.

        After restarts that of the run whose last generation has the best median.
        """
        runs = list(self._ended)
        if self._cma.countiter > 0:
            runs.append((self._middle, self._mean))
        if not runs:
            return None
        return runs[int(np.argmin(losses([middle for middle, _ in runs])))][1]

    @property
    def _mean(self) -> FloatArray:
        return self.domain.snap(self._genome(np.asarray(self._cma.result.xfavorite)))

    @property
    def _quantile(self) -> float:
        """Of the standard normal, exceeded on either side with chance 1 / (n population)."""
        return NormalDist().inv_cdf(1 - 0.5 / (len(self.domain) * self._population))

    def _least_deviations(self) -> FloatArray:
        """0 for reals; for cells what lets a mean in the middle leave, in units of the cube."""
        half = np.where(self.domain.whole, 0.5 / self._width, 0.0)
        return self._pad(half / self._quantile, 0.0)

    def _randn(self, *shape: int) -> FloatArray:
        return self.rng.standard_normal(shape)

    def _pad(self, values: FloatArray, filler: float) -> FloatArray:
        return np.append(values, [filler] * self._padding)

    def _genome(self, point: FloatArray) -> FloatArray:
        return self.domain.from_unit(point[: len(self.domain)])


class _Record:
    """Everything known of one genome.

    Attributes:
        point: where it lies, in coordinates of the unit cube.
        genome: itself, as it was asked for.
        mean: of all evaluations that did not fail; None if there is none.
    """

    def __init__(self, point: FloatArray, genome: FloatArray) -> None:
        self.point = point
        self.genome = genome
        self.mean: Fitness | None = None
        self._evaluations: list[Fitness] = []

    def add(self, fitness: Fitness | None) -> None:
        """Takes an evaluation; a failure says nothing."""
        if fitness is None:
            return
        self._evaluations.append(fitness)
        values, constraints = (
            np.mean([getattr(f, part) for f in self._evaluations], axis=0).tolist()
            for part in ("values", "constraints")
        )
        squares = np.square([f.stderr for f in self._evaluations])
        errors = (np.sqrt(squares.sum(axis=0)) / len(squares)).tolist()
        self.mean = Fitness(tuple(values), tuple(errors), tuple(constraints))
