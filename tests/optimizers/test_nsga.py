"""NSGA-II and NSGA-III: the common rules, and what each promises by itself."""

import inspect
import math
import warnings
from pathlib import Path

import moocore
import numpy as np
import pytest
import yaml
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.optimize import minimize
from pymoo.problems import get_problem

from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.optimizers._genetic import Parents, Variation, split
from evomerge.optimizers.designs import InitialDesign
from evomerge.optimizers.nsga2 import Nsga2, crowded
from evomerge.optimizers.nsga3 import Niches, Nsga3, directions
from evomerge.optimizers.random import Random
from evomerge.seeds import derive
from evomerge.testing.optimizers import (
    MultiObjectiveConformance,
    answer,
    domain,
    mixed_domain,
    observe,
    sphere,
)
from evomerge.types import Fitness, Observation

BOTH = pytest.mark.parametrize("kind", [Nsga2, Nsga3])
CONF = Path(__file__).parents[2] / "conf" / "optimizer"


def cube(n, objectives=1, constraints=0):
    return Domain(
        tuple(Dimension(f"w/{i}/all", 0.0, 1.0, 0.5, 1 / 6) for i in range(n)),
        objectives,
        constraints,
    )


def whole(sizes, kind="integer"):
    """Dimensions that take `sizes` values each."""
    names = [tuple(map(str, range(s))) if kind == "choice" else () for s in sizes]
    return Domain(
        tuple(
            Dimension(f"layer/{i}/all", 0.0, s - 1.0, 0.0, 1.0, kind, names[i])
            for i, s in enumerate(sizes)
        )
    )


def tell(optimizer, genomes, values):
    optimizer.tell([observe(g, v) for g, v in zip(genomes, values, strict=True)])


class TestNsga2(MultiObjectiveConformance):
    def make(self, domain, seed):
        return Nsga2(domain, seed, population=12)


class TestNsga3(MultiObjectiveConformance):
    def make(self, domain, seed):
        return Nsga3(domain, seed, population=12)


class TestSteadyNsga2(MultiObjectiveConformance):
    def make(self, domain, seed):
        return Nsga2(domain, seed, population=12, steady_state=True)


class TestSteadyNsga3(MultiObjectiveConformance):
    def make(self, domain, seed):
        return Nsga3(domain, seed, population=12, steady_state=True)


def ranks(losses):
    """Fronts peeled off one by one, by the definition of dominance."""
    out, left, rank = np.zeros(len(losses), int), set(range(len(losses))), 0
    while left:
        front = {
            i
            for i in left
            if not any(
                (losses[j] <= losses[i]).all() and (losses[j] < losses[i]).any() for j in left
            )
        }
        out[list(front)] = rank
        left, rank = left - front, rank + 1
    return out


def crowding(front):
    """Deb 2002, section III-B, one objective and one point at a time."""
    out = np.zeros(len(front))
    for column in front.T:
        order = np.argsort(column)
        out[order[[0, -1]]] = math.inf
        for before, i, after in zip(order, order[1:], order[2:], strict=False):
            out[i] += (column[after] - column[before]) / (column.max() - column.min())
    return out / front.shape[1]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_survivors_of_nsga2(k):
    """Whole fronts first; of the last one those with the largest crowding distance."""
    rng = np.random.default_rng(k)
    losses = rng.random((60, k))
    rank = ranks(losses)
    assert np.array_equal(rank, moocore.pareto_rank(losses))
    alive, (violations, own_rank, own_crowding) = crowded(losses, np.zeros(60), 25, rng)
    assert len(set(alive)) == 25 and not violations.any()
    assert np.array_equal(own_rank, rank[alive])
    last = rank[alive].max()
    assert set(np.flatnonzero(rank < last)) == {i for i in alive if rank[i] < last}
    for r in range(last + 1):
        members = np.flatnonzero(rank == r)
        expected = dict(zip(members, crowding(losses[members]), strict=True))
        of_rank = alive[rank[alive] == r]
        np.testing.assert_allclose(-own_crowding[rank[alive] == r], [expected[i] for i in of_rank])
        gone = [expected[i] for i in members if i not in of_rank]
        assert max(gone, default=-1) <= min(expected[i] for i in of_rank)


