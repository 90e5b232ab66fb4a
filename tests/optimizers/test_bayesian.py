"""Tpe and Gp: the common rules, what they add, and that they beat random search."""

import logging
import warnings
from functools import partial

import moocore
import numpy as np
import optuna
import pytest
import torch

from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.optimizers.base import Told
from evomerge.optimizers.gp import Gp, chebyshev, informative
from evomerge.optimizers.random import Random
from evomerge.optimizers.tpe import Tpe
from evomerge.testing.optimizers import MultiObjectiveConformance, domain, mixed_domain, observe
from evomerge.types import Fitness, Observation

QUICK = {"samples": 16, "restarts": 2}
QUICK_GP = partial(Gp, **QUICK)
BOTH = pytest.mark.parametrize("kind", [Tpe, QUICK_GP], ids=["tpe", "gp"])


class TestTpe(MultiObjectiveConformance):
    effort = 0.5

    def make(self, domain, seed):
        return Tpe(domain, seed, startup=4, batch=4)


class TestGp(MultiObjectiveConformance):
    effort = 0.1
    least = 6

    def make(self, domain, seed):
        return Gp(domain, seed, startup=4, batch=2, **QUICK)


def cube(count, objectives=1, constraints=0, anchors=()):
    made = tuple(Dimension(f"weight/{i}/all", 0.0, 1.0, 0.5, 0.2) for i in range(count))
    return Domain(made, objectives, constraints, anchors)


def run(optimizer, evaluations, evaluate, at_once=4):
    """Genomes and fitnesses of a search that keeps `at_once` candidates at work."""
    waiting, done = [], []
    for _ in range(evaluations):
        while len(waiting) < at_once:
            waiting += optimizer.ask(1)
        genome = waiting.pop(0)
        fitness = evaluate(genome)
        optimizer.tell([Observation(genome, fitness)])
        done.append((genome, fitness))
    return done


def ellipsoid(genome):
    scales = np.linspace(1.0, 10.0, len(genome))
    return Fitness((-float((scales * (genome - 0.3) ** 2).sum()),), (0.0,))


def zdt1(genome):
    """Zitzler, Deb and Thiele (2000), negated."""
    g = 1.0 + 9.0 * genome[1:].mean()
    return Fitness((-genome[0], -g * (1.0 - np.sqrt(genome[0] / g))), (0.0, 0.0))


@BOTH
def test_beats_random_search(kind):
    def best(optimizer):
        return max(f.values[0] for _, f in run(optimizer, 40, ellipsoid))

    own = [best(kind(cube(5), seed)) for seed in range(3)]
    control = [best(Random(cube(5), seed)) for seed in range(3)]
    assert np.median(own) > np.median(control)
    if kind is QUICK_GP:
        assert np.median(own) > -0.1  # the median of random search is near -1


@pytest.mark.slow
@BOTH
def test_more_hypervolume_than_random_search(kind):
    def volume(optimizer):
        losses = [[-v for v in f.values] for _, f in run(optimizer, 50, zdt1)]
        return moocore.hypervolume(np.array(losses), ref=[1.1, 6.0])

    own = [volume(kind(cube(4, 2), seed)) for seed in range(5)]
    control = [volume(Random(cube(4, 2), seed)) for seed in range(5)]
    assert np.median(own) > max(control)


@BOTH
def test_proposals_become_feasible(kind):
    """A sixth of the domain is feasible, and the values say nothing of where."""

    def evaluate(genome):
        value = -((genome[0] - genome[1]) ** 2) - 10.0 * (genome[2] - 0.3) ** 2
        return Fitness((float(value),), (0.0,), (float(genome[0] + genome[1]) - 0.6,))

    feasible = [f.feasible for _, f in run(kind(cube(3, 1, 1), 0, startup=12), 36, evaluate)]
    assert np.mean(feasible[-18:]) > np.mean(feasible[:12]) + 0.2


@BOTH
def test_candidates_at_work_repel(kind):
    optimizer = kind(cube(2), 0, anchors=False)
    run(optimizer, 20, ellipsoid, at_once=1)
    genomes = np.array(optimizer.ask(4))
    apart = [np.linalg.norm(a - b) for i, a in enumerate(genomes) for b in genomes[:i]]
    assert min(apart) > 1e-3
    assert max(apart) > 0.02


@BOTH
def test_replay_asks_no_sampler(kind, monkeypatch):
    calls = []
    sampler = {Tpe: optuna.samplers.TPESampler, QUICK_GP: optuna.samplers.GPSampler}[kind]
    real = sampler.sample_relative
    monkeypatch.setattr(sampler, "sample_relative", lambda *args: calls.append(args) or real(*args))
    one, other = kind(cube(3), 1), kind(cube(3), 1)
    journal = run(one, 25, ellipsoid, at_once=1)
    assert len(calls) >= 15
    calls.clear()
    for genome, fitness in journal:
        assert other.replay([genome])
        other.tell([Observation(genome, fitness)])
    assert not calls
    assert np.array_equal(other.ask(2), one.ask(2))


