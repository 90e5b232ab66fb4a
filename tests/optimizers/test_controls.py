"""Greedy soup, random parents and selective merging against brute force on small landscapes."""

from itertools import combinations, permutations, product

import numpy as np
import pytest
from scipy import stats

from evomerge.domain import Domain
from evomerge.errors import ConfigError
from evomerge.optimizers.greedy_soup import GreedySoup
from evomerge.optimizers.random_parents import RandomParents
from evomerge.optimizers.selective_merging import SelectiveMerging
from evomerge.soups import SoupSpace
from evomerge.testing.optimizers import domain as other_domain
from evomerge.types import Fitness, Observation

ENDING = (GreedySoup, SelectiveMerging)


def soups(count=4, objectives=1, constraints=0):
    space = SoupSpace(None, {f"s{i}": f"/m/{i}" for i in range(count)})
    return Domain(space.dimensions, objectives, constraints)


def landscape(seed, count=4):
    """Minus the squared distance of the average of random points to a target."""
    rng = np.random.default_rng(seed)
    points, target = rng.normal(size=(count, 3)), 0.3 * rng.normal(size=3)

    def value(genome):
        weights = np.asarray(genome) / np.sum(genome)
        return -float(((weights @ points - target) ** 2).sum())

    return value


def play(optimizer, fitness, limit=200, sizes=None, shuffle=None):
    """Asks and tells to the end; returns the genomes in order."""
    genomes = []
    while optimizer.batch and len(genomes) < limit:
        n = min(optimizer.batch, next(sizes)) if sizes else optimizer.batch
        batch = optimizer.ask(n)
        told = [Observation(g, fitness(g)) for g in batch]
        order = range(n) if shuffle is None else shuffle.permutation(n)
        for i in order:
            optimizer.tell([told[i]])
        genomes += batch
    return genomes


def single(value):
    """A fitness of one objective of a function; failed where it gives None."""

    def fitness(genome):
        found = value(genome)
        return None if found is None else Fitness((found,), (0.0,))

    return fitness


def greedy_by_hand(value, count):
    """Recipe 1 of the paper, over subsets; returns what is asked and the last soup."""
    alone = {i: value(np.eye(count)[i]) for i in range(count)}
    order = sorted((i for i in alone if alone[i] is not None), key=lambda i: -alone[i])
    asked = [tuple([i]) for i in range(count)]
    if not order:
        return asked, None
    soup, best = [order[0]], alone[order[0]]
    for i in order[1:]:
        tried = sorted([*soup, i])
        asked.append(tuple(tried))
        found = value(np.isin(np.arange(count), tried) * 1.0)
        if found is not None and found >= best:
            soup, best = tried, found
    return asked, tuple(soup)


def selective_by_hand(value, count, grid):
    alone = {i: value(np.eye(count)[i]) for i in range(count)}
    order = sorted((i for i in alone if alone[i] is not None), key=lambda i: -alone[i])
    asked = [np.eye(count)[i] for i in range(count)]
    if not order:
        return asked
    merge, best = np.eye(count)[order[0]], alone[order[0]]
    for i in order[1:]:
        trials = [(1 - a) * merge + a * np.eye(count)[i] for a in grid]
        asked += trials
        found = [-np.inf if value(t) is None else value(t) for t in trials]
        if max(found) > best:
            merge, best = trials[int(np.argmax(found))], max(found)
    return asked


def members(genome):
    return tuple(np.flatnonzero(genome).tolist())


# -- greedy soup ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_greedy_soup_is_the_papers(seed):
    value = landscape(seed)
    asked, soup = greedy_by_hand(value, 4)
    genomes = play(GreedySoup(soups(), seed), single(value))
    assert [members(g) for g in genomes] == asked
    assert {*np.concatenate(genomes).tolist()} == {0.0, 1.0}
    # No worse than any source, no better than the best of all 15 uniform soups.
    every = [np.array(g) for g in product([0.0, 1.0], repeat=4) if any(g)]
    best = max(map(value, genomes))
    assert max(map(value, np.eye(4))) <= best <= max(map(value, every))
    assert value(np.isin(np.arange(4), soup) * 1.0) == best


