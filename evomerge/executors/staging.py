"""A cache of sources on a node's own disk: copied once, checked, mapped by all its workers."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from evomerge.checkpoints.locate import locate
from evomerge.errors import ConfigError, SourceError
from evomerge.recipe.references import is_recipe_file

if TYPE_CHECKING:
    from evomerge.checkpoints.files import WeightFiles

_LOG = logging.getLogger(__name__)
_SPARE = 100 << 20
_INDICES = ("model.safetensors.index.json", "adapter_model.safetensors.index.json")
_OTHER_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".index.json",
)  # fmt: skip
"""Files beside the weights that are not copied: the same weights in other forms."""


def content_digests(refs: Iterable[str]) -> dict[str, str]:
    """Hash of the content of every folder that model references name.

    Args:
        refs: folders, hub names, or `model+adapter`. Recipe files are left out: what they make
            is read from where it is.

    Raises:
        SourceError: if one is not there.
    """
    parts = dict.fromkeys(part for ref in refs for part in _parts(ref))
    return {part: _digest(locate(part)) for part in parts}


def stage_sources(digests: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Copies sources to a folder, unless they are there and whole.

    Several processes may call it at once: one copies, the others wait for it.

    Args:
        digests: as `content_digests` gives them.
        folder: on this machine.

    Returns:
        References to the copies' folders.

    Raises:
        ConfigError: if there is too little room or it cannot be written.
        SourceError: if a source is not there or has changed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return {ref: str(_stage(ref, digest, folder)) for ref, digest in digests.items()}
    except OSError as error:
        raise ConfigError.of(
            "executor.stage", f"{folder}: {error}", "a folder that can be written",
            "Choose another, or leave it empty.",
        ) from error  # fmt: skip


def renamed(data: Any, names: Mapping[str, str]) -> Any:
    """Plain data of a recipe with other references to the same models."""
    if isinstance(data, str):
        if data in names:
            return names[data]
        parts = _parts(data) if "+" in data else []
        return "+".join(names[p] for p in parts) if parts and all(map(names.get, parts)) else data
    if isinstance(data, Mapping):
        return {key: renamed(value, names) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [renamed(value, names) for value in data]
    return data


def _parts(ref: str) -> list[str]:
    """The folders that a reference names."""
    if is_recipe_file(ref):
        return []
    return ref.split("+") if "+" in ref and not Path(ref).is_dir() else [ref]


def _weights(folder: Path) -> WeightFiles:
    from evomerge.checkpoints import adapter, checkpoint
    from evomerge.checkpoints.files import WeightFiles

    alone = (folder / adapter.CONFIG).is_file() and not (folder / "config.json").is_file()
    names = (
        (adapter.SAFETENSORS, adapter.PICKLED)
        if alone
        else (checkpoint.SAFETENSORS, checkpoint.PICKLED)
    )
    return WeightFiles(folder, "executor.stage", str(folder), *names, False)


def _small_files(folder: Path) -> list[Path]:
    """Config, tokenizer and whatever else belongs to a model beside its weights."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and (path.name in _INDICES or not path.name.endswith(_OTHER_WEIGHTS))
    ]


def _digest(folder: Path) -> str:
    """sha256 of the weights' fingerprint and of all small files."""
    digest = hashlib.sha256(_weights(folder).fingerprint().encode())
    for path in _small_files(folder):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.name}\0{content}\n".encode())
    return digest.hexdigest()


def _stage(ref: str, digest: str, folder: Path) -> Path:
    place = folder / digest[:24]
    with FileLock(folder / f".{place.name}.lock"):
        if place.is_dir():
            if _is_whole(place, digest):
                return place
            _LOG.warning("%s is not a copy of %s any more; copying it again", place, ref)
            shutil.rmtree(place)
        source = locate(ref)
        files = [source / name for name in _weights(source).files] + _small_files(source)
        _check_room(folder, sum(path.stat().st_size for path in files))
        unfinished = folder / f".{place.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            for path in files:
                shutil.copyfile(path, unfinished / path.name)
            if not _is_whole(unfinished, digest):
                raise SourceError.of(
                    "executor.stage", f"another content of {ref} than when the study began",
                    "sources that do not change while a study runs", "Run the same command again.",
                )  # fmt: skip
            os.replace(unfinished, place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return place


def _is_whole(folder: Path, digest: str) -> bool:
    try:
        return _digest(folder) == digest
    except (SourceError, OSError):
        return False


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        raise ConfigError.of(
            "executor.stage", f"{free / 1e9:.2f} GB free in {folder}",
            f"{(needed + _SPARE) / 1e9:.2f} GB for the next source",
            "Free some space there, choose another folder or leave it empty.",
        )  # fmt: skip
