"""mergekit in an environment of its own."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from evomerge.kernels.cache import cache_folder

PINS = Path(__file__).with_name("mergekit.txt")


def mergekit_python(given: Path | None) -> Path:
    """An interpreter that has mergekit.

    Args:
        given: taken as it is; without one an environment is made below the cache folder, once
            for each version of the pins. `pip` follows its own settings (`PIP_EXTRA_INDEX_URL`
            chooses torch's CPU builds).
    """
    if given is not None:
        return given
    digest = hashlib.sha256(PINS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache_folder() / "parity" / f"mergekit-{digest}"
    binary = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    python = folder / binary
    ready = folder / "complete"
    if ready.exists():
        return python
    print(f"making {folder} for mergekit; this takes some minutes", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*command, "-r", str(PINS)], check=True)
    ready.touch()
    return python
