"""NSGA-III (Deb and Jain 2014; with constraints Jain and Deb 2014) on the `pymoo` package."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from evomerge.domain import Domain
from evomerge.optimizers import settings
from evomerge.optimizers._genetic import GeneticSearch, IndexArray, Variation, split, survivors
from evomerge.optimizers.base import Optimizer, Told
from evomerge.types import FloatArray, Observation


class Nsga3(Optimizer):
    """Breeds a population towards the Pareto front, spread by reference directions.

    Made for three objectives and more, where crowding distance says little. Parents and children
    compete: feasible before infeasible ones, these by their violation; feasible ones by the rank
    of their front, within the last front that fits by the direction they are nearest to, the
    emptiest direction first. Feasible parents mate at random. Failed candidates never become
    parents; a generation without any result changes nothing. A generation is the first
    `population` candidates that were told; within it the order of telling makes no difference.
    """

    multi_objective = True

    def __init__(
        self,
        domain: Domain,
        seed: int,
        population: int = 36,
        crossover_probability: float = 1.0,
        crossover_eta: float = 30.0,
        mutation_probability: float | None = None,
        mutation_eta: float = 20.0,
        anchors: bool = True,
        steady_state: bool = False,
    ) -> None:
        """Starts with the domain's anchors and Sobol points.

        Args:
            domain: what is searched.
            seed: of this optimiser's own generator.
            population: candidates a generation; the reference directions are the largest
                simplex lattice (Das and Dennis 1998) of at most so many points.
            crossover_probability: of a pair of parents to be crossed.
            crossover_eta: distribution index of the crossover of numbers.
            mutation_probability: of each number of a child; default 1 / n.
            mutation_eta: distribution index of the mutation of numbers.
            anchors: whether the domain's anchors come first.
            steady_state: whether each result competes with the parents at the next ask, not
                with its generation; then no worker has to wait.

        Raises:
            ConfigError: for a population below 4 or below the number of objectives, a
                probability outside [0, 1] or an index that is not positive.
        """
        super().__init__(domain, seed)
        least = max(4, domain.objectives)  # one direction an objective is the smallest lattice
        size = settings.whole("population", population, least)
        self._search = GeneticSearch(
            domain,
            seed,
            self.rng,
            size,
            Variation(
                domain, crossover_probability, crossover_eta, mutation_probability, mutation_eta
            ),
            Niches(directions(size, domain.objectives)),
            anchors,
            steady_state,
        )
        self.asynchronous = steady_state

    @property
    def batch(self) -> int:
        """The population."""
        return self._search.population

    def _ask(self, numbers: range) -> list[FloatArray]:
        return self._search.ask(numbers)

    def _replace(self, number: int, recorded: FloatArray) -> None:
        self._search.replace(recorded)

    def _tell(self, told: Sequence[Told]) -> None:
        self._search.tell(told)

    def _learn(self, observations: Sequence[Observation]) -> None:
        self._search.learn(observations)


def directions(most: int, objectives: int) -> FloatArray:
    """Reference directions `h x objectives` with `objectives <= h <= most`; each sums to 1."""
    from pymoo.util.reference_direction import (
        UniformReferenceDirectionFactory,
        get_partition_closest_to_points,
    )

    partitions = get_partition_closest_to_points(most, objectives)
    made = UniformReferenceDirectionFactory(objectives, n_partitions=partitions).do()
    return np.asarray(made, dtype=np.float64)


class Niches:
    """Chooses by front and reference direction; see `_genetic.Survival`.

    Remembers the best and worst losses and the extreme points of all generations, by which
    losses are normalised.
    """

    def __init__(self, directions: FloatArray) -> None:
        """Takes the reference directions, `h x k`."""
        from pymoo.algorithms.moo.nsga3 import ReferenceDirectionSurvival

        self._survival = ReferenceDirectionSurvival(directions)
        self._unit = np.ones(directions.shape[1])

    def __call__(
        self, losses: FloatArray, violations: FloatArray, n: int, rng: np.random.Generator
    ) -> tuple[IndexArray, tuple[FloatArray, ...]]:
        """Tournaments are decided by violation alone."""
        feasible, others = split(violations)
        if len(feasible):
            self._change_unit(np.ptp(losses[feasible], axis=0))
        with warnings.catch_warnings():  # pymoo changes the filters of the whole process
            kept = survivors(self._survival, losses[feasible] / self._unit, n, rng)
        alive = np.append(feasible[kept.get("place").astype(np.intp)], others[: n - len(kept)])
        return alive, (violations[alive],)

    def _change_unit(self, spread: FloatArray) -> None:
        """Measures losses in units of their spread, and what is remembered too.

        pymoo takes differences below 1e-3 for none, which would be all of them for losses that
        differ by as little.
        """
        unit = np.where(spread > 0, spread, self._unit)
        norm = self._survival.norm
        for name in ("ideal_point", "worst_point", "extreme_points"):
            if (point := getattr(norm, name)) is not None:
                setattr(norm, name, point * (self._unit / unit))
        self._unit = unit
