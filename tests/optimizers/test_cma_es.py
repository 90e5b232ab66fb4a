"""CMA-ES, full and separable: the common rules, and what each promises by itself."""

import math

import numpy as np
import pytest
from scipy import stats

from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.optimizers.cma_es import CmaEs
from evomerge.optimizers.random import Random
from evomerge.optimizers.sep_cma_es import SepCmaEs
from evomerge.testing.optimizers import OptimizerConformance, domain, observe
from evomerge.types import Fitness, Observation

FAR = Domain(
    (  # bounds many steps away from the start
        Dimension("weight/a/all", -10.0, 10.0, 1.0, 0.5),
        Dimension("weight/b/all", 0.0, 100.0, 40.0, 3.0),
        Dimension("weight/c/all", -1.0, 1.0, 0.0, 0.05),
    )
)


def box(n, start=0.0, step=1 / 3):
    return Domain(tuple(Dimension(f"w/{i}/all", -1.0, 1.0, start, step) for i in range(n)))


def drive(optimizer, evaluations, fitness):
    """All genomes of whole batches up to so many evaluations."""
    genomes = []
    while len(genomes) < evaluations:
        batch = optimizer.ask(optimizer.batch)
        optimizer.tell([observe(g, fitness(g)) for g in batch])
        genomes += batch
    return genomes[:evaluations]


def sphere(genome):
    return -float(((genome - 0.37) ** 2).sum())


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
        space = box(n)
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

    @pytest.mark.parametrize(
        ("key", "value"),
        [("restarts", -1), ("restarts", 1.0), ("growth", 0.5), ("growth", "x"), ("elites", 4),
         ("elites", -1), ("elites", 0.5)],
    )  # fmt: skip
    def test_wrong_settings(self, key, value):
        with pytest.raises(ConfigError, match=rf"optimizer\.{key}"):
            CmaEs(FAR, 0, **{"population": 7, key: value})


class TestCmaEsWithRestartsAndElites(OptimizerConformance):
    def make(self, domain, seed):
        return CmaEs(domain, seed, restarts=3, elites=2)


class TestSepCmaEs(OptimizerConformance):
    def make(self, domain, seed):
        return SepCmaEs(domain, seed)

    def test_beats_the_full_matrix_on_a_separable_ellipsoid(self):
        """60 dimensions, condition 1e4, 3000 evaluations, each of two seeds."""
        scales = np.logspace(0, 4, 60)

        def fitness(genome):
            return -float((scales * (genome - 0.2) ** 2).sum())

        def losses(kind):
            runs = (drive(kind(box(60), seed), 3000, fitness) for seed in range(2))
            return [-max(map(fitness, run)) for run in runs]

        assert max(losses(SepCmaEs)) < min(losses(CmaEs)) / 5

    def test_keeps_the_matrix_diagonal(self):
        """Where the best genomes lie on a diagonal, the samples stay uncorrelated."""

        def ridge(genome):
            return -float(100 * (genome[0] - genome[1]) ** 2 + (genome.sum() - 0.5) ** 2)

        correlations = []
        for kind in (SepCmaEs, CmaEs):
            optimizer = kind(box(2), 0, population=12)
            drive(optimizer, 144, ridge)
            genomes = np.array(optimizer.ask(4000))
            correlations.append(abs(np.corrcoef(genomes.T)[0, 1]))
        assert correlations[0] < 0.1 and correlations[1] > 0.3


