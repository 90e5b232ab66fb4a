"""The MAP family: the common rules, and known fronts recovered."""

import inspect
import tracemalloc
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.optimizers._predicted_front import picks, search
from evomerge.optimizers._quadratic import Basis
from evomerge.optimizers._surrogates import Fitting
from evomerge.optimizers.bayesian_map import BayesianMap, Bins
from evomerge.optimizers.map import Map, volume
from evomerge.optimizers.nested_map import NestedMap
from evomerge.optimizers.random import Random
from evomerge.pareto import hypervolume, non_dominated
from evomerge.setup import check_candidates
from evomerge.testing.optimizers import MultiObjectiveConformance, mixed_domain
from evomerge.types import Fitness, Observation
from evomerge.warm_start import Start

CONF = Path(__file__).parents[2] / "conf" / "optimizer"
SEARCH = {"population": 12, "generations": 3}
SMALL = {"population": 40, "generations": 15}
QUICK = {"design": 12, "verify": 4, "patience": None, **SEARCH}


class TestMap(MultiObjectiveConformance):
    effort = 0.3
    least = 24

    def make(self, domain, seed):
        return Map(domain, seed, **QUICK)


class TestBayesianMap(MultiObjectiveConformance):
    effort = 0.3
    least = 18

    def make(self, domain, seed):
        return BayesianMap(domain, seed, startup=6, batch=3, verify_every=2, **SEARCH)


class TestNestedMap(MultiObjectiveConformance):
    effort = 0.5
    least = 12

    def make(self, domain, seed):
        return NestedMap(domain, seed, pair=7, verify=2, refine=True)

    def test_integers_and_choices_are_whole(self):
        """And stay at their starts, since they are no weights."""
        made = mixed_domain()
        genomes = np.array(self.drive(self.make(made, 0), 10))
        self.check_bounds(self.make(made, 0), list(genomes))
        assert (genomes[:, 2:] == made.start[2:]).all()


def box(n, objectives=1, constraints=0, ranges=(), low=0.0, high=1.0):
    made = tuple(Dimension(f"weight/s{i}/all", low, high, 0.5, 0.2) for i in range(n))
    anchors = (*np.eye(n), np.full(n, 1 / n))
    return Domain(made, objectives, constraints, anchors, ranges=ranges)


def play(optimizer, measure, count):
    """Observations of whole batches, up to `count` or the end."""
    found = []
    while len(found) < count and (size := min(optimizer.batch, count - len(found))):
        told = [Observation(g, measure(g)) for g in optimizer.ask(size)]
        optimizer.tell(told)
        found += told
    return found


def two_bowls(n, constrained=False):
    """Two negated squared distances, to 0.25 and to 0.75 in all dimensions."""

    def measure(g):
        values = tuple(-float(((g - at) ** 2).mean()) for at in (0.25, 0.75))
        return Fitness(values, (0.0, 0.0), (float(g.mean()) - 0.5,) if constrained else ())

    return measure


def front_of_two_bowls(constrained=False):
    """The straight line between the two places."""
    t = np.linspace(0.0, 0.5 if constrained else 1.0, 2001)[:, None]
    return np.hstack([-((0.5 * t) ** 2), -((0.5 * (1 - t)) ** 2)])


def values_of(observations):
    return np.array([o.fitness.values for o in observations if o.fitness.feasible])


# --- MAP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("constrained", [False, True])
def test_front_of_two_bowls_is_recovered_in_one_round(constrained):
    made, reference = box(8, 2, int(constrained)), np.array([-0.3, -0.3])
    optimizer = Map(made, 0, population=60, generations=25)
    measure = two_bowls(8, constrained)
    found = play(optimizer, measure, 60 + 15)
    best = hypervolume(front_of_two_bowls(constrained), reference)
    before = hypervolume(values_of(found[:60]), reference)
    after = hypervolume(values_of(found), reference)
    assert after > 0.97 * best > before
    assert optimizer.model().kinds == ("quadratic", "quadratic")
    predicted, _ = optimizer.model().predict(np.array([o.genome for o in found[60:]]))
    np.testing.assert_allclose(predicted, [o.fitness.values for o in found[60:]], atol=1e-6)