def test_greedy_soup_keeps_equal_additions_and_orders_equals_as_given():
    genomes = play(GreedySoup(soups(), 0), single(lambda g: 0.5))
    assert [members(g) for g in genomes[4:]] == [(0, 1), (0, 1, 2), (0, 1, 2, 3)]


def test_greedy_soup_leaves_failures_out():
    genomes = play(GreedySoup(soups(), 0), single(lambda g: None if g[1] else -g[0] - len(g)))
    assert [members(g) for g in genomes[4:]] == [(2, 3), (0, 2, 3)]
    genomes = play(GreedySoup(soups(), 0), single(lambda g: None if g.sum() > 1 else g[2]))
    assert [members(g) for g in genomes[4:]] == [(0, 2), (1, 2), (2, 3)]


def test_greedy_soup_prefers_feasible_soups():
    """The best source breaks the constraint; the next one begins."""
    optimizer = GreedySoup(soups(3, constraints=1), 0)
    worth = np.array([3.0, 2.0, 1.0])
    genomes = play(optimizer, lambda g: Fitness((float(g @ worth),), (0.0,), (float(g[0]) - 0.5,)))
    assert [members(g) for g in genomes[3:]] == [(1, 2), (0, 1, 2)]
    optimizer = GreedySoup(soups(3, constraints=1), 0)  # nothing is feasible: least violation
    genomes = play(optimizer, lambda g: Fitness((9.0 * g[2],), (0.0,), (1.0 + float(g @ worth),)))
    assert [members(g) for g in genomes[3:]] == [(1, 2), (0, 2)]


# -- selective merging ------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(0.25, 0.5, 0.75), (0.1,), (0.6, 0.3)])
@pytest.mark.parametrize("seed", range(8))
def test_selective_merging_is_the_heuristic(seed, grid):
    value = landscape(seed)
    genomes = play(SelectiveMerging(soups(), seed, list(grid)), single(value))
    expected = selective_by_hand(value, 4, grid)
    assert np.array_equal(genomes, expected)
    assert len(genomes) == 4 + 3 * len(grid)
    assert np.allclose(np.sum(genomes, axis=1), 1.0)


def test_selective_merging_keeps_what_is_not_beaten():
    optimizer = SelectiveMerging(soups(3), 0, [0.5])
    genomes = play(optimizer, single(lambda g: 0.5))
    assert np.array_equal(genomes[3:], [[0.5, 0.5, 0], [0.5, 0, 0.5]])
    genomes = play(SelectiveMerging(soups(3), 0), single(lambda g: None if max(g) < 1 else g[1]))
    assert [members(g) for g in genomes[3:]] == [(0, 1)] * 3 + [(1, 2)] * 3


@pytest.mark.parametrize(
    "grid", [[], [0.0], [1.0], [0.5, 0.5], ["0.5"], [True], 0.5, None, [float("nan")], "0.5"]
)
def test_wrong_coefficients(grid):
    with pytest.raises(ConfigError, match=r"optimizer\.coefficients"):
        SelectiveMerging(soups(), 0, grid)


# -- random parents ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_every_subset_is_asked_for_once(count):
    genomes = play(RandomParents(soups(count), 1), single(lambda g: 0.0), limit=1000)
    every = {c for size in range(2, count + 1) for c in combinations(range(count), size)}
    assert len(genomes) == len(every) == 2**count - count - 1
    assert {members(g) for g in genomes} == every
    assert {*np.concatenate(genomes).tolist()} <= {0.0, 1.0}


def test_numbers_of_parents_are_uniform_and_so_are_the_parents():
    genomes = np.array(RandomParents(soups(40), 3, batch=2000).ask(2000))
    sizes = (genomes > 0).sum(axis=1)
    observed = np.bincount(sizes, minlength=41)[2:]
    assert stats.chisquare(observed[:-1]).pvalue > 1e-3  # there is only one subset of size 40
    assert stats.chisquare((genomes > 0).sum(axis=0)).pvalue > 1e-3


