"""A study: the search, its proof on held-out items, and what it leaves on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml

from evomerge.config import FREE_KEYS
from evomerge.engines.auto import resolve_engine
from evomerge.errors import JournalError
from evomerge.evaluation import LazyExecutor, Measurer
from evomerge.journal import SCHEMA, Journal, locked, write_atomic
from evomerge.progress import Progress
from evomerge.proof import Proof, prove
from evomerge.report import write_report
from evomerge.results import write_study
from evomerge.search import Limits, Search
from evomerge.setup import (
    Setup,
    make_executor,
    make_optimizer,
    model_identities,
    plan_workers,
)
from evomerge.types import SPLITS, Task
from evomerge.versions import versions

RANDOM_SEARCH = "random search"
_RANDOM = {"_target_": "evomerge.optimizers.random.Random"}


def run_study(setup: Setup, progress: Progress) -> dict[str, Any]:
    """Runs a study from start to end, or continues one that was interrupted.

    Leaves `best/`, `results.json` and `report.html` in the run directory.

    Returns:
        The results, as in `results.json`.

    Raises:
        JournalError: if the run directory belongs to another config or process.
        EngineError: if no engine can start.
        EvomergeError: if nothing could be evaluated or the disk fails.
    """
    with locked(setup.run_dir):
        journal = Journal(setup.run_dir)
        executor = LazyExecutor(lambda: _start(setup, progress))
        try:
            _begin(setup, journal, executor, progress)
            proof = _run(setup, journal, executor, progress)
        finally:
            executor.close()
        results = write_study(setup, proof)
        write_report(setup.run_dir)
        best = results["models"][results["best"]]["digest"]
        if journal.events[-1].get("best") != best:
            journal.append("end", best=best)
        return results


def _run(setup: Setup, journal: Journal, executor: LazyExecutor, progress: Progress) -> Proof:
    identities = model_identities(setup)
    search = _search(setup, journal, executor, identities, "search")
    search.run(progress)
    searches = [search]
    if setup.config["controls"]["random_search"]:
        control = _search(setup, journal, executor, identities, RANDOM_SEARCH, search)
        control.run(progress)
        searches.append(control)
    measurer = Measurer(journal, executor, identities, _task_digests(setup))
    return prove(setup, searches, measurer, identities, progress)


def matter(setup: Setup) -> dict[str, Any]:
    """Everything that recorded results depend on, flat; paths count by their content."""
    config = {k: v for k, v in setup.config.items() if k not in FREE_KEYS}
    models, task = config.pop("models"), config.pop("task")
    identities = model_identities(setup)
    flat = _flatten(config)
    flat["engine.name"] = resolve_engine(config["engine"]["name"])
    flat["device"] = "cuda" if plan_workers(setup.config).gpus else "cpu"
    flat["dimensions"] = [d.name for d in setup.space.dimensions]
    flat["models.base"] = identities[models["base"]]
    for name, ref in models["sources"].items():
        flat[f"models.sources.{name}"] = identities[ref]
    for key, value in _flatten(task).items():
        if key.split(".")[0] not in SPLITS:
            flat[f"task.{key}"] = value
    for split in SPLITS:
        flat[f"task.{split}"] = _items_digest(setup.task, split)
    return flat


def _begin(setup: Setup, journal: Journal, executor: LazyExecutor, progress: Progress) -> None:
    """Writes the first event, or checks that the journal belongs to this config."""
    now = matter(setup)
    results = sum(e["event"] in ("result", "measure") for e in journal.events)
    if results:
        _refuse_changes(journal, now)
        before = journal.events[0]["versions"]
        for name, version in versions().items():
            if before.get(name) != version:
                progress.say(f"note: {name} was {before.get(name)}, is {version}")
        progress.say(f"resuming {journal.run_dir}: {results} results are there already")
    config = yaml.safe_dump(dict(setup.config), sort_keys=False, allow_unicode=True)
    write_atomic(journal.run_dir / "config.yaml", config)
    if results:
        return
    journal.clear()  # a study that never had a result may begin with another config
    executor.get()  # engines that cannot start leave no journal behind
    journal.append(
        "study",
        schema=SCHEMA,
        experiment=setup.config["experiment"],
        seed=setup.seed,
        matter=now,
        space={
            "name": setup.config["space"].get("method"),
            "dimensions": [
                {"name": d.name, "low": d.low, "high": d.high} for d in setup.space.dimensions
            ],
        },
        tasks=[t.name for t in setup.tasks],
        identities={
            name: setup.merger.checkpoint(ref).fingerprint
            for name, ref in {
                "base": setup.config["models"]["base"], **setup.config["models"]["sources"]
            }.items()
        },
        versions=versions(),
    )  # fmt: skip


def _refuse_changes(journal: Journal, now: Mapping[str, Any]) -> None:
    before = journal.events[0]["matter"]
    changed = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    if changed:
        lines = "\n".join(f"  {k}: {before.get(k)!r} -> {now.get(k)!r}" for k in changed)
        raise JournalError.of(
            f"run_dir={journal.run_dir}", f"a study with another config:\n{lines}\n",
            "the config that the study began with",
            "Undo the change, or give this study another run_dir.",
        )  # fmt: skip


def _search(
    setup: Setup,
    journal: Journal,
    executor: LazyExecutor,
    identities: Mapping[str, str],
    name: str,
    equal_to: Search | None = None,
) -> Search:
    """The study's own search, or a random one with the budget that another one used."""
    budget, stop = setup.config["budget"], setup.config["stop"]
    if equal_to is None:
        optimizer = make_optimizer(setup, setup.config["optimizer"], "optimizer")
        hours = budget["hours"]
        limits = Limits(
            budget["candidates"], budget["item_evaluations"],
            None if hours is None else hours * 3600, stop["score"], stop["patience"],
        )  # fmt: skip
    else:
        optimizer = make_optimizer(setup, _RANDOM, name)
        limits = Limits(candidates=equal_to.cost.candidates)
    return Search(name, setup, optimizer, journal, executor, identities, limits)


def _start(setup: Setup, progress: Progress) -> Any:
    node = setup.config["executor"]
    progress.say(f"starting the {node['name']} executor and its engines")
    return make_executor(setup.config)


def _task_digests(setup: Setup) -> dict[str, str]:
    """Digests of everything that answers and scores depend on, by task name."""
    nodes = [setup.config["task"], *setup.config["report_tasks"].values()]
    digests = {}
    for task, node in zip(setup.tasks, nodes, strict=True):
        settings = {k: v for k, v in node.items() if k not in SPLITS}
        items = [_items_digest(task, split) for split in SPLITS]
        text = json.dumps([settings, items], sort_keys=True)
        digests[task.name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return digests


def _items_digest(task: Task, split: str) -> str:
    digest = hashlib.sha256()
    for item in task.items(split):
        row = [item.id, task.prompt(item), item.target, item.gold]
        digest.update(json.dumps(row, ensure_ascii=False).encode())
    return digest.hexdigest()


def _flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
