"""Adds held-out answers to the synthetic runs of the tests. Every answer is made up."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import report_runs as runs

from evomerge.journal import write_items
from evomerge.questions import write_questions
from evomerge.types import Item, ItemScores, Sampling

EVIL = (
    f"{runs.EVIL}</script><script>alert(4)</script>\u2028<!-- \"' &amp; "
    "<img src=x onerror=alert(5)>"
)
SKILL = {"merge": 0.7, "source": 0.4, "control": 0.5}


@dataclass
class MadeUp:
    """A task whose questions are made up."""

    name: str
    listed: Sequence[Item]
    sampling: Sampling = field(default_factory=Sampling)
    loglik_weight: float = 0.0

    def items(self, split: str) -> Sequence[Item]:
        return self.listed if split == "test" else ()

    def prompt(self, item: Item) -> str:
        return item.fields["question"]

    def score(self, item: Item, text: str) -> float:
        return float(text == item.target)


def part(
    task: str, split: str, scores: Sequence[float], texts: Sequence[str] | None = None
) -> ItemScores:
    """What a model did on items called item-000, item-001, ..."""
    n = len(scores)
    return ItemScores(
        task, split, tuple(f"item-{i:03d}" for i in range(n)),
        np.array(scores, dtype=np.float64), np.full(n, np.nan),
        tuple(texts) if texts is not None else tuple(f"answer {i}" for i in range(n)),
        np.full(n, 5, dtype=np.int64),
    )  # fmt: skip


def add_answers(
    folder: Path, items: int = 40, text: str = "", tasks: Sequence[str] = ("jp_math",)
) -> dict[tuple[str, str], list[float]]:
    """Adds a `measure` event and its file for each model of results.json; returns the scores.

    Args:
        folder: of a finished run.
        items: of each task.
        text: put into every answer, question and target.
        tasks: their names.
    """
    rng = random.Random(3)
    results = json.loads((folder / "results.json").read_text())
    (folder / "items").mkdir(exist_ok=True)
    lines, known = [], {}
    for number, (name, model) in enumerate(results["models"].items()):
        skill = SKILL.get(model["role"], 0.5)
        parts = []
        for task in tasks:
            for split in ("search", "test"):
                scores = [float(rng.random() < skill) for _ in range(items)]
                known[name, task] = scores  # those of the test split stay
                texts = [f"{name} says {i} {text}" for i in range(items)]
                parts.append(part(task, split, scores, texts))
        file = f"items/measure-{number:05d}.parquet"
        write_items(folder / file, parts)
        told = {
            t: {s: {"score": 0.5, "loglik": None, "items": items} for s in ("search", "test")}
            for t in tasks
        }
        event = {"event": "measure", "name": name, "role": model["role"], "status": "ok",
                 "digest": model["digest"], "scores": told, "answered": 2 * items * len(tasks),
                 "file": file, "asked": [], "time": 1750001000.0 + 10 * number}  # fmt: skip
        lines.append(json.dumps(event) + "\n")
    journal = folder / "journal.jsonl"
    kept = [x for x in journal.read_text().splitlines(keepends=True) if '"event":"end"' not in x]
    journal.write_text("".join([*kept, *lines, '{"event": "end"}\n']))
    listed = [
        Item(f"item-{i:03d}", {"question": f"How much is {i}? {text}"}, f"{i} {text}")
        for i in range(items)
    ]
    write_questions(folder, [MadeUp(task, listed) for task in tasks])
    return known
