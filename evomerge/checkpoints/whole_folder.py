"""Writes a folder whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError

from evomerge.errors import EvomergeError, UserError


def check_free(out: Path) -> None:
    """Checks that a path is free.

    Raises:
        UserError: if something is there.
    """
    if out.exists() or out.is_symlink():
        raise UserError.of(
            str(out),
            "an existing file or directory",
            "a path that is free",
            "Remove it or choose another.",
        )


@contextlib.contextmanager
def whole_folder(out: Path, texts: Mapping[str, str]) -> Iterator[Path]:
    """A temporary folder that becomes `out` once it is complete and on the disk.

    Args:
        out: must not exist.
        texts: text files that are added at the end, name to content.

    Raises:
        EvomergeError: if the disk fills or fails; nothing is left behind then.
    """
    temporary = None
    made = [folder for folder in out.absolute().parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        yield temporary
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        temporary.chmod(0o755)  # temporary directories and files are private
        for file in temporary.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
            if file.is_file():
                _sync(file)
        os.replace(temporary, out)
    except (OSError, SafetensorError) as error:
        raise EvomergeError(
            f"{out}: could not be written ({error}). Nothing was left behind; "
            "free some space and run the same command again."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if not out.exists():
            _remove_empty(made)


def _remove_empty(folders: Iterable[Path]) -> None:
    """Removes folders, the innermost first, up to one that another has put something into."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _sync(file: Path) -> None:
    """Waits until a file is on the disk."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
