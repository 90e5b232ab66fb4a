"""Held-out hypervolumes of runs after each of their own budgets, in one box.

    python experiments/map_tiny/share.py RUN [RUN ...]

`report` compares budgets that all runs have; here 150 candidates of one optimiser stand beside 500
of another. The box goes from the worst to the best held-out value of each objective over all points
of all runs; hypervolumes are shares of it. All objectives are maximised. Intervals are 95% t
intervals over seeds.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import t

from evomerge.pareto import hypervolume


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
    shares: dict[tuple[str, int], list[float]] = defaultdict(list)
    for result, one in zip(results, points, strict=True):
        for budget, ids in result["front"]["budgets"].items():
            rows = (np.array([one[i] for i in ids if i in one]) - worst) / width
            share = hypervolume(rows, np.full(len(names), -1e-9))
            shares[result["optimizer"], int(budget)].append(share)
    print("| Optimiser | Candidates | Seeds | Hypervolume |\n|---|---:|---:|---:|")
    for (name, budget), found in sorted(shares.items()):
        mean, count = np.mean(found), len(found)
        half = t.ppf(0.975, count - 1) * np.std(found, ddof=1) / count**0.5 if count > 1 else 0
        interval = f" [{mean - half:.4f}, {mean + half:.4f}]" if count > 1 else ""
        print(f"| {name} | {budget} | {count} | {mean:.4f}{interval} |")


if __name__ == "__main__":
    main(sys.argv[1:])