class TestRestarts:
    @staticmethod
    def funnels(genome):
        """The start lies in the funnel of a local optimum, worth 0.2 less."""
        near, far = float(((genome + 0.5) ** 2).sum()), float(((genome - 0.6) ** 2).sum())
        return -min(far, 0.2 + near)

    def test_leave_a_local_optimum(self):
        """Medians over three seeds at equal evaluations."""

        def best(restarts):
            made = box(2, start=-0.5, step=0.2)
            runs = [drive(CmaEs(made, s, restarts=restarts), 2000, self.funnels) for s in range(3)]
            return np.median([max(map(self.funnels, run)) for run in runs])

        assert best(0) == pytest.approx(-0.2, abs=1e-6)
        assert best(9) == pytest.approx(0.0, abs=1e-6)

    def test_the_population_grows_so_often_and_no_more(self):
        optimizer = CmaEs(box(2), 0, population=6, restarts=2, growth=1.5)
        sizes = []
        for _ in range(40):
            sizes.append(optimizer.batch)
            drive(optimizer, optimizer.batch, lambda g: 0.5)
        assert list(dict.fromkeys(sizes)) == [6, 9, 14]

    def test_recommends_the_mean_of_the_best_run(self):
        optimizer = CmaEs(box(2, start=-0.5, step=0.2), 1, restarts=9)
        drive(optimizer, 4000, self.funnels)
        assert optimizer.batch > 8
        np.testing.assert_allclose(optimizer.recommend(), 0.6, atol=1e-3)

    def test_results_from_before_a_restart_are_dropped(self):
        """What came too late changes nothing."""
        one, two = (CmaEs(box(2), 3, population=6, restarts=1) for _ in range(2))
        late, _ = (o.ask(2) for o in (one, two))
        for optimizer in (one, two):
            while optimizer.batch == 6:
                drive(optimizer, 6, lambda g: 0.5)
        one.tell([observe(g, 9.0) for g in late])
        for _ in range(3):
            batch = one.ask(one.batch)
            assert np.array_equal(batch, two.ask(two.batch))
            for optimizer in (one, two):
                optimizer.tell([observe(g, sphere(g)) for g in batch])


class TestElites:
    def test_the_best_are_asked_again_by_their_mean(self):
        """A genome that was lucky once loses its place."""
        optimizer = CmaEs(FAR, 0, population=8, elites=2)
        first = optimizer.ask(8)
        optimizer.tell([observe(g, float(i)) for i, g in enumerate(first)])
        second = optimizer.ask(8)
        assert np.array_equal(second[:2], [first[7], first[6]])
        optimizer.tell([observe(g, -10.0 if i == 0 else 0.0) for i, g in enumerate(second)])
        third = optimizer.ask(8)  # means: 7 and -10 give -1.5; 6 and 0 give 3; 5 is next
        assert np.array_equal(third[:2], [first[5], first[4]])

    def test_a_failed_elite_keeps_what_it_was_worth(self):
        optimizer = CmaEs(FAR, 0, population=8, elites=1)
        first = optimizer.ask(8)
        optimizer.tell([observe(g, float(i)) for i, g in enumerate(first)])
        second = optimizer.ask(8)
        optimizer.tell([observe(g, None if i == 0 else 0.0) for i, g in enumerate(second)])
        assert np.array_equal(optimizer.ask(1)[0], first[7])

    @pytest.mark.parametrize(("second", "stays"), [(0.5, True), (1.5, False)])
    def test_constraints_are_averaged_too(self, second, stays):
        """A genome whose constraint is -1 at first is feasible on average up to 1."""
        optimizer = CmaEs(domain(2, constraints=1), 0, population=4, elites=1)
        first = optimizer.ask(4)
        limits = (-1.0, 0.2, 0.3, 0.4)
        optimizer.tell([self._limited(g, c) for g, c in zip(first, limits, strict=True)])
        again = optimizer.ask(4)
        assert np.array_equal(again[0], first[0])
        optimizer.tell([self._limited(g, second) for g in again])
        assert np.array_equal(optimizer.ask(1)[0], first[0 if stays else 1])

    @staticmethod
    def _limited(genome, limit):
        return Observation(genome, Fitness((0.0,), (0.0,), (limit,)))

    def test_improve_what_is_recommended_under_noise(self):
        """Noise as large as 40% of the start's loss; medians over 15 seeds."""

        def loss(elites, seed):
            rng = np.random.default_rng(seed + 100)
            optimizer = CmaEs(box(4), seed, population=10, elites=elites)
            drive(optimizer, 400, lambda g: sphere(g) + 0.2 * rng.standard_normal())
            return -sphere(optimizer.recommend())

        plain, elitist = (np.median([loss(e, s) for s in range(15)]) for e in (0, 4))
        assert elitist < plain


