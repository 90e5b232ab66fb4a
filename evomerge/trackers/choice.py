"""From the key `trackers` of a config to trackers."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from evomerge.build import TARGET, build
from evomerge.errors import ConfigError, Problem, UserError
from evomerge.trackers.base import Tracker

TRACKERS: Mapping[str, str] = {
    "mlflow": "evomerge.trackers.mlflow.Mlflow",
    "optuna": "evomerge.trackers.optuna.OptunaMirror",
    "tensorboard": "evomerge.trackers.tensorboard.TensorBoard",
    "wandb": "evomerge.trackers.wandb.Wandb",
}
"""Trackers by name; others are given with a `_target_`."""


def make_trackers(config: Mapping[str, Any]) -> dict[str, Tracker]:
    """Builds the trackers of a study; they write nothing yet.

    Raises:
        UserError: with everything that is wrong with any of them.
    """
    trackers: dict[str, Tracker] = {}
    problems: list[Problem] = []
    for name, node in _nodes(config.get("trackers")).items():
        try:
            trackers[name] = _make(name, node, Path(config["run_dir"]))
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(problems)
    return trackers


def _nodes(given: object) -> dict[str, Any]:
    """Settings by name: a list of names has none."""
    if given is None:
        return {}
    if isinstance(given, str):
        given = [given]
    if isinstance(given, list):
        given = {str(name): {} for name in given}
    if not isinstance(given, Mapping):
        raise ConfigError.of(
            "trackers", repr(given), "names, or names with settings",
            "Write trackers=[tensorboard,optuna], or trackers.wandb.project=NAME with a plus.",
        )  # fmt: skip
    return {str(name): node for name, node in given.items()}


def _make(name: str, node: Any, run_dir: Path) -> Tracker:
    field = f"trackers.{name}"
    settings = {} if node is None else node
    if not isinstance(settings, Mapping):
        raise ConfigError.of(field, repr(node), "settings by name, or null", "Correct it.")
    if TARGET not in settings:
        if name not in TRACKERS:
            close = get_close_matches(name, TRACKERS, n=1)
            raise ConfigError.of(
                field, "an unknown tracker", f"one of {', '.join(TRACKERS)}",
                f"Did you mean {close[0]}?" if close else f"Give {field}.{TARGET} for your own.",
            )  # fmt: skip
        settings = {TARGET: TRACKERS[name], **settings}
    for key, value in settings.items():
        if isinstance(value, str) and "://" in value and _has_password(value):
            raise ConfigError.of(
                f"{field}.{key}", "an address with a password", "one without: config.yaml and the "
                "report keep what is written here",
                "Give it in the environment, such as PGPASSWORD or MLFLOW_TRACKING_PASSWORD.",
            )  # fmt: skip
    tracker: Tracker = build(settings, field, run_dir=run_dir)
    return tracker


def _has_password(address: str) -> bool:
    from urllib.parse import urlsplit

    try:
        return urlsplit(address).password is not None
    except ValueError:
        return False