def test_logistic_front_is_recovered():
    """Shares of right answers, whose quadratic lies below a sigmoid."""
    made = box(3, 2, ranges=((0.0, 1.0),) * 2)

    def measure(g):
        shares = [1 / (1 + np.exp(-3 + 8 * ((g - at) ** 2).sum())) for at in (0.2, 0.7)]
        return Fitness(tuple(map(float, shares)), (0.0, 0.0))

    found = play(Map(made, 1, **SMALL), measure, 20 + 15)
    t = np.linspace(0.2, 0.7, 1001)[:, None] * np.ones(3)
    best = hypervolume(np.array([measure(g).values for g in t]), np.zeros(2))
    assert hypervolume(values_of(found), np.zeros(2)) > 0.97 * best


def test_single_objective_is_maximised():
    optimizer = Map(box(5), 0, **SMALL)
    centre = np.array([0.2, 0.9, 0.5, 0.35, 0.6])
    found = play(optimizer, lambda g: Fitness((-float(((g - centre) ** 2).sum()),), (0.0,)), 60)
    assert max(o.fitness.values[0] for o in found[:31]) < -1e-2
    assert max(o.fitness.values[0] for o in found[31:36]) > -2e-3
    assert max(o.fitness.values[0] for o in found) > -1e-3


def test_design_holds_zero_the_anchors_and_fills_the_box():
    made = box(3, low=-0.25, high=1.25)
    first = np.array(Map(made, 0).ask(20))
    assert np.array_equal(first[:5], [np.zeros(3), *np.eye(3), np.full(3, 1 / 3)])
    assert len(first) == Map(made, 0).batch == 20
    assert (first.min(axis=0) < 0).all() and (first.max(axis=0) > 1).all()
    small = np.array(Map(made, 0, box=[0.0, 0.5]).ask(20))
    assert small[5:].min() >= 0 and small[5:].max() <= 0.5


def test_search_stays_in_the_box():
    optimizer = Map(box(2, 2), 0, box=[0.2, 0.6], verify=10, **SEARCH)
    found = play(optimizer, two_bowls(2), 32)
    proposed = np.array([o.genome for o in found[12:]])
    assert proposed.min() >= 0.2 and proposed.max() <= 0.6 and len(proposed) == 20


def test_search_ends_when_the_front_stands_still():
    optimizer = Map(box(2, 2), 0, verify=8, **SMALL)
    found = play(optimizer, two_bowls(2), 500)
    assert optimizer.batch == 0 and len(found) < 12 + 6 * 8
    resumed = Map(box(2, 2), 0, verify=8, **SMALL)
    for i in range(0, len(found), 4):
        resumed.replay([o.genome for o in found[i : i + 4]])
        resumed.tell(found[i : i + 4])
    assert resumed.batch == 0
    endless = Map(box(2, 2), 0, verify=8, patience=None, **SEARCH)
    assert len(play(endless, two_bowls(2), 80)) == 80


def test_search_goes_on_while_nothing_is_feasible():
    def measure(g):
        return Fitness((1.0, 1.0), (0.0, 0.0), (1.0,))

    optimizer = Map(box(2, 2, 1), 0, **SEARCH, verify=4, design=6)
    assert len(play(optimizer, measure, 40)) == 40


@pytest.mark.parametrize("k", [2, 7])
def test_volume_is_in_proportion_to_hypervolume(k):
    rng = np.random.default_rng(k)
    small, large = rng.random((9, k)), rng.random((25, k)) + 0.1
    exact = [hypervolume(v, np.zeros(k)) for v in (small, large)]
    assert volume(small) / volume(large) == pytest.approx(exact[0] / exact[1], rel=0.1)
    assert volume(np.concatenate([small, large])) >= max(volume(small), volume(large))


