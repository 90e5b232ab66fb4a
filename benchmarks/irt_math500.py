"""How far full scores are off when they are estimated from 20, 30, 50 or 100 items.

    python benchmarks/irt_math500.py [--data FILE] [--seeds 5] [--draws 20] [--worlds 8] [--quick]

FILE holds `correct` (models x items, scores in [0, 1]) and `base_model` (the group of each model);
without one it is the matrix of 140 models on MATH-500 beside the repository. For each seed 30% of
the groups are held out; everything is fitted, chosen and calibrated on the others, and estimates
the full scores of the models held out. The row "chosen" takes the configuration of the least error
in cross-validation on the training models, and "chosen, same items" the best of those that ask all
models the same items. A simulation follows, in which the model of the items holds, and what an
estimate costs at 30 000 items. The last line is one JSON object with the same figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from scipy.stats import kendalltau, spearmanr  # noqa: E402

from evomerge.estimators.catalogue import ESTIMATES, Knowledge, choose, next_items  # noqa: E402
from evomerge.estimators.catalogue import predictor as predictor_of  # noqa: E402
from evomerge.estimators.selection import (  # noqa: E402
    ADAPTIVE,
    CONFIGURATIONS,
    Configuration,
    Trial,
    cross_validated,
    learnt,
    measured_misfit,
    selected,
    tried,
)
from evomerge.irt.model import ItemModel, sigmoid  # noqa: E402
from evomerge.irt.responses import Responses  # noqa: E402

DATA = ROOT.parent / "shared" / "data" / "irt_math500.npz"
SIZES = (20, 30, 50, 100)
TARGETS = (4.6, 3.8, 3.1, 2.2)
CHOSEN, CHOSEN_SAME = "chosen", "chosen, same items"
SOURCES = 3
MOST = {"variance": 2, "information": 1, "mp_irt": 4, "gmp_irt": 4}
"""Draws of what hardly varies or takes long."""

ROWS = {
    "mean of random items": Configuration("random", "mean", 0),
    "stratified": Configuration("stratified", "stratified", 0),
    "control variate, 3 sources": Configuration("random", "control_variate", 0),
    "kriging": Configuration("random", "kriging", 0),
    "p-IRT": Configuration("random", "p_irt", 1),
    "gp-IRT": Configuration("random", "gp_irt", 1),
    "mp-IRT, 3 sources": Configuration("random", "mp_irt", 2),
    "gmp-IRT, 3 sources": Configuration("random", "gmp_irt", 2),
    "IRT k-means + gp-IRT": Configuration("kmeans_items", "gp_irt", 1),
    "posterior": Configuration("random", "posterior", 2, 0.3),
    "information + posterior": Configuration("information", "posterior", 3, 0.3),
    "variance + posterior": Configuration("variance", "posterior", 2, 0.3),
    "balanced + posterior": Configuration("balanced", "posterior", 2, 0.3),
    "adaptive + posterior": Configuration(ADAPTIVE, "posterior", 2),
}


def read(path: Path) -> Responses:
    """The matrix of answers of a file."""
    if not path.is_file():
        sys.exit(f"{path}: no such file; name a matrix of answers with --data FILE.npz")
    with np.load(path, allow_pickle=False) as file:
        if "correct" not in file:
            sys.exit(f"{path}: no array `correct`; expected models x items, scores in [0, 1]")
        correct = np.asarray(file["correct"], dtype=np.float32)
        groups = file["base_model"] if "base_model" in file else np.arange(len(correct))
    if correct.ndim != 2 or np.isnan(correct).any():
        sys.exit(f"{path}: `correct` of shape {correct.shape}; expected models x items, complete")
    models, items = (tuple(map(str, range(n))) for n in correct.shape)
    # names that sort as the groups do
    order = np.unique(groups, return_inverse=True)[1]
    return Responses(models, items, correct, tuple(f"{g:09d}" for g in order))


def held_out(responses: Responses, seed: int) -> np.ndarray:
    """Whether each model's group is in the first 30% of a random order of the groups."""
    assert responses.groups is not None
    names, each = np.unique(responses.groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return np.isin(each, order[: round(0.3 * len(names))])


def spread_sources(scores: np.ndarray) -> np.ndarray:
    """Models at the quarters of the range of scores, as sources."""
    order = np.argsort(scores.mean(axis=1), kind="stable")
    return scores[order[[round(q * (len(order) - 1)) for q in (0.25, 0.5, 0.75)]]]


def experiment(
    responses: Responses,
    seed: int,
    sizes: Sequence[int],
    draws: int,
    rows: dict[str, Configuration],
) -> tuple[dict[str, dict[int, Trial]], dict[str, str]]:
    """All rows of one split, and the names of what was chosen."""
    out = held_out(responses, seed)
    train, test = responses.select(np.flatnonzero(~out)), responses.scores[out].astype(float)
    sources = spread_sources(train.scores.astype(float))
    known: dict[tuple[int, float], Knowledge] = {}
    trials = {}
    for name, c in rows.items():
        key = (c.dimensions, c.discrimination_sd)
        if key not in known:
            known[key] = learnt(train, c, misfit=None, sources=sources)
        most = min(MOST.get(c.choose, draws), MOST.get(c.estimate, draws), draws)
        trials[name] = tried(known[key], c, test, sizes, most, seed)
    found = cross_validated(train, CONFIGURATIONS, sizes, seed=seed)
    for name, c in rows.items():  # intervals as calibrated, where that was measured
        if c in found:
            for n in sizes:
                misfit = measured_misfit(found[c][n])
                known_n = replace(known[c.dimensions, c.discrimination_sd], misfit=misfit)
                trials[name][n] = tried(known_n, c, test, (n,), draws, seed)[n]
    same = {c: by_size for c, by_size in found.items() if c.choose != ADAPTIVE}
    chosen = {}
    for name, among in ((CHOSEN_SAME, same), (CHOSEN, found)):
        best = selected(among)
        chosen[name] = str(best)
        trials[name] = {
            n: tried(
                learnt(train, best, measured_misfit(among[best][n])), best, test, (n,), draws, seed
            )[n]
            for n in sizes
        }
    return trials, chosen


def figures(trials: Sequence[Trial]) -> dict[str, float]:
    """Error, rank correlations, coverage and width, averaged over models, draws and splits."""
    pairs = [(t.truth, row) for t in trials for row in t.values]
    pairs = [pair for pair in pairs if all(np.ptp(side) > 0 for side in pair)]  # or no rank at all
    ratio = np.concatenate(
        [np.abs(t.errors / np.maximum(t.stderrs, 1e-12)).ravel() for t in trials]
    )
    return {
        "mae": 100 * float(np.mean(np.concatenate([np.abs(t.errors).ravel() for t in trials]))),
        "kendall": float(np.mean([kendalltau(a, b).statistic for a, b in pairs] or [0.0])),
        "spearman": float(np.mean([spearmanr(a, b).statistic for a, b in pairs] or [0.0])),
        "coverage": float(np.mean(ratio <= 1.959964)),
        "width": 200
        * 1.959964
        * float(np.mean(np.concatenate([t.stderrs.ravel() for t in trials]))),
    }


def show(table: dict[str, dict[int, dict[str, float]]], sizes: Sequence[int], what: str) -> None:
    """One table for people: a row a configuration, a column a size."""
    form = {"mae": "{:.2f}", "width": "{:.1f}"}.get(what, "{:.3f}")
    print(f"\n| {what} | " + " | ".join(f"{n} items" for n in sizes) + " |")
    print("|---|" + "---:|" * len(sizes))
    for name, by_size in table.items():
        print(f"| {name} | " + " | ".join(form.format(by_size[n][what]) for n in sizes) + " |")


def simulated(models: int, tests: int, items: int, seed: int) -> tuple[Responses, np.ndarray]:
    """Answers of models to items of the two-parameter model: those to learn from, those to try."""
    rng = np.random.default_rng(seed)
    alpha, beta = np.exp(0.3 + 0.3 * rng.standard_normal(items)), 1.5 * rng.standard_normal(items)
    theta = rng.standard_normal(models + tests)
    right = rng.random((models + tests, items)) < sigmoid(np.outer(theta, alpha) - beta)
    names, ids = tuple(map(str, range(models))), tuple(map(str, range(items)))
    return Responses(names, ids, right[:models].astype(np.float32)), right[models:].astype(float)


def simulation(worlds: int, sizes: Sequence[int]) -> dict[str, dict[int, dict[str, float]]]:
    """Each estimate on random and adaptive items where the model holds; misfit as measured."""
    rows = {name: Configuration("random", name, 1, 0.3) for name in ESTIMATES}
    rows["stratified"] = Configuration("stratified", "stratified", 1, 0.3)
    rows["balanced + posterior"] = Configuration("balanced", "posterior", 1, 0.3)
    rows["adaptive + posterior"] = Configuration(ADAPTIVE, "posterior", 1, 0.3)
    trials: dict[str, dict[int, list[Trial]]] = {name: {n: [] for n in sizes} for name in rows}
    for world in range(worlds):
        train, test = simulated(100, 60, 400, world)
        sources = spread_sources(train.scores.astype(float))
        typical = Configuration("random", "posterior", 1, 0.3)
        cases = (typical, rows["adaptive + posterior"])
        found = cross_validated(train, cases, sizes, draws=2, seed=world)
        for name, c in rows.items():
            case = cases[c.choose == ADAPTIVE]
            fitted = learnt(train, c, 0.0, sources)
            for n in sizes:
                known = replace(fitted, misfit=measured_misfit(found[case][n]))
                trials[name][n].append(tried(known, c, test, (n,), 6, world)[n])
    return {name: {n: figures(t) for n, t in by_size.items()} for name, by_size in trials.items()}


def cost(items: int = 30_000, n: int = 100, models: int = 40) -> dict[str, float]:
    """Milliseconds of processor time of one estimate or next item, once all is prepared."""
    rng = np.random.default_rng(0)
    ids = tuple(map(str, range(items)))
    alpha, beta = rng.normal(1, 0.4, (items, 2)), rng.normal(0, 2, items)
    model = ItemModel(ids, alpha, beta, np.zeros_like(alpha), np.zeros(items))
    answers = (
        rng.random((models, items)) < model.probability(rng.standard_normal((models, 2)))
    ) * 1.0
    known = Knowledge(ids, model, answers, answers[:SOURCES], misfit=0.02)
    choice = choose("random", known, n, 0)
    out = {}

    def milliseconds(work: object) -> float:
        assert callable(work)
        work()
        times = []
        for _ in range(20):
            began = time.process_time()
            work()
            times.append(time.process_time() - began)
        return 1000 * float(np.median(times))

    y = answers[5, choice.indices]
    for name in ESTIMATES:
        estimate = predictor_of(name, known, choice)
        out[name] = milliseconds(lambda estimate=estimate: estimate(y))
    out["next item"] = milliseconds(lambda: next_items("variance", known, choice.indices, y, 1))
    return out


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="a matrix of answers")
    parser.add_argument("--seeds", type=int, default=5, help="number of splits")
    parser.add_argument("--draws", type=int, default=20, help="sets of items a split")
    parser.add_argument("--worlds", type=int, default=8, help="number of simulated matrices")
    parser.add_argument("--quick", action="store_true", help="two splits, two draws, one world")
    options = parser.parse_args()
    seeds, draws = (2, 2) if options.quick else (options.seeds, options.draws)
    responses = read(options.data)
    sizes = tuple(n for n in SIZES if n < len(responses.items))
    if len(set(responses.groups or ())) < 8 or not sizes:
        sys.exit(
            f"{options.data}: found {len(set(responses.groups or ()))} groups and "
            f"{len(responses.items)} items; expected 8 groups and more than {SIZES[0]} items"
        )
    every: dict[str, dict[int, list[Trial]]] = {}
    chosen: dict[str, list[str]] = {CHOSEN_SAME: [], CHOSEN: []}
    for seed in range(seeds):
        began = time.perf_counter()
        trials, names = experiment(responses, seed, sizes, draws, ROWS)
        for name, by_size in trials.items():
            for n, trial in by_size.items():
                every.setdefault(name, {}).setdefault(n, []).append(trial)
        for name, best in names.items():
            chosen[name].append(best)
        print(f"split {seed}: {time.perf_counter() - began:.0f} s; chosen: {names}", flush=True)
    table = {name: {n: figures(t) for n, t in by.items()} for name, by in every.items()}
    print(
        f"\n{len(responses.models)} models, {len(responses.items)} items; mae and width in points"
    )
    for what in ("mae", "kendall", "spearman", "coverage", "width"):
        show(table, sizes, what)
    print("\ntarget (mae on MATH-500): " + " / ".join(map(str, TARGETS)))
    print("\nSimulation, where the model of the items holds:")
    worlds = simulation(1 if options.quick else options.worlds, sizes[:3:2])
    show(worlds, sizes[:3:2], "coverage")
    show(worlds, sizes[:3:2], "mae")
    milliseconds = cost()
    print(
        "\nms of processor time an estimate, 30 000 items, 100 answers: "
        + ", ".join(f"{name} {ms:.2f}" for name, ms in milliseconds.items())
    )
    print(
        json.dumps(
            {
                "models": len(responses.models),
                "items": len(responses.items),
                "seeds": seeds,
                "draws": draws,
                "table": table,
                "chosen": chosen,
                "simulation": worlds,
                "ms": milliseconds,
            }
        )
    )


if __name__ == "__main__":
    main()
