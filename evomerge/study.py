"""A study: the search, its proof on held-out items, and what it leaves on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import yaml

from evomerge.config import FREE_KEYS
from evomerge.controls import CONTROLS, RANDOM_SEARCH, controls
from evomerge.domain import Domain
from evomerge.engines.auto import resolve_engine
from evomerge.errors import EvomergeError, JournalError
from evomerge.evaluation import LazyExecutor, Measurer, Subject
from evomerge.journal import SCHEMA, Journal, locked, write_atomic
from evomerge.objectives import Goals, measure
from evomerge.optimizers.base import Optimizer
from evomerge.progress import Progress
from evomerge.proof import Proof, prove
from evomerge.report import write_report
from evomerge.results import write_study
from evomerge.search import Search
from evomerge.setup import (
    Setup,
    make_executor,
    make_optimizer,
    model_identities,
    optimizer_name,
    plan_workers,
    search_requests,
    source_recipes,
    task_nodes,
)
from evomerge.soups import SoupSpace
from evomerge.space import SearchSpace
from evomerge.trials import Limits
from evomerge.types import SPLITS, Task
from evomerge.versions import versions


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
    measurer = Measurer(journal, executor, identities, _task_digests(setup))
    goals = _bounded(setup, measurer, progress)
    begin = _Begin(setup, goals, journal, executor, identities)
    search = begin.search()
    search.run(progress)
    searches = [search]
    for name in controls(setup.config):
        control = begin.control(name, search)
        control.run(progress)
        searches.append(control)
    return prove(setup, searches, measurer, identities, progress)


def _bounded(setup: Setup, measurer: Measurer, progress: Progress) -> Goals:
    """The goals with numbers for bounds that name a model, measured on the search items."""
    goals = setup.goals
    if not goals.models():
        return goals
    recipes = source_recipes(setup.config)
    subjects = [Subject(name, "source", recipe) for name, recipe in recipes.items()]
    label = "sources, for the constraints"
    progress.start(label, 0, len(subjects))
    try:
        splits = measurer.measure(
            subjects, search_requests(setup),
            lambda done, total: progress.update(done, total, None, 0),
        )  # fmt: skip
    finally:
        progress.stop()
    missing = [name for name in recipes if name not in splits]
    if missing:
        raise EvomergeError(
            f"{missing[0]} could not be evaluated, and a constraint refers to the sources; "
            "the journal holds the reason"
        )
    values = {name: measure(list(parts.values())).values for name, parts in splits.items()}
    bounded = goals.bounded(values)
    for constraint in bounded.constraints:
        sense = constraint.sense.replace("_", " ")
        progress.say(f"constraint {constraint.name}: {sense} {constraint.bound:.4g}")
    return bounded


@dataclass(frozen=True)
class _Begin:
    """Sets up the study's own search and its controls."""

    setup: Setup
    goals: Goals
    journal: Journal
    executor: LazyExecutor
    identities: Mapping[str, str]

    def search(self) -> Search:
        """The study's own search."""
        setup = self.setup
        optimizer = make_optimizer(setup, setup.config["optimizer"], "optimizer")
        if setup.start.observations:
            optimizer.learn(setup.start.observations)
        budget, stop = setup.config["budget"], setup.config["stop"]
        hours = budget["hours"]
        limits = Limits(
            budget["candidates"], budget["item_evaluations"],
            None if hours is None else hours * 3600, stop["score"], stop["patience"],
        )  # fmt: skip
        return self._search("search", setup.space, optimizer, limits)

    def control(self, name: str, equal_to: Search) -> Search:
        """A control with at most the candidates that another search used."""
        setup = self.setup
        space: SearchSpace = setup.space
        domain = Domain(space.dimensions, self.goals.count, len(self.goals.constraints))
        if name != RANDOM_SEARCH:
            models = setup.config["models"]
            space = SoupSpace(models["base"], models["sources"], setup.config["dtype"])
            domain = replace(domain, dimensions=space.dimensions)
        node = {"_target_": CONTROLS[name]}
        optimizer = make_optimizer(setup, node, name, domain)
        return self._search(name, space, optimizer, Limits(equal_to.cost.candidates))

    def _search(
        self, name: str, space: SearchSpace, optimizer: Optimizer, limits: Limits
    ) -> Search:
        return Search(
            name, self.setup, space, self.goals, optimizer, self.journal, self.executor,
            self.identities, limits,
        )  # fmt: skip


def matter(setup: Setup) -> dict[str, Any]:
    """Everything that recorded results depend on, flat; paths count by their content."""
    config = {k: v for k, v in setup.config.items() if k not in FREE_KEYS}
    models, nodes = config.pop("models"), task_nodes(config)
    for key in ("task", "tasks", "warm_start"):
        config.pop(key)
    identities = model_identities(setup)
    flat = _flatten(config)
    flat["engine.name"] = resolve_engine(config["engine"]["name"])
    flat["device"] = "cuda" if plan_workers(setup.config).gpus else "cpu"
    flat["dimensions"] = [d.name for d in setup.space.dimensions]
    flat["models.base"] = identities[models["base"]]
    for name, ref in models["sources"].items():
        flat[f"models.sources.{name}"] = identities[ref]
    for task, (field, node) in zip(setup.search_tasks, nodes.items(), strict=True):
        for key, value in _flatten(node).items():
            if key.split(".")[0] not in SPLITS:
                flat[f"{field}.{key}"] = value
        for split in SPLITS:
            flat[f"{field}.{split}"] = _items_digest(task, split)
    flat["warm_start"] = setup.start.digest
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
        optimizer=optimizer_name(setup.config),
        objectives=[asdict(o) for o in setup.goals.objectives],
        scalarize=setup.goals.scalarize,
        constraints=[asdict(c) for c in setup.goals.constraints],
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


def _start(setup: Setup, progress: Progress) -> Any:
    node = setup.config["executor"]
    progress.say(f"starting the {node['name']} executor and its engines")
    return make_executor(setup.config)


def _task_digests(setup: Setup) -> dict[str, str]:
    """Digests of everything that answers and scores depend on, by task name."""
    nodes = [*task_nodes(setup.config).values(), *setup.config["report_tasks"].values()]
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
