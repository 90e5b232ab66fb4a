"""The MAP family: the common rules, and known fronts recovered."""

from itertools import pairwise

import numpy as np
import pytest
from map_problems import SEARCH, SMALL, box, front_of_two_bowls, play, two_bowls, values_of

from evomerge.domain import Dimension, Domain
from evomerge.optimizers._predicted_front import picks, search
from evomerge.optimizers._quadratic import Basis
from evomerge.optimizers.bayesian_map import BayesianMap, Bins
from evomerge.optimizers.map import Map, volume
from evomerge.optimizers.nested_map import NestedMap
from evomerge.optimizers.random import Random
from evomerge.pareto import hypervolume, non_dominated
from evomerge.testing.optimizers import MultiObjectiveConformance, mixed_domain
from evomerge.types import Fitness, Observation

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
