"""What a study's recorded results depend on, as digests that survive moved files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from evomerge.config import FREE_KEYS
from evomerge.engines.auto import resolve_engine
from evomerge.setup import Setup, all_task_nodes, model_identities, task_nodes
from evomerge.types import SPLITS, Task
from evomerge.workers import plan_workers


def matter(setup: Setup) -> dict[str, Any]:
    """Everything that recorded results depend on, flat; paths count by their content."""
    config = {k: v for k, v in setup.config.items() if k not in FREE_KEYS}
    models, nodes = config.pop("models"), task_nodes(config)
    for key in ("task", "tasks", "warm_start"):
        config.pop(key)
    identities = model_identities(setup)
    for key, digest in setup.estimator.contents().items():
        config["estimator"] = {**config["estimator"], key: digest}
    flat = _flatten(config)
    flat["engine.name"] = resolve_engine(config["engine"]["name"])
    flat["device"] = "cuda" if plan_workers(setup.config).gpus else "cpu"
    flat["dimensions"] = [d.name for d in setup.space.dimensions]
    flat["models.base"] = identities[models["base"]]
    for name, ref in models["sources"].items():
        flat[f"models.sources.{name}"] = identities[ref]
    for task, (field, node) in zip(setup.search_tasks, nodes.items(), strict=True):
        for key, value in _flatten(_by_content(task, node)).items():
            if key.split(".")[0] not in SPLITS:
                flat[f"{field}.{key}"] = value
        for split in SPLITS:
            flat[f"{field}.{split}"] = items_digest(task, split)
    flat["warm_start"] = setup.start.digest
    flat["objectives.order"] = [o.name for o in setup.goals.objectives]
    flat["constraints.order"] = [c.name for c in setup.goals.constraints]
    return flat


def task_digests(setup: Setup) -> dict[str, str]:
    """Digests of everything that answers and scores depend on, by task name."""
    nodes = all_task_nodes(setup.config)
    digests = {}
    for task, node in zip(setup.tasks, nodes.values(), strict=True):
        settings = {k: v for k, v in _by_content(task, node).items() if k not in SPLITS}
        items = [items_digest(task, split) for split in SPLITS]
        text = json.dumps([settings, items], sort_keys=True)
        digests[task.name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return digests


def _by_content(task: Task, node: Mapping[str, Any]) -> Mapping[str, Any]:
    """A task's config; what it reads from files besides items counts by their content."""
    contents = getattr(task, "contents", None)
    return {**node, **contents()} if contents is not None else node


def items_digest(task: Task, split: str) -> str:
    """sha256 of the items of a split: prompts, targets and right answers."""
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
