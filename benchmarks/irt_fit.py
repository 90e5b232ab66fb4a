"""Speed, memory and recovery of `evomerge irt fit` on answers drawn from known items.

    python benchmarks/irt_fit.py                              5000 models x 30000 items
    python benchmarks/irt_fit.py --models 140 --items 500 --dimensions 1 2 5
    python benchmarks/irt_fit.py --missing 0.3

The draws are from the priors of the fit, apart from alphas, whose first dimension is at least 0.1.
Peak memory is that of the whole process, the matrix (float32) included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from evomerge.irt.fit import Fit, fit_items
from evomerge.irt.responses import Responses
from evomerge.types import FloatArray


def draw(
    models: int, items: int, dimensions: int, missing: float, seed: int
) -> tuple[Responses, FloatArray, FloatArray, FloatArray]:
    """Answers, abilities, alphas and betas."""
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal((models, dimensions))
    alpha = rng.standard_normal((items, dimensions))
    alpha[:, 0] = np.maximum(0.1, 1 + alpha[:, 0])
    beta = 1.5 * rng.standard_normal(items)
    scores = np.empty((models, items), dtype=np.float32)
    for row, ability in zip(scores, theta, strict=True):
        row[:] = rng.random(items) * (1 + np.exp(beta - alpha @ ability)) < 1
        if missing:
            row[rng.random(items) < missing] = np.nan
    names = tuple(f"m{i}" for i in range(models)), tuple(f"i{i}" for i in range(items))
    return Responses(*names, scores), theta, alpha, beta


def recovery(fit: Fit, theta: FloatArray, alpha: FloatArray, beta: FloatArray) -> dict[str, float]:
    """Correlations with the truth; of alpha and theta the lowest of all dimensions, matched."""
    varying = fit.model.discrimination.any(axis=1)
    out = {"beta": float(np.corrcoef(fit.model.difficulty[varying], beta[varying])[0, 1])}
    pairs = (("alpha", fit.model.discrimination[varying], alpha[varying]),
             ("theta", fit.abilities, theta))  # fmt: skip
    for name, found, truth in pairs:  # the posterior leaves a rotation free: undo it first
        turn = np.linalg.lstsq(found, truth, rcond=None)[0]
        d = truth.shape[1]
        table = np.corrcoef((found @ turn).T, truth.T)[:d, d:]
        rows, columns = linear_sum_assignment(-np.abs(table))
        out[name] = float(np.abs(table[rows, columns]).min())
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=5000)
    parser.add_argument("--items", type=int, default=30000)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[1])
    parser.add_argument("--missing", type=float, default=0.0, help="share of answers left out")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print(f"{options.models} models x {options.items} items, {options.threads} threads")
    print(f"{'D':>3} {'seconds':>8} {'iterations':>10} {'converged':>9} {'alpha':>7} {'beta':>7} "
          f"{'theta':>7} {'peak GB':>8}")  # fmt: skip
    for dimensions in options.dimensions:
        answers, *truth = draw(
            options.models, options.items, dimensions, options.missing, options.seed
        )
        begin = time.perf_counter()
        fit = fit_items(answers, dimensions)
        seconds = time.perf_counter() - begin
        found = recovery(fit, *truth)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        rows.append({
            "dimensions": dimensions, "seconds": round(seconds, 2), "iterations": fit.iterations,
            "converged": fit.converged, "peak_gb": round(peak, 2),
            "correlation": {k: round(v, 4) for k, v in found.items()},
        })  # fmt: skip
        print(f"{dimensions:3} {seconds:8.1f} {fit.iterations:10} {fit.converged!s:>9} "
              f"{found['alpha']:7.4f} {found['beta']:7.4f} {found['theta']:7.4f} {peak:8.2f}",
              flush=True)  # fmt: skip
    print(json.dumps({
        "models": options.models, "items": options.items, "missing": options.missing,
        "threads": options.threads, "rows": rows,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
