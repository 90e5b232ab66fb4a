"""The files of a ledger: Parquet segments that appear whole and are never changed, and tails.

A tail takes what is appended and becomes a segment when it is full. Files are named after the time
at which they were begun, so that names are in the order of the rows. A segment that stands for
others (a tail, or small neighbours that were united) has the place of the first of them and names
them in its metadata; where a crash left them behind they do not count.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from evomerge.durable import replaced
from evomerge.errors import ConfigError, JournalError
from evomerge.ledger.tail import KEY, is_tail, read_lines, tail_name
from evomerge.ledger.tail import table as tail_table

GROUP = 8192  # rows that are read at once, at most
_REPLACES = b"replaces"
_SEGMENT = re.compile(r"(\d{20})-(\d+)\.parquet$")  # time in ns; how often it was united
_TAIL = re.compile(r"_(\d{20})(\.open)?\.jsonl$")
_OWN = re.compile(rf"(\.lock|\.?\d{{20}}-\d+\.parquet(\.tmp)?|{_TAIL.pattern})$")
_TRIES = 20
_Found = TypeVar("_Found")


def schema() -> Any:
    """The columns: all of every segment.

    `digest` is the recipe's (64 hex digits, by the content of its models), `item` a hash of the
    item's content, `settings` a hash of whatever else answers and scores depend on; `loglik` is
    NaN where it was not asked for.
    """
    import pyarrow as pa

    text = dict.fromkeys((*KEY, "item", "text"), pa.string())
    numbers = {"score": pa.float64(), "loglik": pa.float64(), "tokens": pa.int64()}
    order = ("digest", "task", "item", "settings", "score", "loglik", "text", "tokens")
    types = text | numbers
    return pa.schema([(name, types[name]) for name in order])


def check_folder(folder: Path, field: str = "ledger") -> None:
    """Makes sure that a folder is a ledger, or can become one; changes nothing.

    Raises:
        ConfigError: if it is a file, holds other things or cannot be written.
    """
    remedy = "Name a new folder or another study's ledger, or set ledger=null."
    above = folder
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        raise ConfigError.of(field, f"the file {above}", "a folder", remedy)
    inside = [p.name for p in folder.iterdir()] if folder == above else []
    others = sorted(name for name in inside if not _OWN.match(name))
    if others:
        raise ConfigError.of(
            field, f"the folder {folder}, which holds other files, such as {others[0]}",
            "a folder for a ledger alone", remedy,
        )  # fmt: skip
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError.of(
            field, f"{above}, which cannot be written", "a writable folder", remedy
        )


def read_ledger(folder: Path, columns: Sequence[str] | None = None) -> Any:
    """All answers of a ledger, each once, as a `pyarrow.Table`.

    Of an item that was answered with and without its log-likelihood the row with it is given.
    The text columns but `text` are dictionaries (categories in pandas), which take little room.

    Args:
        folder: of the ledger, that may be written meanwhile.
        columns: those to read, in this order; without `text` millions of rows fit easily.

    Raises:
        JournalError: if there is no ledger or a segment is damaged; names it.
    """
    import pyarrow as pa

    if not folder.is_dir():
        raise JournalError.of(
            str(folder), "no folder", "a ledger", "Give the folder of one, such as RUN_DIR/ledger."
        )
    names = list(columns or schema().names)
    wanted = list(dict.fromkeys([*names, *KEY, "item", "loglik"]))
    tables = _again(folder, lambda: [read(folder / name, wanted) for name in segment_rows(folder)])
    table = pa.concat_tables(tables or [schema().empty_table().select(wanted)])
    if not table.num_rows:
        return table.select(names)
    kept = _first_rows(table)
    return (table if kept.all() else table.filter(pa.array(kept))).select(names)


def is_ledger(folder: Path) -> bool:
    """Whether a folder holds answers of a ledger."""
    return bool(listed(folder))


def segment_rows(folder: Path) -> dict[str, int]:
    """Names of the segments and tails that count, oldest first, with their numbers of rows.

    Raises:
        JournalError: if one is damaged.
    """
    found = _again(folder, lambda: {name: _about(folder / name) for name in listed(folder)})
    old = {name for _, replaces in found.values() for name in replaces}
    return {name: rows for name, (rows, _) in found.items() if name not in old}


def listed(folder: Path) -> list[str]:
    """Names of all segments and tails, those that do not count included; oldest first."""
    names = [name for name in os.listdir(folder) if _SEGMENT.match(name) or _TAIL.match(name)]
    return sorted(names, key=_parts)


def remove_leftovers(folder: Path) -> None:
    """Deletes what writes that were killed have left; call with the lock."""
    for path in folder.iterdir():
        if path.name.startswith(".") and path.name.endswith(".parquet.tmp"):
            path.unlink()
    for name in set(listed(folder)) - set(segment_rows(folder)):
        (folder / name).unlink()


def new_tail(folder: Path) -> str:
    """The name of a tail that is behind all that is there. Call with the lock."""
    last = max((_parts(name)[0] for name in listed(folder)), default=0)
    return tail_name(max(time.time_ns(), last + 1))  # clocks may be set back


def unite(folder: Path, names: Sequence[str]) -> str:
    """Writes one segment in the place of neighbours or a tail, and removes those; its name.

    Call with the lock.

    Raises:
        JournalError: if one is damaged.
        EvomergeError: if the disk is full or fails.
    """
    begin, united = _parts(names[0])
    name = _name(begin, united + 1)
    meta = {_REPLACES: json.dumps(list(names)).encode()}
    _store(folder / name, _grouped(folder, names), schema().with_metadata(meta))
    for old in names:
        (folder / old).unlink(missing_ok=True)
    return name


def read(path: Path, columns: Sequence[str], groups: Sequence[int] | None = None) -> Any:
    """Columns of a segment or tail as a table, of some row groups or all.

    Short texts are dictionaries. Tails have no groups.

    Raises:
        JournalError: if it is damaged.
        FileNotFoundError: if it is gone.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    short = [name for name in (*KEY, "item") if name in columns]
    if is_tail(path.name):
        dictionary = pa.dictionary(pa.int32(), pa.string())
        fields = [pa.field(f.name, dictionary) if f.name in short else f for f in schema()]
        return tail_table(path, columns, pa.schema(fields))
    with _damage(path):
        file = pq.ParquetFile(path, read_dictionary=short, page_checksum_verification=True)
        with file:
            if groups is None:
                return file.read(columns=list(columns))
            return file.read_row_groups(list(groups), columns=list(columns))