@pytest.mark.parametrize("kind", [Map, BayesianMap])
def test_resume_computes_nothing_and_goes_on_the_same(kind, monkeypatch):
    """From the middle of a round, too."""
    settings = {"design": 8} if kind is Map else {"startup": 8}
    size = {"verify": 4} if kind is Map else {"batch": 4, "verify_every": 2}
    one, two = (kind(box(3, 2), 5, **settings, **size, **SEARCH) for _ in range(2))
    steps = []
    for count in (8, 4, 4, 3):
        batch = one.ask(count)
        steps.append([Observation(g, two_bowls(3)(g)) for g in batch])
        one.tell(steps[-1])
    with monkeypatch.context() as patch:
        patch.setattr(kind, "_propose", lambda *_: pytest.fail("computed"))
        for step in steps:
            assert two.replay([o.genome for o in step])
            two.tell(step)
    assert np.array_equal(one.ask(6), two.ask(6))


def test_picks_are_new_and_cover_the_predicted_front():
    made = box(2, 2)
    optimizer = Map(made, 0)
    play(optimizer, two_bowls(2), 12)
    model = optimizer.model()
    found = search(model, 0, 60, 20)
    assert len(np.unique(found.genomes, axis=0)) == len(found.genomes)
    asked = np.array([[0.25, 0.25], [0.75, 0.75]])
    chosen = np.array(picks(found, model, asked, 9))
    assert not {g.tobytes() for g in chosen} & {g.tobytes() for g in asked}
    along = np.sort(chosen.mean(axis=1))
    assert np.diff([0.25, *along, 0.75]).max() < 0.12
    front = model.means(found.front())
    assert non_dominated(front).all() and len(front) > 20


def test_small_spaces_are_used_up_without_repeats():
    made = Domain((Dimension("weight/a/all", 0, 4, 0, 1, "integer"),) * 2, 2)
    optimizer = Map(made, 0, design=6, verify=5, patience=None, **SEARCH)
    found = play(optimizer, lambda g: Fitness((float(g[0]), -float(g[1])), (0.0, 0.0)), 26)
    assert len({o.genome.tobytes() for o in found[6:]}) > 15
    play(optimizer, lambda g: Fitness((0.0, 0.0), (0.0, 0.0)), 15)


def test_failures_are_left_out():
    optimizer = Map(box(2, 2), 0, verify=8, **SMALL)
    measure = two_bowls(2)
    found = play(optimizer, lambda g: None if g[0] > 0.8 else measure(g), 28)
    assert len(optimizer.model().genomes) == sum(o.fitness is not None for o in found) < 28
    assert Map(box(2), 0).model() is None


# --- Bayesian MAP ------------------------------------------------------------------------------


def bins(n, count, radii):
    made = box(n, low=-1.0)
    return Bins.of(Basis.of(made, made.low, made.high), count, radii)


def test_bins_go_by_direction_and_radius():
    made = bins(2, 8, 2)
    assert made.count == 16
    np.testing.assert_allclose(np.linalg.norm(made.directions, axis=1), 1)
    # East, north, west, south; then in between. The inner shell has half of the area.
    points = np.array([[0.5, 0.1], [0.9, 0.1], [0.0, 0.6], [-0.8, 0.0], [0.1, -1.0]])
    assert made.place(points).tolist() == [0, 1, 2, 5, 7]
    uniform = np.random.default_rng(0).uniform(-1, 1, (40_000, 2))
    assert np.mean(made.place(uniform) % 2) == pytest.approx(0.5, abs=0.02)
    assert len(np.unique(made.place(uniform))) == 16
    assert bins(1, 2, 3).place(np.array([[-1.0], [0.1], [1.0]])).tolist() == [5, 0, 2]


def test_score_is_mean_error_and_half_its_bootstrap_deviation():
    made, rng = bins(2, 4, 1), np.random.default_rng(0)
    east = np.array([[0.5, 0.0], [0.6, 0.1], [0.9, 0.0]])
    west = np.array([[-0.5, 0.0]])
    wrong = np.array([0.1, 0.4, 0.7, 0.2])
    scores = made.scores(np.concatenate([east, west]), wrong)
    means = rng.choice(wrong[:3], (20_000, 3)).mean(axis=1)
    assert scores[0] == pytest.approx(0.4 + 0.5 * means.std(), rel=0.01)
    assert scores[2] == 0.2
    assert scores[1] == scores[3] == scores[0]  # those without an observation