@pytest.mark.parametrize("survival", [crowded, Niches(directions(12, 2))])
def test_infeasible_candidates_survive_last_and_by_violation(survival):
    rng = np.random.default_rng(0)
    violations = np.where(np.arange(20) % 2, np.arange(20.0), 0.0)  # 10 feasible
    alive, keys = survival(rng.random((20, 2)), violations, 13, rng)
    assert {*alive} == {*range(0, 20, 2), 1, 3, 5}
    assert np.array_equal(keys[0], violations[alive])
    fewer, _ = survival(rng.random((20, 2)), violations, 6, rng)
    assert len(fewer) == 6 and not violations[fewer].any()
    none, _ = survival(rng.random((20, 2)), violations + 1, 3, rng)
    assert {*none} == {0, 2, 4}


def test_split():
    feasible, others = split(np.array([0.5, 0.0, 0.25, 0.0, 0.25]))
    assert feasible.tolist() == [1, 3] and others.tolist() == [2, 4, 0]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8, 10])
@pytest.mark.parametrize("most", [12, 36, 100])
def test_reference_directions_are_the_largest_lattice_that_fits(k, most):
    made = directions(most, k)
    sizes = [math.comb(k - 1 + p, p) for p in range(1, 120)]
    assert len(made) == max((s for s in sizes if s <= most), default=0)
    assert len(np.unique(made.round(9), axis=0)) == len(made)
    np.testing.assert_allclose(made.sum(axis=1), 1)


def test_survivors_of_nsga3_take_every_direction():
    """A sphere's front with one point in each direction, and a crowd around one of them."""
    rng = np.random.default_rng(1)
    rays = directions(21, 3)
    crowd = np.array([0.6, 0.2, 0.2]) + 0.02 * rng.random((40, 3))
    points = np.concatenate([crowd, rays])
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    alive, _ = Niches(rays)(points, np.zeros(len(points)), 21, rng)
    cosines = points[alive] @ (rays / np.linalg.norm(rays, axis=1, keepdims=True)).T
    assert set(cosines.argmax(axis=1)) == set(range(21))


@BOTH
@pytest.mark.parametrize("exponent", [-30, 12])
def test_scale_of_the_objectives_is_irrelevant(kind, exponent):
    """Powers of two leave every bit of the genomes as it was."""

    def genomes(scale):
        optimizer, out = kind(domain(3, 2), 5, population=12), []
        for _ in range(6):
            batch = optimizer.ask(12)
            out += batch
            seen = [answer(optimizer.domain, g, sphere(g)) for g in batch]
            values = [tuple(v * scale for v in o.fitness.values) for o in seen]
            told = zip(batch, values, strict=True)
            optimizer.tell([Observation(g, Fitness(v, (0.0, 0.0))) for g, v in told])
        return out

    assert np.array_equal(genomes(1.0), genomes(2.0**exponent))


def test_warning_filters_stay():
    before = list(warnings.filters)
    optimizer = Nsga3(domain(2, 2), 0, population=8)
    for _ in range(3):
        optimizer.tell([answer(optimizer.domain, g, 1.0) for g in optimizer.ask(8)])
    assert warnings.filters == before


def test_tournaments():
    """All take part once in n / 2; the best wins, the worst loses, later keys break ties."""
    keys = (np.array([0.0, 0, 0, 0, 1, 1]), np.array([0.0, -np.inf, 1, 2, 0, 5]))
    parents = Parents(np.zeros((6, 1)), (Fitness((0.0,), (0.0,)),) * 6, keys)
    for seed in range(20):
        winners = parents.winners(3, np.random.default_rng(seed))
        assert len(set(winners)) == 3
        assert 1 in winners and 5 not in winners
    assert len(parents.winners(50, np.random.default_rng(0))) == 50