@BOTH
def test_finds_the_best_choice(kind):
    def evaluate(genome):
        return Fitness((float(genome[4] == 2.0) - abs(genome[0] - 0.5),), (0.0,))

    done = run(kind(mixed_domain(), 0), 30, evaluate)
    assert np.mean([g[4] == 2.0 for g, _ in done[-10:]]) > 0.6  # random search: a quarter


@BOTH
def test_keeps_away_from_where_candidates_fail(kind):
    """The best values of the model lie where everything fails."""

    def evaluate(genome):
        return None if genome[0] > 0.5 else Fitness((float(genome[0]),), (0.0,))

    done = run(kind(cube(2), 0), 32, evaluate, at_once=2)
    assert sum(f is None for _, f in done[-20:]) <= 10


@BOTH
def test_anchors_come_first(kind):
    anchors = tuple(np.full(3, value) for value in (0.0, 1.0, 0.5))
    first = kind(cube(3, anchors=anchors), 0).ask(3)
    assert np.array_equal(first, anchors)
    without = kind(cube(3, anchors=anchors), 0, anchors=False).ask(3)
    assert not any(np.array_equal(a, b) for a, b in zip(without, anchors, strict=True))


@BOTH
def test_learnt_results_stand_for_the_initial_design(kind):
    foreign = run(Random(cube(3), 0), 20, ellipsoid)
    optimizer = kind(cube(3), 0, anchors=False)
    optimizer.learn([Observation(g, f) for g, f in foreign])
    [genome] = optimizer.ask(1)
    [design] = kind(cube(3), 0, anchors=False).ask(1)
    assert not np.array_equal(genome, design)
    assert ellipsoid(genome).values[0] > np.median([f.values[0] for _, f in foreign])


@BOTH
def test_a_genome_is_not_repeated_while_others_are_left(kind):
    made = (Dimension("layer/a/all", 0.0, 5.0, 1.0, 1.0, "integer"),)
    done = run(kind(Domain(made), 0, startup=2), 6, lambda g: Fitness((float(g[0]),), (0.0,)), 1)
    assert sorted(g[0] for g, _ in done) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


@BOTH
def test_dimensions_of_one_value(kind):
    made = (
        Dimension("weight/a/all", 0.5, 0.5, 0.5, 0.1),
        Dimension("layer/a/all", 3.0, 3.0, 3.0, 1.0, "integer"),
        Dimension("weight/b/all", 0.0, 1.0, 0.5, 0.1),
    )
    done = run(kind(Domain(made), 0, startup=3), 8, lambda g: Fitness((-(g[2] ** 2),), (0.0,)))
    assert all(g[0] == 0.5 and g[1] == 3.0 for g, _ in done)
    fixed = run(kind(Domain(made[:2]), 0, startup=3), 8, lambda g: Fitness((1.0,), (0.0,)))
    assert {g.tobytes() for g, _ in fixed} == {np.array([0.5, 3.0]).tobytes()}


@BOTH
def test_leaves_process_as_it_was(kind, capfd):
    logger = logging.getLogger("optuna")
    level, threads = logger.level, torch.get_num_threads()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    torch.set_num_threads(2)
    capfd.readouterr()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("error")
            options = {"noise": False} if kind is QUICK_GP else {}
            run(kind(cube(2), 0, startup=3, **options), 6, ellipsoid)
        assert logger.level == logging.DEBUG
        assert torch.get_num_threads() == 2
        assert capfd.readouterr() == ("", "")
    finally:
        logger.setLevel(level)
        torch.set_num_threads(threads)


@BOTH
@pytest.mark.parametrize(
    ("key", "value"), [("startup", 1), ("batch", 0), ("anchors", 1), ("batch", True)]
)
def test_settings_are_checked(kind, key, value):
    with pytest.raises(ConfigError, match=f"optimizer.{key}"):
        kind(cube(2), 0, **{key: value})


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (Tpe, "candidates", 0),
        (Tpe, "multivariate", "no"),
        (Gp, "max_observations", 1),
        (Gp, "noise", 1),
        (Gp, "samples", 1),
        (Gp, "restarts", 1.5),
    ],
)
def test_own_settings_are_checked(kind, key, value):
    with pytest.raises(ConfigError, match=f"optimizer.{key}"):
        kind(cube(2), 0, **{key: value})


def test_startup_has_room_for_the_anchors():
    anchors = tuple(np.full(2, i / 10) for i in range(9))
    assert Tpe(cube(2), 0)._history.startup == 10
    assert Tpe(cube(2, anchors=anchors), 0)._history.startup == 13


def test_tpe_draws_each_dimension_for_itself():
    done = run(Tpe(cube(3), 0, multivariate=False), 20, ellipsoid)
    joint = run(Tpe(cube(3), 0), 20, ellipsoid)
    assert not np.array_equal(done[-1][0], joint[-1][0])


