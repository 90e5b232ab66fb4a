"""M2N2: the common rules, its equations held against a literal transcription, and matings."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge import mating
from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.mating import Mating
from evomerge.optimizers import _niches as niches
from evomerge.optimizers.cma_es import CmaEs
from evomerge.optimizers.m2n2 import M2N2
from evomerge.optimizers.random import Random
from evomerge.testing.optimizers import MultiObjectiveConformance, domain, mixed_domain
from evomerge.types import Fitness, Observation

SCORES = arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(1, 7)),
    elements=st.sampled_from([0.0, 1.0, 0.25, 0.5]),
)
BINARY = arrays(
    np.float64,
    st.tuples(st.integers(2, 6), st.integers(1, 7)),
    elements=st.sampled_from([0.0, 1.0]),
)
ALPHAS = st.sampled_from([0.0, 0.5, 1.0, 2.0])


def shares(scores, alpha, binary=False):
    """F_kj, element by element as the paper has it."""
    members, items = scores.shape
    out = np.zeros((members, items))
    for j in range(items):
        z = sum(scores[k, j] for k in range(members)) or 1.0
        c = 1.0 if binary else max(scores[k, j] for k in range(members))
        for k in range(members):
            out[k, j] = c * scores[k, j] / z**alpha
    return out


class TestNumbers(MultiObjectiveConformance):
    least = 30

    def make(self, domain, seed):
        return M2N2(domain, seed, population=12, batch=5)


class TestEquations:
    @given(SCORES, ALPHAS)
    def test_fitness(self, scores, alpha):
        found = niches.fitness(scores, niches.niche_weights(scores, alpha))
        np.testing.assert_allclose(found, shares(scores, alpha).sum(axis=1), rtol=1e-12)

    @given(BINARY, ALPHAS)
    def test_the_capacity_of_items_that_are_solved_or_not_is_1(self, scores, alpha):
        found = niches.fitness(scores, niches.niche_weights(scores, alpha))
        np.testing.assert_allclose(found, shares(scores, alpha, binary=True).sum(axis=1))

    @given(BINARY)
    def test_without_sharing_the_fitness_is_the_number_of_solved_items(self, scores):
        found = niches.fitness(scores, niches.niche_weights(scores, 0.0))
        assert np.array_equal(found, scores.sum(axis=1))

    @given(BINARY)
    def test_with_full_sharing_each_solved_item_is_handed_out_once(self, scores):
        found = niches.fitness(scores, niches.niche_weights(scores, 1.0))
        assert found.sum() == pytest.approx(scores.any(axis=0).sum())

    @given(SCORES, ALPHAS, st.integers(0, 5))
    def test_attraction(self, scores, alpha, first):
        first %= len(scores)
        f = shares(scores, alpha)
        expected = [sum(max(0.0, a - b) for a, b in zip(row, f[first], strict=True)) for row in f]
        found = niches.attraction(scores, niches.niche_weights(scores, alpha), first)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
        assert found[first] == 0.0

    @given(SCORES)
    def test_a_member_that_is_nowhere_better_does_not_attract(self, scores):
        better = np.vstack([scores, scores.max(axis=0)])
        assert not niches.attraction(better, niches.niche_weights(better, 1.0), len(scores)).any()

    @pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 10.0])
    def test_tiny_scores_are_no_nan(self, alpha):
        scores = np.array([[1e-200, 0.0, 5e-324], [0.0, 0.0, 1e-300]])
        weights = niches.niche_weights(scores, alpha)
        assert np.isfinite(niches.fitness(scores, weights)).all()
        assert np.isfinite(niches.attraction(scores, weights, 0)).all()

    def test_draws_are_in_proportion(self):
        chances = np.array([0.0, 1.0, 3.0, 0.0])
        drawn = [niches.draw(chances, u) for u in (np.arange(1000) + 0.5) / 1000]
        assert np.array_equal(np.bincount(drawn, minlength=4), [0, 250, 750, 0])

    @pytest.mark.parametrize("but", [None, 2])
    def test_draws_without_any_chance_are_uniform(self, but):
        drawn = [niches.draw(np.zeros(4), u, but) for u in (np.arange(1200) + 0.5) / 1200]
        expected = [300] * 4 if but is None else [400, 400, 0, 400]
        assert np.array_equal(np.bincount(drawn, minlength=4), expected)

    @given(
        arrays(np.float64, st.integers(1, 5), elements=st.floats(0, 1e300)),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 4),
    )
    def test_draws_take_what_has_a_chance(self, chances, uniform, but):
        but %= len(chances)
        index = niches.draw(chances, uniform, but)
        others = np.delete(chances, but)
        assert index != but or len(chances) == 1
        assert chances[index] > 0 or not others.any()

    def test_the_largest_uniform_number_draws_the_last_with_a_chance(self):
        assert niches.draw(np.array([0.1, 0.2, 0.3, 0.0]), math.nextafter(1, 0)) == 2


class TestArchive:
    @given(st.integers(0, 1000), ALPHAS)
    def test_the_least_fit_leaves_the_oldest_first(self, seed, alpha):
        """Against a list of (number, scores) that is sorted out the slow way."""
        rng = np.random.default_rng(seed)
        archive = niches.Archive(4, alpha)
        members = []
        for number in range(12):
            row = rng.integers(0, 3, 5) / 2
            gone = archive.insert(number, row)
            members.append((number, row))
            expected = None
            if len(members) > 4:
                fit = shares(np.array([r for _, r in members]), alpha).sum(axis=1)
                least = [m for m, f in zip(members, fit, strict=True) if f < fit.min() + 1e-9]
                expected = min(n for n, _ in least)
                near = {n for n, _ in least}
                assert gone in near
                members = [m for m in members if m[0] != gone]
            equal = expected is None or len({r.tobytes() for _, r in least}) == 1
            assert not equal or gone == expected
            assert sorted(archive.numbers) == [n for n, _ in members]
            rows = dict(zip(archive.numbers, archive.scores, strict=True))
            assert all(np.array_equal(rows[n], row) for n, row in members)

    @given(st.integers(0, 1000), ALPHAS, st.booleans())
    def test_sums_that_are_kept_are_those_made_anew(self, seed, alpha, mixed):
        """Scores of 0 and 1, into which another one may come, against the equations."""
        rng = np.random.default_rng(seed)
        archive = niches.Archive(4, alpha)
        for number in range(15):
            row = rng.integers(0, 2, 7).astype(float)
            row[0] = 0.5 if mixed and number == 8 else row[0]
            archive.insert(number, None if number == 5 else row)
            weights = niches.niche_weights(archive.scores, alpha)
            np.testing.assert_array_equal(archive._shares(), weights)
            for one in range(len(archive)):
                pull = shares(np.array(archive.scores), alpha)
                pull = np.maximum(pull - pull[one], 0).sum(axis=1)
                np.testing.assert_allclose(archive._attraction(one, weights), pull, atol=1e-12)

    def test_scores_that_are_not_known_count_as_zeros(self):
        archive = niches.Archive(2, 1.0)
        assert archive.insert(0, None) is None
        assert archive.parents(0.3, 0.6, True) == (0, 0)
        assert archive.insert(1, None) is None
        assert archive.insert(2, np.array([0.0, 1.0])) == 0
        assert archive.insert(3, np.array([1.0, 0.0])) == 1

    def test_clones_are_drawn_by_fitness(self):
        archive = niches.Archive(3, 1.0)
        for number in range(3):
            archive.insert(number, np.array([1.0, 0.0, 1.0]))
        drawn = [archive.parents(0.1, u, True) for u in (0.1, 0.4, 0.6, 0.9)]
        assert drawn == [(0, 1), (0, 1), (0, 2), (0, 2)]

    def test_opposites_attract(self):
        """0 solves items 0 and 1; 1 the same; 2 item 2 alone; 3 items 1 and 3."""
        archive = niches.Archive(4, 1.0)
        for number, solved in enumerate([(0, 1), (0, 1), (2,), (1, 3)]):
            archive.insert(number, np.isin(np.arange(4), solved).astype(float))
        uniforms = (np.arange(1000) + 0.5) / 1000
        with_0 = [archive.parents(0.0, u, True)[1] for u in uniforms]
        assert np.array_equal(np.bincount(with_0, minlength=4), [0, 0, 500, 500])
        plain = [archive.parents(0.0, u, False)[1] for u in uniforms]
        fit = np.array([0, 5 / 6, 1, 4 / 3])  # halves of item 0, thirds of item 1
        np.testing.assert_allclose(np.bincount(plain, minlength=4), 1000 * fit / fit.sum(), atol=1)


def told(genome, row):
    row = np.asarray(row, dtype=np.float64)
    return Observation(genome, Fitness((float(row.mean()),), (0.1,)), row)


def matings(seeds=2, seed=0, **settings):
    return M2N2(mating.domain(seeds), seed, **settings)


def bred(optimizer, count, items=6, seed=0):
    """Asks and tells one by one, with scores by member number; the matings."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 2, (count, items))
    out = []
    for row in rows:
        [genome] = optimizer.ask(1)
        out.append(Mating.from_genome(genome))
        optimizer.tell([told(genome, row)])
    return out


