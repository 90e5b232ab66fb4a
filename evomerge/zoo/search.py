"""Searches for merges of the zoo, to show that it has something to find.

`python -m evomerge.zoo.search` writes the coefficients found to `data/merges.json`, which
`python -m evomerge.zoo.table` measures. This is a check of the zoo with no part of the
package's studies in it: CMA-ES on accuracy + 0.1 x mean log-likelihood a token.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cma
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import PreTrainedModel

from evomerge.zoo import SOURCES, zoo_path
from evomerge.zoo.items import Row, read_items
from evomerge.zoo.merging import GROUPS, ZooMerger
from evomerge.zoo.training import IGNORED, to_tensors

TARGET = "jp_math"
LOW, HIGH = -0.25, 1.25
LOGLIK_WEIGHT = 0.1
FINALISTS = 4

FloatArray = NDArray[np.float64]


@torch.inference_mode()
def fitness(model: PreTrainedModel, rows: Sequence[Row]) -> float:
    """Accuracy + 0.1 x mean log-likelihood a token (nats) of the right answers.

    An item counts if greedy decoding would write its full right answer, which one forward
    pass over the right answers tells; stricter than the scorer of the task, and quicker.
    """
    ids, labels = to_tensors([(row["question"], row["gold"]) for row in rows])
    labels = labels[:, 1:]
    taught = labels != IGNORED
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    logits, wanted = model.lm_head(hidden[taught]), labels[taught]
    greedy, logliks = torch.ones(taught.shape, dtype=torch.bool), torch.zeros(taught.shape)
    greedy[taught] = logits.argmax(-1) == wanted
    logliks[taught] = -F.cross_entropy(logits, wanted, reduction="none")
    accuracy = greedy.all(1).float().mean()
    return float(accuracy + LOGLIK_WEIGHT * (logliks.sum(1) / taught.sum(1)).mean())


def search(
    evaluate: Callable[[FloatArray], float], dimensions: int, budget: int, seed: int
) -> list[FloatArray]:
    """CMA-ES from the middle of the range; returns the finalists, best first.

    Args:
        evaluate: fitness of a vector of weights, to be maximised.
        budget: most candidates that are evaluated.
    """
    rng = np.random.default_rng(seed)
    options = {
        "bounds": [LOW, HIGH],
        "popsize": 4 + math.floor(3 * math.log(dimensions)),
        "randn": lambda *shape: rng.standard_normal(shape),
        "seed": math.nan,
        "verbose": -9,
    }
    strategy = cma.CMAEvolutionStrategy([(LOW + HIGH) / 2] * dimensions, (HIGH - LOW) / 6, options)
    seen: list[tuple[float, FloatArray]] = []
    started = time.monotonic()
    while len(seen) + strategy.popsize <= budget:
        asked = strategy.ask()
        values = [evaluate(np.asarray(candidate)) for candidate in asked]
        strategy.tell(asked, [-value for value in values])
        seen += zip(values, map(np.asarray, asked), strict=True)
        print(
            f"{len(seen)} candidates, best of these {max(values):.3f}, "
            f"{time.monotonic() - started:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    seen.sort(key=lambda pair: -pair[0])
    centre = np.clip(np.asarray(strategy.mean), LOW, HIGH)
    return [genome for _, genome in seen[:FINALISTS]] + [centre]


def find_merge(merger: ZooMerger, groups: int, budget: int, seed: int, items: int) -> FloatArray:
    """The merge that a search finds: the best finalist on the validation items."""
    rows, validation = read_items(TARGET, "search")[:items], read_items(TARGET, "validation")

    def value(genome: FloatArray, rows: list[Row]) -> float:
        return fitness(merger.merge(genome.reshape(len(SOURCES), groups)), rows)

    found = search(lambda genome: value(genome, rows), len(SOURCES) * groups, budget, seed)
    best = max(found, key=lambda genome: value(genome, validation))
    return best.reshape(len(SOURCES), groups)


def main(argv: list[str] | None = None) -> None:
    """Runs the global and the per-layer search and writes what they found."""
    parser = argparse.ArgumentParser(
        prog="python -m evomerge.zoo.search",
        description="Search for merges of the zoo that do what no source can.",
    )
    parser.add_argument("--models", type=Path, default=zoo_path("models"))
    parser.add_argument("--out", type=Path, default=zoo_path("data/merges.json"))
    parser.add_argument("--seed", type=int, default=0, help="seed of the search (default 0)")
    parser.add_argument("--items", type=int, default=150, help="search items a candidate")
    parser.add_argument("--global-budget", type=int, default=100)
    parser.add_argument("--layer-budget", type=int, default=288)
    args = parser.parse_args(argv)

    merger = ZooMerger(args.models)
    merges = {
        name: np.round(find_merge(merger, groups, budget, args.seed, args.items), 4).tolist()
        for name, groups, budget in (
            ("global search", 1, args.global_budget),
            ("per-layer search", len(GROUPS), args.layer_budget),
        )
    }
    args.out.write_text(json.dumps(merges, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
