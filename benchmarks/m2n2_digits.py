"""What share of the bare forward pass's rate a search over 19 210 parameters keeps.

    python benchmarks/m2n2_digits.py                about a minute of one core
    python benchmarks/m2n2_digits.py --quick        a smoke run of a few seconds

The search is M2N2 from scratch: 20 members, mutation, children made of whole vectors, on the 1437
training images of scikit-learn's digits. Stretches of the bare forward pass (the same networks, one
after the other) and of the search alternate in one process of one thread, so that a busy machine
slows both; the share is the median over pairs of stretches, with the quartiles in brackets. Small
Python steps suffer more from a busy machine than a large product of matrices. So the times of the
parts are also given as they are when nothing interferes, tenth percentiles over all evaluations;
the share that follows from these alone is called undisturbed. The last line is one JSON object with
the same figures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from evomerge import mating  # noqa: E402
from evomerge.digits.methods import MUTATION, POPULATION  # noqa: E402
from evomerge.mating import Mating  # noqa: E402
from evomerge.optimizers.m2n2 import M2N2  # noqa: E402
from evomerge.types import Fitness, Observation  # noqa: E402
from evomerge.vectors import VectorMembers  # noqa: E402
from evomerge.zoo import digits  # noqa: E402

BATCHES = (1, 8)
PARTS = ("ask", "make", "forward", "tell", "keep")
TARGET = 0.7


class Loop:
    """The search with a clock between its parts."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.classifier = digits.Classifier(digits.load()[0])
        seeds = [digits.fresh(0, number) for number in range(2)]
        self.members = VectorMembers(seeds, mutation=MUTATION)
        self.optimizer = M2N2(mating.domain(2), 0, POPULATION, batch=batch)
        self.times: dict[str, list[float]] = {part: [] for part in (*PARTS, "bare")}

    def search(self, evaluations: int) -> float:
        """Evaluations a second over so many of them."""
        clock = time.perf_counter
        began = clock()
        for _ in range(evaluations // self.batch):
            a = clock()
            genomes = self.optimizer.ask(self.batch)
            b = clock()
            self.times["ask"] += [(b - a) / self.batch] * self.batch
            made = [self._made(genome) for genome in genomes]
            for genome, vector in zip(genomes, made, strict=True):
                a = clock()
                correct = self.classifier.correct(vector)
                b = clock()
                share = float(np.count_nonzero(correct)) / len(correct)
                scores = correct.astype(np.float64)
                self.optimizer.tell([Observation(genome, Fitness((share,), (0.0,)), scores)])
                c = clock()
                self.times["forward"].append(b - a)
                self.times["tell"].append(c - b)
            a = clock()
            self.members.keep(self.optimizer.archive)
            self.times["keep"].append((clock() - a) / self.batch)
        return evaluations / (clock() - began)

    def _made(self, genome: np.ndarray) -> digits.Vector:
        a = time.perf_counter()
        vector = self.members.make(Mating.from_genome(genome))
        self.times["make"].append(time.perf_counter() - a)
        return vector

    def bare(self, evaluations: int) -> float:
        """Forward passes a second over the members alive."""
        vectors = [self.members[number] for number in self.optimizer.archive]
        began = time.perf_counter()
        for i in range(evaluations):
            a = time.perf_counter()
            self.classifier.correct(vectors[i % len(vectors)])
            self.times["bare"].append(time.perf_counter() - a)
        return evaluations / (time.perf_counter() - began)


def measure(batch: int, pairs: int, stretch: int) -> dict[str, float]:
    """Rates, share and the parts' times in microseconds."""
    loop = Loop(batch)
    loop.search(200 // batch * batch)  # the archive is full, and everything is warm
    for times in loop.times.values():
        times.clear()
    rates = np.array([(loop.bare(stretch), loop.search(stretch)) for _ in range(pairs)])
    low, middle, high = np.percentile(rates[:, 1] / rates[:, 0], [25, 50, 75])
    quiet = {part: 1e6 * float(np.percentile(times, 10)) for part, times in loop.times.items()}
    return {
        "batch": batch,
        "bare_per_s": float(np.median(rates[:, 0])),
        "search_per_s": float(np.median(rates[:, 1])),
        "share": float(middle),
        "share_low": float(low),
        "share_high": float(high),
        "undisturbed_share": quiet["bare"] / sum(quiet[part] for part in PARTS),
        **{f"{part}_us": quiet[part] for part in quiet},
    }


def main() -> None:
    """Prints the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few short stretches")
    quick = parser.parse_args().quick
    rows = [measure(batch, 3 if quick else 16, 80 if quick else 240) for batch in BATCHES]
    heads = ("at work", "forward/s", "search/s", "share", "undisturbed")
    print("| " + " | ".join([*heads, *(f"{p}, us" for p in ("bare", *PARTS))]) + " |")
    print("|---:" * (len(heads) + 1 + len(PARTS)) + "|")
    for row in rows:
        share = f"{row['share']:.0%} [{row['share_low']:.0%}, {row['share_high']:.0%}]"
        parts = " | ".join(f"{row[f'{part}_us']:.0f}" for part in ("bare", *PARTS))
        print(
            f"| {row['batch']:.0f} | {row['bare_per_s']:.0f} | {row['search_per_s']:.0f} "
            f"| {share} | {row['undisturbed_share']:.0%} | {parts} |"
        )
    print(f"Target: {TARGET:.0%} of the forward pass.")
    print(json.dumps({"m2n2_digits": rows, "target": TARGET}))


if __name__ == "__main__":
    main()
