"""Statistics of weights that a search needs again and again, kept on disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from evomerge.kernels.cache import cache_folder

Arrays = dict[str, NDArray[np.generic]]

_WAITING = 64 << 20
"""Bytes of new statistics that are held before they are written."""


class Statistics:
    """Remembers arrays by kind and by the weights that they were computed from.

    A member is `fingerprint:tensor`. There is a folder for every kind and list of
    fingerprints; each worker adds files to it and reads those of the others, so that a
    statistic is computed once. Files are never changed, and damaged ones are passed over.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Uses `statistics` in the cache folder unless another is given."""
        self._root = folder or cache_folder() / "statistics"
        self._known: dict[Path, dict[str, list[tuple[Any, str]]]] = {}
        self._new: dict[Path, dict[str, Arrays]] = {}
        self._size = 0

    def recall(self, kind: str, members: tuple[str, ...], compute: Callable[[], Arrays]) -> Arrays:
        """What was computed before for these weights, else what `compute` gives."""
        prints, names = zip(*(m.split(":", 1) for m in members), strict=True)
        key = hashlib.sha256("\0".join(prints).encode()).hexdigest()[:32]
        folder, entry = self._root / f"{kind}-{key}", "|".join(names)
        waiting = self._new.get(folder, {})
        if entry in waiting:
            return waiting[entry]
        if folder not in self._known:
            self._known[folder] = _entries(folder)
        found = self._known[folder].get(entry)
        if found:
            return {key.rpartition("/")[2]: handle.get_tensor(key) for handle, key in found}
        made = compute()
        self._new.setdefault(folder, {})[entry] = made
        self._size += sum(v.nbytes for v in made.values())
        if self._size > _WAITING:
            self.flush()
        return made

    def flush(self) -> None:
        """Writes what is new; where that fails it is forgotten and computed again."""
        for folder, entries in self._new.items():
            try:
                _write(folder, entries)
            except OSError:
                continue
            self._known[folder] = _entries(folder)
        self._new, self._size = {}, 0


def _entries(folder: Path) -> dict[str, list[tuple[Any, str]]]:
    """Entries of all files of a folder: the open file and the name of each array."""
    out: dict[str, list[tuple[Any, str]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            handle = safe_open(str(path), framework="numpy")
            keys = list(handle.keys())
        except (OSError, SafetensorError):
            continue
        here: dict[str, list[tuple[Any, str]]] = {}
        for key in keys:
            here.setdefault(key.rpartition("/")[0], []).append((handle, key))
        out = here | out
    return out


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
