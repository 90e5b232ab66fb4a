"""Makes the item files: search, validation and held-out test items of each task."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

from evomerge.zoo import TASKS, zoo_path
from evomerge.zoo.problems import KINDS, TASK_KINDS
from evomerge.zoo.skills import SKILL_KINDS

SIZES = {"search": 300, "validation": 200, "test": 500}

Row = dict[str, str]


def make_items(task: str) -> list[Row]:
    """The rows of a task, always the same ones; no two rows share a question."""
    rng = random.Random(f"evomerge zoo items {task}")
    draw = SKILL_KINDS[task] if task in SKILL_KINDS else KINDS[TASK_KINDS[task]]
    seen: set[str] = set()
    rows: list[Row] = []
    for split, size in SIZES.items():
        for _ in range(size):
            problem = draw(rng)
            while problem.question in seen:
                problem = draw(rng)
            seen.add(problem.question)
            rows.append(
                {
                    "id": f"{task}-{len(rows):04d}",
                    "split": split,
                    "question": problem.question,
                    "answer": problem.answer,
                    "gold": problem.gold,
                }
            )
    return rows


@cache
def reserved_questions() -> frozenset[str]:
    """Every question of every item file; training never draws one of them."""
    return frozenset(row["question"] for task in TASKS for row in make_items(task))


def item_file(task: str, directory: Path | None = None) -> Path:
    """Where the items of a task are; in the package unless another directory is given."""
    return (directory or zoo_path("data")) / f"{task}.jsonl"


def render_items(task: str) -> str:
    """The text of a task's item file: one JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in make_items(task))


def read_items(task: str, split: str) -> list[Row]:
    """The committed rows of one split of a task."""
    lines = item_file(task).read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]
