"""Small real models of the Llama architecture, made to be merged in minutes on a laptop.

This module imports nothing heavy: it only says where the files of the zoo are.
"""

from __future__ import annotations

from pathlib import Path

SOURCES = ("math", "japanese", "sorter")
"""The specialists, in the order in which every table and search lists them."""

TASKS = ("jp_math", "en_math", "polite", "sort", "greatest", "how_many", "final", "who", "undo")
"""The tasks of the zoo; the first is the one that no source can do, the last five are skills."""


def zoo_path(rel: str) -> Path:
    """Absolute path of a file of the zoo, such as `models/base` or `data/sort.jsonl`."""
    return Path(__file__).resolve().parent / rel