def key_runs(path: Path) -> Iterator[tuple[tuple[str, str, str], int, int]]:
    """Stretches of rows with the same key: the key, the first row and the row behind the last.

    Raises:
        JournalError: if the segment is damaged.
        FileNotFoundError: if it is gone.
    """
    table = read(path, KEY)
    if not table.num_rows:
        return
    codes, texts = zip(*(_codes(table, name) for name in KEY), strict=True)
    same = np.ones(table.num_rows - 1, dtype=bool)
    for column in codes:
        same &= column[1:] == column[:-1]
    begins = [0, *(np.flatnonzero(~same) + 1).tolist()]
    for begin, end in zip(begins, [*begins[1:], table.num_rows], strict=True):
        digest, task, settings = (t[c[begin]] for c, t in zip(codes, texts, strict=True))
        yield (digest, task, settings), begin, end


def _about(path: Path) -> tuple[int, list[str]]:
    """Number of rows, and the files that this one stands for."""
    import pyarrow.parquet as pq

    if is_tail(path.name):
        return sum(len(line["item"]) for line, _ in read_lines(path)), []
    with _damage(path), pq.ParquetFile(path) as file:
        meta = file.schema_arrow.metadata or {}
        if file.schema_arrow.names != schema().names:
            raise ValueError(f"the columns {', '.join(file.schema_arrow.names)}")
        return file.metadata.num_rows, json.loads(meta.get(_REPLACES, b"[]"))


def _grouped(folder: Path, names: Sequence[str]) -> Iterator[Any]:
    """The segments' rows one after the other, in tables of `GROUP` rows and a last one."""
    import pyarrow as pa

    held = schema().empty_table()
    for name in names:
        more = read(folder / name, schema().names).cast(schema())
        held = pa.concat_tables([held, more])
        while held.num_rows >= GROUP:
            yield held.slice(0, GROUP)
            held = held.slice(GROUP)
    if held.num_rows:
        yield held


def _store(path: Path, tables: Iterable[Any], described: Any) -> None:
    import pyarrow.parquet as pq

    with (
        replaced(path) as temporary,
        pq.ParquetWriter(
            temporary, described, compression="zstd", write_page_checksum=True
        ) as writer,
    ):
        for table in tables:
            writer.write_table(table.replace_schema_metadata(described.metadata), GROUP)


def _codes(table: Any, name: str) -> tuple[Any, list[str]]:
    """A dictionary column as whole numbers, an `n` array, and what they stand for."""
    column = table.column(name).unify_dictionaries()
    texts = column.chunk(0).dictionary.to_pylist()
    return np.concatenate([c.indices.to_numpy() for c in column.chunks]), texts


def _first_rows(table: Any) -> Any:
    """Marks one row of each key and item: the first with a log-likelihood, else the first."""
    rows = table.num_rows
    combined = np.zeros(rows, dtype=np.int64)
    for name in (*KEY, "item"):
        codes, _ = _codes(table, name)
        # renumbered each time, so that the product cannot overflow
        combined = np.unique(combined * (int(codes.max()) + 1) + codes, return_inverse=True)[1]
    order = np.argsort(np.isnan(table.column("loglik").to_numpy()), kind="stable")
    _, first = np.unique(combined[order], return_index=True)
    kept = np.zeros(rows, dtype=bool)
    kept[order[first]] = True
    return kept


def _name(begin: int, united: int) -> str:
    return f"{begin:020d}-{united}.parquet"


def _parts(name: str) -> tuple[int, int]:
    """When a file was begun, in ns, and how often it was united; 0 for a tail."""
    match = _SEGMENT.match(name)
    if match is not None:
        return int(match[1]), int(match[2])
    tail = _TAIL.match(name)
    if tail is None:
        raise ValueError(f"{name} is not the name of a segment")
    return int(tail[1]), 0


def _again(folder: Path, look: Callable[[], _Found]) -> _Found:
    """What is found, looked for again where a file was just made a part of another segment."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):
            return look()
    raise JournalError.of(
        str(folder), "segments that vanish again and again", "a ledger that is only appended to",
        "End whatever removes files there.",
    )  # fmt: skip


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Says which file is damaged."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise JournalError.of(
            str(path), f"a damaged segment ({error})", "a whole Parquet file of a ledger",
            "Restore it from a copy, or remove it: its answers are then asked for again.",
        ) from error  # fmt: skip
