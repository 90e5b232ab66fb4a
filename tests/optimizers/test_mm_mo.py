"""MM-MO: hypervolume by brute force, expected improvement in closed form, and its own parts."""

from dataclasses import replace

import moocore
import numpy as np
import pytest
from scipy.stats import norm

from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.optimizers._gaussian import Hyperparameters
from evomerge.optimizers._improvement import (
    Dominated,
    leading,
    mean_addition,
    nondominated,
    reference_point,
)
from evomerge.optimizers._models import Draws, Models, chosen, fitted_on
from evomerge.optimizers.mm_mo import Acquisition, MmMo
from evomerge.optimizers.random import Random
from evomerge.testing.optimizers import MultiObjectiveConformance, answer, domain, sphere
from evomerge.types import Fitness, Observation

QUICK = {"startup": 6, "batch": 3, "pool": 24, "samples": 4}


class TestMmMo(MultiObjectiveConformance):
    effort = 0.2
    least = 9

    def make(self, domain, seed):
        return MmMo(domain, seed, **QUICK)


def hypervolume(values, reference):
    values = np.asarray(values).reshape(-1, len(reference))
    return moocore.hypervolume(-values, ref=-np.asarray(reference)) if len(values) else 0.0


def box(n, objectives=1, constraints=0, **more):
    made = tuple(Dimension(f"weight/{i}/all", 0.0, 1.0, 0.5, 0.2) for i in range(n))
    return Domain(made, objectives, constraints, **more)


def fitness(*values, constraints=()):
    return Fitness(tuple(map(float, values)), (0.0,) * len(values), tuple(constraints))


def bumps(objectives, n):
    """Smooth objectives in [0, 1], best at different places."""
    targets = np.random.default_rng(77).random((objectives, n))
    return lambda g: fitness(*(np.exp(-2 * ((g - t) ** 2).sum()) for t in targets))


def search(optimizer, measure, count):
    """Genomes and results of `count` candidates, batch by batch."""
    found = []
    while len(found) < count:
        observations = [Observation(g, measure(g)) for g in optimizer.ask(optimizer.batch)]
        optimizer.tell(observations)
        found += observations
    return found[:count]


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("ties", [False, True])
def test_added_hypervolume_is_moocores(m, ties):
    rng = np.random.default_rng(m)

    def points(count):
        return rng.integers(0, 5, (count, m)) / 4 if ties else rng.random((count, m))

    for count in (0, 1, 2, 5, 12):
        front, new, reference = points(count), points(6), np.full(m, 0.25)
        region = Dominated.by(front, reference)
        before = hypervolume(front, reference)
        expected = [hypervolume(np.vstack([front, c[None]]), reference) - before for c in new]
        assert region.volume == pytest.approx(before, abs=1e-12)
        assert np.allclose(region.added(new), expected, atol=1e-12)


def test_nondominated_is_moocores():
    values = np.random.default_rng(0).integers(0, 6, (60, 3)).astype(float)
    expected = moocore.is_nondominated(-values, keep_weakly=True)
    assert np.array_equal(nondominated(values), expected)


def test_leading_takes_front_by_front():
    values = np.random.default_rng(1).random((80, 2))
    taken = leading(values, 40)
    assert len(set(taken)) == 40
    left = np.setdiff1d(np.arange(80), taken)
    for i in taken:  # nothing that was left out dominates one that was taken
        assert not ((values[left] >= values[i]).all(1) & (values[left] > values[i]).any(1)).any()


def test_leading_spreads_over_a_front_that_does_not_fit():
    x = np.concatenate([np.linspace(0, 0.1, 90), np.linspace(0.1, 1, 10)])
    values = np.column_stack([x, 1 - x])
    taken = x[leading(values, 10)]
    assert {0.0, 1.0} <= set(taken)
    assert np.diff(np.sort(taken)).max() < 0.21
    assert len(leading(np.ones((5, 2)), 3)) == 3


def test_reference_point_lies_below_the_front():
    values = np.array([[0.0, 1.0], [1.0, 0.0], [-9.0, -9.0]])
    low, width = reference_point(values)
    assert np.allclose(low, [-0.1, -0.1])
    assert np.allclose(width, [1.1, 1.1])
    low, _ = reference_point(np.array([[0.0, 5.0], [10.0, 5.0]]))
    assert low[0] == pytest.approx(-1.0)
    assert low[1] < 5.0


def models(objectives, count=12, noise=1e-6, constraints=0):
    """Processes of smooth functions in one dimension with known hyperparameters."""
    made = box(1, objectives, constraints)
    genomes = np.linspace(0.05, 0.95, count)[:, None]
    records = [
        (g, fitness(*(np.sin(5 * g[0] + 2 * k) for k in range(objectives)))) for g in genomes
    ]
    hyper = Hyperparameters(np.array([0.4]), 1.5, noise)
    return Models.of(made, records, [hyper] * objectives), genomes, records


