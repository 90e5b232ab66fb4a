"""Particle swarm optimisation (Kennedy & Eberhart 1995) with constriction coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.domain import Domain
from evomerge.optimizers import settings
from evomerge.optimizers.base import Optimizer, Told
from evomerge.optimizers.designs import InitialDesign
from evomerge.optimizers.ranking import losses
from evomerge.types import Fitness, FloatArray, Observation

WALLS = ("absorb", "reflect")


@dataclass
class _Particle:
    """One member of the swarm, in coordinates of the unit cube.

    Attributes:
        position: where its latest known result is of.
        velocity: the move that led there.
        taken: number of the ask of that result.
        asked: number of its latest ask.
        waiting: how many of its asks have no result yet.
        best: its best position so far, None before its first success.
        fitness: of `best`.
    """

    position: FloatArray
    velocity: FloatArray
    taken: int = -1
    asked: int = -1
    waiting: int = 0
    best: FloatArray | None = None
    fitness: Fitness | None = None


@dataclass(frozen=True)
class _Move:
    """A proposed move of one particle."""

    particle: int
    position: FloatArray
    velocity: FloatArray


class Pso(Optimizer):
    """Moves particles towards their own best position and the swarm's.

    A velocity becomes chi (v + c1 r1 (own best - x) + c2 r2 (swarm's best - x)) with r1, r2
    uniform in [0, 1] in each dimension, phi = c1 + c2 > 4 and chi = 2 / (phi - 2 +
    sqrt(phi (phi - 4))) (Clerc & Kennedy, "The particle swarm - explosion, stability, and
    convergence in a multidimensional complex space", 2002). Works in coordinates scaled to
    [0, 1]; integers and choices are cells of equal width. Initial positions are the best
    genomes that were learnt (at most half of the swarm), then the domain's anchors, then Sobol
    points; a velocity leads half way to a uniform random point as long as nothing has succeeded.

    There are no generations: a particle moves again once its result is known. Asked for more
    than there are particles at rest, it draws further samples of the next moves of those that
    were asked for least recently, each shortened by random factors. Results are taken in the
    order of their ask numbers when the next genome is asked for. A feasible position is better
    than one that breaks constraints, those are in the order of their violation, and a failure
    is never a best position.
    """

    asynchronous = True

    def __init__(
        self,
        domain: Domain,
        seed: int,
        particles: int = 16,
        cognitive: float = 2.05,
        social: float = 2.05,
        max_velocity: float = 0.5,
        walls: str = "absorb",
    ) -> None:
        """Places the swarm.

        Args:
            domain: what is searched.
            seed: of this optimiser's own generator.
            particles: size of the swarm.
            cognitive: c1, the pull of a particle's own best position.
            social: c2, the pull of the swarm's best position.
            max_velocity: longest move in a dimension, as a share of its range.
            walls: what a bound does to a particle: absorb (it stops there) or reflect.

        Raises:
            ConfigError: for a swarm below 2, pulls that are not positive or whose sum is not
                above 4, a velocity outside [0.001, 1] or an unknown kind of walls.
        """
        super().__init__(domain, seed)
        self._count = settings.whole("particles", particles, 2)
        self._c1 = settings.positive("cognitive", cognitive)
        self._c2 = settings.positive("social", social)
        phi = settings.within("cognitive + optimizer.social", self._c1 + self._c2, 4.0001, 100)
        self._chi = 2 / (phi - 2 + math.sqrt(phi * (phi - 4)))
        self._fastest = settings.within("max_velocity", max_velocity, 1e-3, 1)
        self._walls = settings.one_of("walls", walls, WALLS)
        self._design = InitialDesign(domain, int(self.rng.integers(2**63)))
        self._swarm: list[_Particle] = []
        self._best: tuple[FloatArray, Fitness] | None = None
        self._moves: dict[int, _Move] = {}
        self._results: list[Told] = []
        self._learnt: list[Observation] = []

    @property
    def batch(self) -> int:
        """The number of particles."""
        return self._count

    def _ask(self, numbers: range) -> list[FloatArray]:
        self._take_results()
        return [self._propose(number) for number in numbers]

    def _propose(self, number: int) -> FloatArray:
        if len(self._swarm) < self._count:
            return self._place(number)
        order = [(p.waiting, p.asked) for p in self._swarm]
        chosen = order.index(min(order))
        particle = self._swarm[chosen]
        position, velocity = self._step(particle)
        particle.asked = number
        particle.waiting += 1
        self._moves[number] = _Move(chosen, position, velocity)
        return self.domain.from_unit(position)

    def _place(self, number: int) -> FloatArray:
        """Adds the next particle."""
        first = self._promising()[len(self._swarm) : self._count // 2]
        genome = first[0] if first else self._design.take(1)[0]
        position = self.domain.to_unit(genome)
        velocity = self._random_velocity(position)
        self._moves[number] = _Move(len(self._swarm), position, velocity)
        self._swarm.append(_Particle(position, velocity, asked=number, waiting=1))
        return genome

    def _step(self, particle: _Particle) -> tuple[FloatArray, FloatArray]:
        """Next position and velocity of a particle."""
        r0, r1, r2 = self.rng.random((3, len(self.domain)))
        x = particle.position
        velocity = particle.velocity.copy()
        if self._best is None:
            velocity = self._random_velocity(x) / self._chi
        if particle.best is not None:
            velocity += self._c1 * r1 * (particle.best - x)
        if self._best is not None:
            velocity += self._c2 * r2 * (self._best[0] - x)
        velocity = self._limit(self._chi * velocity) * (r0 if particle.waiting else 1.0)
        reached = x + velocity
        inside = np.clip(reached, 0.0, 1.0)
        hit = reached != inside
        if self._walls == "absorb":
            return inside, np.where(hit, 0.0, velocity)
        return np.clip(2 * inside - reached, 0.0, 1.0), np.where(hit, -velocity, velocity)

    def _random_velocity(self, position: FloatArray) -> FloatArray:
        return self._limit((self.rng.random(len(self.domain)) - position) / 2)

    def _limit(self, velocity: FloatArray) -> FloatArray:
        return np.asarray(np.clip(velocity, -self._fastest, self._fastest))

    def _replace(self, number: int, recorded: FloatArray) -> None:
        self._moves[number] = replace(self._moves[number], position=self.domain.to_unit(recorded))

    def _tell(self, told: Sequence[Told]) -> None:
        self._results.extend(told)

    def _take_results(self) -> None:
        """Moves the particles to where results have come from, in the order of the asks."""
        for told in sorted(self._results, key=lambda t: t.number):
            move = self._moves.pop(told.number)
            particle = self._swarm[move.particle]
            particle.waiting -= 1
            if told.number > particle.taken:
                particle.taken = told.number
                particle.position, particle.velocity = move.position, move.velocity
            if told.fitness is None:
                continue
            if _better(told.fitness, particle.fitness):
                particle.best, particle.fitness = move.position, told.fitness
            if _better(told.fitness, self._best[1] if self._best else None):
                self._best = move.position, told.fitness
        self._results = []

    def _learn(self, observations: Sequence[Observation]) -> None:
        self._learnt.extend(observations)

    def _promising(self) -> list[FloatArray]:
        """Learnt genomes that did not fail, each once, the best first."""
        known = [o for o in self._learnt if o.fitness is not None]
        order = np.argsort(losses([o.fitness for o in known]), kind="stable")
        return list({known[i].genome.tobytes(): known[i].genome for i in order}.values())


def _better(fitness: Fitness, other: Fitness | None) -> bool:
    new, old = losses([fitness, other])
    return bool(new < old)
