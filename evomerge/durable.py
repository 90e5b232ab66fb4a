"""Files that are whole and on the disk, or not there at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from evomerge.errors import EvomergeError


def write_atomic(path: Path, text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
        EvomergeError: if the disk is full or fails.
    """
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def extend(path: Path, end: int, data: bytes) -> None:
    """Adds bytes behind the first `end` of a file, which may be new; they are then on the disk.

    What stands behind `end` is cut off.

    Raises:
        EvomergeError: if the disk is full or fails; the file ends at `end` then.
    """
    try:
        with path.open("ab") as file:
            file.truncate(end)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if end == 0:
            sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, end)
        raise disk_error(path, error) from error


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path` once it is whole and on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from error


def sync_directory(path: Path) -> None:
    """Waits until the names in a directory are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_error(path: Path, error: OSError) -> EvomergeError:
    """What is told of a write that failed."""
    return EvomergeError(
        f"{path}: could not be written ({error}). The journal is intact; free some space "
        "and run the same command again to go on."
    )
