"""Settings of the MAP optimisers, what they learn from a warm start, how few candidates do."""

import inspect
import tracemalloc
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from map_problems import SEARCH, SMALL, box, front_of_two_bowls, play, two_bowls, values_of

from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.optimizers._surrogates import Fitting
from evomerge.optimizers.bayesian_map import BayesianMap
from evomerge.optimizers.map import Map
from evomerge.optimizers.nested_map import NestedMap
from evomerge.optimizers.random import Random
from evomerge.pareto import hypervolume
from evomerge.setup import check_candidates
from evomerge.types import Fitness, Observation
from evomerge.warm_start import Start

CONF = Path(__file__).parents[2] / "conf" / "optimizer"


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        *[(Map, "design", v) for v in (0, 2.0, "all")],
        *[(Map, "verify", v) for v in (0, None)],
        *[(Map, "patience", v) for v in (0, 1.5)],
        *[(Map, "tolerance", v) for v in (-0.1, None)],
        *[(Map, "box", v) for v in ([1, 0], [0, 1, 2], "unit", [2.0, 3.0])],
        *[(Map, "link", v) for v in ("logit", None)],
        *[(Map, "items", v) for v in (0, 1.5)],
        (Map, "gate", None), (Map, "population", 3), (Map, "generations", 0),
        *[(BayesianMap, "startup", v) for v in (1, 2.5)],
        *[(BayesianMap, "batch", v) for v in (0, None)],
        (BayesianMap, "verify_every", 0), (BayesianMap, "directions", 0),
        (BayesianMap, "radii", 0), (BayesianMap, "temperature", 0),
        *[(NestedMap, "pair", v) for v in (3, None)],
        *[(NestedMap, "box", v) for v in (None, [1, 1], [0, "1"])],
        *[(NestedMap, "preference", v) for v in ([1.0, 1.0], [0], [-1], 3, ["1"])],
        (NestedMap, "verify", 0), (NestedMap, "parameter", "t"), (NestedMap, "refine", 1),
    ],
)  # fmt: skip
def test_wrong_settings(kind, key, value):
    with pytest.raises(ConfigError, match=rf"optimizer\.{key}"):
        kind(box(2), 0, **{key: value})


@pytest.mark.parametrize("kind", [Map, BayesianMap, NestedMap])
def test_yaml_has_every_setting_with_its_default(kind):
    [file] = [f for f in CONF.glob("*map.yaml") if f".{kind.__name__}\n" in f.read_text()]
    text = file.read_text(encoding="utf-8")
    keys = yaml.safe_load(text)
    module, _, name = keys.pop("_target_").rpartition(".")
    assert getattr(import_module(module), name) is kind
    given = {p.name: p.default for p in list(inspect.signature(kind).parameters.values())[2:]}
    assert keys == {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}
    assert all(key in text.split("_target_")[0] for key in keys)


def terms(genomes):
    """All terms of a quadratic over the unit cube, written out."""
    x = 2 * np.atleast_2d(genomes) - 1
    pairs = [x[:, i] * x[:, j] for i in range(x.shape[1]) for j in range(i, x.shape[1])]
    return np.column_stack([np.ones(len(x)), x, *pairs])


@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([0.0, 0.05, 1.0]))
@settings(max_examples=40, deadline=None)
def test_a_design_is_completed_over_what_was_learnt(seed, count, width):
    """To full rank, and to predictions as sure as those of the design alone, with no point more."""
    domain, rng = box(3, 2), np.random.default_rng(seed)
    known = 0.5 + width * (rng.random((count, 3)) - 0.5)
    whole = np.array(Map(domain, 7).ask(20))
    warm = Map(domain, 7)
    warm.learn([Observation(g, Fitness((0.1, 0.2), (0.0, 0.0))) for g in known])
    warm.learn([])
    size = warm.least_candidates() - 5
    kept = np.array(warm.ask(size)).reshape(-1, 3) if size else np.zeros((0, 3))
    rows = [g.tobytes() for g in whole]
    places = [rows.index(g.tobytes()) for g in kept]
    assert places == sorted(set(places))
    tested = terms(np.random.default_rng(1).random((4000, 3)))

    def unsure(genomes):
        z = terms(genomes)
        assert np.linalg.matrix_rank(z) == 10
        return (tested @ np.linalg.inv(z.T @ z) * tested).sum(axis=1).mean()

    assert unsure(np.vstack([known, kept])) < 1.05 * unsure(whole)
    if width == 0.0:  # all at one point: nothing but a constant
        assert size >= 9


def test_a_study_like_this_one_replaces_the_design():
    """A search around one point replaces little of it; failed results say nothing."""
    domain = box(8, 2)
    before = play(Map(domain, 0, **SEARCH), two_bowls(8), 75)
    again, fresh = Map(domain, 1, **SEARCH), Map(domain, 1, **SEARCH)
    assert not again.verifies and fresh.least_candidates() == 65
    again.learn(before)
    assert again.least_candidates() == 5 and again.verifies
    middle = np.full(8, 0.4) + 0.01 * np.random.default_rng(0).random((75, 8))
    near = Map(domain, 1, **SEARCH)
    near.learn([Observation(g, two_bowls(8)(g)) for g in middle])
    assert near.least_candidates() - 5 >= 44
    failed = Map(domain, 1, **SEARCH)
    failed.learn([Observation(o.genome, None) for o in before])
    assert failed.least_candidates() == 65
    np.testing.assert_array_equal(failed.ask(60), fresh.ask(60))


