"""The pool of a study before it begins: what the check says, and which sources are left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomerge.checkpoints.merger import Merger
from evomerge.evaluation import LazyExecutor, Measurer, Subject
from evomerge.identity import task_digests
from evomerge.journal import SCHEMA, Journal, locked, write_atomic
from evomerge.pool import PoolSettings, judge, prune
from evomerge.pool_command import measure_pool
from evomerge.pool_relevance import Scores
from evomerge.progress import Progress
from evomerge.setup import (
    Config,
    make_executor,
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
    setup = make_setup(config)
    key = _key(settings, model_identities(setup), task_digests(setup))
    outcome = _known(folder / "pool.json", key)
    if outcome is None:
        outcome = {"key": key, **_measured(config, settings, progress)}
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


def _measured(config: Config, settings: PoolSettings, progress: Progress) -> dict[str, Any]:
    names = list(config["models"]["sources"])
    findings = measure_pool(config, Merger(), settings, progress)
    if settings.relevance:
        findings = judge(findings.geometry, settings, _scores(config, progress))
    left = prune(names, findings, settings) if settings.prune else None
    return {
        "kept": list(left.kept if left else names),
        "dropped": dict(left.dropped if left else {}),
        "warnings": list(findings.warnings),
        "findings": findings.to_dict(),
    }


def _scores(config: Config, progress: Progress) -> Scores:
    """What base and sources score on each search item; recorded in a journal of its own."""
    setup = make_setup(config)
    folder = Path(config["run_dir"]) / FOLDER
    with locked(folder):
        journal = Journal(folder)
        if not journal.events:
            journal.append("study", schema=SCHEMA, experiment=config["experiment"])
        executor = LazyExecutor(lambda: make_executor(config))
        measurer = Measurer(journal, executor, model_identities(setup), task_digests(setup))
        recipes = source_recipes(config)
        subjects = [Subject(name, "source", recipe) for name, recipe in recipes.items()]
        progress.start("sources, for their relevance", 0, len(subjects))
        try:
            splits = measurer.measure(
                subjects, search_requests(setup),
                lambda done, total: progress.update(done, total, None, 0),
            )  # fmt: skip
        finally:
            progress.stop()
            executor.close()
    weights = {task.name: task.loglik_weight for task in setup.search_tasks}
    return {
        name: {
            part.task: part.scores + (w * part.logliks if (w := weights[part.task]) else 0.0)
            for part in parts.values()
        }
        for name, parts in splits.items()
    }


def _key(settings: PoolSettings, identities: Mapping[str, str], tasks: Mapping[str, str]) -> str:
    """Digest of everything that the outcome depends on."""
    data = [asdict(settings), identities, tasks if settings.relevance else {}]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _known(path: Path, key: str) -> dict[str, Any] | None:
    try:
        outcome = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return outcome if isinstance(outcome, dict) and outcome.get("key") == key else None