def test_one_objective_gives_expected_improvement():
    """Jones, Schonlau and Welch (1998), eq. 15."""
    surrogates, genomes, records = models(1, count=4)
    acquisition = Acquisition(surrogates, genomes, genomes[:0], 4096, 0)
    new = np.linspace(0, 1, 21)[:, None]
    mean, variance = surrogates.objectives[0].predict(new)
    best, deviation = max(f.values[0] for _, f in records), np.sqrt(variance)
    z = (mean - best) / deviation
    expected = (mean - best) * norm.cdf(z) + deviation * norm.pdf(z)
    _, width = reference_point(surrogates.means(genomes))
    large = expected > 1e-3
    assert large.sum() >= 4
    found = np.exp(acquisition(new)) * width[0]
    assert np.allclose(found[large], expected[large], rtol=0.03)
    assert (found[~large] < 2e-3).all()


@pytest.mark.parametrize("objectives", [2, 3])
def test_several_objectives_give_expected_hypervolume_improvement(objectives):
    """Against independent normal samples and moocore's hypervolume."""
    surrogates, genomes, _ = models(objectives, count=4)
    reference, width = reference_point(surrogates.means(genomes))
    new = np.array([[0.2], [0.55]])
    found = np.exp(Acquisition(surrogates, genomes, genomes[:0], 2048, 0)(new)) * width.prod()
    front, rng = surrogates.means(genomes), np.random.default_rng(0)
    before = hypervolume(front, reference)
    for point, value in zip(new, found, strict=True):
        moments = [p.predict(point[None]) for p in surrogates.objectives]
        samples = np.column_stack(
            [m[0] + np.sqrt(v[0]) * rng.standard_normal(12_000) for m, v in moments]
        )
        gains = [hypervolume(np.vstack([front, s[None]]), reference) - before for s in samples]
        assert value == pytest.approx(np.mean(gains), rel=0.05, abs=5e-4)


@pytest.mark.parametrize("objectives", [2, 3])
def test_noisy_estimate_is_the_mean_over_joint_samples(objectives):
    """Each sample has a front of its own, that of feasible points only."""
    surrogates, genomes, _ = models(objectives, noise=0.1)
    reference, _ = reference_point(surrogates.means(genomes))
    draws = Draws(surrogates, genomes, 8, 1)
    allowed = np.random.default_rng(0).random((8, 12)) < 0.5
    points = draws.at(np.array([[0.0], [0.33], [1.0]]))
    regions = [Dominated.by(v[a], reference) for v, a in zip(draws.values, allowed, strict=True)]
    expected = [
        [
            hypervolume(np.vstack([v[a], p[None]]), reference) - hypervolume(v[a], reference)
            for p in sample
        ]
        for v, a, sample in zip(draws.values, allowed, points, strict=True)
    ]
    assert np.allclose(mean_addition(regions, points), np.mean(expected, axis=0), atol=1e-12)
    assert len({round(r.volume, 6) for r in regions}) > 1


def test_pending_points_repel():
    surrogates, genomes, _ = models(1, count=4)
    new = np.linspace(0, 1, 41)[:, None]
    before = Acquisition(surrogates, genomes, genomes[:0], 1024, 0)(new)
    best = new[[np.argmax(before)]]
    after = Acquisition(surrogates, genomes, best, 1024, 0)(new)
    near = np.abs(new[:, 0] - best[0, 0]) < 0.03
    assert (after[near] < before[near] - np.log(4)).all()


def test_a_batch_spreads():
    """Without results in between, proposals are no nearer to each other than results allow."""
    optimizer = MmMo(box(2), 0, startup=8, batch=8, pool=128)
    search(optimizer, lambda g: fitness(np.sin(9 * g[0]) + np.cos(7 * g[1])), 8)
    batch = np.array(optimizer.ask(8))
    gaps = np.linalg.norm(batch[:, None] - batch, axis=2)[np.triu_indices(8, 1)]
    assert gaps.min() > 1e-3
    assert np.median(gaps) > 0.1


def test_probability_of_feasibility_is_the_normal_one():
    made = box(1, 1, 1)
    records = [(np.array([x]), fitness(x, constraints=(x - 0.4,))) for x in (0.1, 0.5, 0.9)]
    surrogates = Models.of(made, records, [Hyperparameters(np.array([0.5]), 1.0, 1e-3)] * 2)
    new = np.linspace(0, 1, 9)[:, None]
    mean, variance = surrogates.limits[0].predict(new)
    expected = norm.logcdf(0, mean, np.sqrt(variance))
    assert np.allclose(surrogates.log_feasibility(new), expected, rtol=1e-6)