class TestCells:
    """Integers and choices."""

    KINDS = ("integer", "choice")

    @staticmethod
    def cells(kind, count, high=7.0, start=0.0):
        choices = tuple(map(str, range(int(high) + 1))) if kind == "choice" else ()
        return Domain(
            tuple(
                Dimension(f"d/{i}/all", 0.0, high, start, 1.0, kind, choices) for i in range(count)
            )
        )

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("high", [1.0, 7.0])
    def test_no_cell_is_frozen(self, kind, high):
        """After long at one corner every dimension still varies, and a new optimum is found."""
        sampled, optimizer = (CmaEs(self.cells(kind, 5, high), 0) for _ in range(2))
        for one in (sampled, optimizer):
            drive(one, 800, lambda g: -float(g.sum()))
        assert not optimizer.recommend().any()
        genomes = np.array(sampled.ask(4000))
        assert ((genomes != 0).mean(axis=0) > 0.25 / (5 * optimizer.batch)).all()
        assert (genomes == 0).mean() > 0.8
        drive(optimizer, 800, lambda g: float(g.sum()))
        assert np.array_equal(optimizer.recommend(), [high] * 5)

    def test_finds_the_best_of_mixed_dimensions(self):
        """Reals are still found to a millionth beside integers; median of three seeds."""
        made = Domain((*box(3).dimensions, *self.cells("integer", 3).dimensions))
        best = np.array([0.37] * 3 + [5.0, 2.0, 7.0])

        def fitness(genome):
            return -float(((genome - best) ** 2).sum())

        losses = [max(map(fitness, drive(CmaEs(made, seed), 1500, fitness))) for seed in range(3)]
        assert -np.median(losses) < 1e-6


class TestWarmStart:
    @staticmethod
    def learnt(optimizer, centre, spread, count=40):
        """Teaches it a cloud of genomes that are the better the nearer to its centre."""
        genomes = centre + spread * np.random.default_rng(1).standard_normal((count, 3))
        told = [
            observe(g, -float(np.abs((g - centre) / spread).sum()))
            for g in optimizer.domain.snap(genomes)
        ]
        optimizer.learn(told)
        return max(told, key=lambda o: o.fitness.values[0]).genome

    def test_samples_lie_around_the_best_learnt_genome(self):
        optimizer = CmaEs(FAR, 0)
        best = self.learnt(optimizer, np.array([4.0, 70.0, 0.5]), np.array([0.4, 2.0, 0.02]))
        genomes = np.array(optimizer.ask(4000))
        deviations = genomes.std(axis=0)
        assert (np.abs(genomes.mean(axis=0) - best) < 5 * deviations / math.sqrt(4000)).all()
        assert (deviations < 1.05 * FAR.step).all() and (deviations > 0.095 * FAR.step).all()

    @pytest.mark.parametrize(("spread", "share"), [(1e-6, 0.1), (8.0, 1.0)])
    def test_the_step_lies_between_a_tenth_and_the_whole_of_the_domains(self, spread, share):
        optimizer = CmaEs(FAR, 0)
        self.learnt(optimizer, np.array([1.0, 40.0, 0.0]), spread * FAR.step)
        deviations = np.array(optimizer.ask(4000)).std(axis=0)
        np.testing.assert_allclose(deviations, share * FAR.step, rtol=0.06)

    def test_only_feasible_genomes_count(self):
        optimizer = CmaEs(domain(2, constraints=1), 0)
        good, bad = np.array([1.0, 1.5]), np.array([-1.0, -1.0])
        told = [(good, 0.0, -1.0), (bad, 9.0, 0.5)]
        optimizer.learn([Observation(g, Fitness((v,), (0.0,), (c,))) for g, v, c in told])
        genomes = np.array(optimizer.ask(3000))
        assert np.abs(np.median(genomes, axis=0) - good).max() < 0.1

    def test_failures_alone_teach_nothing(self):
        one, two = CmaEs(FAR, 0), CmaEs(FAR, 0)
        one.learn([observe(FAR.low, None)])
        assert np.array_equal(one.ask(5), two.ask(5))
