"""Responses from what evaluations leave behind: run directories, ledgers, lm-eval's samples."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import ConfigError
from evomerge.irt.files import shown
from evomerge.irt.tables import Part, damaged, from_table, long_columns, pivot, two_scores
from evomerge.journal import JOURNAL, read_events
from evomerge.ledger import read_ledger as read_answers

SAMPLES = re.compile(
    r"^samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?)\.jsonl$"
)
"""How lm-eval calls a file of samples."""

_NOT_METRICS = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter",
                "metrics", "doc_hash", "prompt_hash", "target_hash"}  # fmt: skip


def is_run(folder: Path) -> bool:
    """Whether a folder is a study's run directory."""
    return (folder / JOURNAL).is_file()


def read_run(folder: Path, split: str) -> list[Part]:
    """Every item score of a run's journal, of one split; a model is called by its digest.

    A run measures its finalists again: where an engine answered otherwise, the mean counts.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    events = read_events(folder)
    digests = {
        (event["search"], candidate["id"]): candidate["digest"]
        for event in events
        if event["event"] == "ask"
        for candidate in event["candidates"]
    }
    tables = []
    for event in events:
        if not event.get("file"):
            continue
        digest = event.get("digest") or digests.get((event.get("search"), event.get("id")))
        if digest is None:
            continue
        path = folder / event["file"]
        try:
            table = pq.read_table(path, columns=["task", "split", "id", "score"])
        except (OSError, pa.ArrowException) as error:
            raise damaged(path, error) from error
        name = pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(table.num_rows, dtype=np.int32)), pa.array([digest])
        )
        tables.append(table.append_column("model", name))
    if not tables:
        return []
    return from_table(pa.concat_tables(tables), str(folder), split, average=True)


def read_ledger(folder: Path, split: str) -> list[Part]:
    """A ledger: every answer once, where a killed writer may have left some twice."""
    names = ["digest", "task", "item", "settings", "score"]
    own = long_columns(names) or {}
    table = read_answers(folder, names).select([*own.values()]).rename_columns([*own])
    return from_table(table, str(folder), split)


def read_folder(folder: Path, split: str) -> list[Part]:
    """All Parquet files below a folder with columns of models, items and scores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for path in sorted(folder.rglob("*.parquet")):
        try:
            columns = long_columns(pq.read_schema(path).names)
            if columns is None:
                continue
            table = pq.read_table(path, columns=[*columns.values()])
        except (OSError, pa.ArrowException) as error:
            raise damaged(path, error) from error
        tables.append(table.select([*columns.values()]).rename_columns([*columns]))
    if not tables:
        return []
    whole = pa.concat_tables(tables, promote_options="permissive")
    return from_table(whole, str(folder), split)


@dataclass(frozen=True)
class _Log:
    """A file of samples: the model's and the task's name, and when it was written."""

    path: Path
    model: str
    task: str
    date: str


def sample_files(path: Path) -> list[Path]:
    """The files of samples at a path.

    Itself, or all `samples_*.jsonl` below a folder; where none is called so and there is no
    Parquet file, all `*.jsonl`.
    """
    if path.is_file():
        return [path]
    named = sorted(path.rglob("samples_*.jsonl"))
    if named or any(path.rglob("*.parquet")):
        return named
    return sorted(path.rglob("*.jsonl"))


def read_samples(paths: list[Path], metric: str | None) -> list[Part]:
    """lm-eval's logged samples, the newest file of each model and task.

    A file called `samples_TASK_DATE.jsonl` is of the model that the `results_DATE.json` beside it
    names, else of the one its folder is called after. Any other file is of the model that it is
    called after.

    Args:
        paths: of the files.
        metric: such as `exact_match`, with several filters `exact_match,strict-match`; None takes
            the only one.

    Raises:
        ConfigError: for damaged files, an absent or ambiguous metric, and items that are not the
            same question for all models.
    """
    newest: dict[tuple[str, str], _Log] = {}
    for log in map(_log, paths):
        known = newest.get((log.task, log.model))
        if known is not None and not (known.date and log.date):
            raise ConfigError.of(
                str(log.path), f"the model {log.model}, as in {known.path}", "one file a model",
                "Rename one of the files, or leave it out.",
            )  # fmt: skip
        if known is None or log.date > known.date:
            newest[log.task, log.model] = log
    parts = []
    for task in dict.fromkeys(task for task, _ in newest):
        logs = [log for log in newest.values() if log.task == task]
        parts.append(_task_part(task, logs, metric))
    return parts


