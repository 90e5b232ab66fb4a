"""Writing a file whole, and naming many things in few words."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from evomerge.errors import EvomergeError

_NAMED = 5


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is there in full or not at all.

    Raises:
        EvomergeError: if the disk is full or fails; nothing is left behind.
    """
    part = path.with_name(f".{path.name}.tmp")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise EvomergeError(f"{path}: could not be written ({error})") from error


def shown(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    every = [str(name) for name in names]
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return ", ".join(every[:_NAMED]) + more
