"""Particle swarm: the common rules, its equation, walls, and the order of its moves."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.optimizers.pso import Pso
from evomerge.optimizers.random import Random
from evomerge.testing.optimizers import OptimizerConformance, domain, observe
from evomerge.types import Fitness, Observation


def box(n):
    return Domain(tuple(Dimension(f"w/{i}/all", -1.0, 1.0, 0.0, 1 / 3) for i in range(n)))


def sphere(genome):
    return -float(((genome - 0.37) ** 2).sum())


def rastrigin(genome):
    x = 5 * genome - 1
    return -float((x**2 - 10 * np.cos(2 * np.pi * x) + 10).sum())


class TestPso(OptimizerConformance):
    def make(self, domain, seed):
        return Pso(domain, seed, particles=6)

    def test_first_particles_are_the_anchors(self):
        made = domain(3)
        assert np.array_equal(Pso(made, 0).ask(5)[:2], made.anchors)

    def test_moves_follow_the_equation(self):
        """Both moments of many coordinates, where only the swarm's best position pulls.

        Each coordinate begins at 0.4 and 0.6 of its range, the latter is better, and the first
        velocity is (u - x) / 2 with uniform u.
        """
        n = 1000
        anchors = tuple(np.full(n, at) for at in (-0.2, 0.2))
        optimizer = Pso(replace(box(n), anchors=anchors), 0, particles=2, max_velocity=1.0)
        first = optimizer.ask(2)
        optimizer.tell([observe(first[0], 0.0), observe(first[1], 1.0)])
        worse, better = ((g - x) / 2 for g, x in zip(optimizer.ask(2), first, strict=True))
        chi, c2 = 0.7298437881283576, 2.05  # 2 / |2 - phi - sqrt(phi^2 - 4 phi)| at phi = 4.1
        assert stats.kstest(better, "uniform", (-0.3 * chi, 0.5 * chi)).pvalue > 1e-3
        deviation = chi * math.sqrt(1 / 48 + (0.2 * c2) ** 2 / 12)
        assert abs(worse.mean() - chi * (0.05 + 0.1 * c2)) < 5 * deviation / math.sqrt(n)
        assert abs(worse.std() - deviation) < 5 * deviation / math.sqrt(2 * n)

    def test_a_swarm_at_its_best_position_comes_to_rest(self):
        """The constriction lets moves die out once all bests coincide."""
        optimizer = Pso(box(3), 1, particles=8)
        genomes = self.drive(optimizer, 250, sphere)
        assert np.ptp(genomes[-8:], axis=0).max() < 1e-6

    @pytest.mark.parametrize("fitness", [sphere, rastrigin])
    @pytest.mark.parametrize("walls", ["absorb", "reflect"])
    def test_beats_random_search(self, fitness, walls):
        """Medians over five seeds at 960 evaluations in six dimensions."""

        def loss(optimizer):
            return -max(map(fitness, self.drive(optimizer, 960 // optimizer.batch, fitness)))

        swarm = np.median([loss(Pso(box(6), seed, walls=walls)) for seed in range(5)])
        control = np.median([loss(Random(box(6), seed)) for seed in range(5)])
        assert swarm < control / (100 if fitness is sphere else 2)

    def test_walls_absorb_or_reflect(self):
        """Towards a corner absorbed particles reach the bounds; reflected ones turn round."""
        genomes = {
            walls: np.array(self.drive(Pso(box(2), 0, walls=walls), 30, lambda g: float(g.sum())))
            for walls in ("absorb", "reflect")
        }
        assert (genomes["absorb"][-16:] == 1.0).mean() > 0.5
        assert (genomes["reflect"] == 1.0).mean() < 0.01
        assert genomes["reflect"][-16:].mean() > 0.9

    def test_moves_are_no_longer_than_the_limit(self):
        optimizer = Pso(box(2), 3, particles=2, max_velocity=0.1)
        places = [optimizer.ask(2)]
        for _ in range(30):
            optimizer.tell([observe(g, sphere(g)) for g in places[-1]])
            places.append(optimizer.ask(2))
        moves = np.abs(np.diff(np.array(places), axis=0))
        assert moves.max() <= 0.2 + 1e-12 and moves.max() > 0.19

    def test_a_particle_moves_as_soon_as_it_is_told(self):
        """Only one particle is ever told; every further ask is its own move."""
        optimizer = Pso(box(2), 0, particles=5, max_velocity=0.01)
        place = optimizer.ask(5)[3]
        for _ in range(20):
            optimizer.tell([observe(place, sphere(place))])
            [moved] = optimizer.ask(1)
            assert 0 < np.abs(moved - place).max() <= 0.02 + 1e-12
            place = moved

    def test_samples_beyond_the_swarm_leave_from_its_particles(self):
        optimizer = Pso(box(2), 0, particles=3, max_velocity=0.01)
        first = optimizer.ask(3)
        further = optimizer.ask(9)
        for i, genome in enumerate(further):
            assert np.abs(genome - first[i % 3]).max() <= 0.02 + 1e-12
        assert len({g.tobytes() for g in further}) == 9

    def test_feasible_positions_lead(self):
        """An infeasible optimum does not draw the swarm, however good it is."""
        made = Domain(box(2).dimensions, constraints=1)
        optimizer = Pso(made, 0)
        for _ in range(60):
            batch = optimizer.ask(16)
            optimizer.tell(
                [Observation(g, Fitness((float(g.sum()),), (0.0,), (float(g[0]),))) for g in batch]
            )
        last = np.median(batch, axis=0)
        assert last[1] > 0.99 and -0.01 < last[0] < 0.01

    def test_learnt_genomes_are_tried_first(self):
        """The best ones, each once, and half of the swarm at most."""
        made = domain(3)
        foreign = Random(made, 4).ask(6)
        optimizer = Pso(made, 0, particles=6)
        told = [observe(g, None if i == 5 else float(i)) for i, g in enumerate(foreign)]
        optimizer.learn([*told, told[4]])
        first = optimizer.ask(6)
        assert np.array_equal(first[:3], [foreign[4], foreign[3], foreign[2]])
        assert np.array_equal(first[3:5], made.anchors)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("particles", 1), ("particles", 4.0), ("cognitive", 0), ("social", -1), ("social", 1.0),
         ("social", math.inf), ("max_velocity", 0), ("max_velocity", 2), ("walls", "bounce")],
    )  # fmt: skip
    def test_wrong_settings(self, key, value):
        with pytest.raises(ConfigError, match=rf"optimizer\.{key}"):
            Pso(box(2), 0, **{key: value})
