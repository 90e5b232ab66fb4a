"""Synthetic runs with several objectives and constraints. Every figure in them is made up."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import report_runs as runs

ACCURACY = {"name": "accuracy", "task": "jp_math", "metric": "score", "goal": "maximize",
            "weight": 0.7}  # fmt: skip
LENGTH = {"name": "length", "task": "jp_math", "metric": "tokens", "goal": "minimize",
          "weight": 0.3}  # fmt: skip
POLITE = {"name": "politeness", "task": "polite", "metric": "score", "goal": "maximize",
          "weight": 0.2}  # fmt: skip
TIME = {"name": "time", "task": None, "metric": "seconds", "goal": "minimize", "weight": 0.1}
TOKENS = {"name": "short answers", "task": "jp_math", "metric": "tokens", "sense": "at_most",
          "bound": 70.0}  # fmt: skip
BUDGETS = (20, 60, 120)


def dominates(objectives: list[dict[str, Any]], a: dict[str, float], b: dict[str, float]) -> bool:
    """Whether a is nowhere worse and somewhere better than b."""
    signs = {o["name"]: -1 if o["goal"] == "minimize" else 1 for o in objectives}
    gains = [sign * (a[name] - b[name]) for name, sign in signs.items()]
    return min(gains) >= 0 and max(gains) > 0


def front_ids(
    objectives: list[dict[str, Any]], values: dict[int, dict[str, float]], keep: set[int]
) -> list[int]:
    """Brute force: the ids of the non-dominated values among those to keep."""
    return [
        i
        for i in values
        if i in keep
        and not any(dominates(objectives, values[j], values[i]) for j in values if j in keep)
    ]


def make(
    folder: Path,
    objectives: list[dict[str, Any]] | None = None,
    constraints: list[dict[str, Any]] | None = None,
    optimizer: str = "nsga2",
    seed: int = 0,
    skill: float = 1.0,
    candidates: int = 120,
    finished: bool = True,
    budgets: tuple[int, ...] = BUDGETS,
    **settings: Any,
) -> Path:
    """Writes a run whose candidates approach a front faster with more `skill`."""
    objectives = [ACCURACY, LENGTH] if objectives is None else objectives
    constraints = constraints or []
    rng = random.Random(f"{optimizer} {seed}")
    log = runs.events(2)[:1]
    log[0] |= {"objectives": objectives, "constraints": constraints, "optimizer": optimizer,
               "seed": seed}  # fmt: skip
    values: dict[int, dict[str, float]] = {}
    told: dict[int, list[float]] = {}
    genomes = {i: [rng.random() for _ in range(4)] for i in range(candidates)}
    for start in range(0, candidates, 20):
        ids = range(start, min(start + 20, candidates))
        asked = [{"id": i, "digest": f"digest-{i}", "genome": genomes[i]} for i in ids]
        log.append({"event": "ask", "search": "search", "generation": start // 20,
                    "candidates": asked})  # fmt: skip
        for i in ids:
            if i % 25 == 24:
                reason = "the merge holds NaN"
                log.append({"event": "result", "id": i, "status": "failed", "reason": reason})
                continue
            values[i] = _values(objectives, rng, 1 - skill * (i / candidates) ** 0.5 * 0.5)
            told[i] = [_broken(objectives, c, values[i]) for c in constraints]
            log.append(_told(i, objectives, values[i], told[i]))
    if not finished:
        return runs.write_run(folder, log)
    log.append({"event": "end"})
    outcome = _results(objectives, constraints, values, told, rng, budgets)
    outcome |= {"optimizer": optimizer, "seed": seed}
    config = {"experiment": "jp_math_tiny", "seed": seed, "run_dir": str(folder),
              "optimizer": {"_target_": f"evomerge.optimizers.{optimizer}.Thing"}}  # fmt: skip
    return runs.write_run(folder, log, outcome, runs.RECIPE, json.dumps(config | settings))


def _values(
    objectives: list[dict[str, Any]], rng: random.Random, distance: float
) -> dict[str, float]:
    parts = [rng.random() + 0.05 for _ in objectives]
    losses = [part / sum(parts) for part in parts]
    far = distance * (0.5 + rng.random() / 2)
    out = {}
    for objective, loss in zip(objectives, losses, strict=True):
        total = min(1.0, loss**1.6 + far * 0.8)
        share = total if objective["goal"] == "minimize" else 1 - total
        scale = {"tokens": 100.0, "seconds": 2.0}.get(objective["metric"], 1.0)
        out[objective["name"]] = round(share * scale, 4)
    return out


def _broken(
    objectives: list[dict[str, Any]], constraint: dict[str, Any], values: dict[str, float]
) -> float:
    name = next(o["name"] for o in objectives if o["metric"] == constraint["metric"])
    excess = values[name] - constraint["bound"]
    return excess if constraint["sense"] == "at_most" else -excess


def _told(
    key: int, objectives: list[dict[str, Any]], values: dict[str, float], told: list[float]
) -> dict[str, Any]:
    fitness = [-values[o["name"]] if o["goal"] == "minimize" else values[o["name"]]
               for o in objectives]  # fmt: skip
    event = {
        "event": "result", "id": key, "status": "ok", "search": "search", "fitness": fitness,
        "values": values, "stderr": [0.0] * len(fitness), "seconds": {"elapsed": 0.4},
        "scores": {"jp_math": {"score": values.get("accuracy", 0.5), "items": 150}},
    }  # fmt: skip
    return event | ({"constraints": told} if told else {})


def _results(
    objectives: list[dict[str, Any]],
    constraints: list[dict[str, Any]],
    values: dict[int, dict[str, float]],
    told: dict[int, list[float]],
    rng: random.Random,
    budgets: tuple[int, ...],
) -> dict[str, Any]:
    feasible = {i for i in values if all(c <= 0 for c in told[i])}
    ids = {b: front_ids(objectives, values, {i for i in feasible if i < b}) for b in budgets}
    listed = sorted({i for front in ids.values() for i in front})
    last = ids[max(budgets)]
    chosen = last[len(last) // 2] if last else None
    points = []
    for i in listed:
        test = {k: round(v * (0.93 + 0.1 * rng.random()), 4) for k, v in values[i].items()}
        broken = sum(max(0.0, _broken(objectives, c, test)) for c in constraints)
        points.append({
            "name": f"candidate {i}", "candidate": i, "digest": f"digest-{i}",
            "chosen": i == chosen, "values": {"search": values[i], "test": test},
            "low": {k: v * 0.94 for k, v in test.items()},
            "high": {k: v * 1.06 for k, v in test.items()},
            "violation": round(broken, 4), "genome": [0.5],
        })  # fmt: skip
    best = next((p for p in points if p["chosen"]), None)
    outcome = runs.results()
    models = outcome["models"]
    outcome["models"] = {
        name: models[name] | {"objectives": {"test": _values(objectives, rng, 0.55)}}
        for name in ("evolved merge", "math", "japanese", "uniform average", "TIES")
    }
    if best is not None:
        outcome["models"]["evolved merge"] |= {
            "objectives": {"test": best["values"]["test"]}, "digest": best["digest"],
        }  # fmt: skip
    outcome["objectives"] = objectives
    if constraints:
        found = best["values"]["test"] if best else {}
        outcome["constraints"] = [
            c | {"found": next((found.get(o["name"]) for o in objectives
                                if o["metric"] == c["metric"]), None)}
            for c in constraints
        ]  # fmt: skip
    if len(objectives) > 1:
        worst = {
            o["name"]: (max if o["goal"] == "minimize" else min)(
                v[o["name"]] for v in values.values()
            )
            for o in objectives
        }
        outcome["front"] = {
            "points": points,
            "budgets": {str(b): front for b, front in ids.items()},
            "reference": worst,
            "hypervolume": {"search": {}, "test": {}},
        }
    return outcome
