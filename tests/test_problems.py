"""The analytic problems, against brute force and pymoo; and the benchmark that uses them."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

from evomerge.optimizers.random import Random
from evomerge.pareto import hypervolume, non_dominated
from evomerge.testing.problems import (
    ConstrainedSphere,
    Dtlz2,
    Ellipsoid,
    MergeLandscape,
    MixedFront,
    MixedRastrigin,
    Sphere,
    Zdt,
    matern,
)

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LANDSCAPE = BENCHMARKS / "data" / "landscape.json"
SINGLE = [Sphere, Ellipsoid, ConstrainedSphere, MixedRastrigin]
SEVERAL = [Zdt(kind=1), Zdt(kind=2), Zdt(kind=3), Dtlz2(), Dtlz2(objectives=2), MixedFront()]


def drawn(problem, count, seed=0):
    unit = np.random.default_rng(seed).random((count, len(problem.domain)))
    return problem.domain.from_unit(unit)


@pytest.fixture(scope="module")
def landscape():
    if not LANDSCAPE.is_file():
        pytest.skip("needs the source tree")
    return MergeLandscape.read(LANDSCAPE)


@pytest.mark.parametrize("problem", [*(make() for make in SINGLE), *SEVERAL], ids=repr)
def test_a_fitness_has_what_the_domain_says(problem):
    domain = problem.domain
    fitness = problem.evaluate(domain.start)
    assert np.array_equal(domain.snap(domain.start), domain.start)
    assert len(fitness.values) == len(fitness.stderr) == domain.objectives
    assert len(fitness.constraints) == domain.constraints
    assert np.isnan(problem.optimum) == (domain.objectives > 1)
    assert len(problem.reference) == (domain.objectives if domain.objectives > 1 else 0)


@pytest.mark.parametrize("make", SINGLE)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_feasible_genome_beats_the_optimum(make, seed):
    problem = make(seed=seed)
    for genome in drawn(problem, 500):
        fitness = problem.evaluate(genome)
        assert fitness.values[0] < problem.optimum or not fitness.feasible


@pytest.mark.parametrize("make", [Sphere, Ellipsoid])
def test_the_optimum_is_at_the_centre(make):
    problem = make(seed=3)
    assert problem.evaluate(problem.centre).values == (0.0,)
    assert np.array_equal(problem.domain.snap(problem.centre), problem.centre)


def test_the_ellipsoid_has_its_condition():
    """The Hessian by differences (exact for a quadratic function) has the eigenvalues."""
    problem = Ellipsoid(dimensions=5, condition=1e3)

    def at(step):
        return problem.values(problem.centre + step)[0]

    eye = np.eye(5)
    hessian = -np.array([[at(a + b) - at(a - b) for b in eye] for a in eye]) / 4
    found = np.linalg.eigvalsh(hessian)
    assert np.allclose(found, 1e3 ** (np.arange(5) / 4 - 1))
    assert np.abs(hessian - np.diag(np.diag(hessian))).max() > 1e-2  # turned


def test_the_constrained_optimum_is_the_one_that_a_solver_finds():
    problem = ConstrainedSphere(seed=2, dimensions=4)
    found = minimize(
        lambda g: -problem.values(g)[0],
        np.full(4, 0.9),
        bounds=[(0, 1)] * 4,
        constraints={"type": "ineq", "fun": lambda g: -problem.limits(g)[0]},
    )
    assert -found.fun == pytest.approx(problem.optimum, abs=1e-6)
    assert not problem.evaluate(problem.centre).feasible


def test_the_mixed_optimum_is_in_the_domain_and_every_part_of_it_matters():
    problem = MixedRastrigin(seed=1)
    best = problem.best
    assert np.array_equal(problem.domain.snap(best), best)
    assert problem.values(best)[0] == pytest.approx(0.0, abs=1e-12)
    for i, kind in enumerate(d.kind for d in problem.domain.dimensions):
        moved = best.copy()
        moved[i] += 0.05 if kind == "real" else 1
        assert problem.values(moved)[0] < -1e-3
    assert problem.domain.start[-1] == 3


def test_a_ripple_of_the_mixed_problem_is_a_local_optimum():
    problem = MixedRastrigin()
    genome = problem.best
    genome[0] -= np.sign(genome[0]) * 0.95  # near the next ripple's top
    steps = genome[0] + np.linspace(-0.3, 0.3, 61)
    values = [problem.values(np.r_[s, genome[1:]])[0] for s in steps]
    assert 0 < np.argmax(values) < 60


@pytest.mark.parametrize("problem", SEVERAL, ids=repr)
def test_no_genome_lies_beyond_the_front(problem):
    values = np.array([problem.values(g) for g in drawn(problem, 300)])
    assert hypervolume(values, problem.reference) < problem.best_hypervolume
    if hasattr(problem, "front"):
        both = np.concatenate([values, problem.front(201) + 1e-2])
        assert not non_dominated(both)[:300].any()


@pytest.mark.parametrize(("kind", "below"), [(1, 1 / 3), (2, 2 / 3)])
def test_the_hypervolume_of_a_zdt_front_is_the_integral(kind, below):
    """Below the front f2 = 1 - sqrt(f1) or 1 - f1^2 lies an area of 1/3 or 2/3."""
    assert Zdt(kind=kind).best_hypervolume == pytest.approx(1.1 * 6 - below, abs=1e-4)


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_zdt_is_that_of_pymoo(kind):
    pymoo = pytest.importorskip("pymoo.problems")
    problem = Zdt(kind=kind)
    genomes = drawn(problem, 20)
    other = pymoo.get_problem(f"zdt{kind}", n_var=12).evaluate(genomes)
    assert np.allclose([problem.values(g) for g in genomes], -other)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_dtlz2_is_that_of_pymoo(objectives):
    pymoo = pytest.importorskip("pymoo.problems")
    problem = Dtlz2(objectives=objectives)
    genomes = drawn(problem, 20)
    other = pymoo.get_problem("dtlz2", n_var=12, n_obj=objectives).evaluate(genomes)
    assert np.allclose([problem.values(g) for g in genomes], -other)


def test_the_hypervolume_of_the_dtlz2_front_is_that_of_its_points():
    """Points of the sphere from below, two objectives: a quarter disc is missing."""
    problem = Dtlz2(objectives=2)
    angles = np.linspace(0, np.pi / 2, 5001)
    points = -np.c_[np.cos(angles), np.sin(angles)]
    assert hypervolume(points, problem.reference) == pytest.approx(
        problem.best_hypervolume, abs=1e-3
    )
    assert problem.best_hypervolume == pytest.approx(4 - np.pi / 4)


def test_the_mixed_front_is_that_of_brute_force():
    """Every integer and choice, and a fine grid of the only real."""
    problem = MixedFront(real=1, integer=1)
    grid = np.array(
        [[r, w, c] for r in np.linspace(0, 1, 161) for w in range(8) for c in range(4)], dtype=float
    )
    values = np.array([problem.values(g) for g in grid])
    found = hypervolume(values, problem.reference)
    assert found == pytest.approx(problem.best_hypervolume, abs=4e-3)
    assert found <= problem.best_hypervolume + 1e-9


def test_noise_has_its_deviation_and_depends_on_the_number_alone():
    problem = Sphere(noise=0.3)
    genome = problem.domain.start
    seen = np.array([problem.evaluate(genome, i).values[0] for i in range(2000)])
    assert seen.mean() == pytest.approx(problem.values(genome)[0], abs=0.03)
    assert seen.std() == pytest.approx(0.3, abs=0.02)
    assert problem.evaluate(genome, 7) == problem.evaluate(genome, 7)
    assert problem.evaluate(genome).stderr == (0.3,)


def test_seeds_move_the_optimum():
    assert not np.array_equal(Sphere(seed=0).centre, Sphere(seed=1).centre)
    assert np.array_equal(Sphere(seed=1).centre, Sphere(seed=1).centre)


def test_matern_is_the_formula():
    rng = np.random.default_rng(0)
    one, two, lengths = rng.random((4, 3)), rng.random((5, 3)), np.array([0.5, 1.0, 2.0])
    r = np.sqrt(5) * cdist(one / lengths, two / lengths)
    assert np.allclose(matern(one, two, lengths), (1 + r + r**2 / 3) * np.exp(-r))


def test_the_landscape_predicts_what_was_measured(landscape):
    data = json.loads(LANDSCAPE.read_text(encoding="utf-8"))
    predicted = landscape.scores(landscape.measured)
    measured = np.array(data["scores"])
    for model, own, other in zip(data["models"], predicted.T, measured.T, strict=True):
        explained = 1 - np.mean((own - other) ** 2) / np.var(other)
        assert explained == pytest.approx(model["r2"]["chosen, fitted"], abs=2e-3)
        assert explained > 0.7


def test_the_landscape_is_bounded_smooth_and_has_one_objective_a_task(landscape):
    assert len(landscape.domain) == 18
    genomes = drawn(landscape, 50)
    scores = np.array([landscape.values(g) for g in genomes])
    assert scores.shape == (50, 3)
    assert scores.min() >= 0.0
    assert scores.max() <= 1.0
    assert np.abs(landscape.scores(genomes + 1e-6) - scores).max() < 1e-4
    one = MergeLandscape(data=landscape.data, weights=(1.0, 2.0, 1.0))
    assert one.domain.objectives == 1
    assert one.values(genomes[0])[0] == pytest.approx(scores[0] @ [0.25, 0.5, 0.25])


def test_the_best_of_the_landscape_is_known(landscape):
    one = MergeLandscape(data=landscape.data, weights=(1.0, 1.0, 1.0))
    values = [one.values(g)[0] for g in [*drawn(one, 300), *landscape.measured]]
    assert max(values) <= one.optimum
    genome = np.array(landscape.data["known"]["genome"])
    assert one.values(genome)[0] == pytest.approx(one.optimum, abs=1e-3)
    front = np.array([landscape.values(g) for g in landscape.measured])
    assert hypervolume(front, landscape.reference) <= landscape.best_hypervolume


def test_a_landscape_without_data_says_so():
    with pytest.raises(ValueError, match="read"):
        _ = MergeLandscape().domain


@pytest.fixture(scope="module")
def program():
    if not LANDSCAPE.is_file():
        pytest.skip("needs the source tree")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
        yield importlib.import_module("optimizers")


class Recorder(Random):
    """Random search that notes the sizes of asks and tells, and what was never told."""

    def __init__(self, domain, asynchronous):
        super().__init__(domain, 0, batch=4)
        self.asynchronous = asynchronous
        self.events, self.genomes, self.told = [], [], []

    def ask(self, n):
        self.events.append(n)
        self.genomes += super().ask(n)
        return self.genomes[-n:]

    def tell(self, observations):
        self.events.append(-len(observations))
        self.told += [o.genome for o in observations]
        super().tell(observations)


@pytest.mark.parametrize(
    ("asynchronous", "events"),
    [
        (True, [4, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, -1, -1, -1]),
        (False, [4, -4, 4, -4, 2, -2]),
    ],
)
def test_the_benchmark_asks_and_tells_like_a_study(program, asynchronous, events):
    """With a batch of 4 and a budget of 10; the oldest one is told first."""
    problem = Sphere()
    optimizer = Recorder(problem.domain, asynchronous)
    losses = program.drive(optimizer, problem, (3, 10))
    assert optimizer.events == events
    assert np.array_equal(optimizer.genomes, optimizer.told)
    values = [problem.values(g)[0] for g in optimizer.genomes]
    assert losses == [-max(values[:3]), -max(values)]


def test_the_loss_of_a_front_is_the_share_that_is_missing(program):
    problem = Zdt(kind=2)
    optimizer = Recorder(problem.domain, False)
    [loss] = program.drive(optimizer, problem, (8,))
    values = np.array([problem.values(g) for g in optimizer.genomes])
    found = hypervolume(values, problem.reference)
    assert loss == pytest.approx(1 - found / problem.best_hypervolume)


def test_the_ratio_to_random_is_a_geometric_mean_with_an_interval(program):
    row = program.Row("p", "o", 50, (0.1, 0.4), (0.2, 0.2))
    ratio, low, high = row.ratio()
    assert ratio == pytest.approx(1.0)
    assert (low, high) == pytest.approx((0.5, 2.0))  # both draws alike, either way
    assert row.verdict() == "same"
    assert program.Row("p", "o", 50, (0.1, 0.15), (0.2, 0.2)).verdict() == "better"
    assert program.Row("p", "o", 50, (0.3, 0.5), (0.2, 0.2)).verdict() == "worse"


@pytest.mark.slow
def test_the_benchmark_runs(program):
    """Everything with tiny budgets; the last line has the figures of the tables."""
    command = [sys.executable, str(BENCHMARKS / "optimizers.py"), "--quick"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=600, env=environment
    )
    *shown, last = done.stdout.splitlines()
    figures = json.loads(last)
    models = figures["cost"]["models"]
    assert {row["optimizer"] for row in models} == {"gp", "mm_mo"}
    rows = [line for line in shown if re.match(r"\| \w+ \| 12 \|", line)]
    assert len(rows) == len(figures["quality"])
    assert sum(line.startswith("| after 12 |") for line in shown) == 2
    assert {row["problem"] for row in figures["quality"]} == {c.name for c in program.cases()}
    every = {file.stem for file in (BENCHMARKS.parent / "conf" / "optimizer").glob("*.yaml")}
    assert {row["optimizer"] for row in figures["quality"]} == every - set(program.LEFT_OUT)
