"""What every optimiser has to do, whatever it believes in."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.optimizers.base import Optimizer
from evomerge.types import Fitness, FloatArray, Observation


def dimensions(count: int) -> tuple[Dimension, ...]:
    """Dimensions with different bounds, starts and steps."""
    return tuple(
        Dimension(f"weight/{i}/all", -1.0 - i, 2.0 + i, 0.5 * i, (3.0 + 2 * i) / 6)
        for i in range(count)
    )


def domain(count: int, objectives: int = 1, constraints: int = 0) -> Domain:
    """A real domain with two anchors: the starts, and every lower bound."""
    made = dimensions(count)
    anchors = tuple(np.array([getattr(d, at) for d in made]) for at in ("start", "low"))
    return Domain(made, objectives, constraints, anchors)


def mixed_domain(objectives: int = 1, constraints: int = 0) -> Domain:
    """Two reals, two integers and a choice."""
    made = (
        Dimension("weight/a/all", -1.0, 2.0, 0.0, 0.5),
        Dimension("weight/b/all", 0.0, 1.0, 0.5, 0.2),
        Dimension("layer/a/all", 0.0, 7.0, 3.0, 1.5, "integer"),
        Dimension("layer/b/all", -2.0, -1.0, -1.0, 0.5, "integer"),
        Dimension("operator/all/all", 0.0, 3.0, 1.0, 1.0, "choice", ("a", "b", "c", "d")),
    )
    return Domain(made, objectives, constraints, (np.array([d.start for d in made]),))


def observe(genome: FloatArray, value: float | None) -> Observation:
    """An observation with one fitness value, or of a failure."""
    if value is None:
        return Observation(genome, None)
    return Observation(genome, Fitness((value,), (0.0,)), item_scores(value))


def item_scores(value: float) -> FloatArray:
    """Scores of six items in (0, 1) that all rise with a value, the harder ones later."""
    if not np.isfinite(value):
        return np.zeros(6)
    return np.asarray(1 / (1 + np.exp(np.clip(np.arange(6.0) - 3.0 - value / 4, -50, 50))))


def answer(domain: Domain, genome: FloatArray, value: float | None) -> Observation:
    """An observation with as many values and constraints as the domain has.

    Further objectives pull to other places; the constraints want small first coordinates.
    """
    if value is None:
        return Observation(genome, None)
    others = [-float(np.abs(genome + k).sum()) for k in range(1, domain.objectives)]
    limits = [float(genome[0]) - 0.5 + k for k in range(domain.constraints)]
    stderr = (0.0,) * domain.objectives
    fitness = Fitness((value, *others), stderr, tuple(limits))
    return Observation(genome, fitness, item_scores(value))


def sphere(genome: FloatArray) -> float:
    """Best at 0.3 in each coordinate."""
    return -float(((np.asarray(genome) - 0.3) ** 2).sum())


class OptimizerConformance:
    """Holds one optimiser to the common rules; inherit it and define `make`.

    Attributes:
        effort: scales the number of generations, for optimisers that take long to propose.
        least: candidates that are asked for at the least, so that an initial design is left
            behind.
    """

    effort = 1.0
    least = 0

    def make(self, domain: Domain, seed: int) -> Optimizer:
        """A fresh optimiser."""
        raise NotImplementedError

    def drive(
        self,
        optimizer: Optimizer,
        generations: int,
        fitness: Callable[[FloatArray], float | None] = sphere,
    ) -> list[FloatArray]:
        """Asks and tells whole batches; returns all genomes."""
        genomes: list[FloatArray] = []
        rounds = max(2, round(generations * self.effort))
        while rounds > 0 or len(genomes) < self.least:
            rounds -= 1
            batch = optimizer.ask(optimizer.batch)
            genomes += batch
            optimizer.tell([answer(optimizer.domain, g, fitness(g)) for g in batch])
        return genomes

    def check_bounds(self, optimizer: Optimizer, genomes: Sequence[FloatArray]) -> None:
        """Checks shape, dtype, finiteness and bounds."""
        for genome in genomes:
            assert genome.shape == (len(optimizer.dimensions),)
            assert genome.dtype == np.float64
            assert np.array_equal(optimizer.domain.snap(genome), genome)

    @pytest.mark.parametrize("count", [1, 2, 5, 100])
    def test_bounds_are_kept_in_any_dimension(self, count: int) -> None:
        optimizer = self.make(domain(count), 0)
        self.check_bounds(optimizer, self.drive(optimizer, 6))

    def test_bounds_are_kept_where_the_best_lies_outside(self) -> None:
        optimizer = self.make(domain(3), 0)
        genomes = self.drive(optimizer, 40, lambda g: float(g.sum()))
        self.check_bounds(optimizer, genomes)

    def test_seed_decides(self) -> None:
        first, again, other = (self.make(domain(3), seed) for seed in (4, 4, 5))
        one = self.drive(first, 5)
        assert np.array_equal(one, self.drive(again, 5))
        assert not np.array_equal(one, self.drive(other, 5))

    def test_global_random_states_are_neither_used_nor_changed(self) -> None:
        expected = self.drive(self.make(domain(3), 1), 5)
        random.seed(99)
        np.random.seed(99)
        torch.manual_seed(99)
        states = random.getstate(), _numpy_state(), torch.get_rng_state()
        genomes = self.drive(self.make(domain(3), 1), 5)
        assert np.array_equal(genomes, expected)
        assert random.getstate() == states[0]
        assert _numpy_state() == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])

    def test_replay_resumes(self) -> None:
        """A second optimiser that is asked and told the same goes on the same."""
        sizes = [3, 7, 1, 12, 5]
        optimizer, resumed = self.make(domain(4), 2), self.make(domain(4), 2)
        for i, size in enumerate(sizes):
            batch = optimizer.ask(size)
            told = [observe(g, sphere(g) if (i + j) % 4 else None) for j, g in enumerate(batch)]
            optimizer.tell(told)
            journal = [observe(np.array(o.genome.tolist()), _value(o)) for o in told]
            assert np.array_equal(resumed.ask(size), batch)
            resumed.tell(journal)
        assert np.array_equal(optimizer.ask(6), resumed.ask(6))

    def test_order_of_tells_within_a_batch_is_irrelevant(self) -> None:
        """Also where candidates tie, and where they are told one by one."""

        def steps(genome: FloatArray) -> float:
            return round(2 * sphere(genome)) / 2

        ordered, shuffled = self.make(domain(3), 3), self.make(domain(3), 3)
        rng = np.random.default_rng(0)
        for _ in range(8):
            batch = ordered.ask(ordered.batch)
            assert np.array_equal(shuffled.ask(shuffled.batch), batch)
            observations = [observe(g, steps(g)) for g in batch]
            ordered.tell(observations)
            for i in rng.permutation(len(batch)):
                shuffled.tell([observations[i]])

    def test_candidates_may_be_asked_one_by_one(self) -> None:
        optimizer = self.make(domain(1), 0)
        for _ in range(30):
            [genome] = optimizer.ask(1)
            optimizer.tell([observe(genome, sphere(genome))])
        self.check_bounds(optimizer, optimizer.ask(2))

    def test_more_may_be_asked_than_a_batch(self) -> None:
        optimizer = self.make(domain(2), 0)
        for count in (1, 2, 3, 4):
            batch = optimizer.ask(count * optimizer.batch + 1)
            self.check_bounds(optimizer, batch)
            for i in range(0, len(batch), optimizer.batch):
                part = batch[i : i + optimizer.batch]
                optimizer.tell([observe(g, sphere(g)) for g in part])
        batch = optimizer.ask(5 * optimizer.batch)
        optimizer.tell([observe(g, sphere(g)) for g in batch])
        self.check_bounds(optimizer, optimizer.ask(3))

    def test_some_candidates_fail(self) -> None:
        optimizer = self.make(domain(3), 0)
        genomes = self.drive(optimizer, 15, lambda g: None if g[0] > 0.2 else sphere(g))
        self.check_bounds(optimizer, genomes)

    def test_whole_generations_fail(self) -> None:
        optimizer = self.make(domain(3), 0)
        self.check_bounds(optimizer, self.drive(optimizer, 5, lambda g: None))
        self.check_bounds(optimizer, self.drive(optimizer, 5))

    def test_constant_fitness(self) -> None:
        optimizer = self.make(domain(3), 0)
        self.check_bounds(optimizer, self.drive(optimizer, 100, lambda g: 0.5))

    def test_equal_genomes_can_be_told_apart_by_number(self) -> None:
        """Bounds so near that only two genomes exist."""
        low = 1.0
        high = float(np.nextafter(low, 2))
        narrow = Dimension("weight/a/all", low, high, low, high - low)
        optimizer = self.make(Domain((narrow,)), 0)
        for _ in range(4):
            batch = optimizer.ask(6)
            optimizer.tell([observe(g, 0.0) for g in batch])

    def test_genomes_that_were_not_asked_for_are_refused(self) -> None:
        optimizer = self.make(domain(2), 0)
        [genome] = optimizer.ask(1)
        with pytest.raises(ValueError, match="not asked for"):
            optimizer.tell([observe(genome + 1e-9, 0.0)])
        optimizer.tell([observe(genome, 0.0)])
        with pytest.raises(ValueError, match="told before"):
            optimizer.tell([observe(genome, 0.0)])

    @pytest.mark.parametrize("values", [(float("nan"),), (float("inf"),), (-float("inf"),), ()])
    def test_nan_is_never_let_in(self, values: tuple[float, ...]) -> None:
        """And a refused tell leaves everything as it was."""
        optimizer, other = self.make(domain(2), 0), self.make(domain(2), 0)
        batch = optimizer.ask(6)
        other.ask(6)
        good = [observe(g, sphere(g)) for g in batch]
        with pytest.raises(ValueError, match="finite"):
            optimizer.tell(
                [*good[:5], Observation(batch[5], Fitness(values, values), item_scores(0.0))]
            )
        optimizer.tell(good)
        other.tell(good)
        assert np.array_equal(optimizer.ask(6), other.ask(6))

    @pytest.mark.parametrize("count", [0, -1])
    def test_a_positive_number_has_to_be_asked_for(self, count: int) -> None:
        with pytest.raises(ValueError, match="positive"):
            self.make(domain(2), 0).ask(count)

    def test_no_dimension_is_refused(self) -> None:
        with pytest.raises(ValueError, match="dimension"):
            self.make(Domain(()), 0)

    def test_integers_and_choices_are_whole(self) -> None:
        optimizer = self.make(mixed_domain(), 0)
        genomes = self.drive(optimizer, 10)
        self.check_bounds(optimizer, genomes)
        assert len({g[2] for g in genomes}) > 1

    @pytest.mark.parametrize("constraints", [1, 3])
    def test_constraints_are_taken(self, constraints: int) -> None:
        optimizer = self.make(domain(3, constraints=constraints), 0)
        self.check_bounds(optimizer, self.drive(optimizer, 8))

    def test_nothing_is_feasible(self) -> None:
        optimizer = self.make(domain(2, constraints=1), 0)
        for _ in range(3):
            batch = optimizer.ask(optimizer.batch)
            told = [
                Observation(g, Fitness((1.0,), (0.0,), (1.0 + abs(g[0]),)), item_scores(1.0))
                for g in batch
            ]
            optimizer.tell(told)
        self.check_bounds(optimizer, optimizer.ask(2))

    def test_another_number_of_values_is_refused(self) -> None:
        optimizer = self.make(domain(2, constraints=1), 0)
        [genome] = optimizer.ask(1)
        for values, limits in (((1.0, 1.0), (0.0,)), ((1.0,), ()), ((1.0,), (float("nan"),))):
            with pytest.raises(ValueError, match="finite"):
                optimizer.tell(
                    [Observation(genome, Fitness(values, values, limits), item_scores(0.0))]
                )
        optimizer.tell([Observation(genome, Fitness((1.0,), (0.0,), (0.0,)), item_scores(1.0))])

    def test_replay_with_candidates_at_work(self) -> None:
        """Recorded asks and tells in their order lead to the same next genomes."""
        optimizer, resumed = self.make(domain(3), 5), self.make(domain(3), 5)
        first = optimizer.ask(5)
        optimizer.tell([observe(g, sphere(g)) for g in first[1:3]])
        second = optimizer.ask(4)
        optimizer.tell([observe(g, sphere(g)) for g in (second[0], first[4], first[0])])
        third = optimizer.ask(3)
        assert resumed.replay(first)
        resumed.tell([observe(g, sphere(g)) for g in first[1:3]])
        assert resumed.replay(second)
        resumed.tell([observe(g, sphere(g)) for g in (second[0], first[4], first[0])])
        assert np.array_equal(resumed.ask(3), third)

    @pytest.mark.parametrize("mixed", [False, True])
    def test_replay_of_genomes_that_differ_in_the_last_bit(self, mixed: bool) -> None:
        """What another processor recorded is taken, told and gone on from."""
        made = mixed_domain() if mixed else domain(3)
        optimizer, resumed = self.make(made, 6), self.make(made, 6)
        exact = True
        for _ in range(3):
            batch = optimizer.ask(optimizer.batch)
            optimizer.tell([observe(g, sphere(g)) for g in batch])
            for genome in batch[::2]:
                genome[0] = np.clip(np.nextafter(genome[0], 0.4), made.low[0], made.high[0])
            exact &= resumed.replay(batch)
            resumed.tell([observe(g, sphere(g)) for g in batch])
        adopts = type(resumed)._adopt is not Optimizer._adopt
        assert exact == adopts
        own, other = np.array(optimizer.ask(4)), np.array(resumed.ask(4))
        self.check_bounds(resumed, list(other))
        if not adopts:
            np.testing.assert_allclose(own, other, rtol=1e-6, atol=1e-6)

    def test_learning_comes_before_asking(self) -> None:
        optimizer = self.make(domain(2), 0)
        [genome] = optimizer.ask(1)
        with pytest.raises(ValueError, match="before the first ask"):
            optimizer.learn([observe(genome, 1.0)])

    def test_learns_from_another_study(self) -> None:
        """Deterministically, failures included, and without waiting for those genomes."""
        foreign = [g for g in self.make(domain(3), 8).ask(9)]
        told = [observe(g, None if i == 4 else sphere(g)) for i, g in enumerate(foreign)]
        one, two = self.make(domain(3), 1), self.make(domain(3), 1)
        one.learn(told)
        two.learn(told)
        assert np.array_equal(self.drive(one, 3), self.drive(two, 3))
        with pytest.raises(ValueError, match="not asked for"):
            self.make(domain(3), 1).tell(told[:1])

    def test_foreign_genomes_outside_the_domain_are_refused(self) -> None:
        optimizer = self.make(domain(2), 0)
        for genome in (np.array([99.0, 0.0]), np.array([0.0]), np.array([np.nan, 0.0])):
            with pytest.raises(ValueError, match="learn"):
                optimizer.learn([observe(genome, 1.0)])

    def test_several_objectives_are_taken_or_refused(self) -> None:
        made = domain(2, objectives=2)
        if self.make(domain(2), 0).multi_objective:
            self.check_bounds(self.make(made, 0), self.drive(self.make(made, 0), 3))
        else:
            with pytest.raises(ConfigError, match="scalarize"):
                self.make(made, 0)

    def test_recommendation_lies_within_bounds(self) -> None:
        optimizer = self.make(domain(3), 0)
        self.drive(optimizer, 5)
        genome = optimizer.recommend()
        if genome is not None:
            self.check_bounds(optimizer, [genome])


class MultiObjectiveConformance(OptimizerConformance):
    """Further rules for optimisers that take several objectives."""

    @pytest.mark.parametrize(("objectives", "constraints"), [(2, 0), (3, 0), (2, 2), (4, 1)])
    def test_several_objectives(self, objectives: int, constraints: int) -> None:
        made = domain(3, objectives, constraints)
        one, two = self.make(made, 3), self.make(made, 3)
        genomes = self.drive(one, 8, lambda g: None if g[1] > 2.0 else sphere(g))
        self.check_bounds(one, genomes)
        assert np.array_equal(
            genomes, self.drive(two, 8, lambda g: None if g[1] > 2.0 else sphere(g))
        )

    def test_several_objectives_over_a_mixed_domain(self) -> None:
        optimizer = self.make(mixed_domain(3, 1), 0)
        self.check_bounds(optimizer, self.drive(optimizer, 6))

    def test_equal_objectives(self) -> None:
        """A front of one point, and values that never change."""
        optimizer = self.make(domain(2, 2), 0)
        for _ in range(4):
            batch = optimizer.ask(optimizer.batch)
            optimizer.tell(
                [Observation(g, Fitness((1.0, 1.0), (0.0, 0.0)), item_scores(1.0)) for g in batch]
            )
        self.check_bounds(optimizer, optimizer.ask(2))


def _value(observation: Observation) -> float | None:
    return observation.fitness.values[0] if observation.fitness else None


def _numpy_state() -> list[int]:
    state: Any = np.random.get_state()
    return [*map(int, state[1]), int(state[2])]
