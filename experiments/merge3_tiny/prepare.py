"""Writes 1000 search items of jp_math that share no question with the zoo's own items.

    python experiments/merge3_tiny/prepare.py

The zoo has 300; twenty items are 1/50 of a thousand.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from evomerge.zoo.items import reserved_questions
from evomerge.zoo.problems import KINDS, TASK_KINDS

OUT = Path("runs/merge3_tiny/search.jsonl")
COUNT = 1000


def rows() -> list[dict[str, str]]:
    """The items, always the same ones."""
    rng = random.Random("evomerge merge3_tiny search items")
    draw = KINDS[TASK_KINDS["jp_math"]]
    seen = set(reserved_questions())
    found: list[dict[str, str]] = []
    while len(found) < COUNT:
        problem = draw(rng)
        if problem.question in seen:
            continue
        seen.add(problem.question)
        name = f"merge3-{len(found):04d}"
        found.append(
            {
                "id": name,
                "split": "search",
                "question": problem.question,
                "answer": problem.answer,
                "gold": problem.gold,
            }
        )
    return found


def main() -> None:
    """Writes the file."""
    OUT.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows()]
    OUT.write_text("".join(lines), encoding="utf-8")
    print(f"wrote {len(lines)} items to {OUT}")


if __name__ == "__main__":
    main()