def test_the_last_subsets_of_a_size_are_all_equally_likely():
    """Also where repeats are so frequent that those that are left are listed."""
    firsts = [members(RandomParents(soups(3), seed).ask(4)[3]) for seed in range(800)]
    counts = [firsts.count(c) for c in [(0, 1), (0, 2), (1, 2)]]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_random_coefficients_are_uniform_on_the_simplex_and_never_end():
    optimizer = RandomParents(soups(3), 0, "random", batch=8)
    genomes = np.array(optimizer.ask(4000))
    assert optimizer.batch == 8
    assert np.allclose(genomes.sum(axis=1), 1.0) and (genomes >= 0).all()
    pairs = genomes[(genomes > 0).sum(axis=1) == 2]
    shares = np.where(pairs[:, 0] > 0, pairs[:, 0], pairs[:, 1])
    assert stats.kstest(shares, "uniform").pvalue > 1e-3
    triples = genomes[(genomes > 0).sum(axis=1) == 3]
    assert stats.kstest(triples[:, 1], stats.beta(1, 2).cdf).pvalue > 1e-3
    assert 0.45 < len(triples) / len(genomes) < 0.55


def test_a_single_source_has_no_company():
    for coefficients in ("uniform", "random"):
        assert RandomParents(soups(1), 0, coefficients).batch == 0


def test_a_recorded_subset_is_not_asked_for_again():
    """Where a journal's genome is not what this machine proposes."""
    optimizer = RandomParents(soups(3), 0)
    own = [members(g) for g in RandomParents(soups(3), 0).ask(2)]
    other = next(
        p for p in permutations([(0, 1), (0, 2), (1, 2), (0, 1, 2)], 2) if not set(p) & set(own)
    )
    recorded = [np.isin(np.arange(3), p) * 1.0 for p in other]
    assert not optimizer.replay(recorded)
    assert optimizer.batch == 0  # both pairs of subsets are taken


@pytest.mark.parametrize(
    ("key", "value"),
    [("coefficients", "normal"), ("coefficients", 1), ("batch", 0), ("batch", 1.5)],
)
def test_wrong_settings(key, value):
    with pytest.raises(ConfigError, match=rf"optimizer\.{key}"):
        RandomParents(soups(), 0, **{key: value})


# -- all of them ------------------------------------------------------------------------------

MAKERS = {
    "greedy": GreedySoup,
    "selective": SelectiveMerging,
    "parents": RandomParents,
    "coefficients": lambda d, seed: RandomParents(d, seed, "random", batch=5),
}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
ending = pytest.mark.parametrize("make", ENDING)


def failing(seed):
    value = landscape(seed, 5)
    return single(lambda g: None if round(1e6 * value(g)) % 4 == 0 else value(g))


@every
def test_same_seed_same_genomes_whatever_the_order_of_tells(make):
    genomes = play(make(soups(5), 4), failing(1), limit=30)
    mixed = play(make(soups(5), 4), failing(1), limit=30, shuffle=np.random.default_rng(0))
    assert np.array_equal(genomes, mixed)


@ending
def test_the_size_of_asks_changes_nothing(make):
    """A budget may cut a batch; the rest is asked for later."""
    genomes = play(make(soups(5), 0), failing(2))
    for size in (1, 2, 3):
        sizes = iter([size] * 100)
        assert np.array_equal(play(make(soups(5), 0), failing(2), sizes=sizes), genomes)


@every
@pytest.mark.parametrize("stop", [1, 3, 5, 6, 9])
def test_replay_resumes(make, stop):
    """Up to `stop` batches are recorded, with their results; then a second one goes on."""
    fitness = failing(3)
    optimizer, resumed = make(soups(5), 2), make(soups(5), 2)
    for _ in range(stop):
        if not optimizer.batch:
            break
        batch = optimizer.ask(min(2, optimizer.batch))
        told = [Observation(g, fitness(g)) for g in batch]
        optimizer.tell(told)
        assert resumed.replay([np.array(g.tolist()) for g in batch])
        resumed.tell(told[::-1])
    left = play(optimizer, fitness, limit=20)
    assert np.array_equal(play(resumed, fitness, limit=20), left)