def test_gp_samplers_knobs_exist():
    """Attributes without an underscore's promise; a release that drops one shall be noticed."""
    sampler = optuna.samplers.GPSampler(seed=0)
    for name in (
        "_n_preliminary_samples",
        "_n_local_search",
        "_n_qmc_samples_ehvi",
        "_gprs_cache_list",
        "_constraints_gprs_cache_list",
    ):
        assert hasattr(sampler, name)


def test_gp_fits_anew_when_results_have_grown_by_a_tenth():
    optimizer = Gp(cube(2), 0, startup=4, **QUICK)
    sizes = []
    for genome in Random(cube(2), 0).ask(40):
        optimizer.replay([genome])
        optimizer.tell([Observation(genome, ellipsoid(genome))])
        optimizer._note_fit()
        sizes.append(len(optimizer._fit_on))
    assert sorted(set(sizes) - {0}) == [*range(4, 21), *range(22, 31, 2), 33, 36, 39]


def test_gp_of_many_results_uses_the_limit():
    optimizer = Gp(cube(2), 0, max_observations=12, **QUICK)
    genomes = Random(cube(2), 0).ask(40)
    optimizer.replay(genomes)
    optimizer.tell([Observation(g, ellipsoid(g)) for g in genomes])
    assert len(optimizer._trials(optimizer._history.results)) == 12
    assert len(optimizer.ask(2)) == 2


def test_gp_with_four_objectives_scalarises():
    def evaluate(genome):
        targets = np.eye(4)
        values = [-float(((genome - t) ** 2).sum()) for t in targets]
        return Fitness(tuple(values), (0.0,) * 4)

    def volume(optimizer):
        losses = [[-v for v in f.values] for _, f in run(optimizer, 24, evaluate)]
        return moocore.hypervolume(np.array(losses), ref=[3.0] * 4)

    own = [volume(Gp(cube(4, 4), seed, **QUICK)) for seed in range(2)]
    control = [volume(Random(cube(4, 4), seed)) for seed in range(2)]
    assert np.median(own) > np.median(control)


def test_informative_keeps_best_latest_and_random_ones():
    rng = np.random.default_rng(0)
    values = rng.random((60, 1))
    failed = np.zeros(60, dtype=bool)
    failed[np.argmax(values)] = True
    limits = np.where(np.arange(60)[:, None] == 5, 1.0, -1.0)
    kept = informative(values, limits, failed, range(60), 20, 0)
    order = [i for i in np.argsort(-values[:, 0]) if not failed[i] and i != 5]
    assert len(kept) == len(set(kept)) == 20
    assert kept == sorted(kept)
    assert set(order[:10]) <= set(kept)
    best = set(order[:10])
    latest = [i for i in reversed(range(60)) if i not in best][:5]
    assert set(latest) <= set(kept)
    assert informative(values[:9], limits[:9], failed[:9], range(9), 20, 0) == list(range(9))


def test_informative_keeps_the_front():
    rng = np.random.default_rng(0)
    values = rng.random((80, 2))
    front = np.flatnonzero(moocore.is_nondominated(-values))
    none = np.zeros((80, 0)), np.zeros(80, dtype=bool)
    assert set(front) <= set(informative(values, *none, range(80), 2 * len(front), 0))


def test_chebyshev_against_the_closed_form():
    values = np.array([[0.0, 10.0], [1.0, 0.0], [0.5, 5.0]])
    found = chebyshev(values, np.array([0.25, 0.75]))
    assert found == pytest.approx([-0.25 * 1.05, -0.75 * 1.05, -0.375 - 0.05 * 0.5])
    assert np.array_equal(chebyshev(np.ones((3, 2)), np.array([0.5, 0.5])), [0.0, 0.0, 0.0])


@BOTH
def test_history_gives_failures_the_worst_values(kind):
    optimizer = kind(cube(1, 2, 1), 0)
    genomes = optimizer.ask(3)
    fitnesses = (
        Fitness((1.0, 5.0), (0.0, 0.0), (-1.0,)),
        None,
        Fitness((2.0, 3.0), (0.0, 0.0), (0.5,)),
    )
    history = optimizer._history
    history.tell([Told(i, g, f) for i, (g, f) in enumerate(zip(genomes, fitnesses, strict=True))])
    values, constraints = history.values(history.results)
    assert values.tolist() == [[1.0, 5.0], [1.0, 3.0], [2.0, 3.0]]
    assert constraints.tolist() == [[-1.0], [0.5], [0.5]]
    trials = history.finished(history.results, values, constraints)
    assert [list(t.constraints.values()) for t in trials] == [[-1.0], [0.5], [0.5]]
    assert [t.state.name for t in trials] == ["COMPLETE"] * 3


def test_equal_candidates_at_work():
    """Two genomes only: the joint distribution of those at work is degenerate."""
    made = domain(1).dimensions[0]
    narrow = Dimension(made.name, 0.0, 1.0, 0.0, 1.0, "integer")
    optimizer = Gp(Domain((narrow,)), 0, startup=4, **QUICK)
    batch = optimizer.ask(4)
    optimizer.tell([observe(g, float(g[0])) for g in batch])
    assert len(optimizer.ask(6)) == 6