def test_integers_and_choices_mutate_as_often_as_asked_for():
    """Also those of two values, which small steps would never reach."""
    rng = np.random.default_rng(0)
    for kind in ("integer", "choice"):
        made = whole([2, 3, 9], kind)
        genomes = np.tile([0.0, 1.0, 4.0], (4000, 1))
        children = Variation(made, 0.0, 15.0, 0.3, 20.0).children(genomes, genomes, rng)
        changed = (children != genomes[0]).mean(axis=0)
        assert np.abs(changed - 0.3).max() < 5 * math.sqrt(0.21 / 8000)
        assert np.array_equal(made.snap(children), children)
        values, counts = np.unique(children[:, 2], return_counts=True)
        if kind == "choice":
            assert len(values) == 9  # each other one equally likely
            others = counts[values != 4]
            assert np.abs(others / 8000 - 0.3 / 8).max() < 5 * math.sqrt(0.0375 / 8000)
        else:
            assert {3.0, 4.0, 5.0} <= {*values}
            assert counts[(values >= 3) & (values <= 5)].sum() > 0.9 * 8000


def test_uniform_crossover_of_choices():
    """A child has each choice from either parent; the other child has the other's."""
    made = whole([5] * 6, "choice")
    one, two = np.zeros((2000, 6)), np.full((2000, 6), 3.0)
    children = Variation(made, 1.0, 15.0, 0.0, 20.0).children(one, two, np.random.default_rng(0))
    assert {*np.unique(children)} == {0.0, 3.0}
    assert np.array_equal(children[:2000] + children[2000:], np.full((2000, 6), 3.0))
    assert abs((children[:2000] == 3).mean() - 0.5) < 5 * 0.5 / math.sqrt(12000)
    apart = Variation(made, 0.0, 15.0, 0.0, 20.0).children(one, two, np.random.default_rng(0))
    assert np.array_equal(apart, np.concatenate([one, two]))


@pytest.mark.parametrize("eta", [5.0, 30.0])
def test_crossover_spreads_as_its_index_says(eta):
    """Half of the spreads of simulated binary crossover lie below 1, a quarter below
    (1/2)^(1 / (eta + 1)); parents in the middle, so that bounds play no part."""
    one, two = np.full((4_000, 1), 0.4995), np.full((4_000, 1), 0.5005)
    made = Variation(cube(1), 1.0, eta, 0.0, 20.0)
    children = made.children(one, two, np.random.default_rng(0)).reshape(2, -1)
    spread = np.abs(children[0] - children[1]) / 0.001
    crossed = spread[np.abs(spread - 1) > 1e-9]  # a number is crossed in half of the pairs
    assert abs(len(crossed) / 4_000 - 0.5) < 0.04
    assert abs((crossed < 1).mean() - 0.5) < 0.05
    assert abs((crossed < 0.5 ** (1 / (eta + 1))).mean() - 0.25) < 0.04


@BOTH
def test_search_begins_with_anchors_and_sobol_points(kind):
    made = domain(3, 2)
    design = InitialDesign(made, derive(4, "initial population"))
    assert np.array_equal(kind(made, 4, population=10).ask(10), design.take(10))
    bare = kind(made, 4, population=10, anchors=False).ask(10)
    assert not any(np.array_equal(a, g) for a in made.anchors for g in bare)


@BOTH
def test_no_genome_is_asked_for_twice_while_there_are_others(kind):
    """All 64 genomes of a small space are found; then it goes on with known ones."""
    optimizer = kind(whole([4, 4, 4]), 0, population=8)
    genomes = TestNsga2().drive(optimizer, 6)
    assert len({g.tobytes() for g in genomes}) == 48
    genomes += TestNsga2().drive(optimizer, 4)
    assert len({g.tobytes() for g in genomes}) > 60
    real = kind(domain(2, 2), 0, population=8)
    genomes = TestNsga2().drive(real, 20)
    assert len({g.tobytes() for g in genomes}) == 160


@BOTH
def test_portions_of_asks_are_irrelevant(kind):
    one, two = (kind(domain(3, 2), 7, population=10) for _ in range(2))
    for sizes in ((3, 7), (1, 9), (4, 6), (10,)):
        parts = [g for size in sizes for g in one.ask(size)]
        batch = two.ask(10)
        assert np.array_equal(parts, batch)
        for optimizer in (one, two):
            optimizer.tell([answer(optimizer.domain, g, sphere(g)) for g in batch])


