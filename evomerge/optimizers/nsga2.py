"""NSGA-II (Deb, Pratap, Agarwal and Meyarivan 2002) on the `pymoo` package."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.domain import Domain
from evomerge.optimizers import settings
from evomerge.optimizers._genetic import GeneticSearch, IndexArray, Variation, split, survivors
from evomerge.optimizers.base import Optimizer, Told
from evomerge.types import FloatArray, Observation


class Nsga2(Optimizer):
    """Breeds a population towards the whole Pareto front, spread by crowding distance.

    Parents and children compete: feasible before infeasible ones, these by their violation;
    feasible ones by the rank of their front, within the last front that fits by crowding
    distance. Failed candidates never become parents; a generation without any result changes
    nothing. A generation is the first `population` candidates that were told; within it the
    order of telling makes no difference.
    """

    multi_objective = True

    def __init__(
        self,
        domain: Domain,
        seed: int,
        population: int = 28,
        crossover_probability: float = 0.9,
        crossover_eta: float = 15.0,
        mutation_probability: float | None = None,
        mutation_eta: float = 20.0,
        anchors: bool = True,
        steady_state: bool = False,
    ) -> None:
        """Starts with the domain's anchors and Sobol points.

        Args:
            domain: what is searched.
            seed: of this optimiser's own generator.
            population: candidates a generation, and points of the front that are kept.
            crossover_probability: of a pair of parents to be crossed.
            crossover_eta: distribution index of the crossover of numbers.
            mutation_probability: of each number of a child; default 1 / n.
            mutation_eta: distribution index of the mutation of numbers.
            anchors: whether the domain's anchors come first.
            steady_state: whether each result competes with the parents at the next ask, not
                with its generation (Nebro and Durillo 2009); then no worker has to wait.

        Raises:
            ConfigError: for a population below 4, a probability outside [0, 1] or an index that
                is not positive.
        """
        super().__init__(domain, seed)
        self._search = GeneticSearch(
            domain,
            seed,
            self.rng,
            settings.whole("population", population, 4),
            Variation(
                domain, crossover_probability, crossover_eta, mutation_probability, mutation_eta
            ),
            crowded,
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


def crowded(
    losses: FloatArray, violations: FloatArray, n: int, rng: np.random.Generator
) -> tuple[IndexArray, tuple[FloatArray, ...]]:
    """Chooses by front and crowding distance; see `_genetic.Survival`.

    Tournaments are decided by violation, then rank, then crowding distance (section III-B).
    """
    from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

    feasible, others = split(violations)
    kept = survivors(RankAndCrowding(), losses[feasible], n, rng)
    others = others[: n - len(kept)]
    alive = np.append(feasible[kept.get("place").astype(np.intp)], others)
    unranked = np.zeros(len(others))
    rank = np.append(kept.get("rank").astype(np.float64), unranked)
    crowding = np.append(kept.get("crowding").astype(np.float64), unranked)
    return alive, (violations[alive], rank, -crowding)
