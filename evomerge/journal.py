"""A study's memory: append-only events, and item scores in Parquet beside them.

A run directory holds

    config.yaml      the resolved config
    journal.jsonl    one event a line, fsynced; the schema version is in the first
    items/*.parquet  item scores and texts, renamed into place before the event that names them
    .lock            held by the running study
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.durable import extend, replaced
from evomerge.errors import JournalError
from evomerge.types import ItemScores

SCHEMA = 1
JOURNAL = "journal.jsonl"
_LOG = logging.getLogger(__name__)
_OWN_FILE = re.compile(r"\.?(candidate|measure|part|recheck)-\d+(-\d+)?\.parquet(\.tmp)?$")


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """All complete events of a run directory; a torn last line is left out.

    Raises:
        JournalError: if there is no journal, a line is damaged or the schema is unknown.
    """
    path = run_dir / JOURNAL
    if not path.is_file():
        raise JournalError.of(
            str(run_dir), f"no {JOURNAL}", "the directory of a study",
            "Give the run_dir of a study, such as runs/jp_math_tiny/seed0.",
        )  # fmt: skip
    events, _ = _parse(path)
    return events


class Journal:
    """Appends events to a run directory and writes its Parquet files."""

    def __init__(self, run_dir: Path) -> None:
        """Opens or creates the journal; call within `locked`.

        A torn last line (a write that was cut off) is removed with a warning.

        Raises:
            JournalError: if a line before the last is damaged, the schema is unknown or the
                directory holds other things than a study.
        """
        self.run_dir = run_dir
        self.path = run_dir / JOURNAL
        self.events: list[dict[str, Any]] = []
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []  # told of each new event
        if not self.path.is_file():
            _refuse_foreign(run_dir)
        (run_dir / "items").mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            self.events, good = _parse(self.path)
            torn = self.path.stat().st_size - good
            if torn:
                _LOG.warning("%s: cut %d bytes of an unfinished last line", self.path, torn)
                os.truncate(self.path, good)
        _remove_unnamed(run_dir / "items", self.events)

    def append(self, event: str, **data: Any) -> dict[str, Any]:
        """Writes one event and waits until it is on the disk.

        Raises:
            EvomergeError: if the disk is full or fails; the journal stays intact.
        """
        record = {"event": event, **data, "time": round(time.time(), 3)}
        line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
        extend(self.path, self.path.stat().st_size if self.path.exists() else 0, line.encode())
        self.events.append(record)
        for listener in self.listeners:
            listener(record)
        return record

    def clear(self) -> None:
        """Forgets all events, on disk too."""
        self.path.unlink(missing_ok=True)
        self.events.clear()

    def write_items(self, name: str, scores: Sequence[ItemScores]) -> str:
        """Writes item scores and texts; returns the path relative to the run directory.

        Columns: task, split, id, score, loglik, text, tokens.

        Raises:
            EvomergeError: if the disk is full or fails; nothing is left behind.
        """
        relative = f"items/{name}.parquet"
        write_items(self.run_dir / relative, scores)
        return relative


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Holds a run directory for one process.

    Raises:
        JournalError: if another process holds it.
    """
    from filelock import FileLock, Timeout

    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JournalError.of(
            f"run_dir={run_dir}", str(error), "a directory that can be made", "Choose another."
        ) from error
    lock = FileLock(run_dir / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise JournalError.of(
            f"run_dir={run_dir}", "another run at work in it", "a directory of its own",
            "Wait for it to end, or give this run another run_dir.",
        ) from error  # fmt: skip
    try:
        yield
    finally:
        lock.release()


def write_items(path: Path, scores: Sequence[ItemScores]) -> None:
    """Writes item scores to one Parquet file, whole or not at all.

    Raises:
        EvomergeError: if the disk is full or fails.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    table = pa.table(
        {
            "task": pa.array([s.task for s in scores for _ in s.ids], text),
            "split": pa.array([s.split for s in scores for _ in s.ids], text),
            "id": pa.array([i for s in scores for i in s.ids], text),
            "score": _column([s.scores for s in scores], np.float64),
            "loglik": _column([s.logliks for s in scores], np.float64),
            "text": pa.array([t for s in scores for t in s.texts], text),
            "tokens": _column([s.tokens for s in scores], np.int64),
        }
    )
    with replaced(path) as temporary:  # a third faster without what only large files need
        pq.write_table(
            table, temporary, compression="zstd", use_dictionary=False, write_statistics=False,
            store_schema=False,
        )  # fmt: skip


def read_items(path: Path) -> list[ItemScores]:
    """Reads what `write_items` wrote, one `ItemScores` a task and split.

    Raises:
        JournalError: if the file is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[Mapping[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise JournalError.of(
            str(path), f"a missing or damaged file ({error})", "the item scores of an event",
            "Restore it from a copy, or start again in another run_dir.",
        ) from error  # fmt: skip
    parts: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        parts.setdefault((row["task"], row["split"]), []).append(row)
    return [
        ItemScores(
            task=task,
            split=split,
            ids=tuple(r["id"] for r in part),
            scores=np.array([r["score"] for r in part], dtype=np.float64),
            logliks=np.array([r["loglik"] for r in part], dtype=np.float64),
            texts=tuple(r["text"] for r in part),
            tokens=np.array([r["tokens"] for r in part], dtype=np.int64),
        )
        for (task, split), part in parts.items()
    ]


def _column(parts: Sequence[Any], kind: type) -> Any:
    return np.concatenate([np.asarray(part, dtype=kind) for part in parts] or [np.empty(0, kind)])


def _parse(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Events, and the number of bytes that hold them."""
    events: list[dict[str, Any]] = []
    good = 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            event = None
        if not isinstance(event, dict):
            if number == len(lines):
                break
            raise JournalError.of(
                f"{path}:{number}", "a damaged line", "one JSON object a line",
                "Restore the file from a copy, or start again in another run_dir.",
            )  # fmt: skip
        events.append(event)
        good += len(line)
    if events and events[0].get("schema") != SCHEMA:
        raise JournalError.of(
            f"{path}:1", f"schema {events[0].get('schema')!r}", f"schema {SCHEMA}",
            "Read it with the version of evomerge that wrote it.",
        )  # fmt: skip
    return events, good


def _remove_unnamed(folder: Path, events: Sequence[Mapping[str, Any]]) -> None:
    """Deletes Parquet files that were written but never named by an event."""
    named = {e["file"] for e in events if e.get("file")}
    for path in folder.iterdir():
        if _OWN_FILE.match(path.name) and f"items/{path.name}" not in named:
            path.unlink()


def _refuse_foreign(run_dir: Path) -> None:
    """A directory that already holds folders of these names is not a study's."""
    for name in ("items", "best"):
        folder = run_dir / name
        if folder.exists() and not folder.is_dir():
            found = "a file"
        elif folder.is_dir() and any(not _OWN_FILE.match(p.name) for p in folder.iterdir()):
            found = "a folder with other files"
        else:
            continue
        raise JournalError.of(
            f"run_dir={run_dir}", f"{found} called {name}, and no {JOURNAL}",
            "a new directory or a study's own", "Choose another run_dir.",
        )  # fmt: skip
