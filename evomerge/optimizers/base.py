"""What every optimiser has in common: checked ask and tell."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from evomerge.domain import Domain
from evomerge.errors import ConfigError
from evomerge.types import Fitness, FloatArray, Observation


@dataclass(frozen=True)
class Told:
    """A result of a genome that was asked for; `number` counts the asks from 0."""

    number: int
    genome: FloatArray
    fitness: Fitness | None
    scores: FloatArray | None = None


class Optimizer(ABC):
    """Proposes genomes and learns from their fitness; always maximises.

    Owns its random generator; the same seed and the same observations give the same genomes.
    A study resumes by replaying `ask` and `tell`.

    Attributes:
        multi_objective: whether it takes more than one objective.
        asynchronous: whether its proposals take candidates at work into account, so that a
            free worker need not wait until a whole generation was told; then `batch` is the
            number of candidates that are kept at work at any time.
        uses_distance: whether it reads the domain's `distance`, which costs a pass over items.
        uses_item_scores: whether results have to carry the score of each item.
        mates: whether it takes a domain of matings (`Domain.seeds`).
    """

    multi_objective: ClassVar[bool] = False
    asynchronous: bool = False
    uses_distance: ClassVar[bool] = False
    uses_item_scores: ClassVar[bool] = False
    mates: ClassVar[bool] = False

    @classmethod
    def learns(cls) -> bool:
        """Whether results that it did not ask for change what it proposes."""
        return cls._learn is not Optimizer._learn

    def __init__(self, domain: Domain, seed: int) -> None:
        """Sets the domain and the random generator.

        Args:
            domain: what is searched.
            seed: of this optimiser's own generator.

        Raises:
            ConfigError: for more objectives than this optimiser takes.
        """
        if not domain.dimensions:
            raise ValueError("an optimizer needs at least one dimension")
        if domain.seeds and not self.mates:
            raise ConfigError.of(
                "optimizer", f"{type(self).__name__} and a space whose genomes are matings",
                "an optimizer that chooses parents among earlier candidates",
                "Use optimizer=m2n2 (or random), or another space.",
            )  # fmt: skip
        if domain.objectives > 1 and not self.multi_objective:
            raise ConfigError.of(
                "optimizer", f"{type(self).__name__} and {domain.objectives} objectives",
                "an optimizer for several objectives, or one objective",
                "Use nsga2, nsga3, tpe, gp, mm_mo, map, bayesian_map, nested_map, m2n2, "
                "map_elites, random or sobol; or make one objective of them with "
                "scalarize=weighted_sum or scalarize=chebyshev.",
            )  # fmt: skip
        self.domain = domain
        self.dimensions = domain.dimensions
        self.rng = np.random.Generator(np.random.PCG64(seed))
        self._asked = 0
        self._items: int | None = None
        self._open: dict[bytes, deque[int]] = defaultdict(deque)

    @property
    @abstractmethod
    def batch(self) -> int:
        """How many candidates it likes to ask for at a time; 0 once it has no more to ask."""

    @abstractmethod
    def _ask(self, numbers: range) -> list[FloatArray]:
        """Draws a genome for each ask number; those outside the domain are snapped to it."""

    @abstractmethod
    def _tell(self, told: Sequence[Told]) -> None:
        """Learns from checked results."""

    def ask(self, n: int) -> list[FloatArray]:
        """Proposes `n` genomes, each an array of `len(dimensions)` numbers within bounds.

        Raises:
            ValueError: if `n` is not positive.
        """
        if n < 1:
            raise ValueError(f"ask({n}): expected a positive number of candidates")
        genomes = [self.domain.snap(g) for g in self._ask(range(self._asked, self._asked + n))]
        self._await(genomes)
        return genomes

    def replay(self, recorded: Sequence[FloatArray]) -> bool:
        """Asks again for genomes that were recorded, and goes on from the recorded ones.

        Returns:
            whether its own proposals are the recorded ones to the last bit. They may differ on
            another processor, whose linear algebra rounds in another way.
        """
        genomes = [np.asarray(g, dtype=np.float64) for g in recorded]
        numbers = range(self._asked, self._asked + len(genomes))
        if self._adopt(numbers, genomes):
            self._await(genomes)
            return True
        own = [self.domain.snap(g) for g in self._ask(numbers)]
        same = [np.array_equal(a, b) for a, b in zip(own, genomes, strict=True)]
        for number, genome, equal in zip(numbers, genomes, same, strict=True):
            if not equal:
                self._replace(number, genome)
        self._await(genomes)
        return all(same)

    def _await(self, genomes: Sequence[FloatArray]) -> None:
        """Numbers genomes that wait for their results from now on."""
        for genome in genomes:
            self._open[genome.tobytes()].append(self._asked)
            self._asked += 1

    def _adopt(self, numbers: range, recorded: Sequence[FloatArray]) -> bool:
        """Takes genomes as asked for without computing them; False if it has to compute.

        For optimisers whose proposals are functions of the seed, the number of the proposal
        and what was told, and cost too much to be computed again.
        """
        return False

    def _replace(self, number: int, recorded: FloatArray) -> None:  # noqa: B027
        """Hears that a recorded genome stands in for an own proposal."""

    def tell(self, observations: Sequence[Observation]) -> None:
        """Takes the results of genomes that were asked for, in any order.

        A failed candidate has fitness None. Of equal genomes the one asked for first is told
        first.

        Raises:
            ValueError: for a genome that is not waiting for a result, for another number of
                values or constraints than the domain has, and for NaN or infinity; nothing is
                learnt from any of the observations then.
        """
        taken: dict[bytes, int] = defaultdict(int)
        told = []
        for observation in observations:
            genome = np.array(observation.genome, dtype=np.float64)  # the caller's may change
            key = genome.tobytes()
            waiting = self._open.get(key, ())
            if taken[key] >= len(waiting):
                raise ValueError("tell: this genome was not asked for, or was told before")
            self._check_fitness("tell", observation)
            scores = self._item_scores(observation)
            told.append(Told(waiting[taken[key]], genome, observation.fitness, scores))
            taken[key] += 1
        for key, count in taken.items():
            for _ in range(count):
                self._open[key].popleft()
            if not self._open[key]:
                del self._open[key]
        self._tell(told)

    def learn(self, observations: Sequence[Observation]) -> None:
        """Takes results that it did not ask for, such as those of another study.

        Raises:
            ValueError: after the first `ask`, for genomes outside the domain, and as in `tell`.
        """
        if self._asked:
            raise ValueError("learn: call it before the first ask")
        for observation in observations:
            genome = np.asarray(observation.genome, dtype=np.float64)
            if genome.shape != self.domain.low.shape or not np.isfinite(genome).all():
                raise ValueError(f"learn: expected a genome of {len(self.dimensions)} numbers")
            if not np.array_equal(self.domain.snap(genome), genome):
                raise ValueError("learn: a genome outside the domain")
            self._check_fitness("learn", observation)
        self._learn(observations)

    def _learn(self, observations: Sequence[Observation]) -> None:  # noqa: B027
        """Learns from checked observations that were not asked for."""

    def recommend(self) -> FloatArray | None:
        """A genome worth a final look though it was never asked for, or None."""
        return None

    def _item_scores(self, observation: Observation) -> FloatArray | None:
        """The item scores of a result, checked if this optimiser reads them."""
        if not self.uses_item_scores or observation.fitness is None:
            return None
        if observation.scores is None:
            raise ValueError("tell: no item scores; this optimizer needs them")
        scores = np.array(observation.scores, dtype=np.float64)
        count = self._items if self._items is not None else len(scores)
        if scores.shape != (count,) or not count or not np.isfinite(scores).all():
            raise ValueError(f"tell: item scores {scores.shape}; expected {count} finite numbers")
        if scores.min() < 0:
            raise ValueError(f"tell: an item score of {scores.min():g}; expected at least 0")
        self._items = count
        return scores

    def _check_fitness(self, verb: str, observation: Observation) -> None:
        fitness = observation.fitness
        if fitness is None:
            return
        wanted = self.domain.objectives, self.domain.constraints
        for what, numbers, count in zip(
            ("values", "constraints"), (fitness.values, fitness.constraints), wanted, strict=True
        ):
            if len(numbers) != count or not all(map(math.isfinite, numbers)):
                raise ValueError(f"{verb}: {what} {numbers}; expected {count} finite numbers")
