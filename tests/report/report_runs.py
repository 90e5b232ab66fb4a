"""Synthetic run directories for the tests of the report. Every figure in them is made up."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

EVIL = "<script>alert(1)</script>"

RECIPE = """merge_method: task_arithmetic
base_model: base
models:
  - model: math
    parameters:
      weight: 0.8
  - model: japanese
    parameters:
      weight: 0.6
dtype: bfloat16
"""


def score(value: float, items: int, half: float = 0.06) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "items": items}


def splits(search: float, test: float) -> dict[str, Any]:
    return {"search": score(search, 150), "test": score(test, 250)}


def results(**changes: Any) -> dict[str, Any]:
    """A finished study in which the merge is clearly better than the best source."""
    task = "jp_math"
    models = {
        "evolved merge": ("merge", splits(0.66, 0.62)),
        "math": ("source", splits(0.49, 0.5)),
        "japanese": ("source", splits(0.31, 0.29)),
        "uniform average": ("control", splits(0.5, 0.52)),
        "task arithmetic": ("control", splits(0.55, 0.56)),
        "TIES": ("control", splits(0.54, 0.53)),
        "DARE-TIES": ("control", splits(0.53, 0.51)),
        "random search": ("control", splits(0.61, 0.585)),
    }
    return {
        "schema": 1,
        "experiment": "jp_math_tiny",
        "seed": 0,
        "objective": "jp_math",
        "best": "evolved merge",
        "models": {
            name: {"role": role, "digest": f"digest-{name}", "scores": {task: value}}
            for name, (role, value) in models.items()
        },
        "paired_test": {
            "against": "math",
            "difference": 0.12,
            "low": 0.05,
            "high": 0.19,
            "p": 0.0008,
        },
        "cost": {
            "candidates": 128,
            "failed": 6,
            "item_evaluations": 18300,
            "seconds": 754.0,
            "overhead_ms_per_candidate": 14.2,
        },
        "controls_cost": {"random search": {"candidates": 128, "seconds": 741.0}},
        "not_measured": [],
        "splits": {"jp_math": {"search": 150, "validation": 100, "test": 250}},
        "versions": {"evomerge": "0.1.0", "torch": "2.9.0", "python": "3.11.9"},
    } | changes


def dimensions(
    sources: tuple[str, ...] = ("math", "japanese", "code"), blocks: int = 6
) -> list[dict[str, Any]]:
    groups = ["embedding", *(f"block.{n}" for n in range(blocks)), "head"]
    return [
        {"name": f"{parameter}/{source}/{group}", "low": low, "high": high}
        for parameter, low, high in (("weight", -0.25, 1.25), ("density", 0.1, 1.0))
        for source in sources
        for group in groups
    ]


def events(candidates: int = 128, failed_every: int = 20, blocks: int = 6) -> list[dict[str, Any]]:
    """A journal whose scores rise and in which each `failed_every`-th candidate fails."""
    made = random.Random(7)
    space = dimensions(blocks=blocks)
    log: list[dict[str, Any]] = [
        {
            "event": "study",
            "schema": 1,
            "time": 1750000000.0,
            "experiment": "jp_math_tiny",
            "seed": 0,
            "space": {"name": "task_arithmetic", "dimensions": space},
            "tasks": ["jp_math"],
            "identities": {},
            "versions": {"evomerge": "0.1.0"},
        }
    ]
    _add_search(log, "search", candidates, failed_every, made, space)
    best = max((e for e in log if e.get("status") == "ok"), key=lambda e: e["fitness"])
    for event in log:
        for candidate in event.get("candidates", []):
            if candidate["id"] == best["id"]:
                candidate["digest"] = "digest-evolved merge"
    _add_search(log, "random search", candidates // 2, failed_every, made, space)
    log.append(measure("search finalist 3", "finalist", "validation", 0.63))
    log.append({"event": "end"})
    return log


def measure(name: str, role: str, split: str, value: float) -> dict[str, Any]:
    scores = {"jp_math": {split: {"score": value, "loglik": None, "items": 100}}}
    return {"event": "measure", "name": name, "role": role, "status": "ok", "scores": scores}


def _add_search(
    log: list[dict[str, Any]],
    search: str,
    candidates: int,
    failed_every: int,
    made: random.Random,
    space: list[dict[str, Any]],
) -> None:
    first = 1 + max((c["id"] for e in log for c in e.get("candidates", [])), default=-1)
    for start in range(first, first + candidates, 16):
        ids = range(start, min(start + 16, first + candidates))
        asked = [
            {
                "id": i,
                "digest": f"digest-{i}",
                "genome": [made.uniform(d["low"], d["high"]) for d in space],
            }
            for i in ids
        ]
        generation = (start - first) // 16
        log.append(
            {"event": "ask", "search": search, "generation": generation, "candidates": asked}
        )
        for i in ids:
            failed = i % failed_every == failed_every - 1
            result = _result(i, made, failed, candidates if search == "search" else 8 * i)
            log.append(result | {"search": search})


def _result(key: int, made: random.Random, failed: bool, total: int) -> dict[str, Any]:
    if failed:
        reason = "the merge holds NaN in block.3" if key % 3 else "engine ran out of memory"
        return {"event": "result", "id": key, "status": "failed", "reason": reason}
    value = round(0.3 + 0.33 * (key / total) ** 0.5 + made.gauss(0, 0.035), 4)
    return {
        "event": "result",
        "id": key,
        "status": "ok",
        "fitness": [value - 0.1],
        "scores": {"jp_math": {"score": value, "loglik": -1.2, "items": 150}},
        "stderr": [0.03],
        "seconds": {"elapsed": 0.4},
        "file": f"items/{key:06}.parquet",
    }


def write_run(
    folder: Path,
    log: list[dict[str, Any]] | None = None,
    outcome: dict[str, Any] | None = None,
    recipe: str = "",
    config: str = "",
    torn: bool = False,
) -> Path:
    """Writes the files of a run that are given, and returns its directory."""
    folder.mkdir(parents=True, exist_ok=True)
    if log is not None:
        text = "".join(json.dumps(event) + "\n" for event in log)
        (folder / "journal.jsonl").write_text(text + ('{"event": "resu' if torn else ""))
    if outcome is not None:
        (folder / "results.json").write_text(json.dumps(outcome))
    if recipe:
        (folder / "best").mkdir(exist_ok=True)
        (folder / "best" / "recipe.yaml").write_text(recipe)
    if config:
        (folder / "config.yaml").write_text(config)
    return folder


def finished_run(folder: Path) -> Path:
    """A complete run."""
    config = "experiment: jp_math_tiny\nseed: 0\nbudget:\n  candidates: 128\n"
    return write_run(folder, events(), results(), RECIPE, config)


def evil_run(folder: Path) -> Path:
    """A run in which every text that a user or a model can set tries to run a script."""
    name = f"{EVIL}\u2028<!--<img src=x onerror=alert(2)>"
    log = json.loads(json.dumps(events(32)).replace("math", json.dumps(name)[1:-1]))
    log[0]["versions"] = {EVIL: EVIL}
    for event in log:
        if event.get("status") == "failed":
            event["reason"] = f"{EVIL} failed </script><script>alert(3)</script>"
    outcome = json.loads(json.dumps(results()).replace("math", json.dumps(name)[1:-1]))
    return write_run(folder, log, outcome, f"# {name}\n{RECIPE}", f"name: '{EVIL}'\n")
