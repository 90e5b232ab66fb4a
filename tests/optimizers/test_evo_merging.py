"""Evo-Merging: the common rules and its two stages."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.optimizers.evo_merging import EvoMerging
from evomerge.testing.optimizers import OptimizerConformance, observe

SPACE = Domain(
    (
        *(Dimension(f"density/{s}/all", 0.0, 1.0, 1.0, 1 / 6) for s in "abc"),
        *(Dimension(f"weight/{s}/all", -1.5, 1.5, 1 / 3, 0.5) for s in "abc"),
    )
)
BEST = np.array([0.7, 0.8, 0.9, 0.6, -0.3, 0.2])


def fitness(genome):
    return -float(((genome - BEST) ** 2).sum())


def two_kinds(made):
    """The same domain with every other dimension a density; a second one where it has one."""
    dimensions = made.dimensions
    if len(dimensions) == 1:
        dimensions += (Dimension("weight/more/all", -1.0, 1.0, 0.0, 0.3),)
    named = tuple(
        replace(d, name=f"{'weight' if i % 2 else 'density'}/{i}/all")
        for i, d in enumerate(dimensions)
    )
    return replace(made, dimensions=named, anchors=())


class TestEvoMerging(OptimizerConformance):
    def make(self, domain, seed):
        return EvoMerging(two_kinds(domain), seed, first_candidates=30, population=6)

    def stages(self, score=fitness, **settings):
        """Genomes of both stages, an array each."""
        settings = {"first_candidates": 100, "population": 8, **settings}
        optimizer = EvoMerging(SPACE, 0, **settings)
        genomes = []
        while len(genomes) < 300:
            batch = optimizer.ask(optimizer.batch)
            optimizer.tell([observe(g, score(g)) for g in batch])
            genomes += batch
        return np.split(np.array(genomes), [settings["first_candidates"]])

    def test_stage_one_leaves_the_weights_alone(self):
        one, _ = self.stages()
        assert (one[:, 3:] == 1 / 3).all()
        assert np.array_equal(one[0], SPACE.start)
        assert len({g.tobytes() for g in one}) == len(one)

    def test_stage_two_keeps_the_best_densities(self):
        one, two = self.stages()
        best = one[np.argmax([fitness(g) for g in one])]
        assert (two[:, :3] == best[:3]).all()
        assert fitness(best) > fitness(SPACE.start) + 0.05
        assert len({g.tobytes() for g in two}) == len(two)

    def test_the_weights_are_found(self):
        _, two = self.stages(penalty=0.0)
        np.testing.assert_allclose(two[-20:, 3:].mean(axis=0), BEST[3:], atol=0.05)

    def test_which_stage_is_first_can_be_chosen(self):
        one, two = self.stages(first=["weight"])
        assert (one[:, :3] == 1.0).all() and (two[:, 3:] == two[0, 3:]).all()

    def test_steps_are_in_the_dimensions_own_units(self):
        """0.05 of a weight although its range is 3; 0.05 of a density, one step inside."""
        optimizer = EvoMerging(SPACE, 0, first_candidates=3000)
        optimizer.ask(3000)
        weights = np.array(optimizer.ask(3000))[:, 3:]
        for column in weights.T:
            assert stats.kstest(column, "norm", (1 / 3, 0.05)).pvalue > 1e-3
        densities = np.array(EvoMerging(SPACE, 0, first_candidates=4000).ask(4000))[1:, :3]
        assert np.abs(np.median(densities, axis=0) - 0.95).max() < 0.01
        assert np.abs((densities < 0.9).mean(axis=0) - stats.norm.cdf(-1)).max() < 0.03

    def test_the_penalty_is_the_mean_absolute_weight(self):
        """With a flat fitness a heavy penalty draws the weights to 0."""
        _, light = self.stages(lambda g: 0.0, penalty=0.0)
        _, heavy = self.stages(lambda g: 0.0, penalty=1.0)
        assert np.abs(heavy[-20:, 3:]).mean() < 0.1 < np.abs(light[-20:, 3:]).mean()

    def test_the_penalty_is_that_of_the_formula(self):
        """A fitness that gives back 0.3 mean |w| cancels a penalty of 0.3."""
        plain = self.stages(penalty=0.0)
        repaid = self.stages(lambda g: fitness(g) + 0.3 * np.abs(g[3:]).mean(), penalty=0.3)
        first_of_two = slice(0, 40)  # stage one sees no penalty, so only its size is the same
        assert plain[0].shape == repaid[0].shape
        np.testing.assert_allclose(
            plain[1][first_of_two, 3:], repaid[1][first_of_two, 3:], rtol=1e-9
        )

    def test_without_a_success_stage_two_keeps_the_starts(self):
        _, two = self.stages(lambda g: None)
        assert (two[:, :3] == 1.0).all()

    def test_stage_two_begins_with_its_first_ask(self):
        """Whatever is still at work; what comes later of stage one is dropped."""
        one, two = (EvoMerging(SPACE, 3, first_candidates=40) for _ in range(2))
        asked, _ = (o.ask(40) for o in (one, two))
        for optimizer in (one, two):
            optimizer.tell([observe(g, fitness(g)) for g in asked[:30]])
        assert np.array_equal(one.ask(20), two.ask(20))
        one.tell([observe(g, 9.0) for g in asked[30:]])
        assert np.array_equal(one.ask(20), two.ask(20))

    def test_one_ask_may_span_both_stages(self):
        genomes = np.array(EvoMerging(SPACE, 3, first_candidates=10).ask(30))
        assert (genomes[:10, 3:] == 1 / 3).all() and (genomes[10:, :3] == 1.0).all()

    def test_batches_end_with_the_stage(self):
        optimizer = EvoMerging(SPACE, 0, first_candidates=50)
        sizes = []
        for _ in range(4):
            sizes.append(optimizer.batch)
            optimizer.ask(optimizer.batch)
        assert sizes == [20, 20, 10, 20]

    @pytest.mark.parametrize("kind", ["density", "weight"])
    def test_a_domain_of_one_kind_is_refused(self, kind):
        made = Domain(tuple(d for d in SPACE.dimensions if d.parameter == kind))
        with pytest.raises(ConfigError, match=r"optimizer\.first: .* space=evo_merging"):
            EvoMerging(made, 0)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("first", "density"), ("first", 3), ("first", ["scale"]), ("first_candidates", 0),
         ("population", 2), ("step", 0), ("penalty", -0.1)],
    )  # fmt: skip
    def test_wrong_settings(self, key, value):
        with pytest.raises(ConfigError, match=rf"optimizer\.{key}"):
            EvoMerging(SPACE, 0, **{key: value})
