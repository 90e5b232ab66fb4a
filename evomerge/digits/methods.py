"""The searches that the digits experiment compares, behind one small interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge import mating
from evomerge.digits.elites import CellElites
from evomerge.digits.records import Plan
from evomerge.domain import Dimension, Domain
from evomerge.mating import Mating
from evomerge.optimizers.m2n2 import M2N2
from evomerge.optimizers.sep_cma_es import SepCmaEs
from evomerge.types import Fitness, FloatArray, Observation
from evomerge.vectors import Vector, VectorMembers

MUTATION = 0.01
"""Standard deviation of the noise on every child from scratch; nothing from trained seeds."""

POPULATION = 20


@dataclass(frozen=True)
class Rules:
    """What an M2N2 population goes by: exponent of competition, attraction, split."""

    alpha: float = 1.0
    attraction: bool = True
    split: bool = True


POPULATIONS = {
    "m2n2": Rules(),
    "no_attraction": Rules(attraction=False),
    "no_split": Rules(split=False),
    "alpha0": Rules(alpha=0.0),
    "ga": Rules(0.0, False, False),
    "ga_split": Rules(0.0, False, True),
}
METHODS = {
    "m2n2": "M2N2 with competition, attraction and split",
    "no_attraction": "both parents by their share of the items",
    "no_split": "one share for all parameters",
    "alpha0": "no competition for items",
    "ga": "none of the three: parents by accuracy, one share, the least accurate dies",
    "ga_split": "the same with a split, as the released code's ga has it",
    "map_elites": "10 x 10 cells of accuracy on even and on odd digits, children as in m2n2",
    "sep_cma_es": "CMA-ES with a diagonal covariance, from the first network",
}
"""What the methods are."""


class Search(ABC):
    """Proposes networks as vectors, hears what they solve, and knows the best one alive."""

    @abstractmethod
    def propose(self, most: int) -> list[Vector]:
        """At most so many networks, float32 vectors; none once the search is at its end."""

    @abstractmethod
    def hear(self, at: int, correct: NDArray[np.bool_]) -> None:
        """Takes what number `at` of the last proposal solves, an `n` array, in order."""

    @abstractmethod
    def best(self) -> tuple[float, Vector]:
        """Accuracy on the training images and vector of the most accurate member alive."""


class MatedSearch(Search):
    """Breeds members by matings."""

    def __init__(
        self, optimizer: M2N2 | CellElites, members: VectorMembers, batch: int = 1
    ) -> None:
        """Takes an optimiser of matings and the members that they make."""
        self._optimizer = optimizer
        self._members = members
        self._batch = batch
        self._genomes: list[FloatArray] = []
        self._accuracy: dict[int, float] = {}

    def propose(self, most: int) -> list[Vector]:
        self._genomes = self._optimizer.ask(min(most, self._batch))
        return [self._members.make(Mating.from_genome(g)) for g in self._genomes]

    def hear(self, at: int, correct: NDArray[np.bool_]) -> None:
        genome = self._genomes[at]
        fitness = _fitness(correct)
        self._accuracy[int(genome[0])] = fitness.values[0]
        self._optimizer.tell([Observation(genome, fitness, correct.astype(np.float64))])
        later = (int(g[0]) for g in self._genomes[at + 1 :])
        self._members.keep({*map(int, self._optimizer.archive), *later})
        if len(self._accuracy) > 1000:  # seldom, since it costs more than all else here
            alive = {n: a for n, a in self._accuracy.items() if n in self._members}
            self._accuracy = alive

    def best(self) -> tuple[float, Vector]:
        alive = sorted(int(number) for number in self._optimizer.archive)
        number = max(alive, key=self._accuracy.__getitem__)  # of equal ones the oldest
        return self._accuracy[number], self._members[number]


class DirectSearch(Search):
    """Searches the parameters themselves; a generation at a time."""

    def __init__(self, optimizer: SepCmaEs) -> None:
        """Takes an optimiser over all parameters."""
        self._optimizer = optimizer
        self._genomes: list[FloatArray] = []
        self._best: tuple[float, Vector] = (-1.0, np.zeros(0, np.float32))

    def propose(self, most: int) -> list[Vector]:
        wanted = min(most, self._optimizer.batch)
        self._genomes = self._optimizer.ask(wanted) if wanted else []
        return [g.astype(np.float32) for g in self._genomes]

    def hear(self, at: int, correct: NDArray[np.bool_]) -> None:
        genome = self._genomes[at]
        fitness = _fitness(correct)
        if fitness.values[0] > self._best[0]:
            self._best = fitness.values[0], genome.astype(np.float32)
        self._optimizer.tell([Observation(genome, fitness)])

    def best(self) -> tuple[float, Vector]:
        return self._best


def make(
    plan: Plan, seeds: tuple[Vector, Vector], labels: NDArray[np.int64], batch: int = 1
) -> Search:
    """The search of a plan.

    Args:
        plan: what to do.
        seeds: the two networks that it begins with.
        labels: of the training images, an `n` array.
        batch: matings that are proposed at a time.
    """
    if plan.method == "sep_cma_es":
        return DirectSearch(SepCmaEs(box(seeds[0]), plan.seed, POPULATION))
    mutation = MUTATION if plan.start == "scratch" else 0.0
    members = VectorMembers(seeds, plan.angle, mutation=mutation, seed=plan.seed)
    matings = mating.domain(len(seeds))
    optimizer: M2N2 | CellElites
    if plan.method == "map_elites":
        optimizer = CellElites(matings, plan.seed, labels % 2 == 1, batch=batch)
    else:
        rules = POPULATIONS[plan.method]
        optimizer = M2N2(
            matings, plan.seed, POPULATION, rules.alpha, rules.attraction, rules.split, batch
        )
    return MatedSearch(optimizer, members, batch)


def box(start: Vector) -> Domain:
    """All parameters, from one network on, with the mutation's step."""
    bound = max(2.0, 2 * float(np.abs(start).max()))
    return Domain(
        tuple(
            Dimension(f"parameter/all/{i}", -bound, bound, float(value), MUTATION)
            for i, value in enumerate(start)
        )
    )


def _fitness(correct: NDArray[np.bool_]) -> Fitness:
    """Accuracy and its standard error."""
    share = float(np.count_nonzero(correct)) / len(correct)
    return Fitness((share,), ((share * (1 - share) / len(correct)) ** 0.5,))
