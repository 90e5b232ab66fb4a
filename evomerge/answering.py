"""Starts what answers a study's items: its executor, behind its ledger."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evomerge.checkpoints.model import Model
from evomerge.engines.auto import resolve_engine
from evomerge.executors.base import Executor
from evomerge.executors.remembering import RememberingExecutor
from evomerge.executors.watched import WatchedExecutor, Watcher
from evomerge.ledger import Ledger
from evomerge.setup import Config, Setup, task_nodes
from evomerge.types import SPLITS
from evomerge.workers import make_executor, plan_workers

FOLDER = "ledger"
"""The ledger of a study that shares none, in its run directory."""

_MEANING = 2  # raised where the same settings give other answers or scores than before
_SPLIT_KEYS = (*SPLITS, "name", "id", "loglik_weight")
_SPEED_KEYS = ("batch_tokens",)  # of an engine
_MODEL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
)  # fmt: skip


def answering_executor(
    setup: Setup, say: Callable[[str], None], watcher: Watcher | None = None
) -> Executor:
    """The study's executor, which asks models only what the ledger does not know.

    Engines start now, unless the study shares a ledger that may know all of its answers; they
    start with the first unknown item then.

    Args:
        setup: of the study.
        say: told when engines start.
        watcher: told what the workers do.

    Raises:
        ConfigError: if the ledger's folder or the executor's settings cannot be.
        JournalError: if the ledger is damaged.
        EngineError: if the engines cannot start.
    """
    config = setup.config
    ledger = Ledger(ledger_folder(config))
    settings = answer_settings(setup)

    def start() -> Executor:
        say(f"starting the {config['executor']['name']} executor and its engines")
        executor = make_executor(config)
        return executor if watcher is None else WatchedExecutor(executor, watcher)

    executor = RememberingExecutor(
        start, plan_workers(config).workers, ledger, setup.tasks, settings
    )
    if config["ledger"] is None or not ledger.holds(settings.values()):
        executor.start()
    return executor


def ledger_folder(config: Config) -> Path:
    """Where a study's answers are kept: in its run directory, or where the config says."""
    return Path(config["ledger"] or Path(config["run_dir"]) / FOLDER)


def answer_settings(setup: Setup) -> dict[str, str]:
    """Hash of all that answers and scores depend on besides weights and items, by task name.

    That is the task's sampling, scorer and whatever else stands in its config but where its
    items come from; the engine, its dtype and arguments, and the device; config and tokenizer
    of the model that the engine starts on; and the study's seed where sampling is random.
    Releases of libraries, the number of threads and the size of batches do not count: they
    turn an answer only where two tokens nearly tie.
    """
    config = setup.config
    nodes = [*task_nodes(config).values(), *config["report_tasks"].values()]
    engine = {k: v for k, v in config["engine"].items() if k not in _SPEED_KEYS}
    models = [config["models"]["base"]]
    if "depth" in config["space"]:  # a route's tokenizer is its first source's
        models += config["models"]["sources"].values()
    common = {
        "meaning": _MEANING,
        "engine": engine | {"name": resolve_engine(engine["name"])},
        "device": "cuda" if plan_workers(config).gpus else "cpu",
        "models": [_files_digest(setup.merger.checkpoint(ref)) for ref in models],
    }
    hashes = {}
    for task, node in zip(setup.tasks, nodes, strict=True):
        own = {k: v for k, v in node.items() if k not in _SPLIT_KEYS}
        seed = setup.seed if task.sampling.temperature > 0 else None
        text = json.dumps([common, own, seed], sort_keys=True)
        hashes[task.name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return hashes


def _files_digest(model: Model) -> str:
    """sha256 of a model's config and tokenizer files."""
    digest = hashlib.sha256()
    for name in _MODEL_FILES:
        path: Any = model.path / name
        if path.is_file():
            digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
