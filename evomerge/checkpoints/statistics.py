"""Statistics of weights that a search needs again and again, kept on disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from evomerge.kernels.cache import cache_folder

Arrays = dict[str, NDArray[np.generic]]

_WAITING = 64 << 20
"""Bytes of new statistics that are held before they are written."""


_VERSION = 3
"""To be raised whenever a statistic of one kind is computed in another way."""


class Statistics:
    """Remembers arrays by kind and by the weights that they were computed from.

    A member is `fingerprint:tensor`. There is a folder for every kind and list of
    fingerprints; each worker adds files to it and reads those of the others, so that a
    statistic is computed once. Files are never changed, and damaged ones are passed over.
    May be used by several threads.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Uses `statistics` in the cache folder unless another is given."""
        self._root = folder or cache_folder() / "statistics"
        self._known: dict[Path, _Folder] = {}
        self._new: dict[Path, dict[str, Arrays]] = {}
        self._size = 0
        self._lock = Lock()

    def recall(self, kind: str, members: tuple[str, ...], compute: Callable[[], Arrays]) -> Arrays:
        """What was computed before for these weights, else what `compute` gives."""
        prints, names = zip(*(m.split(":", 1) for m in members), strict=True)
        text = "\0".join([str(_VERSION), *prints])
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        folder, entry = self._root / f"{kind}-{key}", "|".join(names)
        with self._lock:
            waiting = self._new.get(folder, {})
            if entry in waiting:
                return waiting[entry]
            found = self._known.setdefault(folder, _Folder(folder)).get(entry)
        if found is not None:
            return found
        made = compute()  # not under the lock: other threads may work on it
        with self._lock:
            self._new.setdefault(folder, {})[entry] = made
            self._size += sum(v.nbytes for v in made.values())
            full = self._size > _WAITING
        if full:
            self.flush()
        return made

    def flush(self) -> None:
        """Writes what is new; where that fails it is forgotten and computed again."""
        with self._lock:
            new, self._new, self._size = self._new, {}, 0
            for folder, entries in new.items():
                try:
                    _write(folder, entries)
                except (OSError, SafetensorError):  # the latter if the disk fills
                    continue


class _Folder:
    """The files of one folder, opened as they appear."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: set[str] = set()
        self._entries: dict[str, list[tuple[Any, str]]] = {}

    def get(self, entry: str) -> Arrays | None:
        """The arrays of an entry; looks for new files if it is not known."""
        if entry not in self._entries:
            self._look()
        found = self._entries.get(entry)
        if not found:
            return None
        try:
            return {key.rpartition("/")[2]: handle.get_tensor(key) for handle, key in found}
        except (OSError, SafetensorError):
            del self._entries[entry]
            return None

    def _look(self) -> None:
        try:
            names = sorted(n for n in os.listdir(self._path) if n.endswith(".safetensors"))
        except OSError:
            return
        for name in names:
            if name not in self._seen:
                self._seen.add(name)
                self._open(self._path / name)

    def _open(self, path: Path) -> None:
        try:
            handle = safe_open(str(path), framework="numpy")
            keys = list(handle.keys())
        except (OSError, SafetensorError):
            return
        here: dict[str, list[tuple[Any, str]]] = {}
        for key in keys:
            here.setdefault(key.rpartition("/")[0], []).append((handle, key))
        self._entries = here | self._entries


def _write(folder: Path, entries: dict[str, Arrays]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{entry}/{name}": np.ascontiguousarray(array)
        for entry, made in entries.items()
        for name, array in made.items()
    }
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".new-")
    os.close(descriptor)
    try:
        save_file(arrays, temporary)
        os.replace(temporary, folder / f"{Path(temporary).name[5:]}.safetensors")
    finally:
        Path(temporary).unlink(missing_ok=True)
