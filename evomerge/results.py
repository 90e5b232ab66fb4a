"""`results.json` and the best merge on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomerge.checkpoints.writer import write_checkpoint
from evomerge.durable import write_atomic
from evomerge.estimators.intervals import mean_interval, paired_test
from evomerge.evaluation import Splits
from evomerge.front_results import front_results, held_out, objective_values
from evomerge.journal import read_events
from evomerge.parents import read_parents
from evomerge.predictions import has_model, surrogate_results
from evomerge.proof import BEST, Proof
from evomerge.recipe.bundle import bundled
from evomerge.setup import Setup, optimizer_name

SCHEMA = 1


def make_results(setup: Setup, proof: Proof) -> dict[str, Any]:
    """The results in the form that other programs rely on."""
    models: dict[str, Any] = {}
    for name, subject in proof.subjects.items():
        models[name] = {
            "role": subject.role,
            "digest": proof.digests[name],
            "scores": _scores(proof.splits[name]),
        }
    search = proof.searches[0]
    goals = search.goals
    if len(goals.objectives) > 1 or goals.objectives[0].metric != "score":
        for name, splits in proof.splits.items():
            if name in models:
                values = objective_values(goals, held_out(goals, splits))
                models[name]["objectives"] = {"test": values}
    paired = {task.name: _paired(task.name, proof) for task in setup.search_tasks}
    events = read_events(setup.run_dir)
    recorded = events[0]
    surrogate = surrogate_results(setup, goals, events) if has_model(setup) else None
    cost = search.cost
    return {
        "schema": SCHEMA,
        "experiment": setup.config["experiment"],
        "seed": setup.seed,
        "objective": setup.task.name,
        "optimizer": optimizer_name(setup.config),
        "objectives": [asdict(o) for o in goals.objectives],
        "constraints": _constraints(setup, proof),
        "best": BEST,
        "splits": {
            t.name: {s: len(t.items(s)) for s in ("search", "validation", "test")}
            for t in setup.tasks
        },
        "models": models,
        "paired_test": paired[setup.task.name],
        "paired_tests": paired,
        **({"front": front_results(proof)} if proof.front else {}),
        **({"surrogate": surrogate} if surrogate else {}),
        "cost": {
            "candidates": cost.candidates,
            "failed": cost.failed,
            "infeasible": cost.infeasible,
            **({"stopped": cost.stopped} if cost.stopped else {}),
            "item_evaluations": cost.item_evaluations,
            "answered": cost.answered,
            "seconds": round(cost.seconds, 2),
            "overhead_ms_per_candidate": round(1000 * cost.overhead / max(1, cost.candidates), 2),
        },
        "controls_cost": {
            s.name: {"candidates": s.cost.candidates, "seconds": round(s.cost.seconds, 2)}
            for s in proof.searches[1:]
        },
        "not_measured": list(proof.failed),
        "versions": recorded["versions"],
    }


def write_study(setup: Setup, proof: Proof) -> dict[str, Any]:
    """Writes `best/recipe.yaml`, `best/model/` and `results.json`; returns the results.

    Recipe files among the sources are copied beside the recipe, which then names the copies.

    Raises:
        EvomergeError: if the disk is full or fails; what was there before stays.
    """
    from evomerge.report.card import model_card

    results = make_results(setup, proof)
    recipe = proof.best.recipe
    folder = setup.run_dir / "best"
    folder.mkdir(exist_ok=True)
    for unfinished in folder.glob(".model.*"):  # of a write that was killed
        shutil.rmtree(unfinished)
    text, files = bundled(recipe, setup.merger.identities)
    written = {**files, "recipe.yaml": text}
    if not _is_current(folder, written):
        for old in (folder / "recipe.yaml", *folder.glob("merge-*.yaml")):
            old.unlink(missing_ok=True)
        if (folder / "model").exists():
            shutil.rmtree(folder / "model")
        write_checkpoint(recipe, setup.merger, folder / "model")
        for name, content in written.items():  # the recipe last: with it, all is there
            write_atomic(folder / name, content)
    parents = read_parents(setup.merger, recipe)
    results["parents"] = [asdict(parent) for parent in parents]
    card = model_card(
        results, text, files, parents=parents, how=("python -m evomerge merge recipe.yaml OUT",)
    )
    write_atomic(folder / "model" / "README.md", card)
    write_atomic(
        setup.run_dir / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    )
    return results


def _is_current(folder: Path, written: Mapping[str, str]) -> bool:
    files = [(folder / name, text) for name, text in written.items()]
    there = all(file.is_file() and file.read_text() == text for file, text in files)
    return there and (folder / "model").is_dir()


def _scores(splits: Splits) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for (task, split), part in sorted(splits.items()):
        interval = mean_interval(part.scores)
        out.setdefault(task, {})[split] = {
            "value": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "items": len(part),
        }
    return out


def _paired(task: str, proof: Proof) -> dict[str, Any]:
    key = (task, "test")
    sources = [s.name for s in proof.subjects.values() if s.role == "source"]
    against = max(sources, key=lambda name: float(proof.splits[name][key].scores.mean()))
    test = paired_test(proof.splits[BEST][key].scores, proof.splits[against][key].scores)
    return {
        "against": against,
        "against_chosen_by": "highest test score of all sources",
        "difference": test.difference,
        "low": test.low,
        "high": test.high,
        "p": test.p,
    }


def _constraints(setup: Setup, proof: Proof) -> list[dict[str, Any]]:
    """The constraints, and whether the chosen merge keeps them on test items.

    A bound that names a model is that model's own value on test items there; `search_bound` is
    what the search held candidates against.
    """
    goals = proof.searches[0].goals
    measured = held_out(goals, proof.splits[BEST])
    values = {
        name: held_out(goals, proof.splits[name]).values
        for name, subject in proof.subjects.items()
        if subject.role == "source"
    }
    tested = setup.goals.bounded(values) if setup.goals.can_bound(values) else goals
    return [
        {
            **asdict(now),
            "search_bound": then.bound,
            "found": (found := measured.values.get((now.task, now.metric))),
            "satisfied": None if found is None else now.excess(found) <= 0,
        }
        for now, then in zip(tested.constraints, goals.constraints, strict=True)
    ]
