"""Measures every model and merge on every task: `python -m evomerge.zoo.table`.

Real greedy generation through text on the held-out test items; prints the table of
`README.md` in Markdown, with Wilson's 95% intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from evomerge.zoo import SOURCES, TASKS, zoo_path
from evomerge.zoo.items import read_items
from evomerge.zoo.measure import answers, is_right, wilson
from evomerge.zoo.merging import ZooMerger

UNIFORM = {
    "uniform average of the 3 specialists": 1 / 3,
    "uniform average of base and specialists": 1 / 4,
}


def count_right(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: str, split: str, items: int
) -> tuple[int, int]:
    """Number of right answers and number of items."""
    rows = read_items(task, split)[:items]
    texts = answers(model, tokenizer, [row["question"] for row in rows])
    right = [is_right(task, text, row["answer"]) for text, row in zip(texts, rows, strict=True)]
    return sum(right), len(rows)


def named_weights(merges: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and weights of the rows: base, sources, uniform averages, what searches found."""
    yield "base", np.zeros((len(SOURCES), 1))
    for source, one in zip(SOURCES, np.eye(len(SOURCES)), strict=True):
        yield source, one[:, None]
    for name, weight in UNIFORM.items():
        yield name, np.full((len(SOURCES), 1), weight)
    if merges.is_file():
        for name, weights in json.loads(merges.read_text(encoding="utf-8")).items():
            yield name, np.asarray(weights)


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m evomerge.zoo.table",
        description="Measure every model of the zoo, and the merges found by "
        "`python -m evomerge.zoo.search`, on every task.",
    )
    parser.add_argument("--models", type=Path, default=zoo_path("models"))
    parser.add_argument("--merges", type=Path, default=zoo_path("data/merges.json"))
    parser.add_argument("--split", default="test", choices=["search", "validation", "test"])
    parser.add_argument("--items", type=int, default=500, help="at most so many items a task")
    args = parser.parse_args(argv)

    merger = ZooMerger(args.models)
    tokenizer = AutoTokenizer.from_pretrained(args.models / "base")
    print(f"Accuracy on the {args.split} items, % [95% interval]\n")
    print("| model |" + "|".join(f" {task} " for task in TASKS) + "|")
    print("|---|" + "---|" * len(TASKS))
    for name, weights in named_weights(args.merges):
        model = merger.merge(weights)
        cells = []
        for task in TASKS:
            print(f"{name}: {task}", file=sys.stderr, flush=True)
            right, total = count_right(model, tokenizer, task, args.split, args.items)
            low, high = wilson(right, total)
            cells.append(f" {100 * right / total:.1f} [{100 * low:.1f}, {100 * high:.1f}] ")
        print(f"| {name} |" + "|".join(cells) + "|", flush=True)


if __name__ == "__main__":
    main()
