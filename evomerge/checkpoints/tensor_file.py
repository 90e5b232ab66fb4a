"""Writes safetensors files tensor by tensor, so that no file has to fit into memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from evomerge.checkpoints.merged import DTYPE_NAMES
from evomerge.checkpoints.merger import Pending
from evomerge.errors import EvomergeError

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: its name, shape and dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size of its values."""
        size = self.dtype.itemsize
        for n in self.shape:
            size *= n
        return size


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
        EvomergeError: if a tensor is not finite.
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
                dtype = str(entry.dtype).removeprefix("torch.")
                raise EvomergeError(
                    f"{entry.name} of the merged model is not finite in {dtype} ({bad} values)"
                )
            file.write(out.reshape(-1).view(torch.uint8).numpy().data)
