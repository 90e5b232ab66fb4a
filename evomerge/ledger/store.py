"""The ledger that studies read from and append to."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from evomerge.errors import JournalError
from evomerge.ledger.segments import (
    GROUP,
    check_folder,
    key_runs,
    listed,
    new_tail,
    read,
    remove_leftovers,
    segment_rows,
    unite,
)
from evomerge.ledger.tail import (
    COLUMNS,
    Line,
    append,
    close,
    is_open,
    is_tail,
    lines_of,
    read_lines,
)

_FULL = 1 << 22  # bytes of a tail that becomes a segment
_SMALL = 1 << 16  # rows of a segment that is large enough to be left alone
_MANY = 64  # small segments that are united to one
_CACHED = 8  # row groups held in memory


@dataclass(frozen=True)
class Answer:
    """What one model answered to one item, and what it was worth.

    Attributes:
        task: name of the task.
        item: hash of the item's content, see `item_digest`.
        settings: hash of whatever else the answer depends on.
        score: plain score in [0, 1].
        loglik: mean log-likelihood a token (nats) of the gold answer; NaN if not asked for.
        text: the answer.
        tokens: its length.
    """

    task: str
    item: str
    settings: str
    score: float
    loglik: float
    text: str
    tokens: int


Key = tuple[str, str, str]
"""Recipe digest, task and settings."""
Run = tuple[str, int, int]
"""File, first row and the row behind the last; of a tail bytes."""


class Ledger:
    """Answers by (recipe digest, task, item, settings) in a folder that studies may share.

    In memory is only where each recipe's rows lie; the rows are read when they are asked for.
    Reading takes no lock. Writing does, for the moment that it takes, so several studies can
    append to one ledger in turns; what the others add is seen when a ledger is opened. What is
    appended goes to a tail, which becomes a Parquet segment when it is full or settled.
    """

    def __init__(self, folder: Path, wait: float = 60.0) -> None:
        """Opens a ledger, or makes an empty one.

        Args:
            folder: of the ledger alone.
            wait: seconds that a write waits for other writers.

        Raises:
            ConfigError: if the folder is a file, holds other things or cannot be written.
            JournalError: if a segment is damaged; names it.
        """
        check_folder(folder)
        self.folder = folder
        self._wait = wait
        self._tidied = False
        self._lock: Any = None
        self._tail: str | None = None
        self._rows: dict[str, int] = {}
        self._runs: dict[Key, list[Run]] = {}
        self._cache: dict[tuple[str, int], Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._scan()

    def __len__(self) -> int:
        """Rows."""
        return sum(self._rows.values())

    def holds(self, settings: Iterable[str]) -> bool:
        """Whether there is any answer under some of these settings."""
        wanted = set(settings)
        return any(key[2] in wanted for key in self._runs)

    def known(self, digest: str, task: str, settings: str) -> dict[str, Answer]:
        """A recipe's answers to a task by item, in the order in which they came.

        Raises:
            JournalError: if a segment is damaged; names it.
        """
        key = (digest, task, settings)
        while True:
            try:
                runs = sorted(self._runs.get(key, ()))
                rows = [row for run in runs for row in self._read(*run)]
                break
            except FileNotFoundError:  # another study has united segments
                self._scan()
        out: dict[str, Answer] = {}
        for item, *values in rows:
            answer = Answer(task, item, settings, *values)
            before = out.get(item)
            if before is None or (math.isnan(before.loglik) and not math.isnan(answer.loglik)):
                out[item] = answer
        return out

    def answers(self, digest: str, task: str, settings: str) -> dict[str, float]:
        """A recipe's scores on a task by item; see `known`."""
        return {item: a.score for item, a in self.known(digest, task, settings).items()}

    def append(self, digest: str, answers: Sequence[Answer]) -> None:
        """Adds a recipe's answers; they are on the disk when it returns.

        Raises:
            JournalError: if other writers hold the ledger for too long.
            EvomergeError: if the disk is full or fails; nothing is added then.
        """
        if not answers:
            return
        lines = lines_of([{"digest": digest, **vars(answer)} for answer in answers])
        with self._writing():
            name = self._open_tail()
            if self._size(name) >= _FULL:
                self._roll(name)
                name = new_tail(self.folder)
            places = append(self.folder / name, lines)
            self._tail = name
        for line, (begin, end) in zip(lines, places, strict=True):
            self._note(line, name, begin, end)

    def settle(self) -> None:
        """Makes the tail a Parquet segment, for readers that know nothing else.

        Raises:
            JournalError: if other writers hold the ledger for too long.
            EvomergeError: if the disk is full or fails; nothing is lost then.
        """
        if not any(is_tail(name) for name in listed(self.folder)):
            return
        with self._writing():
            self._roll(self._open_tail())

    def _open_tail(self) -> str:
        """The tail that is written to, whoever began it; it may not be there yet."""
        if self._tail is None or not (self.folder / self._tail).exists():
            tails = [name for name in listed(self.folder) if is_open(name)]
            self._tail = tails[-1] if tails else new_tail(self.folder)
        return self._tail

    def _size(self, name: str) -> int:
        path = self.folder / name
        return path.stat().st_size if path.exists() else 0

    def _roll(self, name: str) -> None:
        """Makes the tail a segment, and those that a killed writer left half way."""
        if self._size(name):
            close(self.folder / name)
            self._forget({name})
        for tail in segment_rows(self.folder):
            if is_tail(tail) and not is_open(tail):
                self._swap([tail])
        self._unite()

    def _unite(self) -> None:
        """Unites small neighbours, whoever wrote them, where there are many."""
        if sum(self._rows.get(name, 0) < _SMALL for name in listed(self.folder)) < _MANY:
            return
        remove_leftovers(self.folder)
        found = segment_rows(self.folder)
        stretches = groupby(found, key=lambda name: found[name] < _SMALL and not is_tail(name))
        small = max((list(names) for fit, names in stretches if fit), key=len, default=[])
        if len(small) >= _MANY:
            self._swap(small)

    def _swap(self, names: Sequence[str]) -> None:
        """Writes one segment in the place of files."""
        whole = unite(self.folder, names)
        self._forget(names)
        self._add(whole)

    def _forget(self, names: Collection[str]) -> None:
        gone = set(names)
        for key, runs in list(self._runs.items()):
            self._runs[key] = [run for run in runs if run[0] not in gone]
        self._rows = {name: n for name, n in self._rows.items() if name not in gone}
        self._cache.clear()

    def _scan(self) -> None:
        """Finds out anew where everything lies."""
        while True:
            self._rows, self._runs, self._cache = {}, {}, {}
            with contextlib.suppress(FileNotFoundError):
                for name in segment_rows(self.folder):
                    self._add(name)
                return

    def _add(self, name: str) -> None:
        if is_tail(name):
            self._rows[name], begin = 0, 0
            for line, size in read_lines(self.folder / name):
                self._note(line, name, begin, begin + size)
                begin += size
            return
        rows = 0
        for key, begin, end in key_runs(self.folder / name):
            self._runs.setdefault(key, []).append((name, begin, end))
            rows = end
        self._rows[name] = rows

    def _note(self, line: Line, name: str, begin: int, end: int) -> None:
        """Notes where a line of a tail lies."""
        key = line["digest"], line["task"], line["settings"]
        self._runs.setdefault(key, []).append((name, begin, end))
        self._rows[name] = self._rows.get(name, 0) + len(line["item"])

    def _read(self, name: str, begin: int, end: int) -> list[tuple[Any, ...]]:
        """Rows `begin` to `end` of a segment, in the order of `COLUMNS`; of a tail bytes."""
        rows: list[tuple[Any, ...]] = []
        if is_tail(name):
            for line, _ in read_lines(self.folder / name, begin, end):
                rows += zip(*(line[column] for column in COLUMNS), strict=True)
            return rows
        for group in range(begin // GROUP, (end - 1) // GROUP + 1):
            table = self._group(name, group)
            low = max(begin - group * GROUP, 0)
            part = table.slice(low, min(end - group * GROUP, GROUP) - low)
            rows += zip(*(part.column(name).to_pylist() for name in COLUMNS), strict=True)
        return rows

    def _group(self, name: str, group: int) -> Any:
        """A row group; the last few are kept, since a repeated study asks in the same order."""
        key = (name, group)
        table = self._cache.pop(key, None)
        if table is None:
            table = read(self.folder / name, COLUMNS, [group])
        self._cache[key] = table
        while len(self._cache) > _CACHED:
            self._cache.pop(next(iter(self._cache)))
        return table

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Holds the ledger for one writer, who finds it tidy."""
        from filelock import FileLock, Timeout

        if self._lock is None:
            self._lock = FileLock(self.folder / ".lock", timeout=self._wait)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise JournalError.of(
                f"ledger={self.folder}", f"another writer for {self._wait:g} seconds",
                "writers that take turns", "Run the same command again to go on, or end the "
                "process that hangs with the ledger in its hands.",
            ) from error  # fmt: skip
        try:
            if not self._tidied:
                remove_leftovers(self.folder)
                self._tidied = True
            yield
        finally:
            self._lock.release()
