"""Held-out hypervolumes of runs after each of their own budgets, in one box.

    python experiments/map_tiny/share.py RUN [RUN ...]

`report` compares budgets that all runs have; here 150 candidates of one optimiser stand beside 500
of another. The box goes from the worst to the best held-out value of each objective over all points
of all runs; hypervolumes are shares of it. Utility is what a front is worth to somebody whose
preference is not known: the greatest weighted sum of the objectives, in units of the box, that one
of its points has, on average over weights that are uniform on the simplex (Hansen and Jaszkiewicz
1998, R1 and R2 indicators). All objectives are maximised. Intervals are 95% t intervals over seeds.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import t

from evomerge.pareto import hypervolume

PREFERENCES = 2000


def main(runs: list[str]) -> None:
    """Prints the table."""
    results = [json.loads((Path(run) / "results.json").read_text()) for run in runs]
    names = [o["name"] for o in results[0]["objectives"]]
    points = [
        {p["candidate"]: [p["values"]["test"][n] for n in names] for p in r["front"]["points"]}
        for r in results
    ]
    every = np.array([row for one in points for row in one.values()])
    worst, width = every.min(axis=0), np.ptp(every, axis=0)
    weights = np.random.default_rng(0).dirichlet(np.ones(len(names)), PREFERENCES)
    found: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for result, one in zip(results, points, strict=True):
        for budget, ids in result["front"]["budgets"].items():
            rows = (np.array([one[i] for i in ids if i in one]) - worst) / width
            share = hypervolume(rows, np.full(len(names), -1e-9))
            utility = (weights @ rows.T).max(axis=1).mean()
            found[result["optimizer"], int(budget)].append((share, utility))
    print("| optimiser | candidates | seeds | hypervolume | utility |\n|---|---:|---:|---:|---:|")
    for (name, budget), both in sorted(found.items()):
        cells = " | ".join(cell(list(values)) for values in zip(*both, strict=True))
        print(f"| {name} | {budget} | {len(both)} | {cells} |")


def cell(values: list[float]) -> str:
    """Mean and, of several, its 95% t interval."""
    mean, count = np.mean(values), len(values)
    if count == 1:
        return f"{mean:.4g}"
    half = t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5
    return f"{mean:.4g} [{mean - half:.4g}, {mean + half:.4g}]"


if __name__ == "__main__":
    main(sys.argv[1:])
