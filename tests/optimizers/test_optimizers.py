"""CMA-ES and random search: the common rules, and what each promises by itself."""

import math

import numpy as np
import pytest
from scipy import stats

from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.optimizers.cma_es import CmaEs
from evomerge.optimizers.random import Random
from evomerge.testing.optimizers import (
    MultiObjectiveConformance,
    OptimizerConformance,
    domain,
    observe,
)

FAR = Domain(
    (  # bounds many steps away from the start
        Dimension("weight/a/all", -10.0, 10.0, 1.0, 0.5),
        Dimension("weight/b/all", 0.0, 100.0, 40.0, 3.0),
        Dimension("weight/c/all", -1.0, 1.0, 0.0, 0.05),
    )
)


class TestRandom(MultiObjectiveConformance):
    def make(self, domain, seed):
        return Random(domain, seed, batch=7)

    def test_genomes_are_uniform(self):
        genomes = np.array(self.make(domain(3), 0).ask(5000))
        for column, d in zip(genomes.T, domain(3).dimensions, strict=True):
            assert stats.kstest(column, "uniform", (d.low, d.high - d.low)).pvalue > 1e-3

    @pytest.mark.parametrize("batch", [0, -1, 2.5, "all", True])
    def test_wrong_batch(self, batch):
        with pytest.raises(ConfigError, match=r"optimizer\.batch"):
            Random(FAR, 0, batch=batch)


class TestCmaEs(OptimizerConformance):
    def make(self, domain, seed):
        return CmaEs(domain, seed)

    @pytest.mark.parametrize("n", [1, 2, 3, 28, 100])
    def test_default_population(self, n):
        assert self.make(domain(n), 0).batch == 4 + math.floor(3 * math.log(n))

    @pytest.mark.parametrize("sigma", [1.0, 0.5])
    def test_first_samples_lie_around_start_with_std_step(self, sigma):
        """Within 5 standard errors of mean and deviation, and normal."""
        n = 4000
        genomes = np.array(CmaEs(FAR, 11, sigma=sigma).ask(n))
        for column, d in zip(genomes.T, FAR.dimensions, strict=True):
            step = d.step * sigma
            assert abs(column.mean() - d.start) < 5 * step / math.sqrt(n)
            assert abs(column.std() - step) < 5 * step / math.sqrt(2 * n)
            assert stats.kstest(column, "norm", (d.start, step)).pvalue > 1e-3
        correlation = np.corrcoef(genomes.T) - np.eye(3)
        assert np.abs(correlation).max() < 5 / math.sqrt(n)

    def test_one_dimension_starts_with_its_step_too(self):
        genomes = np.array(CmaEs(Domain(FAR.dimensions[:1]), 3).ask(4000))[:, 0]
        assert stats.kstest(genomes, "norm", (1.0, 0.5)).pvalue > 1e-3

    @pytest.mark.parametrize("rotated", [False, True])
    def test_beats_random_search_at_equal_evaluations(self, rotated):
        """Medians over five seeds on a sphere and a rotated ellipsoid (condition 1e4)."""
        n, evaluations = 6, 360
        space = Domain(tuple(Dimension(f"w/{i}/all", -1.0, 1.0, 0.0, 1 / 3) for i in range(n)))
        turn = np.linalg.qr(np.random.default_rng(5).standard_normal((n, n)))[0]
        scales = np.logspace(0, 4, n) if rotated else np.ones(n)

        def loss(genome):
            return float((scales * (turn @ (genome - 0.37)) ** 2).sum())

        def best(optimizer):
            return min(loss(g) for g in self.drive(optimizer, evaluations // 9, lambda g: -loss(g)))

        cma = np.median([best(CmaEs(space, seed, population=9)) for seed in range(5)])
        control = np.median([best(Random(space, seed, batch=9)) for seed in range(5)])
        assert cma < (control / 5 if rotated else control / 100)

    def test_recommends_the_mean_after_a_generation(self):
        optimizer = self.make(FAR, 0)
        assert optimizer.recommend() is None
        self.drive(optimizer, 60, lambda g: -float(np.square((g - [2, 50, 0.3]) / 10).sum()))
        recommended = optimizer.recommend()
        assert np.abs((recommended - [2, 50, 0.3]) / 10).max() < 0.02

    def test_failures_rank_below_every_result(self):
        """Failing in a half-space steers away from it as very low fitness does."""
        failing, punished = self.make(domain(3), 6), self.make(domain(3), 6)
        one = self.drive(failing, 10, lambda g: None if g[0] < -0.3 else float(g.sum()))
        two = self.drive(punished, 10, lambda g: -1e6 if g[0] < -0.3 else float(g.sum()))
        np.testing.assert_allclose(one, two, rtol=1e-9)

    def test_a_generation_without_results_changes_nothing(self):
        """What is sampled next is distributed around the same start."""
        optimizer = CmaEs(FAR, 1, population=8)
        self.drive(optimizer, 20, lambda g: None)
        assert optimizer.recommend() is None
        genomes = np.array(optimizer.ask(2000))
        assert stats.kstest(genomes[:, 0], "norm", (1.0, 0.5)).pvalue > 1e-3

    def test_order_within_the_population_only(self):
        """Tells of one generation may come in two halves, in any order."""
        one, two = self.make(FAR, 2), self.make(FAR, 2)
        batch, _ = one.ask(one.batch), two.ask(two.batch)
        observations = [observe(g, float(g[0])) for g in batch]
        one.tell(observations)
        two.tell(observations[4:])
        two.tell(observations[:4])
        assert np.array_equal(one.ask(5), two.ask(5))

    @pytest.mark.parametrize("population", [0, 1, 2, -3, 6.0, "ten", True])
    def test_wrong_population(self, population):
        with pytest.raises(ConfigError, match=r"optimizer\.population"):
            CmaEs(FAR, 0, population=population)

    @pytest.mark.parametrize("sigma", [0, -1.0, math.nan, math.inf, "big"])
    def test_wrong_sigma(self, sigma):
        with pytest.raises(ConfigError, match=r"optimizer\.sigma"):
            CmaEs(FAR, 0, sigma=sigma)