def test_a_warm_start_finds_the_front_with_few_candidates():
    """Learnt results count for the end, too: it stops where they and its own stand still."""
    domain = box(3, 2)
    before = play(Map(domain, 0, **SMALL), two_bowls(3), 50)
    warm = Map(domain, 1, **SMALL)
    warm.learn(before)
    found = play(warm, two_bowls(3), 200)
    assert len(found) < 100 and warm.batch == 0
    reference = np.array([-0.3, -0.3])
    best = hypervolume(front_of_two_bowls(), reference)
    assert hypervolume(values_of(found[:15]), reference) > 0.95 * best


def test_least_candidates():
    """The design, and five of the first round, which three weights have with 30 candidates."""
    assert Map(box(8, 3), 0).least_candidates() == 45 + 15 + 5
    assert Map(box(18), 0).least_candidates() == 190 + 63 + 5
    assert Map(box(3, 3), 0).least_candidates() == 20 + 5 < 30
    assert Map(box(8, 3), 0, design=12, verify=2).least_candidates() == 45 + 2
    assert Map(box(8, 3), 0, design=80).least_candidates() == 80 + 5
    reason = Map(box(18), 0).least_reason()[0]
    assert "190 unknowns" in reason and "253 candidates, and 5 " in reason
    assert NestedMap(box(8), 0).least_candidates() == 155
    assert "8 sources" in NestedMap(box(8), 0).least_reason()[0]


@pytest.mark.parametrize(
    ("budget", "learnt", "fits"), [(64, 0, False), (65, 0, True), (60, 5, True), (None, 0, True)]
)
def test_budget_below_the_unknowns_is_refused(budget, learnt, fits):
    known = [Observation(g, two_bowls(8)(g)) for g in Random(box(8, 2), 0).ask(max(1, learnt))]
    start = Start(observations=tuple(known[:learnt]))
    if fits:
        check_candidates(Map(box(8, 2), 0), budget, start)
    else:
        with pytest.raises(ConfigError, match="found 64; expected at least 65"):
            check_candidates(Map(box(8, 2), 0), budget, start)
    check_candidates(Random(box(8, 2), 0), budget, start)


def test_a_warm_start_from_one_point_spares_little_of_the_budget():
    """75 results that lie together are not 75 of the design's candidates."""
    middle = np.full(8, 0.4) + 0.01 * np.random.default_rng(0).random((75, 8))
    start = Start(observations=tuple(Observation(g, two_bowls(8)(g)) for g in middle))
    with pytest.raises(ConfigError, match="found 40; expected at least"):
        check_candidates(Map(box(8, 2), 1), 40, start)
    check_candidates(Map(box(8, 2), 1), 65, start)


@pytest.mark.parametrize(
    ("names", "fewer"),
    [
        ([f"weight/{s}/{g}" for s in "abc" for g in range(6)], 3),
        ([f"weight/{s}/all" for s in "abc"], 0),
        ([f"keep/{s}/block{i}" for s in "ab" for i in range(9)], 0),
        ([f"parameter/all/{i}" for i in range(9)], 0),
        (["first/a/reads", "share/split"], 0),
    ],
)
def test_granularity_is_a_remedy_for_weights_by_layer_group_alone(names, fewer):
    made = Domain(tuple(Dimension(name, 0, 1, 0.5, 0.2) for name in names))
    remedy = Map(made, 0).least_reason()[1]
    assert ("granularity" in remedy) == bool(fewer)
    assert f"({fewer} dimensions: 10)" in remedy or not fewer


@pytest.mark.parametrize("kind", [Map, BayesianMap])
def test_too_many_dimensions_are_refused_before_anything_is_made(kind):
    """The design of 1500 dimensions alone would be gigabytes."""
    made = Domain(tuple(Dimension(f"weight/s{i}/all", 0, 1, 0.5, 0.2) for i in range(1500)))
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=r"budget\.candidates"):
            check_candidates(kind(made, 0), 1000, Start())
        assert tracemalloc.get_traced_memory()[1] < 1e7
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [Map, BayesianMap])
def test_surrogates_are_fitted_once_for_the_same_results(kind, monkeypatch):
    fits = []
    real = Fitting.fit
    monkeypatch.setattr(
        Fitting, "fit", lambda self, *rest: fits.append(len(rest[1])) or real(self, *rest)
    )
    size = {"design": 8, "verify": 4} if kind is Map else {"startup": 8, "verify_every": 1}
    optimizer = kind(box(2, 2), 0, **size, **SEARCH)
    assert not optimizer.verifies
    play(optimizer, two_bowls(2), 8)
    assert optimizer.verifies
    first = optimizer.model()
    optimizer.ask(4)
    assert optimizer.model() is first and fits == [8]


def test_only_rounds_of_the_predicted_front_verify():
    optimizer = BayesianMap(box(2, 2), 0, startup=6, batch=3, verify_every=2, **SEARCH)
    told = []
    for _ in range(18):
        told.append(optimizer.verifies)
        play(optimizer, two_bowls(2), 1)
    assert told == [False] * 9 + [True] * 3 + [False] * 3 + [True] * 3