@BOTH
def test_a_generation_without_results_changes_nothing(kind):
    """The initial design goes on; a later one leaves the parents."""
    made = domain(3)
    optimizer = kind(made, 1, population=8)
    batch = optimizer.ask(8)
    tell(optimizer, batch, [None] * 8)
    batch += optimizer.ask(8)
    design = InitialDesign(made, derive(1, "initial population"))
    assert np.array_equal(batch, design.take(16))
    tell(optimizer, batch[8:], map(sphere, batch[8:]))
    before = optimizer._search.parents
    tell(optimizer, optimizer.ask(8), [None] * 8)
    assert optimizer._search.parents is before and len(before) == 8


@BOTH
def test_failed_candidates_are_no_parents_and_are_made_up_for(kind):
    made = domain(3)
    optimizer = kind(made, 1, population=8)
    batch = optimizer.ask(8)
    tell(optimizer, batch, [None if i < 3 else sphere(g) for i, g in enumerate(batch)])
    alive = {g.tobytes() for g in optimizer._search.parents.genomes}
    assert alive == {g.tobytes() for g in batch[3:]}
    design = InitialDesign(made, derive(1, "initial population"))
    assert np.array_equal(optimizer.ask(3), design.take(11)[8:])


@BOTH
def test_asks_beyond_the_population_breed_of_the_same_parents(kind):
    optimizer = kind(cube(4), 0, population=8, crossover_probability=0.0, mutation_eta=1e4)
    batch = optimizer.ask(8)
    tell(optimizer, batch, map(sphere, batch))
    for child in optimizer.ask(30):  # near to one of the parents
        assert min(np.abs(child - parent).max() for parent in batch) < 0.01


@BOTH
@pytest.mark.parametrize("count", [8, 40])
def test_the_best_of_another_study_are_the_first_parents(kind, count):
    optimizer = kind(cube(4), 0, population=8, crossover_probability=0.0, mutation_eta=1e4)
    foreign = Random(cube(4), 3).ask(count)
    optimizer.learn([observe(g, sphere(g)) for g in foreign])
    best = sorted(foreign, key=sphere)[-8:]
    for child in optimizer.ask(8):
        assert min(np.abs(child - parent).max() for parent in best) < 0.01


def test_few_learnt_genomes_are_joined_by_the_design():
    made = cube(4)
    optimizer = Nsga2(made, 0, population=8)
    optimizer.learn([observe(g, sphere(g)) for g in Random(made, 3).ask(3)])
    design = InitialDesign(made, derive(0, "initial population"))
    assert np.array_equal(optimizer.ask(5), design.take(5))


@BOTH
def test_steady_state_counts_results_at_once(kind):
    """A single very good result has children at the next ask; a generation would wait."""
    settings = {"population": 8, "crossover_probability": 0.0, "mutation_eta": 1e4}
    assert not kind.asynchronous and not kind(cube(2), 0).asynchronous
    for steady in (True, False):
        optimizer = kind(cube(2), 0, steady_state=steady, **settings)
        assert optimizer.asynchronous == steady
        first = optimizer.ask(8)
        tell(optimizer, first, map(sphere, first))
        new = optimizer.ask(1)
        tell(optimizer, new, [1.0])
        near = [np.abs(g - new[0]).max() < 0.01 for g in optimizer.ask(60)]
        alive = {g.tobytes() for g in optimizer._search.parents.genomes}
        assert (new[0].tobytes() in alive) == steady
        assert any(near) or not steady


def test_a_recorded_genome_stands_in_and_is_not_asked_for_again():
    optimizer, other = (Nsga2(whole([3, 3]), 0, population=4) for _ in range(2))
    own = other.ask(2)
    recorded = [own[0], np.abs(2 - own[1])]
    same = optimizer.replay(recorded)
    assert same == np.array_equal(own, recorded)
    tell(optimizer, recorded, [0.0, 1.0])
    assert recorded[1].tobytes() not in {g.tobytes() for g in optimizer.ask(2)}


# --- search ------------------------------------------------------------------------------------


def of(problem):
    made = tuple(
        Dimension(f"w/{i}/all", float(low), float(high), (low + high) / 2, (high - low) / 6)
        for i, (low, high) in enumerate(zip(problem.xl, problem.xu, strict=True))
    )
    return Domain(made, problem.n_obj, problem.n_ieq_constr)