@every
def test_genomes_decode_and_lie_within_bounds(make):
    domain = soups(5)
    space = SoupSpace(None, {f"s{i}": f"/m/{i}" for i in range(5)})
    for genome in play(make(domain, 0), failing(4), limit=30):
        assert genome.dtype == np.float64 and np.array_equal(domain.snap(genome), genome)
        assert len(space.decode(genome).sources) == np.count_nonzero(genome)


@ending
def test_more_than_a_batch_is_refused(make):
    optimizer = make(soups(3), 0)
    assert optimizer.batch == 3
    with pytest.raises(ValueError, match=r"ask\(4\): expected at most 3"):
        optimizer.ask(4)
    batch = optimizer.ask(3)
    assert optimizer.batch == 0  # what comes next depends on results
    with pytest.raises(ValueError, match="at most 0"):
        optimizer.ask(1)
    optimizer.tell([Observation(g, Fitness((0.0,), (0.0,))) for g in batch])
    assert optimizer.batch in (1, 3)
    optimizer.tell([])
    assert optimizer.batch in (1, 3)


def test_more_than_the_subsets_that_are_left_is_refused():
    optimizer = RandomParents(soups(3), 0, batch=3)
    assert len(optimizer.ask(4)) == 4  # more than a batch, but there are as many
    with pytest.raises(ValueError, match=r"ask\(1\)"):
        optimizer.ask(1)


@ending
@pytest.mark.parametrize("count", [1, 3])
def test_nothing_is_asked_where_all_sources_fail_or_there_is_one(make, count):
    assert len(play(make(soups(count), 0), lambda g: None)) == count
    assert len(play(make(soups(1), 0), single(lambda g: 1.0))) == 1


@ending
def test_no_end_before_the_sources_of_a_large_pool(make):
    genomes = play(make(soups(100), 0), single(lambda g: float(g[0])), limit=1000)
    assert len(genomes) in (199, 100 + 99 * 3)


@every
def test_several_objectives_count_by_their_scaled_sum(make):
    """The second objective has a thousand times the range; scaled, both weigh the same."""
    one, two = landscape(6), landscape(7)
    domain = soups(4, objectives=2)
    genomes = play(
        make(domain, 0), lambda g: Fitness((one(g), 1000 * two(g)), (0.0, 0.0)), limit=11
    )
    again = play(make(domain, 0), lambda g: Fitness((one(g), two(g)), (0.0, 0.0)), limit=11)
    assert np.allclose(genomes, again)
    values = np.array([(one(g), two(g)) for g in np.eye(4)])
    scaled = (values - values.min(axis=0)) / np.ptp(values, axis=0)
    if make in ENDING:
        second = np.argsort(-scaled.sum(axis=1))[:2]
        assert members(genomes[4]) == tuple(sorted(second.tolist()))
    flat = play(make(domain, 0), lambda g: Fitness((one(g), 5.0), (0.0, 0.0)), limit=11)
    plain = play(make(soups(4), 0), single(one), limit=11)
    assert np.allclose(flat, plain)


@every
def test_other_spaces_are_refused(make):
    with pytest.raises(ConfigError, match="soups"):
        make(other_domain(3), 0)


@every
def test_tells_are_checked(make):
    optimizer = make(soups(3), 0)
    [genome] = optimizer.ask(1)
    with pytest.raises(ValueError, match="not asked for"):
        optimizer.tell([Observation(genome * 0.5, Fitness((0.0,), (0.0,)))])
    with pytest.raises(ValueError, match="finite"):
        optimizer.tell([Observation(genome, Fitness((float("nan"),), (0.0,)))])
    optimizer.tell([Observation(genome, Fitness((1.0,), (0.0,)))])
    assert optimizer.recommend() is None
