"""MAP-Elites: the common rules, and what it promises by itself."""

import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.optimizers.designs import InitialDesign
from evomerge.optimizers.map_elites import MapElites, indicators, spans
from evomerge.optimizers.random import Random
from evomerge.seeds import derive
from evomerge.testing.optimizers import MultiObjectiveConformance, answer, domain, sphere
from evomerge.types import Fitness, Observation


def cube(n, objectives=1, constraints=0):
    return Domain(
        tuple(Dimension(f"w/{i}/all", 0.0, 1.0, 0.5, 1 / 6) for i in range(n)),
        objectives,
        constraints,
    )


def skills(genome, k):
    """`k` values in (0, 1]; each wants its own numbers high and the others low."""
    mine = np.arange(len(genome)) % k == np.arange(k)[:, None]
    return np.exp(-6 * ((genome - np.where(mine, 0.9, 0.15)) ** 2).mean(axis=1))


def observed(genome, values, limits=()):
    values = tuple(float(v) for v in values)
    return Observation(genome, Fitness(values, (0.0,) * len(values), tuple(limits)))


def search(optimizer, budget):
    """Values of every candidate, `m x k`."""
    k, out = optimizer.domain.objectives, []
    for _ in range(budget // optimizer.batch):
        batch = optimizer.ask(optimizer.batch)
        values = [skills(g, k) for g in batch]
        optimizer.tell([observed(g, v) for g, v in zip(batch, values, strict=True)])
        out += values
    return np.array(out)


def elites(values, places, cells):
    """The best value of each cell, by brute force."""
    best = {}
    for value, place in zip(values, places, strict=True):
        cell = tuple(min(cells - 1, int(cells * p + 1e-6)) for p in place)
        best[cell] = max(best.get(cell, -math.inf), value)
    return best


class TestMapElites(MultiObjectiveConformance):
    def make(self, domain, seed):
        return MapElites(domain, seed, batch=12)


@pytest.mark.parametrize("k", [2, 3])
def test_each_map_keeps_the_best_of_each_cell(k):
    """Against brute force, for every objective as quality."""
    optimizer = MapElites(cube(6, k), 0, batch=50, cells=5)
    batch = optimizer.ask(50)
    values = np.array([skills(g, k) for g in batch])
    assert (values > np.percentile(values, 25, axis=0) * -1).all()
    optimizer.tell([observed(g, v) for g, v in zip(batch, values, strict=True)])
    scaled = (values - values.min(axis=0)) / np.ptp(values, axis=0)
    assert len(optimizer.maps) == k
    for t, archive in enumerate(optimizer.maps):
        expected = elites(values[:, t], np.delete(scaled, t, axis=1), 5)
        data = archive.data()
        found = elites(data["objective"], data["measures"], 5)
        assert len(archive) == len(found) == len(expected)
        assert found == expected
        at = {g.tobytes(): v for g, v in zip(batch, values, strict=True)}
        for unit, quality in zip(data["solution"], data["objective"], strict=True):
            assert at[unit.tobytes()][t] == quality  # the unit cube is the domain here


def test_axes_span_the_values_but_for_the_broken():
    """One value far below the others (outer fence of 1..8: 2.75 - 3 * 3.5) moves no end far."""
    column = np.arange(1.0, 9.0)
    assert spans(np.stack([column, 10 * column], axis=1)).tolist() == [[1, 10], [8, 80]]
    broken = spans(np.append(column, -1e6)[:, None])[:, 0]
    assert broken.tolist() == [2.0 - 3 * 4.0, 8.0]  # quartiles of nine: 2 and 6, fence -10
    constant = np.append(np.zeros(9), 1.0)[:, None]  # no interquartile range, no fence
    assert spans(constant)[:, 0].tolist() == [0.0, 1.0]


def test_axes_grow_and_old_results_enter_again():
    """A second generation on another scale: all elites in their new cells."""
    optimizer = MapElites(cube(3, 2), 0, batch=20, cells=4)
    everyone = []
    for scale in (1.0, 100.0):
        batch = optimizer.ask(20)
        values = scale * np.array([skills(g, 2) for g in batch])
        everyone += list(values)
        optimizer.tell([observed(g, v) for g, v in zip(batch, values, strict=True)])
        assert len(optimizer.maps) == 2
    values = np.array(everyone)
    places = (values - values.min(axis=0)) / np.ptp(values, axis=0)
    expected = elites(values[:, 0], places[:, 1:], 4)
    data = optimizer.maps[0].data()
    assert elites(data["objective"], data["measures"], 4) == expected


@pytest.mark.parametrize(("rotate", "expected"), [(True, [0, 1, 2, 0]), (False, [0] * 4)])
def test_rotation_visits_every_objective(monkeypatch, rotate, expected):
    """Each `batch` asks are bred from one map, then the next has its turn."""
    optimizer = MapElites(cube(4, 3), 0, batch=6, rotate=rotate)
    search(optimizer, 18)
    turns = []
    child = optimizer._child

    def spy(archive):
        turns.append(next(i for i, m in enumerate(optimizer.maps) if m is archive))
        return child(archive)

    monkeypatch.setattr(optimizer, "_child", spy)
    search(optimizer, 24)
    assert turns == [t for t in expected for _ in range(6)]


def test_children_come_from_the_map_in_turn():
    """Both results are elites of map 1, and only the better one of map 0."""
    optimizer = MapElites(cube(2, 2), 0, batch=2, cells=2, sigma=1e-6, line_sigma=0.0)
    a, b = optimizer.ask(2)
    optimizer.tell([observed(a, (0.0, 1.0)), observed(b, (1e-9, 1.0))])
    assert [len(m) for m in optimizer.maps] == [1, 2]
    of_map = [[], []]
    for i, genome in enumerate(optimizer.ask(40)):
        of_map[(i // 2 + 1) % 2].append(np.abs(genome - b).max() < 1e-4)
    assert all(of_map[0]) and 0 < sum(of_map[1]) < 20


@pytest.mark.parametrize("k", [2, 3])
def test_fills_more_cells_than_random_search_and_with_better(k):
    """Medians over five seeds at 512 evaluations, on one grid of 15 cells over [0, 1]."""

    def measure(make):
        runs = []
        for seed in range(5):
            values = search(make(seed), 512)
            maps = [elites(values[:, t], np.delete(values, t, 1), 15) for t in range(k)]
            runs.append([sum(map(len, maps)), sum(sum(m.values()) for m in maps)])
        return np.median(runs, axis=0)

    own = measure(lambda seed: MapElites(cube(10, k), seed))
    control = measure(lambda seed: Random(cube(10, k), seed, batch=32))
    assert (own > 1.15 * control).all()


def test_one_objective_fills_more_cells_with_better():
    """On a sphere, whose good genomes are few: the QD score above the worst possible value."""

    def measure(make):
        out = []
        for seed in range(5):
            optimizer = make(seed)
            genomes = TestMapElites().drive(optimizer, 512 // optimizer.batch)
            judge = MapElites(cube(5), 0)
            places = judge._coordinates(np.array(genomes), np.empty(0))
            low, high = judge._coordinates(np.eye(5), np.empty(0)).min(), 2.3
            values = [sphere(g) + 5 for g in genomes]
            out.append(sum(elites(values, (places - low + 2) / (high - low + 4), 15).values()))
        return np.median(out)

    own = measure(lambda seed: MapElites(cube(5), seed))
    assert own > 1.1 * measure(lambda seed: Random(cube(5), seed, batch=32))


def test_infeasible_results_enter_only_while_nothing_is_feasible():
    optimizer = MapElites(cube(3, 2, 1), 0, batch=10, cells=3)
    batch = optimizer.ask(10)
    values = [skills(g, 2) for g in batch]
    told = [observed(g, v, [1.0 + i]) for i, (g, v) in enumerate(zip(batch, values, strict=True))]
    optimizer.tell(told)
    for archive in optimizer.maps:
        assert archive.stats.obj_max == -1.0  # quality: the negated violation
    new = optimizer.ask(3)
    limits = [-0.5, 2.0, 0.0]
    optimizer.tell([observed(g, (0.2, 0.3), [c]) for g, c in zip(new, limits, strict=True)])
    for t, archive in enumerate(optimizer.maps):
        solutions = {s.tobytes() for s in archive.data("solution")}
        assert solutions <= {new[0].tobytes(), new[2].tobytes()}
        assert archive.stats.obj_max == (0.2, 0.3)[t]
    [other] = optimizer.ask(1)
    optimizer.tell([observed(other, (9.0, 9.0), [0.1])])
    assert all(m.stats.obj_max < 1 for m in optimizer.maps)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_descriptors_of_one_objective_are_two_orthogonal_projections(n):
    optimizer = MapElites(cube(n), 3)
    first, second = optimizer._projection.T
    assert first @ first == pytest.approx(1)
    assert first @ second == pytest.approx(0, abs=1e-12)
    assert second @ second == pytest.approx(1 if n > 1 else 0)
    assert np.array_equal(MapElites(cube(n), 3)._projection, optimizer._projection)
    assert not np.array_equal(MapElites(cube(n), 4)._projection, optimizer._projection)


def test_indicators():
    made = Domain(
        (
            Dimension("w/a/all", -1.0, 3.0, 0.0, 1.0),
            Dimension("method/a/all", 0.0, 2.0, 0.0, 1.0, "choice", ("a", "b", "c")),
        )
    )
    one, two = indicators(made, np.array([[0.0, 2.0], [3.0, 0.0]]))
    root = math.sqrt(0.5)
    np.testing.assert_allclose(one, [0.25, 0, 0, root])
    np.testing.assert_allclose(two, [1.0, root, 0, 0])


def test_choices_come_from_parents_or_mutate_and_integers_move():
    """With two elites and no noise worth mentioning."""
    made = Domain(
        (
            Dimension("layer/a/all", 0.0, 1.0, 0.0, 1.0, "integer"),
            *(
                Dimension(f"method/{i}/all", 0.0, 4.0, 0.0, 1.0, "choice", tuple("abcde"))
                for i in range(9)
            ),
        ),
        2,
    )
    optimizer = MapElites(made, 0, batch=2, sigma=1e-9)
    parents = optimizer.ask(2)
    optimizer.tell([observed(g, (i, 1 - i)) for i, g in enumerate(parents)])
    children = np.array([optimizer._child(optimizer.maps[0]) for _ in range(1000)])
    stays = (children[:, 1:] == parents[0][1:]) | (children[:, 1:] == parents[1][1:])
    same = (parents[0] == parents[1])[1:]
    # mutated with probability 0.1, and of three or four other choices none or one is a parent's
    expected = np.where(same, 0.1, 0.1 * 0.75).mean()
    assert abs((~stays).mean() - expected) < 0.02
    assert {*children[:, 0]} == {0.0, 1.0}


def test_begins_with_anchors_and_sobol_points_until_a_batch_of_results():
    """Failed ones are made up for."""
    made = domain(3, 2)
    optimizer = MapElites(made, 4, batch=10)
    batch = optimizer.ask(10)
    design = InitialDesign(made, derive(4, "initial maps"))
    assert np.array_equal(batch, design.take(10))
    told = [answer(made, g, None if i < 4 else 0.0) for i, g in enumerate(batch)]
    optimizer.tell(told)
    assert np.array_equal(optimizer.ask(4), design.take(4))
    bare = MapElites(made, 4, batch=10, anchors=False).ask(10)
    assert not any(np.array_equal(a, g) for a in made.anchors for g in bare)


def test_no_genome_is_asked_for_twice_and_results_count_at_once():
    optimizer = MapElites(cube(2, 2), 0, batch=4, sigma=1e-6, line_sigma=0.0)
    genomes = optimizer.ask(4)
    optimizer.tell([observed(g, (0.0, 0.0)) for g in genomes])
    [new] = optimizer.ask(1)
    optimizer.tell([observed(new, (1.0, 1.0))])  # alone in the best cells of both maps
    more = optimizer.ask(60)
    assert any(np.abs(g - new).max() < 1e-4 for g in more)
    assert len({g.tobytes() for g in [*genomes, new, *more]}) == 65


def test_learnt_results_are_in_the_maps():
    made = cube(3, 2)
    optimizer = MapElites(made, 0, batch=5, sigma=1e-6, line_sigma=0.0)
    foreign = Random(made, 9).ask(20)
    optimizer.learn([observed(g, skills(g, 2)) for g in foreign])
    assert sum(map(len, optimizer.maps)) > 2
    for child in optimizer.ask(10):
        assert min(np.abs(child - g).max() for g in foreign) < 1e-4


@pytest.mark.parametrize(
    ("k", "cells"), [(1, 15), (2, 15), (3, 15), (4, 15), (5, 10), (6, 6), (9, 3), (14, 2)]
)
def test_default_cells(k, cells):
    optimizer = MapElites(cube(2, k), 0, batch=4)
    optimizer.tell([answer(optimizer.domain, g, 0.0) for g in optimizer.ask(4)])
    assert set(optimizer.maps[0].dims) == {cells}
    assert len(optimizer.maps[0].dims) == (k - 1 or 2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("batch", v) for v in (0, -1, 2.5, True, None)],
        *[("cells", v) for v in (1, 0, 2.5, 1001)],
        *[("sigma", v) for v in (0, -1.0, math.nan, math.inf, "big")],
        *[("line_sigma", v) for v in (-0.1, math.nan, math.inf, None)],
        ("rotate", 1),
        ("anchors", "no"),
    ],
)
def test_wrong_settings(key, value):
    with pytest.raises(ConfigError, match=rf"optimizer\.{key}"):
        MapElites(cube(2, 3), 0, **{key: value})


def test_too_many_objectives_for_a_map():
    with pytest.raises(ConfigError, match=r"optimizer\.cells.*20 descriptors"):
        MapElites(cube(2, 21), 0)


def test_yaml_has_every_setting_with_its_default():
    path = Path(__file__).parents[2] / "conf" / "optimizer" / "map_elites.yaml"
    text = path.read_text(encoding="utf-8")
    keys = yaml.safe_load(text)
    assert keys.pop("_target_").endswith(".MapElites")
    given = list(inspect.signature(MapElites).parameters.values())[2:]
    assert keys == {p.name: p.default for p in given}
    assert all(key in text.split("_target_")[0] for key in keys)
