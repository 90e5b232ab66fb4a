"""The pool of a study before it begins: what the check says, and which sources are left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomerge.answering import answering_executor
from evomerge.durable import write_atomic
from evomerge.errors import ConfigError, EvomergeError
from evomerge.evaluation import LazyExecutor, Measurer, Subject
from evomerge.identity import task_digests
from evomerge.journal import SCHEMA, Journal, locked
from evomerge.pool import PoolSettings, judge, prune
from evomerge.pool_command import measure_pool
from evomerge.pool_relevance import Scores
from evomerge.progress import Progress
from evomerge.setup import (
    Config,
    Setup,
    make_setup,
    model_identities,
    search_requests,
    source_recipes,
)

FOLDER = "pool"
"""In the run directory: `pool.json`, and a journal if scores were measured."""


def prepared(config: Config, progress: Progress) -> Config:
    """Checks the pool, warns, and leaves sources out if the config says so.

    The outcome is kept in the run directory; a resumed study reads it there.

    Returns:
        The config, with fewer sources if some were left out.

    Raises:
        UserError: for settings that cannot be, and if no source would be left.
        EngineError: if scores are needed and no engine can start.
    """
    settings = PoolSettings.of(config["pool"])
    if not (settings.check or settings.prune):
        return config
    folder = Path(config["run_dir"]) / FOLDER
    unstarted = {**config, "warm_start": {**config["warm_start"], "run": None, "recipes": []}}
    setup = make_setup(unstarted)
    key = _key(settings, setup)
    outcome = _known(folder / "pool.json", key)
    if outcome is None:
        outcome = {"key": key, **_measured(setup, settings, key, progress)}
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "pool.json", json.dumps(outcome, indent=1) + "\n")
    for text in outcome["warnings"]:
        progress.say(f"warning: {text}")
    for name, reason in outcome["dropped"].items():
        progress.say(f"left out of the pool: {name}, {reason}")
    if not outcome["dropped"]:
        return config
    models = config["models"]
    kept = {name: models["sources"][name] for name in outcome["kept"]}
    return {**config, "models": {**models, "sources": kept}}


def _measured(setup: Setup, settings: PoolSettings, key: str, progress: Progress) -> dict[str, Any]:
    names = list(setup.config["models"]["sources"])
    findings = measure_pool(setup.config, setup.merger, settings, progress)
    if settings.relevance:
        findings = judge(findings.geometry, settings, _scores(setup, key, progress))
    left = prune(names, findings, settings) if settings.prune else None
    if left:
        _keep_named(setup.config, left.dropped)
    return {
        "kept": list(left.kept if left else names),
        "dropped": dict(left.dropped if left else {}),
        "warnings": list(findings.warnings),
        "findings": findings.to_dict(),
    }


def _keep_named(config: Config, dropped: Mapping[str, str]) -> None:
    """Refuses to drop a source that a constraint names."""
    for name, node in config["constraints"].items():
        for sense in ("at_least", "at_most"):
            if (bound := node.get(sense)) in dropped:
                raise ConfigError.of(
                    f"constraints.{name}.{sense}",
                    f"the source {bound}, which is left out of the pool ({dropped[bound]})",
                    "a source that stays, a number or best source",
                    "Change the bound, or set pool.prune=false.",
                )  # fmt: skip


def _scores(setup: Setup, key: str, progress: Progress) -> Scores:
    """What base and sources score on each search item; recorded in a journal of its own."""
    config = setup.config
    folder = Path(config["run_dir"]) / FOLDER
    with locked(folder):
        journal = Journal(folder)
        if journal.events and journal.events[0].get("key") != key:
            journal.clear()
        if not journal.events:
            journal.append("study", schema=SCHEMA, experiment=config["experiment"], key=key)
        executor = LazyExecutor(lambda: answering_executor(setup, progress.say))
        measurer = Measurer(journal, executor, model_identities(setup), task_digests(setup))
        recipes = source_recipes(config)
        subjects = [Subject(name, "source", recipe) for name, recipe in recipes.items()]
        label = "sources, for their relevance"
        try:
            splits = measurer.shown(subjects, search_requests(setup), progress, label)
        finally:
            executor.close()
    if "base" not in splits:
        raise EvomergeError(
            "the base could not be evaluated, and pool.relevance compares the sources with it; "
            f"{folder / 'journal.jsonl'} holds the reason"
        )
    weights = {task.name: task.loglik_weight for task in setup.search_tasks}
    return {
        name: {
            part.task: part.scores + (w * part.logliks if (w := weights[part.task]) else 0.0)
            for part in parts.values()
        }
        for name, parts in splits.items()
    }


def _key(settings: PoolSettings, setup: Setup) -> str:
    """Digest of everything that the outcome depends on."""
    models = setup.config["models"]
    identities = model_identities(setup)
    data = [
        asdict(settings),
        identities[models["base"]],
        {name: identities[ref] for name, ref in models["sources"].items()},
    ]
    if settings.relevance:
        data += [task_digests(setup), setup.items(0), sorted(setup.goals.tasks())]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _known(path: Path, key: str) -> dict[str, Any] | None:
    try:
        outcome = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return outcome if isinstance(outcome, dict) and outcome.get("key") == key else None
