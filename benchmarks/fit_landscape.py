"""Fits a smooth stand-in for a merge's scores to real evaluations of the zoo's small models.

    python benchmarks/fit_landscape.py            measures, fits, writes data/landscape.json
    python benchmarks/fit_landscape.py --refit    fits again to the measurements in that file

The space is that of `+experiment=pareto_tiny`: task arithmetic with a weight for each source and
layer group. The genomes are Sobol points of the whole space, merges with one weight a source and
a little noise in each group, and then, batch by batch, neighbours and crossings of those that no
other one beats so far. Each task's share of right answers is modelled by kernels or polynomials;
leave-one-out error chooses. Everything depends on the seed alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from scipy.optimize import minimize
from scipy.stats import qmc

from evomerge.domain import Domain
from evomerge.pareto import hypervolume, non_dominated, spread
from evomerge.testing.problems import MergeLandscape, matern
from evomerge.types import FloatArray

PATH = Path(__file__).parent / "data" / "landscape.json"
COMMAND = "python benchmarks/fit_landscape.py"
ITEMS = 50
SOBOL, GLOBAL, NEAR = 48, 112, 140
JITTER = 0.15
FRONT = 100


class Candidates:
    """Draws genomes in three phases; see the module."""

    def __init__(self, domain: Domain, seed: int) -> None:
        self._domain = domain
        self._sources = list(dict.fromkeys(d.name.split("/")[1] for d in domain.dimensions))
        self._rng = np.random.default_rng(seed)
        self._whole = qmc.Sobol(len(domain), rng=np.random.default_rng([seed, 1]))
        self._shared = qmc.Sobol(len(self._sources), rng=np.random.default_rng([seed, 2]))

    def first(self) -> list[FloatArray]:
        """Anchors, Sobol points, and merges with nearly one weight a source."""
        with warnings.catch_warnings():  # it asks for powers of two
            warnings.simplefilter("ignore", UserWarning)
            whole, shared = self._whole.random(SOBOL), self._shared.random(GLOBAL)
        genomes = [*self._domain.anchors, *self._domain.from_unit(whole)]
        of = [self._sources.index(d.name.split("/")[1]) for d in self._domain.dimensions]
        for shares in shared:
            noise = JITTER * self._rng.standard_normal(len(self._domain))
            span = self._domain.high - self._domain.low
            genomes.append(self._domain.low + span * shares[of] + noise)
        return [self._domain.snap(g) for g in genomes]

    def near(self, genomes: FloatArray, scores: FloatArray, count: int) -> list[FloatArray]:
        """Neighbours and crossings of the front, `count` genomes."""
        front = genomes[non_dominated(scores + 1e-9 * self._rng.random(scores.shape))]
        drawn = []
        for _ in range(count):
            one, two = front[self._rng.integers(len(front), size=2)]
            share = self._rng.uniform(-0.25, 1.25) if self._rng.random() < 0.5 else 1.0
            step = self._rng.choice([0.05, 0.1, 0.2])
            noise = step * self._rng.standard_normal(len(self._domain))
            drawn.append(self._domain.snap(share * one + (1 - share) * two + noise))
        return drawn


def measure(seed: int) -> dict[str, Any]:
    """Evaluates about 300 genomes with one worker of one thread."""
    import torch

    from evomerge.cli import compose_config
    from evomerge.executors.worker import Job, Request, Worker
    from evomerge.setup import make_setup
    from evomerge.workers import plan_workers, worker_spec

    words = ["executor=serial", "executor.threads=1", "engine=transformers"]
    config = compose_config(["+experiment=pareto_tiny", *words])
    setup = make_setup(config)
    torch.set_num_threads(1)
    tasks = [task.name for task in setup.search_tasks]
    requests = tuple(Request(task, "search", tuple(range(ITEMS))) for task in tasks)
    worker = Worker(worker_spec(config, plan_workers(config)))
    begin = time.process_time()
    genomes: list[FloatArray] = []
    scores: list[list[float]] = []

    def add(batch: list[FloatArray]) -> None:
        for genome in batch:
            recipe = setup.space.decode(genome).to_dict()
            outcome = worker.evaluate(Job(len(genomes), recipe, requests))
            if outcome.scores is None:
                raise RuntimeError(outcome.reason)
            genomes.append(genome)
            scores.append([float(np.mean(part.scores)) for part in outcome.scores])
            if not len(genomes) % 20:
                seconds = time.process_time() - begin
                print(f"{len(genomes)} genomes, {seconds:.0f} s", file=sys.stderr, flush=True)

    domain = setup.domain
    candidates = Candidates(domain, seed)
    add(candidates.first())
    for _ in range(NEAR // 20):
        add(candidates.near(np.array(genomes), np.array(scores), 20))
    return {
        "tasks": tasks,
        "items": ITEMS,
        "dimensions": [
            {"name": d.name, "low": d.low, "high": d.high, "start": d.start, "step": d.step}
            for d in domain.dimensions
        ],
        "anchors": [a.tolist() for a in domain.anchors],
        "genomes": np.round(genomes, 4).tolist(),
        "scores": np.round(scores, 4).tolist(),
    }


def logit(scores: FloatArray, items: int) -> FloatArray:
    """Empirical logits of shares of `items`; half an item keeps 0 and 1 finite."""
    right = np.asarray(scores) * items
    return np.asarray(np.log((right + 0.5) / (items - right + 0.5)))


def expit(z: FloatArray) -> FloatArray:
    """Inverse of the logit."""
    return np.asarray(1.0 / (1.0 + np.exp(-z)))


def fit_kernel(unit: FloatArray, target: FloatArray) -> dict[str, Any]:
    """A Gaussian process's mean: Matern 5/2, one length-scale a dimension, maximum a posteriori.

    Length-scales have a log-normal prior around 1 with deviation 1. Returns the parameters and
    the leave-one-out predictions with these (Rasmussen & Williams 2006, eq. 5.12).
    """
    import torch

    x, y = torch.as_tensor(unit), torch.as_tensor(target)
    eye = torch.eye(len(x), dtype=torch.float64)

    def covariance(theta: Any) -> Any:
        z = x * torch.exp(-theta[:-2])
        squared = (z[:, None] - z[None]).square().sum(-1)
        r = torch.sqrt(5.0 * squared + 1e-12)
        kernel = torch.exp(theta[-2]) * (1 + r + r * r / 3) * torch.exp(-r)
        return kernel + (torch.exp(theta[-1]) + 1e-6) * eye

    def loss(theta: FloatArray) -> tuple[float, FloatArray]:
        t = torch.tensor(theta, requires_grad=True)
        root = torch.linalg.cholesky(covariance(t))
        rest = y - y.mean()
        alpha = torch.cholesky_solve(rest[:, None], root)[:, 0]
        value = 0.5 * rest @ alpha + root.diagonal().log().sum() + 0.5 * t[:-2].square().sum()
        value.backward()
        return float(value.detach()), t.grad.numpy().copy()

    scale = np.log(np.var(target) + 1e-6)
    theta = np.r_[np.zeros(unit.shape[1]), scale, scale - 2.0]
    bounds = [(-3.0, 4.0)] * unit.shape[1] + [(-8.0, 8.0), (-10.0, 3.0)]
    options = {"maxiter": 80}
    theta = minimize(loss, theta, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    inverse = np.linalg.inv(covariance(torch.as_tensor(theta)).numpy())
    mean = float(target.mean())
    alpha = inverse @ (target - mean)
    found = {
        "mean": mean,
        "lengths": np.exp(theta[:-2]),
        "weights": np.exp(theta[-2]) * alpha,
        "noise": float(np.exp(theta[-1])),
    }
    return found | {"left_out": target - alpha / np.diag(inverse)}


def fit_quadratic(unit: FloatArray, target: FloatArray) -> FloatArray:
    """Leave-one-out predictions of ridge regression on squares and products; best ridge."""
    n = unit.shape[1]
    rows, columns = np.triu_indices(n)
    features = np.c_[np.ones(len(unit)), unit, unit[:, rows] * unit[:, columns]]
    best = None
    for ridge in (0.01, 0.1, 1.0, 10.0):
        penalty = ridge * np.eye(features.shape[1])
        penalty[0, 0] = 0.0
        hat = features @ np.linalg.solve(features.T @ features + penalty, features.T)
        left_out = target - (target - hat @ target) / (1 - np.diag(hat))
        error = float(np.mean((target - left_out) ** 2))
        if best is None or error < best[0]:
            best = error, left_out
    assert best is not None
    return np.asarray(best[1])


def r2(scores: FloatArray, predicted: FloatArray) -> float:
    """Explained share of the variance."""
    return float(1 - np.mean((scores - predicted) ** 2) / np.var(scores))


def fit(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """One model a task; prints how well each kind predicts what it was not fitted to."""
    unit = MergeLandscape(data=measured).domain.to_unit(np.array(measured["genomes"]))
    models = []
    for task, scores in zip(measured["tasks"], np.array(measured["scores"]).T, strict=True):
        logits = logit(scores, measured["items"])
        link, plain = fit_kernel(unit, logits), fit_kernel(unit, scores)
        left_out = {
            "kernel, logit": expit(link["left_out"]),
            "kernel, clipped": np.clip(plain["left_out"], 0.0, 1.0),
            "quadratic, logit": expit(fit_quadratic(unit, logits)),
        }
        errors = {kind: round(r2(scores, p), 3) for kind, p in left_out.items()}
        kind = max(("kernel, logit", "kernel, clipped"), key=errors.__getitem__)
        model = link if kind == "kernel, logit" else plain
        own = model["mean"] + matern(unit, unit, model["lengths"]) @ model["weights"]
        own = expit(own) if model is link else np.clip(own, 0.0, 1.0)
        errors["chosen, fitted"] = round(r2(scores, own), 3)
        print(task, f"{scores.min():.2f}..{scores.max():.2f}", errors, file=sys.stderr)
        models.append(
            {
                "task": task,
                "link": "logit" if kind == "kernel, logit" else "clipped",
                "mean": round(model["mean"], 5),
                "lengths": np.round(model["lengths"], 4).tolist(),
                "weights": np.round(model["weights"], 5).tolist(),
                "noise": round(model["noise"], 5),
                "r2": errors,
            }
        )
    return models


def known(landscape: MergeLandscape, seed: int) -> dict[str, Any]:
    """The best mean score and the front that many local searches find."""
    rng = np.random.default_rng(seed)
    genomes = np.array(landscape.measured)
    scores = landscape.scores(genomes)
    n, k = genomes.shape[1], scores.shape[1]
    low, high = landscape.domain.low, landscape.domain.high
    found = [genomes]
    wishes = [np.ones(k) / k] * 6 + [w for w in rng.dirichlet(np.full(k, 0.7), 60)]
    for wish in wishes:
        order = np.argsort(-(scores @ wish + 0.05 * rng.random(len(scores))))
        begin = genomes[order[0]]

        def loss(genome: FloatArray, wish: FloatArray = wish) -> tuple[float, FloatArray]:
            points = np.r_[genome[None], genome + 1e-5 * np.eye(n)]
            values = landscape.scores(points) @ wish
            return -values[0], -(values[1:] - values[0]) / 1e-5

        bounds = list(zip(low, high, strict=True))
        done = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=bounds)
        found.append(np.clip(done.x, low, high)[None])
    every = np.concatenate(found)
    values = landscape.scores(every)
    front = values[non_dominated(values)]
    return {
        "best": float(values.mean(axis=1).max()),
        "genome": np.round(every[values.mean(axis=1).argmax()], 4).tolist(),
        "front": np.round(front[spread(front, FRONT)], 5).tolist(),
        "hypervolume": hypervolume(front, np.zeros(k)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--refit", action="store_true", help="fit to the measurements of the file")
    parser.add_argument("--out", type=Path, default=PATH)
    options = parser.parse_args()
    kept = ("seed", "tasks", "items", "dimensions", "anchors", "genomes", "scores")
    if options.refit:
        stored = json.loads(PATH.read_text(encoding="utf-8"))
        data = {key: stored[key] for key in kept}
    else:
        data = {"seed": options.seed} | measure(options.seed)
    data = {"command": COMMAND} | data | {"models": fit(data)}
    options.out.parent.mkdir(exist_ok=True)
    data["known"] = known(MergeLandscape(data=data), int(data["seed"]))
    text = json.dumps(data, separators=(",", ":"))
    options.out.write_text(text + "\n", encoding="utf-8")
    print(f"{options.out}: {len(text) / 1000:.0f} kB, {data['known']['best']:.3f} best mean score")


if __name__ == "__main__":
    main()
