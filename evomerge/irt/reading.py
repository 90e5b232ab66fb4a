"""Which reader a path takes, and how several sources become one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evomerge.errors import ConfigError
from evomerge.irt.files import shown
from evomerge.irt.records import (
    is_run,
    read_folder,
    read_ledger,
    read_run,
    read_samples,
    sample_files,
)
from evomerge.irt.responses import Responses
from evomerge.irt.tables import Part, read_csv, read_npz, read_parquet, two_scores
from evomerge.ledger import is_ledger

_FILES = {".npz": read_npz, ".csv": read_csv, ".parquet": read_parquet}


def read(paths: Sequence[Path], metric: str | None, split: str) -> list[Part]:
    """What all paths hold, task by task; files of samples are read together.

    Raises:
        ConfigError: as for `read_responses`.
    """
    parts: list[Part] = []
    samples: list[Path] = []
    for path in paths:
        found: list[Part] = []
        if path.is_file() and path.suffix in _FILES:
            found = _FILES[path.suffix](path)
        elif path.is_dir() and is_run(path):
            found = read_run(path, split)
        elif path.is_dir() and is_ledger(path):
            found = read_ledger(path, split)
        elif logs := (sample_files(path) if path.is_dir() or path.suffix == ".jsonl" else []):
            samples += logs
            continue
        elif path.is_dir():
            found = read_folder(path, split)
        if not found:
            raise ConfigError.of(
                str(path), _kind(path),
                f"{', '.join(_FILES)} or .jsonl, a run directory, a ledger or lm-eval's samples"
                + (f", with answers of the {split} split" if path.is_dir() else ""),
                "See docs/irt.md for the forms that are read.",
            )  # fmt: skip
        parts += found
    return parts + (read_samples(samples, metric) if samples else [])


def join(parts: Sequence[Part], task: str | None) -> Responses:
    """One matrix of all parts: models by their names, items by task and id.

    Args:
        parts: of all sources.
        task: takes only this one and what names no task; None takes all.

    Raises:
        ConfigError: for a task that is not there, or one answer with two scores.
    """
    if task is not None:
        known = {part.task: None for part in parts}
        parts = [part for part in parts if part.task in (task, "")]
        if not parts:
            raise ConfigError.of(
                "task", task, f"one of {shown(known)}", "Name one of them, or none."
            )
    several = task is None and len({part.task for part in parts}) > 1
    if len(parts) == 1:
        return parts[0].responses
    names = [
        tuple(f"{p.task}/{i}" if several and p.task else i for i in p.responses.items)
        for p in parts
    ]
    models = {m: 0 for p in parts for m in p.responses.models}
    items = {i: 0 for part in names for i in part}
    for places in (models, items):
        places.update({name: place for place, name in enumerate(places)})
    scores = np.full((len(models), len(items)), np.nan, dtype=np.float32)
    groups: dict[str, str] = {}
    for part, ids in zip(parts, names, strict=True):
        one = part.responses
        at = np.ix_([models[m] for m in one.models], [items[i] for i in ids])
        there = scores[at]
        clash = ~np.isnan(there) & ~np.isnan(one.scores) & (there != one.scores)
        if clash.any():
            row, column = np.argwhere(clash)[0]
            raise two_scores(
                "matrix", one.models[row], ids[column], there[row, column],
                one.scores[row, column],
            )  # fmt: skip
        scores[at] = np.where(np.isnan(one.scores), there, one.scores)
        groups.update(zip(one.models, one.groups or (), strict=False))
    return Responses(
        models=tuple(models),
        items=tuple(items),
        scores=scores,
        groups=tuple(groups[m] for m in models) if groups.keys() == models.keys() else None,
    )


def _kind(path: Path) -> str:
    if not path.exists():
        return "nothing there"
    return "a folder with none of these" if path.is_dir() else f"a {path.suffix or 'nameless'} file"
