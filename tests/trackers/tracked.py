"""Journals as studies write them, with every kind of event, for the tests of trackers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

SECRET = "hf_abcdefgh"
CONFIG: dict[str, Any] = {
    "experiment": "demo",
    "seed": 3,
    "models": {"base": "zoo/base", "sources": {"math": "zoo/math"}},
    "engine": {"args": {"hf_token": SECRET, "max_num_seqs": 8}, "max_new_tokens": 7},
    "ledger": f"s3://user:{SECRET}@host/answers",
    "trackers": {"wandb": {"project": SECRET}},
    "warm_start": {"recipes": []},
}
DIMENSIONS = [
    {"name": "weight/math/all", "low": 0.0, "high": 1.0, "kind": "real"},
    {"name": "layers", "low": 1, "high": 4, "kind": "integer"},
    {"name": "method", "low": 0, "high": 1, "kind": "choice", "choices": ["ties", "dare"]},
]


def events(count: int = 12, several: bool = False, seed: int = 0) -> list[dict[str, Any]]:
    """A study of so many candidates, a control and an end.

    Every fifth candidate fails. With one objective every third is stopped by a race after one of
    two stages; with several every fourth breaks the constraint.
    """
    rng = random.Random(seed)
    names = ["math", "cost"] if several else ["math"]
    goals = {"math": "maximize", "cost": "minimize"}
    out: list[dict[str, Any]] = []

    def add(event: str, **data: Any) -> None:
        out.append({"event": event, **data, "time": 1_700_000_000.0 + 1e6 * seed + 10 * len(out)})

    add(
        "study", schema=1, experiment="demo", seed=3, space={"dimensions": DIMENSIONS},
        objectives=[{"name": n, "goal": goals[n], "task": n, "metric": "score"} for n in names],
        scalarize=None, constraints=[{"name": "safety"}] if several else [],
    )  # fmt: skip
    for i in range(count + 3):
        search = "search" if i < count else "greedy soup"
        genome = [rng.random(), rng.randint(1, 4), float(rng.randint(0, 1))]
        add("ask", search=search, generation=i // 4, items={"math": None},
            candidates=[{"id": i, "genome": genome, "digest": f"digest{i % 7}"}])  # fmt: skip
        common = {"search": search, "id": i, "seconds": {"merge": 0.5, "answer": 2.0}}
        values = {name: rng.randint(0, 20) / 20 for name in names}
        rating = {
            "values": values, "stderr": [0.1] * len(names), "file": f"items/{i}.parquet",
            "fitness": [v if goals[n] == "maximize" else -v for n, v in values.items()],
            **({"constraints": [0.1 if i % 4 == 3 else -0.1]} if several else {}),
        }  # fmt: skip
        if i % 5 == 4:
            add("result", **common, status="failed", reason=f"out of memory {SECRET}", answered=0)
            continue
        if not several:
            add("part", **common, seen=5, answered=5, **(rating | {"fitness": [0.25]}))
        done = several or i % 3 != 2
        if done and not several:
            add("part", **common, seen=10, answered=10, **rating)
        add("result", **common, status="ok", answered=10 if done else 5, **rating, complete=done)
    add("end", best="digest1")
    return out


def write(run_dir: Path, written: list[dict[str, Any]]) -> None:
    """Writes the results of such a study."""
    run_dir.mkdir(parents=True, exist_ok=True)
    scores = {"value": 0.75, "low": 0.5, "high": 0.9, "items": 20}
    results = {
        "models": {
            "best merge": {"scores": {"math": {"test": scores, "search": scores}}},
            "math": {"scores": {"math": {"test": {**scores, "value": 0.5}}}},
        },
        "paired_tests": {"math": {"difference": 0.25, "low": 0.1, "high": 0.4, "p": 0.01}},
    }
    (run_dir / "results.json").write_text(json.dumps(results))


HELD_OUT = {
    "held-out/math/best merge": 0.75, "held-out/math/best merge low": 0.5,
    "held-out/math/best merge high": 0.9, "held-out/math/math": 0.5,
    "held-out/math/math low": 0.5, "held-out/math/math high": 0.9,
    "best merge against best source/math/difference": 0.25,
    "best merge against best source/math/low": 0.1,
    "best merge against best source/math/high": 0.4,
    "best merge against best source/math/p": 0.01,
}  # fmt: skip