class TestMatings:
    def test_seeds_come_first_and_children_of_seeds_while_nothing_is_known(self):
        found = [Mating.from_genome(g) for g in matings(3).ask(500)]
        assert [m.is_seed for m in found] == [True] * 3 + [False] * 497
        assert [m.member for m in found] == list(range(500))
        pairs = {(m.first, m.second) for m in found[3:]}
        assert pairs == {(a, b) for a in range(3) for b in range(3) if a != b}

    def test_one_seed_mates_with_itself(self):
        found = [Mating.from_genome(g) for g in matings(1).ask(4)]
        assert [(m.first, m.second) for m in found] == [(0, 0)] * 4
        assert not any(m.is_seed for m in found[1:])

    def test_parents_are_of_the_archive(self):
        optimizer = matings(2, population=4)
        for number in range(60):
            alive = optimizer.archive
            [genome] = optimizer.ask(1)
            one = Mating.from_genome(genome)
            if number >= 2:
                assert {one.first, one.second} <= set(alive) and one.first != one.second
            optimizer.tell([told(genome, [number % 2, number % 3 == 0, number % 5 == 0, 1])])
        assert len(optimizer.archive) == 5  # the last result enters at the next ask
        optimizer.ask(1)
        assert len(optimizer.archive) == 4

    def test_shares_and_splits_are_uniform(self):
        found = [Mating.from_genome(g) for g in matings(2).ask(4000)][2:]
        for values in ([m.share for m in found], [m.split for m in found]):
            counts = np.histogram(values, bins=10, range=(0, 1))[0]
            assert abs(counts - 400).max() < 5 * math.sqrt(400)

    def test_without_a_split_it_lies_at_the_end(self):
        found = [Mating.from_genome(g) for g in matings(2, split=False).ask(20)]
        assert {m.split for m in found[2:]} == {1.0}
        assert len({m.share for m in found}) > 10

    def test_draws_depend_on_the_number_alone(self):
        """However many are asked for at a time, and across the blocks that are drawn at once."""
        one, two = matings(2, seed=7), matings(2, seed=7)
        assert np.array_equal(one.ask(600), [g for _ in range(100) for g in two.ask(6)])

    def test_failed_candidates_never_become_parents(self):
        optimizer = matings(3)
        first = optimizer.ask(3)
        optimizer.tell(
            [told(first[0], [1, 0]), told(first[1], [0, 1]), Observation(first[2], None)]
        )
        found = [Mating.from_genome(g) for g in optimizer.ask(50)]
        assert {n for m in found for n in (m.first, m.second)} == {0, 1}
        assert optimizer.archive == (0, 1)

    def test_infeasible_candidates_have_no_scores(self):
        optimizer = M2N2(mating.domain(3, constraints=1), 0)
        first = optimizer.ask(3)
        for genome, row, limit in zip(first, ([1, 0], [0, 1], [1, 1]), (0, -1, 2), strict=True):
            fitness = Fitness((1.0,), (0.0,), (float(limit),))
            optimizer.tell([Observation(genome, fitness, np.array(row, dtype=float))])
        found = [Mating.from_genome(g) for g in optimizer.ask(50)]
        assert {n for m in found for n in (m.first, m.second)} == {0, 1}
        assert optimizer.archive == (0, 1, 2)

    @pytest.mark.parametrize("settings", [{}, {"attraction": False}, {"alpha": 0.0}])
    def test_a_replay_with_matings_at_work_goes_on_the_same(self, settings):
        optimizer, resumed = (matings(2, seed=3, population=5, **settings) for _ in range(2))
        rng = np.random.default_rng(0)
        for _ in range(6):
            batch = optimizer.ask(4)
            assert resumed.replay([np.array(g.tolist()) for g in batch])
            some = [told(g, rng.integers(0, 2, 9)) for g in batch[: rng.integers(1, 5)]]
            optimizer.tell(some)
            resumed.tell(some[::-1])
        assert np.array_equal(optimizer.ask(9), resumed.ask(9))

    def test_specialists_stay(self):
        """Who alone solves an item stays, though others solve more of the crowded ones."""
        optimizer = matings(2, population=4)
        [a, b] = optimizer.ask(2)
        optimizer.tell([told(a, [0, 0, 0, 0, 1]), told(b, [1, 1, 1, 0, 0])])
        for _ in range(30):
            [genome] = optimizer.ask(1)
            optimizer.tell([told(genome, [1, 1, 1, 0, 0])])
        optimizer.ask(1)
        assert 0 in optimizer.archive

    def test_a_plain_genetic_algorithm_loses_them(self):
        optimizer = matings(2, population=4, alpha=0.0)
        [a, b] = optimizer.ask(2)
        optimizer.tell([told(a, [0, 0, 0, 0, 1]), told(b, [1, 1, 1, 0, 0])])
        for _ in range(30):
            [genome] = optimizer.ask(1)
            optimizer.tell([told(genome, [1, 1, 1, 0, 0])])
        optimizer.ask(1)
        assert 0 not in optimizer.archive

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("population", 1), ("alpha", -1.0), ("alpha", math.inf), ("attraction", "yes"),
            ("split", 1), ("batch", 0), ("mutation", 0.1),
        ],
    )  # fmt: skip
    def test_wrong_settings(self, key, value):
        with pytest.raises(ConfigError, match=rf"optimizer\.{key}"):
            matings(2, **{key: value})

    def test_item_scores_are_needed(self):
        optimizer = matings(2)
        [genome] = optimizer.ask(1)
        with pytest.raises(ValueError, match="item scores"):
            optimizer.tell([Observation(genome, Fitness((1.0,), (0.0,)))])

    def test_others_refuse_matings(self):
        with pytest.raises(ConfigError, match="m2n2"):
            CmaEs(mating.domain(2), 0)


