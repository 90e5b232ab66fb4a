"""Writes safetensors files tensor by tensor, so that no file has to fit into memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from evomerge.checkpoints.files import count_non_finite
from evomerge.checkpoints.merged import DTYPE_NAMES
from evomerge.checkpoints.merger import Pending
from evomerge.errors import EvomergeError, SourceError

INDEX = "model.safetensors.index.json"
_CHECKED = 1 << 22
"""Elements that are looked at together."""


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: its name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size of its values."""
        return self.dtype.itemsize * math.prod(self.shape)


def shards(entries: Iterable[Entry], shard_bytes: int) -> list[list[Entry]]:
    """Entries in order, as many in a file as it may hold, at least one."""
    out: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if out[-1] and size + entry.bytes > shard_bytes:
            out.append([])
            size = 0
        out[-1].append(entry)
        size += entry.bytes
    return out


def write_shards(
    folder: Path, entries: Sequence[Entry], tensors: Iterable[Pending], shard_bytes: int
) -> None:
    """Writes `model.safetensors`, or numbered files and their index.

    Args:
        folder: to write to.
        entries: what will come.
        tensors: the same, in the same order, computed as they are written.
        shard_bytes: largest size of one file's values.

    Raises:
        OSError: if the disk fills.
        SourceError: if a model's tensor has NaN or infinity.
        EvomergeError: if a merged tensor alone is not finite.
    """
    parts = shards(entries, shard_bytes)
    count = len(parts)
    files = [
        "model.safetensors" if count == 1 else f"model-{i:05d}-of-{count:05d}.safetensors"
        for i in range(1, count + 1)
    ]
    stream = iter(tensors)
    for file, part in zip(files, parts, strict=True):
        _write(folder / file, part, stream)
    for pending in stream:  # to its end, where it closes what it has open
        raise ValueError(f"{pending.name} is more than was announced")
    if count == 1:
        return
    weight_map = {e.name: file for file, part in zip(files, parts, strict=True) for e in part}
    index = {
        "metadata": {"total_size": sum(e.bytes for e in entries)},
        "weight_map": weight_map,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write(path: Path, entries: Sequence[Entry], stream: Iterator[Pending]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.bytes],
        }
        at += entry.bytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for entry in entries:
            pending = next(stream)
            out = torch.empty(entry.shape, dtype=entry.dtype)
            bad = pending.write(out)
            if bad:
                _check_inputs(pending)
                dtype = str(entry.dtype).removeprefix("torch.")
                raise EvomergeError(
                    f"{entry.name} of the merged model is not finite in {dtype} ({bad} values)"
                )
            file.write(out.reshape(-1).view(torch.uint8).numpy().data)


def _check_inputs(pending: Pending) -> None:
    """Finds the model that a NaN or an infinity comes from.

    Raises:
        SourceError: naming it, the tensor and the number of values.
    """
    for one in pending.inputs:
        weight, count = one.model.weight(one.name), 0
        size = math.prod(weight.shape)
        for at in range(0, size, _CHECKED):
            count += count_non_finite(weight.read(at, min(at + _CHECKED, size)))
        if count:
            raise SourceError.of(
                one.model.field, f"{count} values of {one.name} in {one.model.ref} that are NaN "
                "or infinite", "finite weights", "Download the model again, or leave it out.",
            )  # fmt: skip
