"""What NSGA-II and NSGA-III share: generations, selection of parents, and variation."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.domain import Domain
from evomerge.optimizers import settings
from evomerge.optimizers.base import Told
from evomerge.optimizers.designs import InitialDesign
from evomerge.seeds import derive
from evomerge.types import Fitness, FloatArray, Observation

IndexArray = NDArray[np.intp]

TRIES = 10
"""How often an unseen genome is looked for before a known one is taken."""


class Survival(Protocol):
    """Chooses who lives on."""

    def __call__(
        self, losses: FloatArray, violations: FloatArray, n: int, rng: np.random.Generator
    ) -> tuple[IndexArray, tuple[FloatArray, ...]]:
        """Chooses at most `n` of `m` candidates.

        Args:
            losses: to be minimised, `m x k`.
            violations: of the constraints, an `m` array; 0 where all are satisfied.
            n: how many live on.
            rng: breaks ties.

        Returns:
            the survivors' indices, and keys that a tournament between two of them compares in
            turn, each an array of one number a survivor; the smaller number wins.
        """


@dataclass(frozen=True)
class Parents:
    """Those that live: `m x n` genomes, `m` fitnesses, and the keys of their tournaments."""

    genomes: FloatArray
    fitnesses: tuple[Fitness, ...]
    keys: tuple[FloatArray, ...]

    def __len__(self) -> int:
        return len(self.fitnesses)

    def winners(self, n: int, rng: np.random.Generator) -> IndexArray:
        """Winners of `n` binary tournaments, in which each takes part about equally often."""
        size = len(self)
        rounds = math.ceil(2 * n / size)
        entrants = np.concatenate([rng.permutation(size) for _ in range(rounds)])[: 2 * n]
        one, two = entrants.reshape(n, 2).T
        lead = np.zeros(n, dtype=np.int64)
        for key in self.keys:
            leads = (key[one] < key[two]).astype(np.int64) - (key[one] > key[two])
            lead = np.where(lead == 0, leads, lead)
        return np.asarray(np.where(lead < 0, two, one))  # a tie: one, whose place was drawn


class Variation:
    """Makes two children of two parents.

    Reals and integers: simulated binary crossover (Deb and Agrawal 1995) and polynomial mutation
    (Deb and Goyal 1996) in coordinates scaled to [0, 1], in pymoo's implementation; integers are
    rounded, and one that was to mutate but rounds to itself moves by one. Choices: uniform
    crossover, and mutation to another choice, each equally likely.
    """

    def __init__(
        self,
        domain: Domain,
        crossover_probability: float,
        crossover_eta: float,
        mutation_probability: float | None,
        mutation_eta: float,
    ) -> None:
        """Checks the settings.

        Args:
            domain: what is searched.
            crossover_probability: of a pair of parents to be crossed.
            crossover_eta: distribution index; the larger, the nearer are children to parents.
            mutation_probability: of each number of a child; None means 1 / n.
            mutation_eta: distribution index; the larger, the smaller are mutations.

        Raises:
            ConfigError: for a probability outside [0, 1] or an index that is not positive.
        """
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM

        self._domain = domain
        self._smooth = ~domain.categorical
        self._crossing = settings.within("crossover_probability", crossover_probability, 0, 1)
        if mutation_probability is None:
            mutation_probability = 1 / len(domain)
        self._mutating = settings.within("mutation_probability", mutation_probability, 0, 1)
        self._sbx = SBX(prob=1.0, eta=settings.positive("crossover_eta", crossover_eta))
        eta = settings.positive("mutation_eta", mutation_eta)
        self._pm = PM(prob=1.0, prob_var=self._mutating, eta=eta)
        self._problem = Problem(n_var=int(self._smooth.sum()), xl=0.0, xu=1.0)

    def children(
        self, first: FloatArray, second: FloatArray, rng: np.random.Generator
    ) -> FloatArray:
        """Genomes of `2m` children of `m` pairs of genomes, each `m x n`."""
        pairs = np.stack([self._domain.to_unit(first), self._domain.to_unit(second)])
        crossed = rng.random((pairs.shape[1],)) < self._crossing
        if crossed.any():
            pairs[:, crossed] = self._cross(pairs[:, crossed], rng)
        return self._mutate(pairs.reshape(-1, pairs.shape[2]), rng)

    def _cross(self, pairs: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Crosses `2 x m x n` points of the unit cube."""
        from pymoo.core.population import Population

        m = pairs.shape[1]
        swapped = self._domain.categorical & (rng.random(pairs.shape[1:]) < 0.5)
        crossed = np.where(swapped, pairs[::-1], pairs)
        if self._smooth.any():
            both = Population.new("X", pairs[:, :, self._smooth].reshape(2 * m, -1))
            couples = np.arange(2 * m).reshape(2, m).T
            made = self._sbx.do(self._problem, both, couples, random_state=rng).get("X")
            crossed[:, :, self._smooth] = made.reshape(2, m, -1)
        return crossed

    def _mutate(self, units: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Genomes of `m x n` points of the unit cube, mutated."""
        from pymoo.core.population import Population

        mutated = units.copy()
        if self._smooth.any():
            some = Population.new("X", units[:, self._smooth])
            made = self._pm.do(self._problem, some, random_state=rng).get("X")
            mutated[:, self._smooth] = made
        genomes = self._domain.from_unit(mutated)
        stuck = (mutated != units) & (genomes == self._domain.from_unit(units))
        chosen = rng.random(units.shape) < self._mutating
        moved = np.where(self._domain.categorical, chosen, stuck & self._domain.whole)
        return move_whole(self._domain, genomes, moved, mutated > units, rng)


def move_whole(
    domain: Domain,
    genomes: FloatArray,
    moved: NDArray[np.bool_],
    upward: NDArray[np.bool_],
    rng: np.random.Generator,
) -> FloatArray:
    """Changes integers by one and choices to another one.

    Args:
        domain: of the genomes.
        genomes: `m x n`.
        moved: which numbers change, `m x n`; none of them real.
        upward: which way an integer goes, `m x n`; one that is at its bound turns round.
        rng: draws the other choice.

    Returns:
        genomes within bounds, `m x n`.
    """
    low, high = domain.low, domain.high
    step = np.where(upward, 1.0, -1.0)
    outside = (genomes + step > high) | (genomes + step < low)
    integers = genomes + np.where(outside, -step, step)
    sizes = np.where(domain.categorical, high - low + 1, 2).astype(np.int64)
    offset = 1 + rng.integers(0, np.maximum(sizes - 1, 1), size=genomes.shape)
    choices = low + np.mod(genomes - low + offset, sizes)
    return domain.snap(np.where(moved, np.where(domain.categorical, choices, integers), genomes))


class GeneticSearch:
    """Runs the generations of a genetic algorithm, whichever way its survivors are chosen.

    The initial design fills the population: its points are asked for as long as there are not
    enough parents. Everything else is bred. No genome is asked for twice while unseen ones are
    found. A generation is the first `population` candidates that were told; within it the order
    of telling makes no difference. With `steady_state` whatever was told since the last ask
    competes with the parents at once.
    """

    def __init__(
        self,
        domain: Domain,
        seed: int,
        rng: np.random.Generator,
        population: int,
        variation: Variation,
        survival: Survival,
        anchors: bool,
        steady_state: bool,
    ) -> None:
        """Starts without parents.

        Args:
            domain: what is searched.
            seed: of the initial design.
            rng: of everything else.
            population: number of parents, and of candidates a generation.
            variation: makes children.
            survival: chooses parents.
            anchors: whether the domain's anchors come first.
            steady_state: whether results count at once.
        """
        self.population = population
        self._domain = domain
        self._rng = rng
        self._variation = variation
        self._survival = survival
        self._steady_state = settings.flag("steady_state", steady_state)
        anchored = settings.flag("anchors", anchors)
        self._design = InitialDesign(domain, derive(seed, "initial population"), anchored)
        self._parents = Parents(np.empty((0, len(domain))), (), ())
        self._children: deque[FloatArray] = deque()
        self._seen: set[bytes] = set()
        self._designed: set[int] = set()  # asks of the design whose results do not count yet
        self._told: list[Told] = []

    @property
    def parents(self) -> Parents:
        """Those who breed the next candidates."""
        return self._parents

    def ask(self, numbers: range) -> list[FloatArray]:
        """Genomes for these asks."""
        if self._steady_state and self._told:
            self._settle(self._told)
            self._told = []
        return [self._next(number) for number in numbers]

    def _next(self, number: int) -> FloatArray:
        wanting = len(self._parents) + len(self._designed) < self.population
        if wanting or len(self._parents) < 2:
            genome = self._draw()
            self._designed.add(number)
        else:
            if not self._children:
                self._children.extend(self._breed())
            genome = self._children.popleft()
        self._seen.add(genome.tobytes())
        return genome

    def _draw(self) -> FloatArray:
        """A genome of the design; an unseen one if that is found."""
        for _ in range(TRIES):
            [genome] = self._design.take(1)
            if genome.tobytes() not in self._seen:
                break
        return self._domain.snap(genome)

    def _breed(self) -> list[FloatArray]:
        """At least one genome, unseen if such are found.

        As many as a generation, so that it makes no difference in which portions they are asked
        for; a steady state, whose parents may change with each result, makes two at a time.
        """
        unseen: dict[bytes, FloatArray] = {}
        size = 2 if self._steady_state else self.population
        pairs = math.ceil(size / 2)
        for _ in range(TRIES):
            chosen = self._parents.winners(2 * pairs, self._rng)
            first, second = self._parents.genomes[chosen.reshape(2, pairs)]
            for genome in self._variation.children(first, second, self._rng):
                if genome.tobytes() not in self._seen:
                    unseen.setdefault(genome.tobytes(), genome)
            if len(unseen) >= size:
                break
        return list(unseen.values())[:size] or [self._draw()]

    def replace(self, recorded: FloatArray) -> None:
        """Hears that a recorded genome stands in for an own one."""
        self._seen.add(recorded.tobytes())

    def tell(self, told: Sequence[Told]) -> None:
        """Learns from checked results."""
        self._told.extend(told)
        while not self._steady_state and len(self._told) >= self.population:
            self._settle(self._told[: self.population])
            self._told = self._told[self.population :]

    def learn(self, observations: Sequence[Observation]) -> None:
        """Makes parents of the best of other studies' results."""
        self._seen.update(o.genome.tobytes() for o in observations)
        results = [(o.genome, o.fitness) for o in observations if o.fitness is not None]
        self._survive(results)

    def _settle(self, told: Sequence[Told]) -> None:
        """Lets results compete with the parents, in the order in which they were asked for."""
        ordered = sorted(told, key=lambda t: t.number)
        self._designed.difference_update(t.number for t in ordered)
        self._survive([(t.genome, t.fitness) for t in ordered if t.fitness is not None])

    def _survive(self, results: Sequence[tuple[FloatArray, Fitness]]) -> None:
        """Chooses new parents; of equal genomes only the first takes part."""
        if not results:
            return
        everyone: dict[bytes, tuple[FloatArray, Fitness]] = {}
        parents = zip(self._parents.genomes, self._parents.fitnesses, strict=True)
        for genome, fitness in (*parents, *results):
            everyone.setdefault(genome.tobytes(), (genome, fitness))
        fitnesses = [fitness for _, fitness in everyone.values()]
        losses = -np.array([f.values for f in fitnesses], dtype=np.float64)
        violations = np.array([f.violation for f in fitnesses], dtype=np.float64)
        alive, keys = self._survival(losses, violations, self.population, self._rng)
        genomes = np.array([genome for genome, _ in everyone.values()])
        self._parents = Parents(genomes[alive], tuple(fitnesses[i] for i in alive), keys)
        self._children.clear()


def split(violations: FloatArray) -> tuple[IndexArray, IndexArray]:
    """Indices of the feasible candidates, and of the others by violation, the earlier first."""
    order = np.argsort(violations, kind="stable")
    feasible = int((violations == 0).sum())
    return np.sort(order[:feasible]), order[feasible:]


def survivors(survival: Any, losses: FloatArray, n: int, rng: np.random.Generator) -> Any:
    """The at most `n` that a pymoo survival chooses among losses `m x k`, a pymoo population.

    Each has its place among the `m` as `place`.
    """
    from pymoo.core.population import Population
    from pymoo.core.problem import Problem

    problem = Problem(n_var=1, n_obj=losses.shape[1])
    everyone = Population.new("F", losses, "place", np.arange(len(losses)))
    return survival.do(problem, everyone, n_survive=n, random_state=rng)