def test_constraints_are_respected():
    """The value rises where the constraint is broken."""
    optimizer = MmMo(box(3, 1, 1), 0, startup=6, pool=64, samples=8)
    found = search(optimizer, lambda g: fitness(g.sum(), constraints=(g[0] + g[1] - 0.8,)), 26)
    late = [o.fitness for o in found[14:]]
    assert sum(f.violation < 0.05 for f in late) >= 9
    assert max(f.values[0] for f in late if f.feasible) > 1.7  # of 1.8


def test_failures_are_avoided():
    """Half of the space fails, and the value rises towards it."""
    optimizer = MmMo(box(2), 0, startup=8, pool=64, samples=8)
    found = search(optimizer, lambda g: None if g[0] > 0.5 else fitness(g[0] - g[1] ** 2), 28)
    optimizer.ask(1)
    assert max(o.fitness.values[0] for o in found if o.fitness) > 0.45
    failing, sound = optimizer._models.log_feasibility(np.array([[0.95, 0.1], [0.05, 0.1]]))
    assert sound > np.log(0.9)
    assert failing < np.log(0.1)


def test_sparsity_joins_the_objectives():
    sparse = box(3, sparsity=lambda g: float(1 - g.mean()))
    measure = bumps(1, 3)

    def volume(made, **settings):
        optimizer = MmMo(made, 0, startup=5, pool=48, samples=4, **settings)
        found = search(optimizer, measure, 21)
        return hypervolume([(o.fitness.values[0], 1 - o.genome.mean()) for o in found], (0.0, 0.0))

    assert volume(sparse, sparsity=True) > volume(sparse, sparsity=False) + 0.01
    assert volume(sparse, sparsity=False) == volume(replace(sparse, sparsity=None))


def test_sparsity_has_to_be_finite():
    optimizer = MmMo(box(2, sparsity=lambda g: float("nan")), 0, startup=2, pool=16, sparsity=True)
    with pytest.raises(ValueError, match="sparsity"):
        search(optimizer, bumps(1, 2), 12)


def test_weak_to_strong_candidates_lie_along_the_way():
    optimizer = MmMo(box(3), 0)
    strong, weak, other = np.array([[0.5, 0.6, 0.4]]), np.array([0.3, 0.3, 0.3]), [0.4, 0.2, 0.3]
    rng = np.random.default_rng(0)
    made = optimizer._crossed(strong, np.array([weak]), 50, rng)
    gamma = (made - weak) / (strong - weak)
    assert np.allclose(gamma, gamma[:, :1])
    assert 0.5 <= gamma.min() < 0.6
    assert 1.4 < gamma.max() <= 1.5
    both = np.array([weak, other])
    made = optimizer._crossed(strong, both, 50, rng)
    assert len(np.unique(made.round(9), axis=0)) == 50
    directions = [strong[0] - b for b in both]
    for g in made:  # g - weak is parallel to one of the two ways
        ways = [np.linalg.norm(np.cross(g - a, d)) for a in both for d in directions]
        assert min(ways) < 1e-12


def test_weak_to_strong_choices_come_from_a_parent():
    made = Domain((Dimension("operator/all/all", 0, 4, 0, 1, "choice", tuple("abcde")),))
    rng = np.random.default_rng(0)
    found = MmMo(made, 0)._crossed(np.array([[4.0]]), np.array([[1.0]]), 40, rng)
    assert set(found[:, 0]) == {1.0, 4.0}


def proposals(made, **settings):
    """One genome each of 6 seeds, after the same observations."""
    known = [Observation(g, bumps(1, 3)(g)) for g in Random(made, 5).ask(20)]
    out = []
    for seed in range(6):
        optimizer = MmMo(made, seed, startup=2, pool=64, samples=4, **settings)
        optimizer.learn(known)
        optimizer.tell([Observation(g, bumps(1, 3)(g)) for g in optimizer.ask(2)])
        out.append(optimizer.ask(1)[0])
    return np.array(out)


def test_weak_to_strong_can_be_switched_off():
    assert not np.array_equal(proposals(box(3)), proposals(box(3), weak_to_strong=False))


def test_screening_prefers_change_that_matters():
    far = box(3, distance=lambda g: float(g[0]))
    off, on = proposals(far, screened=1), proposals(far, screened=8)
    assert np.array_equal(off, proposals(box(3)))
    assert (on[:, 0] >= off[:, 0]).all()
    assert on[:, 0].mean() > off[:, 0].mean() + 0.01


