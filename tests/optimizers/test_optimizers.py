"""Random and Sobol search: the common rules, and what each promises by itself; settings."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.stats import qmc

from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.optimizers import settings
from evomerge.optimizers.random import Random
from evomerge.optimizers.sobol import Sobol
from evomerge.testing.optimizers import MultiObjectiveConformance, domain, mixed_domain


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
            Random(domain(3), 0, batch=batch)


class TestSobol(MultiObjectiveConformance):
    def make(self, domain, seed):
        return Sobol(domain, seed, batch=7)

    def test_anchors_come_first_where_wanted(self):
        made = domain(3)
        genomes = Sobol(made, 0).ask(4)
        assert np.array_equal(genomes[:2], made.anchors)
        assert not np.array_equal(Sobol(made, 0, anchors=False).ask(2), made.anchors)

    def test_anchors_do_not_move_the_sequence(self):
        made = domain(3)
        assert np.array_equal(Sobol(made, 0).ask(6)[2:], Sobol(made, 0, anchors=False).ask(4))

    def test_pieces_make_the_same_sequence(self):
        one, two = Sobol(domain(3), 4), Sobol(domain(3), 4)
        assert np.array_equal(one.ask(9), [*two.ask(1), *two.ask(3), *two.ask(5)])

    @pytest.mark.parametrize("n", [2, 8])
    def test_covers_more_evenly_than_chance(self, n):
        """Centred discrepancy of 256 points; every seed's is below every random one's."""
        made = Domain(tuple(Dimension(f"w/{i}/all", -1.0, 3.0, 0.0, 1.0) for i in range(n)))

        def discrepancy(kind, seed):
            return qmc.discrepancy(made.to_unit(np.array(kind(made, seed).ask(256))))

        seeds = range(5)
        assert max(discrepancy(Sobol, s) for s in seeds) < 0.7 * min(
            discrepancy(Random, s) for s in seeds
        )

    def test_values_of_a_choice_are_equally_frequent(self):
        genomes = np.array(Sobol(mixed_domain(), 0, anchors=False).ask(512))
        assert np.array_equal(np.bincount(genomes[:, 4].astype(int)), [128] * 4)
        assert np.array_equal(np.bincount(genomes[:, 2].astype(int)), [64] * 8)

    @pytest.mark.parametrize(("key", "value"), [("batch", 0), ("anchors", 1), ("anchors", "no")])
    def test_wrong_settings(self, key, value):
        with pytest.raises(ConfigError, match=rf"optimizer\.{key}"):
            Sobol(domain(3), 0, **{key: value})


class TestSettings:
    def test_right_ones_come_back(self):
        assert settings.whole("k", 3, 3) == 3
        assert settings.positive("k", 2) == 2.0 and type(settings.positive("k", 2)) is float
        assert settings.within("k", 0, 0, 1) == 0.0 and settings.within("k", 1.0, 0, 1) == 1.0
        assert settings.flag("k", False) is False
        assert settings.one_of("k", "b", ("a", "b")) == "b"

    @pytest.mark.parametrize(
        "check",
        [
            lambda v: settings.whole("key", v, 3),
            lambda v: settings.positive("key", v),
            lambda v: settings.within("key", v, 3, 4),
            lambda v: settings.one_of("key", v, ("a", "b")),
        ],
    )
    @pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, "many", None, [3]])
    def test_wrong_ones_name_the_key(self, check, value):
        with pytest.raises(ConfigError, match=r"^optimizer\.key: found .*; expected .*\. "):
            check(value)

    @pytest.mark.parametrize("value", [0, 1, "true", None])
    def test_flags_are_booleans(self, value):
        with pytest.raises(ConfigError, match=r"optimizer\.key"):
            settings.flag("key", value)

    def test_a_number_with_a_point_is_not_whole(self):
        with pytest.raises(ConfigError, match=r"3\.0"):
            settings.whole("key", 3.0, 3)
