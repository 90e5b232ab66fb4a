"""The ledger that studies read from and append to."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
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
    read,
    remove_leftovers,
    segment_rows,
    unite,
    write,
)

_COLUMNS = ("item", "score", "loglik", "text", "tokens")
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


class Ledger:
    """Answers by (recipe digest, task, item, settings) in a folder that studies may share.

    In memory is only where each recipe's rows lie; the rows are read when they are asked for.
    Reading takes no lock. Writing does, for the moment that it takes, so several studies can
    append to one ledger in turns; what the others add is seen when a ledger is opened.
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
        self._rows: dict[str, int] = {}
        self._runs: dict[tuple[str, str, str], list[tuple[str, int, int]]] = {}
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
        columns: dict[str, list[Any]] = {
            name: [getattr(a, name) for a in answers] for name in ("task", "settings", *_COLUMNS)
        }
        with self._writing():
            if not self._tidied:
                remove_leftovers(self.folder)
                self._tidied = True
            self._add(write(self.folder, {"digest": [digest] * len(answers), **columns}))
            self._unite()

    def _unite(self) -> None:
        """Unites small neighbours, whoever wrote them, where there are many."""
        if sum(self._rows.get(name, 0) < _SMALL for name in listed(self.folder)) < _MANY:
            return
        remove_leftovers(self.folder)
        found = segment_rows(self.folder)
        stretches = groupby(found, key=lambda name: found[name] < _SMALL)
        small = max((list(names) for fit, names in stretches if fit), key=len, default=[])
        if len(small) < _MANY:
            return
        whole = unite(self.folder, small)
        gone = set(small)
        for key, runs in list(self._runs.items()):
            self._runs[key] = [run for run in runs if run[0] not in gone]
        self._rows = {name: n for name, n in self._rows.items() if name not in gone}
        self._cache.clear()
        self._add(whole)

    def _scan(self) -> None:
        """Finds out anew where everything lies."""
        while True:
            self._rows, self._runs, self._cache = {}, {}, {}
            with contextlib.suppress(FileNotFoundError):
                for name in segment_rows(self.folder):
                    self._add(name)
                return

    def _add(self, name: str) -> None:
        rows = 0
        for key, begin, end in key_runs(self.folder / name):
            self._runs.setdefault(key, []).append((name, begin, end))
            rows = end
        self._rows[name] = rows

    def _read(self, name: str, begin: int, end: int) -> list[tuple[Any, ...]]:
        """Rows `begin` to `end` of a segment, in the order of `_COLUMNS`."""
        rows: list[tuple[Any, ...]] = []
        for group in range(begin // GROUP, (end - 1) // GROUP + 1):
            table = self._group(name, group)
            low = max(begin - group * GROUP, 0)
            part = table.slice(low, min(end - group * GROUP, GROUP) - low)
            rows += zip(*(part.column(name).to_pylist() for name in _COLUMNS), strict=True)
        return rows

    def _group(self, name: str, group: int) -> Any:
        """A row group; the last few are kept, since a repeated study asks in the same order."""
        key = (name, group)
        table = self._cache.pop(key, None)
        if table is None:
            table = read(self.folder / name, _COLUMNS, [group])
        self._cache[key] = table
        while len(self._cache) > _CACHED:
            self._cache.pop(next(iter(self._cache)))
        return table

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Holds the ledger for one writer."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / ".lock", timeout=self._wait)
        try:
            lock.acquire()
        except Timeout as error:
            raise JournalError.of(
                f"ledger={self.folder}", f"another writer for {self._wait:g} seconds",
                "writers that take turns", "Run the same command again to go on, or end the "
                "process that hangs with the ledger in its hands.",
            ) from error  # fmt: skip
        try:
            yield
        finally:
            lock.release()