def test_bins_are_drawn_by_softmax():
    made, rng = bins(2, 4, 1), np.random.default_rng(0)
    pool = rng.uniform(-1, 1, (4000, 2))
    scores = np.array([1.0, 2.0, 1.0, 0.0])
    drawn = np.array(made.draw(scores, pool, 0.5, 8000, rng))
    weights = np.exp(scores / 0.5)
    counts = np.bincount(made.place(drawn), minlength=4) / 8000
    np.testing.assert_allclose(counts, weights / weights.sum(), atol=0.02)
    assert np.array_equal(Bins.weights(np.zeros(5), 0.5), np.full(5, 0.2))


def test_candidates_go_where_the_surrogate_errs():
    """Quadratic but for a corner with ripples."""

    def measure(g):
        ripple = np.sin(25 * g[0]) * (g.min() > 0.55)
        return Fitness((-float(((g - 0.3) ** 2).sum()) + float(ripple),), (0.0,))

    optimizer = BayesianMap(
        box(2), 0, startup=24, verify_every=100, temperature=0.2, gate=-1e6, **SEARCH
    )
    found = play(optimizer, measure, 84)
    share = np.mean([o.genome.min() > 0.5 for o in found[24:]])
    control = np.mean([g.min() > 0.5 for g in Random(box(2), 0).ask(2000)])
    assert share > 1.5 * control


def test_front_is_found_with_few_candidates():
    reference = np.array([-0.3, -0.3])
    optimizer = BayesianMap(box(3, 2), 0, **SMALL)
    found = play(optimizer, two_bowls(3), 40)
    best = hypervolume(front_of_two_bowls(), reference)
    # Eight points of it are measured; nine evenly spaced ones have 0.963.
    assert hypervolume(values_of(found), reference) > 0.94 * best
    assert optimizer.model().kinds == ("quadratic", "quadratic")
    assert optimizer.least_candidates() == optimizer._rounds.first + 12


# --- nested MAP --------------------------------------------------------------------------------


def separable(n, seed=0):
    """Task i wants weight i at a place of its own; the others do not matter to it."""
    places = np.random.default_rng(seed).uniform(0.4, 0.9, n)

    def measure(g):
        return Fitness(tuple((1 / (1 + np.exp(8 * (g - places) ** 2 - 2))).tolist()), (0.0,) * n)

    return places, measure


def test_eight_separable_tasks():
    places, measure = separable(8)
    optimizer = NestedMap(box(8, 8, ranges=((0.0, 1.0),) * 8), 0)
    found = play(optimizer, measure, 10_000)
    assert len(found) == optimizer.least_candidates() == 8 + 7 * 21
    assert optimizer.batch == 0
    tree = optimizer.tree
    root = tree[-1]
    assert len(tree) == 15 and sorted(root.name.split("+")) == [f"s{i}" for i in range(8)]
    assert sorted(c for node in tree for c in node.children) == list(range(14))
    np.testing.assert_allclose(root.genome, places, atol=0.05)
    assert root.score > 0.999 * 1 / (1 + np.exp(-2))
    assert root.score == pytest.approx(np.mean(measure(root.genome).values), abs=1e-12)
    for node in tree[8:]:
        assert node.score >= max(tree[c].score for c in node.children)
        expected = sum(
            c * tree[i].genome for c, i in zip(node.coefficients, node.children, strict=True)
        )
        np.testing.assert_allclose(node.genome, expected, atol=1e-12)
    assert all(r > 0.99 for node in tree[8:] for r in node.r2 if r is not None)
    for node in tree[8:]:
        np.testing.assert_allclose(node.predicted, node.fitness.values, atol=0.01)
        assert node.predicted != node.fitness.values
    assert all(not node.predicted for node in tree[:8])


