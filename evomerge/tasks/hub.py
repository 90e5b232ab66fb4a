"""Reads a Hugging Face dataset: from the hub, a folder of files, or a saved copy.

Code that a dataset may bring along is never run.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from evomerge.errors import TaskError
from evomerge.tasks.readers import Row, as_text

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_MEDIA = ("Audio", "Image", "Video", "Pdf")


def read_dataset(
    path: str, config: str | None, split: str | None, revision: str | None, field: str
) -> list[Row]:
    """The rows of one split of a dataset, columns of images and sound left out.

    Args:
        path: a folder made by `save_to_disk`, another folder that `datasets.load_dataset` can
            read, or a name on the hub such as "openai/gsm8k".
        config: the dataset's configuration, such as "main"; None for its default.
        split: the dataset's split; may be None if there is only one.
        revision: branch, tag or commit on the hub.
        field: config key of the source, to blame.

    Raises:
        TaskError: the dataset cannot be found or read, or the split is missing or ambiguous.
    """
    if path.endswith(".py"):
        raise TaskError.of(
            f"{field}.path", repr(path), "data, not code", "Give the dataset's files instead."
        )
    if not Path(path).exists() and _HUB_NAME.fullmatch(path) is None:
        raise TaskError.of(
            f"{field}.path",
            f"no folder {path!r}",
            "an existing file or folder, or the name of a dataset on the Hugging Face hub",
            f"Set {field}.path (relative paths start in {Path.cwd()}).",
        )
    try:
        data = _load(path, config, split, revision)
    except Exception as error:  # `datasets` raises many kinds, none common to all
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise TaskError.of(
            f"{field}.path",
            f"{path!r}, which could not be loaded as a dataset ({reason[:300]})",
            "a local file or folder, or the name of a dataset on the Hugging Face hub",
            f"Check {field}.path, .config, .split and .revision, and, for the hub, the network. A "
            "dataset that brings a script is not run; its revision refs/convert/parquet may serve.",
        ) from error
    if isinstance(data, dict):
        data = _only(data, split, field)
    media = [name for name, kind in data.features.items() if type(kind).__name__ in _MEDIA]
    rows = data.remove_columns(media) if media else data
    return [{key: as_text(cell) for key, cell in row.items()} for row in rows]


def _load(path: str, config: str | None, split: str | None, revision: str | None) -> Any:
    import datasets

    folder = Path(path)
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return datasets.load_from_disk(path)
    options: dict[str, Any] = {}
    if "trust_remote_code" in inspect.signature(datasets.load_dataset).parameters:
        options["trust_remote_code"] = False  # datasets < 4 could run scripts
    return datasets.load_dataset(path, name=config, split=split, revision=revision, **options)


def _only(data: dict[str, Any], split: str | None, field: str) -> Any:
    """The split asked for, or the single one that there is."""
    if split is None and len(data) == 1:
        return next(iter(data.values()))
    if split is None or split not in data:
        raise TaskError.of(
            f"{field}.split",
            repr(split),
            "one of the dataset's splits: " + ", ".join(data),
            f"Set {field}.split to one of them.",
        )
    return data[split]
