"""The end of a ledger: answers that are in no Parquet segment yet.

A tail is a text file that only grows, one JSON object a line: the answers of one append that share
digest, task and settings, as columns. An append is then one write and one wait for the disk, where
a Parquet file costs milliseconds. Names begin with an underscore, which keeps readers of a folder
of Parquet files away from them; the tail that is being written is called `.open.jsonl`, and what
a crash has cut off behind its last whole line does not count.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from evomerge.durable import disk_error, extend, sync_directory
from evomerge.errors import JournalError

COLUMNS = ("item", "score", "loglik", "text", "tokens")
"""Columns of a line that hold one value an answer; the others hold one for all."""

KEY = ("digest", "task", "settings")
"""Columns that name a model's answers to one task under one set of settings."""

_OPEN = ".open.jsonl"
Line = Mapping[str, Any]


def is_tail(name: str) -> bool:
    """Whether a file of a ledger is a tail, by its name."""
    return name.endswith(".jsonl")


def is_open(name: str) -> bool:
    """Whether a tail is still written to."""
    return name.endswith(_OPEN)


def tail_name(begin: int) -> str:
    """The name of a new tail; `begin` is a time in ns."""
    return f"_{begin:020d}{_OPEN}"


def lines_of(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Rows as lines: neighbours with the same key share one."""
    lines: list[Line] = []
    for key, group in groupby(rows, key=lambda row: tuple(row[name] for name in KEY)):
        own = list(group)
        columns = {name: [row[name] for row in own] for name in COLUMNS}
        lines.append(dict(zip(KEY, key, strict=True)) | columns)
    return lines


def append(path: Path, lines: Sequence[Line]) -> list[tuple[int, int]]:
    """Adds lines, which are on the disk when it returns; their first bytes and those behind.

    Call with the lock. A torn end that a killed writer left is cut off.

    Raises:
        EvomergeError: if the disk is full or fails; nothing is added then.
    """
    written = [_encoded(line) for line in lines]
    begin = _whole(path)
    extend(path, begin, b"".join(written))
    ends = list(itertools.accumulate(map(len, written), initial=begin))
    return list(itertools.pairwise(ends))


def close(path: Path) -> None:
    """Gives a tail the name of one that nobody adds to. Call with the lock.

    Raises:
        EvomergeError: if the disk fails.
    """
    closed = path.with_name(path.name.removesuffix(_OPEN) + ".jsonl")
    try:
        os.replace(path, closed)
        sync_directory(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error


def read_lines(path: Path, begin: int = 0, end: int | None = None) -> Iterator[tuple[Line, int]]:
    """Whole lines between two bytes, each with the number of its bytes.

    Raises:
        JournalError: if one is damaged.
        FileNotFoundError: if the file is gone.
    """
    with path.open("rb") as file:
        file.seek(begin)
        data = file.read() if end is None else file.read(end - begin)
    for raw in data.splitlines(keepends=True):
        if raw.endswith(b"\n"):  # else torn, or just being written
            yield _decoded(path, raw), len(raw)


def table(path: Path, columns: Sequence[str], schema: Any) -> Any:
    """Columns of a tail as a table, of the types of a ledger's schema.

    Raises:
        JournalError: if it is damaged.
        FileNotFoundError: if it is gone.
    """
    import pyarrow as pa

    found: dict[str, list[Any]] = {name: [] for name in columns}
    for line, _ in read_lines(path):
        count = len(line["item"])
        for name in columns:
            found[name] += [line[name]] * count if name in KEY else line[name]
    return pa.table(found, schema=pa.schema([schema.field(name) for name in columns]))


def _encoded(line: Line) -> bytes:
    logliks = [None if math.isnan(v) else v for v in line["loglik"]]  # JSON knows no NaN
    text = json.dumps({**line, "loglik": logliks}, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _decoded(path: Path, raw: bytes) -> Line:
    try:
        line = json.loads(raw)
        line["loglik"] = [math.nan if v is None else v for v in line["loglik"]]
        if len({len(line[name]) for name in COLUMNS}) != 1 or not all(n in line for n in KEY):
            raise ValueError("columns that do not fit together")
    except (ValueError, KeyError, TypeError) as error:
        raise JournalError.of(
            str(path), f"a damaged line ({error})", "one JSON object of a ledger a line",
            "Restore the file from a copy, or remove it: its answers are then asked for again.",
        ) from error  # fmt: skip
    return line


def _whole(path: Path) -> int:
    """Number of bytes up to the end of the last whole line; 0 without a file."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read(1) == b"\n":
            return size
        file.seek(0)
        return file.read().rfind(b"\n") + 1
