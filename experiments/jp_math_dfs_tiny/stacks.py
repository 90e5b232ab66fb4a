"""Held-out accuracy of untuned stacks of the blocks of `math` and `japanese`.

    python experiments/jp_math_dfs_tiny/stacks.py

Same engine and items as the experiment. Prints a row a stack: accuracy in % with its 95% interval.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.cli import compose_config
from evomerge.estimators.intervals import mean_interval
from evomerge.executors.worker import Job, Request, Worker
from evomerge.recipe import Recipe, Route, Slot
from evomerge.workers import Plan, worker_spec

OVERRIDES = (
    "+experiment=jp_math_dfs_tiny", "engine=transformers", "executor=serial", "executor.threads=1",
)  # fmt: skip
DEPTH = 8


def main() -> None:
    """Runs all stacks in one engine of the largest depth."""
    config = compose_config(list(OVERRIDES))
    math, japanese = config["models"]["sources"].values()
    stacks = {
        "all blocks of math, then all of japanese": [(math, range(4)), (japanese, range(4))],
        "blocks 0 and 1 of math, 2 and 3 of japanese": [(math, (0, 1)), (japanese, (2, 3))],
        "blocks 0 and 1 of japanese, 2 and 3 of math": [(japanese, (0, 1)), (math, (2, 3))],
        "math": [(math, range(4))],
    }
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "template"
        own = tuple(Slot(math, i) for i in range(4))
        write_checkpoint(Recipe("passthrough", route=Route(own, depth=DEPTH)), Merger(), template)
        worker = Worker(worker_spec(config, Plan(1, 1, 0.0), str(template)))
        for name, runs in stacks.items():
            slots = tuple(Slot(model, i) for model, blocks in runs for i in blocks)
            recipe = Recipe("passthrough", base=math, route=Route(slots))
            outcome = worker.evaluate(Job(0, recipe.to_dict(), (Request("jp_math_tiny", "test"),)))
            if outcome.scores is None:
                raise SystemExit(f"{name}: {outcome.reason}")
            found = mean_interval(outcome.scores[0].scores)
            low, high = 100 * found.low, 100 * found.high
            print(f"{name}: {100 * found.mean:.1f} [{low:.1f}, {high:.1f}]", flush=True)


if __name__ == "__main__":
    main()