class TestRandomMatings:
    def test_any_two_earlier_members_mate(self):
        optimizer = Random(mating.domain(2), 0)
        found = [Mating.from_genome(g) for g in optimizer.ask(3000)]
        assert [m.member for m in found] == list(range(3000))
        assert [m.is_seed for m in found[:3]] == [True, True, False]
        assert all(m.first != m.second for m in found[2:])
        places = [m.first / m.member for m in found[2:]] + [m.second / m.member for m in found[2:]]
        counts = np.histogram(places, bins=10, range=(0, 1))[0]
        assert abs(counts - 600).max() < 5 * math.sqrt(600)

    def test_one_seed_mates_with_itself(self):
        found = [Mating.from_genome(g) for g in Random(mating.domain(1), 0).ask(3)]
        assert (found[1].first, found[1].second) == (0, 0)
        assert found[2].first != found[2].second

    def test_a_replay_goes_on_the_same(self):
        one, two = Random(mating.domain(3), 1), Random(mating.domain(3), 1)
        assert two.replay(one.ask(7))
        assert np.array_equal(one.ask(7), two.ask(7))


class TestGenomes:
    def test_anchors_come_first_then_sobol_points(self):
        made = domain(3)
        genomes = M2N2(made, 0, population=8).ask(8)
        assert np.array_equal(genomes[:2], made.anchors)
        assert len({g.tobytes() for g in genomes}) == 8

    def test_children_lie_between_their_parents_and_change_places(self):
        """Two members only, no noise: each number is a share of the way, one side or the other."""
        made = Domain(tuple(Dimension(f"w/{i}/all", 0.0, 1.0, 0.0, 0.1) for i in range(6)))
        optimizer = M2N2(made, 0, population=2, mutation=0.0)
        parents = np.array(optimizer.ask(2))
        optimizer.tell([told(parents[0], [1, 0]), told(parents[1], [0, 1])])
        splits = set()
        for child in optimizer.ask(200):
            shares = (child - parents[0]) / (parents[1] - parents[0])
            first = shares[0]
            assert ((shares >= -1e-9) & (shares <= 1 + 1e-9)).all()
            before = np.abs(shares - first) < 1e-9
            np.testing.assert_allclose(shares[~before], 1 - first, atol=1e-9)
            assert (np.diff(before.astype(int)) <= 0).all()
            splits.add(int(before.sum()))
        assert splits == set(range(1, 7))

    def test_without_a_split_all_numbers_have_one_share(self):
        made = Domain(tuple(Dimension(f"w/{i}/all", 0.0, 1.0, 0.0, 0.1) for i in range(6)))
        optimizer = M2N2(made, 0, population=2, mutation=0.0, split=False)
        parents = np.array(optimizer.ask(2))
        optimizer.tell([told(parents[0], [1, 0]), told(parents[1], [0, 1])])
        for child in optimizer.ask(20):
            shares = (child - parents[0]) / (parents[1] - parents[0])
            np.testing.assert_allclose(shares, shares[0], atol=1e-9)

    def test_noise_has_the_standard_deviation_that_was_asked_for(self):
        made = Domain((Dimension("w/a/all", -1.0, 3.0, 0.0, 0.1),))
        optimizer = M2N2(made, 0, population=2, mutation=0.01)
        parents = optimizer.ask(2)
        same = np.array([1.0])
        resumed = M2N2(made, 0, population=2, mutation=0.01)
        resumed.replay([same, same])
        resumed.tell([told(same, [1.0]), told(same, [1.0])])
        children = np.array(resumed.ask(4000))
        assert children.std() == pytest.approx(0.01 * 4, rel=0.05)
        assert children.mean() == pytest.approx(1.0, abs=0.01)
        assert len(parents) == 2

    def test_all_whole_numbers_are_reached(self):
        """Of two equal parents: an indicator and a choice change about as often as they should."""
        made = Domain((
            Dimension("keep/a/all", 0.0, 1.0, 0.0, 0.3, "integer"),
            Dimension("operator/a/all", 0.0, 2.0, 0.0, 0.3, "choice", ("a", "b", "c")),
        ))  # fmt: skip
        optimizer = M2N2(made, 0, population=2, mutation=0.1)
        same = np.array([0.0, 1.0])
        optimizer.replay([same, same])
        optimizer.tell([told(same, [1.0]), told(same, [1.0])])
        children = np.array(optimizer.ask(4000)).astype(int)
        assert np.bincount(children[:, 1]) / 4000 == pytest.approx([0.05, 0.9, 0.05], abs=0.015)
        # E max(0, N(0, 0.1)) = 0.0399 of the noise rounds up
        assert children[:, 0].mean() == pytest.approx(0.1 / math.sqrt(2 * math.pi), abs=0.012)

    def test_choices_come_from_either_parent(self):
        optimizer = M2N2(mixed_domain(), 0, population=2, mutation=0.0)
        parents = np.array(optimizer.ask(2))
        recorded = parents.copy()
        recorded[:, 4] = 1.0, 3.0
        optimizer = M2N2(mixed_domain(), 0, population=2, mutation=0.0)
        optimizer.replay(list(recorded))
        optimizer.tell([told(recorded[0], [1, 0]), told(recorded[1], [0, 1])])
        assert {g[4] for g in optimizer.ask(50)} == {1.0, 3.0}

    def test_it_climbs(self):
        """Items are half-spaces around an optimum; the best of 400 solves most of them."""
        rng = np.random.default_rng(0)
        normals = rng.standard_normal((60, 6))
        made = Domain(tuple(Dimension(f"w/{i}/all", 0.0, 1.0, 0.5, 0.2) for i in range(6)))
        best = {}
        for kind in (M2N2, Random):
            optimizer = kind(made, 0, batch=4)
            values = []
            for _ in range(100):
                batch = optimizer.ask(4)
                rows = [(normals @ (g - 0.37) > -0.05).astype(float) for g in batch]
                optimizer.tell([told(g, row) for g, row in zip(batch, rows, strict=True)])
                values += [row.mean() for row in rows]
            best[kind] = max(values)
        assert best[M2N2] > best[Random]
