"""Reads the files of a run directory into plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.errors import UserError
from evomerge.journal import JOURNAL, read_events

Json = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """What a run directory holds at the moment.

    Attributes:
        results: `results.json`, or None while the study runs or if it measured nothing.
        events: the journal's events, in order.
        recipe: `best/recipe.yaml`, empty if there is none yet.
        config: `config.yaml`, empty if there is none.
        folder: the run directory; None where the files did not come from one.
    """

    results: Json | None
    events: list[Json] = field(default_factory=list)
    recipe: str = ""
    config: str = ""
    folder: Path | None = None

    @property
    def settings(self) -> Json:
        """The config as plain values; empty if there is none or it is damaged."""
        import yaml

        try:
            return mapping(yaml.load(self.config, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        except yaml.YAMLError:
            return {}

    @property
    def study(self) -> Json:
        """The journal's first `study` event, empty if there is none."""
        return next((e for e in self.events if e.get("event") == "study"), {})

    @property
    def dimensions(self) -> list[Any]:
        """The dimensions of the genomes as the journal lists them; empty if it lists none."""
        listed = mapping(self.study.get("space")).get("dimensions")
        return listed if isinstance(listed, list) else []

    @property
    def ended(self) -> bool:
        """Whether the journal says that the search came to its end."""
        return any(e.get("event") == "end" for e in self.events)


def mapping(value: object) -> Json:
    """`value` as a dict with text keys; empty if it is anything but a mapping."""
    return {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else {}


def number(value: object) -> float | None:
    """`value` as a finite float, else None; truth values are not numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    result = float(value)
    return result if abs(result) < float("inf") else None


def count(value: object) -> int | None:
    """`value` as a whole number, else None."""
    result = number(value)
    return None if result is None else int(result)


def read_run(run_dir: Path) -> RunFiles:
    """Reads a run directory.

    Raises:
        UserError: it holds neither `journal.jsonl` nor `results.json`, or one is damaged.
    """
    journal, results = run_dir / JOURNAL, run_dir / "results.json"
    if not journal.is_file() and not results.is_file():
        raise UserError.of(
            "run directory",
            f"neither journal.jsonl nor results.json in {run_dir}",
            "the directory of a study that has been started",
            "Give the directory that the study printed at its start.",
        )
    return RunFiles(
        results=_read_results(results),
        events=read_events(run_dir) if journal.is_file() else [],
        recipe=_read_text(run_dir / "best" / "recipe.yaml"),
        config=_read_text(run_dir / "config.yaml"),
        folder=run_dir,
    )


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_results(path: Path) -> Json | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        raise _damaged(path, f"invalid JSON ({error})") from error
    if not isinstance(value, dict) or not isinstance(value.get("models"), dict):
        raise _damaged(path, "no `models` in it")
    return value


def _damaged(path: Path, found: str) -> UserError:
    return UserError.of(
        path.name,
        found,
        "the results as the study writes them",
        "Run the study's command again: it resumes and writes the file anew.",
    )