def _task_part(task: str, logs: list[_Log], metric: str | None) -> Part:
    items: dict[str, int] = {}
    hashes: dict[str, tuple[str, Path]] = {}
    of_model, of_item, scores = [], [], []
    for place, log in enumerate(logs):
        rows = list(_rows(log.path))
        key, chosen = _choose(rows, log.path, metric)
        seen: dict[str, float] = {}
        for row in rows:
            if row.get("filter", chosen) != chosen:
                continue
            item = str(row["doc_id"])
            found = _number(row.get(key), log.path, key, item)
            if seen.setdefault(item, found) != found:
                raise two_scores(str(log.path), log.model, item, seen[item], found)
            if "doc_hash" in row:
                first, where = hashes.setdefault(item, (str(row["doc_hash"]), log.path))
                if first != row["doc_hash"]:
                    raise ConfigError.of(
                        str(log.path), f"another question as item {item} than in {where}",
                        "the same task and version for all models (doc_hash)",
                        "Leave one of the files out, or evaluate its model again.",
                    )  # fmt: skip
            of_model.append(place)
            of_item.append(items.setdefault(item, len(items)))
            scores.append(found)
    answers = pivot(
        [log.model for log in logs], list(items), np.array(of_model), np.array(of_item),
        np.array(scores, dtype=np.float32), task or str(logs[0].path),
    )  # fmt: skip
    return Part(task, answers)


def _log(path: Path) -> _Log:
    match = SAMPLES.match(path.name)
    if match is None:
        return _Log(path, path.stem.removeprefix("samples_"), "", "")
    date, model = match["date"], path.absolute().parent.name
    for beside in sorted(path.parent.glob(f"*_{date}.json")):
        try:
            content = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise damaged(beside, error) from error
        if isinstance(content, dict) and content.get("model_name"):
            model = str(content["model_name"])
    return _Log(path, model, match["task"], date)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                row = json.loads(line)
                if not isinstance(row, dict) or "doc_id" not in row:
                    raise ValueError(f"line {number} has no doc_id")
                yield row
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error


def _choose(
    rows: list[Mapping[str, Any]], path: Path, metric: str | None
) -> tuple[str, str | None]:
    """The key of the metric, and the filter."""
    if not rows:
        raise damaged(path, ValueError("it is empty"))
    first = rows[0]
    if isinstance(first.get("metrics"), list):
        names = [str(name) for name in first["metrics"]]
    else:  # older files do not list them
        names = [k for k, v in first.items() if k not in _NOT_METRICS and _is_number(v)]
    filters = list(dict.fromkeys(str(r["filter"]) for r in rows if "filter" in r))
    wanted, _, which = (metric or "").partition(",")
    options = [f"{name},{one}" for name in names for one in filters] or names
    key = wanted or (names[0] if len(names) == 1 else None)
    one = which or (filters[0] if len(filters) == 1 else None)
    if key not in names or (filters and one not in filters):
        raise ConfigError.of(
            "--metric", metric or f"none, and {len(options)} in {path}", f"one of {shown(options)}",
            "Name one: --metric METRIC or --metric METRIC,FILTER.",
        )  # fmt: skip
    return str(key), one


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _number(value: Any, path: Path, key: str, item: str) -> float:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    if not _is_number(value):
        raise ConfigError.of(
            str(path), f"{key} of item {item} is {str(value)[:60]}", "a number in [0, 1]",
            "Name another metric: --metric METRIC.",
        )  # fmt: skip
    return float(value)