def search(optimizer, problem, generations):
    """Losses and constraints of every candidate."""
    losses, limits = [], []
    for _ in range(generations):
        batch = optimizer.ask(optimizer.batch)
        out = problem.evaluate(np.array(batch), return_as_dictionary=True)
        f, g = out["F"], out.get("G", np.zeros((len(batch), 0)))
        told = [
            Observation(x, Fitness(tuple(-a), (0.0,) * len(a), tuple(b)))
            for x, a, b in zip(batch, f, g, strict=True)
        ]
        optimizer.tell(told)
        losses.append(f)
        limits.append(g)
    return np.concatenate(losses), np.concatenate(limits)


def volume(losses):
    return moocore.hypervolume(losses, ref=[1.1] * losses.shape[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "objectives", "algorithm"),
    [
        (Nsga2, "zdt1", 2, NSGA2(pop_size=36)),
        (Nsga3, "dtlz2", 3, NSGA3(directions(36, 3), pop_size=36)),
    ],
)
def test_front_is_as_good_as_pymoos_own(kind, name, objectives, algorithm):
    """Medians over five seeds at 1008 evaluations: hypervolume of everything seen."""
    problem = get_problem(name, n_var=10, **({"n_obj": 3} if objectives == 3 else {}))

    def theirs(seed):
        seen = []
        minimize(
            problem,
            algorithm,
            ("n_eval", 1008),
            seed=seed,
            callback=lambda a: seen.append(a.pop.get("F")),
        )
        return volume(np.concatenate(seen))

    def ours(make):
        return np.median([volume(search(make(s), problem, 28)[0]) for s in range(5)])

    own = ours(lambda s: kind(of(problem), s, population=36))
    control = ours(lambda s: Random(of(problem), s, batch=36))
    assert own > control + 0.3
    assert own > 0.9 * np.median([theirs(seed) for seed in range(5)])


@pytest.mark.parametrize("kind", [Nsga2, Nsga3])
@pytest.mark.parametrize("name", ["bnh", "osy"])
def test_constrained_searches_end_feasible(kind, name):
    problem = get_problem(name)
    _, limits = search(kind(of(problem), 0, population=28), problem, 30)
    _, control = search(Random(of(problem), 0, batch=28), problem, 30)
    feasible = (limits[-280:] <= 0).all(axis=1).mean()
    assert feasible > 0.5
    assert feasible >= (control <= 0).all(axis=1).mean()


@BOTH
def test_mixed_search_finds_the_best(kind):
    """Every integer and the choice, in 600 candidates."""

    def fitness(g):
        return -float(
            abs(g[0] - 0.3) + abs(g[1] - 0.7) + abs(g[2] - 5) + (g[3] != -2) + (g[4] != 2)
        )

    optimizer = kind(mixed_domain(), 0, population=20)
    genomes = TestNsga2().drive(optimizer, 30, fitness)
    best = max(genomes, key=fitness)
    assert best[2:].tolist() == [5, -2, 2] and fitness(best) > -0.1


# --- settings ----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("population", v) for v in (3, 0, 8.0, True, None)],
        *[("crossover_probability", v) for v in (-0.1, 1.1, None, math.nan)],
        *[("mutation_probability", v) for v in (-0.1, 1.1, "1/n")],
        *[("crossover_eta", v) for v in (0, -1, math.inf, "big")],
        *[("mutation_eta", v) for v in (0, -1, math.inf)],
        ("anchors", 1),
        ("steady_state", "yes"),
    ],
)
def test_wrong_settings(kind, key, value):
    with pytest.raises(ConfigError, match=rf"optimizer\.{key}"):
        kind(cube(2), 0, **{key: value})


def test_population_below_the_number_of_objectives():
    with pytest.raises(ConfigError, match=r"optimizer\.population.*at least 9"):
        Nsga3(cube(2, 9), 0, population=8)


@BOTH
def test_yaml_has_every_setting_with_its_default(kind):
    text = (CONF / f"{kind.__name__.lower()}.yaml").read_text(encoding="utf-8")
    keys = yaml.safe_load(text)
    assert keys.pop("_target_").endswith(f".{kind.__name__}")
    given = list(inspect.signature(kind).parameters.values())[2:]
    assert keys == {p.name: p.default for p in given}
    assert all(key in text.split("_target_")[0] for key in keys)