def test_the_closest_nodes_are_merged_first():
    levels = np.array([0.1, 0.9, 0.85, 0.4])

    def measure(g):
        return Fitness((float(levels @ g - 0.3 * (g.sum() - 1) ** 2),), (0.0,))

    optimizer = NestedMap(box(4), 0)
    play(optimizer, measure, 4 + 21)
    assert optimizer.tree[4].name == "s1+s2"


def test_preference_decides():
    """Two tasks that want opposite weights of both sources."""

    def measure(g):
        return Fitness(tuple(1 - float(((g - at) ** 2).mean()) for at in (0.2, 0.8)), (0.0, 0.0))

    for preference, place in (([1, 0], 0.2), ([0.0, 2.0], 0.8), (None, 0.5)):
        optimizer = NestedMap(box(2, 2), 0, preference=preference)
        play(optimizer, measure, 100)
        np.testing.assert_allclose(optimizer.tree[-1].genome, place, atol=0.05)


def test_constraints_come_before_the_score():
    def measure(g):
        return Fitness((float(g.sum()),), (0.0,), (float(g[0]) - 0.5,))

    optimizer = NestedMap(box(2, 1, 1), 0)
    play(optimizer, measure, 100)
    root = optimizer.tree[-1]
    assert root.fitness.feasible and root.genome.sum() > 1.4


def test_leaves_set_all_groups_of_a_source_and_nothing_else():
    made = Domain((
        Dimension("weight/a/0", -1.0, 2.0, 0.3, 0.5), Dimension("density/a/all", 0, 1, 0.7, 0.2),
        Dimension("weight/b/0", -1.0, 0.8, 0.3, 0.5), Dimension("weight/a/1", -1.0, 2.0, 0.3, 0.5),
        Dimension("layer/a/all", 0, 3, 2, 1, "integer"),
    ))  # fmt: skip
    optimizer = NestedMap(made, 0)
    assert np.array_equal(optimizer.ask(2), [[1, 0.7, 0, 1, 2], [0, 0.7, 0.8, 0, 2]])
    assert optimizer.tree[0].name == "a" and optimizer.tree[0].score is None


def test_nested_resumes_at_any_node():
    places, measure = separable(4)
    made = box(4, 4, ranges=((0.0, 1.0),) * 4)
    found = play(NestedMap(made, 3), measure, 1000)
    rounds = [4, *[18, 3] * 3]
    stops = np.cumsum([0, *rounds])
    for cut in range(1, len(rounds)):
        resumed = NestedMap(made, 3)
        for a, b in pairwise(stops[: cut + 1]):
            assert resumed.replay([o.genome for o in found[a:b]])
            resumed.tell(found[a:b])
        assert resumed.batch == rounds[cut]
        rest = play(resumed, measure, 1000)
        assert np.array_equal([o.genome for o in rest], [o.genome for o in found[stops[cut] :]])
    assert resumed.tree[-1].genome == pytest.approx(places, abs=0.05)


def test_failed_leaves_and_merges():
    _, measure = separable(4)
    made = box(4, 4, ranges=((0.0, 1.0),) * 4)
    optimizer = NestedMap(made, 0)
    play(optimizer, lambda g: None if g[0] == 1 or g[1] > 0.6 else measure(g), 1000)
    assert optimizer.tree[0].fitness is None and optimizer.tree[-1].fitness is not None
    optimizer = NestedMap(made, 0)
    play(optimizer, lambda g: None, 1000)
    assert optimizer.tree[-1].score is None and len(optimizer.tree) == 7


def test_root_is_refined_where_wanted():
    _, measure = separable(2)
    optimizer = NestedMap(box(2, 2), 0, refine=True)
    play(optimizer, measure, 23)
    before = optimizer.tree[-1].score
    play(optimizer, measure, 30)
    assert optimizer.batch == 3 and optimizer.tree[-1].score >= before


# --- settings ----------------------------------------------------------------------------------


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