@pytest.mark.parametrize("new", [float("inf"), float("nan"), 1e9])
def test_screening_cuts_what_lies_too_far(new):
    """Known genomes are near, everything else is not: the best of the pool is taken."""
    known = {g.tobytes() for g in Random(box(3), 5).ask(20)}
    far = box(3, distance=lambda g: 1.0 if g.tobytes() in known else new)
    assert np.array_equal(proposals(far), proposals(far, screened=1))


def test_proposals_are_functions_of_what_was_told():
    """Told at once, one by one, or in another order between asks: the next are the same."""
    first, second = (MmMo(domain(3), 9, startup=3, pool=16, samples=4) for _ in range(2))
    batch = first.ask(8)
    assert np.array_equal(second.ask(8), batch)
    told = [answer(first.domain, g, sphere(g)) for g in batch]
    first.tell(told[:6])
    for one in reversed(told[:6]):
        second.tell([one])
    expected = first.ask(3)
    assert np.array_equal([*second.ask(1), *second.ask(2)], expected)


def test_resume_computes_nothing(monkeypatch):
    optimizer, resumed = (MmMo(domain(3, 2), 3, **QUICK) for _ in range(2))
    steps = []
    for _ in range(5):
        batch = optimizer.ask(3)
        steps.append([answer(optimizer.domain, g, sphere(g)) for g in batch])
        optimizer.tell(steps[-1])
    with monkeypatch.context() as patch:
        patch.setattr(MmMo, "_proposal", lambda *_: pytest.fail("computed"))
        for step in steps:
            assert resumed.replay([o.genome for o in step])
            resumed.tell(step)
    assert np.array_equal(resumed.ask(2), optimizer.ask(2))


def test_nothing_is_proposed_twice():
    """On a grid that is soon used up."""
    made = Domain((Dimension("layer/a/all", 0, 5, 0, 1, "integer"),) * 2)
    optimizer = MmMo(made, 0, startup=4, pool=256, samples=4)
    found = search(optimizer, lambda g: fitness(-((g - 3.0) ** 2).sum()), 32)
    assert len({o.genome.tobytes() for o in found[4:]}) == 28
    search(optimizer, lambda g: fitness(0.0), 12)  # more than there are


def test_startup_takes_anchors_and_sobol_points():
    made = domain(3)
    optimizer = MmMo(made, 0, pool=16)
    first = optimizer.ask(6)
    assert np.array_equal(first[:2], made.anchors)
    assert optimizer._startup == 2 + 4
    assert MmMo(domain(100), 0)._startup == 22


def test_what_the_surrogates_see():
    rng = np.random.default_rng(0)
    records = [(rng.random(2), fitness(*rng.random(2)) if i % 7 else None) for i in range(300)]
    records[11] = records[11][0], fitness(5.0, 5.0)
    kept = chosen(records, 40, 0)
    ids = [id(g) for g, _ in kept]
    assert len(set(ids)) == 40
    assert id(records[11][0]) in ids
    assert {id(g) for g, _ in records[-10:]} <= set(ids)
    assert chosen(records[:40], 40, 0) == records[:40]
    assert [fitted_on(n) for n in (1, 5, 8, 9, 20, 21, 22, 23, 100)] == [
        1, 5, 8, 9, 20, 20, 22, 22, 94,
    ]  # fmt: skip


def test_few_observations_are_enough():
    """Fewer seen than told, with failures among them."""
    optimizer = MmMo(domain(2, 2), 0, startup=4, pool=16, samples=4, max_observations=10)
    found = search(optimizer, lambda g: None if g[0] > 1 else fitness(g[0], -g[1]), 40)
    assert len(found) == 40


@pytest.mark.slow
@pytest.mark.parametrize("objectives", [2, 3])
def test_better_than_random(objectives):
    """Hypervolume after 50 candidates in 4 dimensions, medians over 5 seeds."""
    measure, made = bumps(objectives, 4), box(4, objectives)

    def volume(optimizer):
        values = [o.fitness.values for o in search(optimizer, measure, 50)]
        return hypervolume(values, np.zeros(objectives))

    ours = [volume(MmMo(made, s, batch=10, pool=64, samples=4)) for s in range(5)]
    random = [volume(Random(made, s, batch=10)) for s in range(5)]
    assert np.median(ours) > 1.2 * np.median(random)
    assert min(ours) > np.median(random)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("startup", 1), ("batch", 0), ("pool", 15), ("screened", 0), ("samples", 0),
        ("max_observations", 9), ("weak_to_strong", 1), ("sparsity", "no"), ("pool", 64.0),
    ],
)  # fmt: skip
def test_wrong_settings(key, value):
    with pytest.raises(ConfigError, match=rf"optimizer\.{key}"):
        MmMo(domain(2), 0, **{key: value})
