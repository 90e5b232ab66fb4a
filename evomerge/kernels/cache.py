"""Where things are kept that can be computed again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`EVOMERGE_CACHE`, or `evomerge` below the user's cache folder."""
    named = os.environ.get("EVOMERGE_CACHE")
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "evomerge"
