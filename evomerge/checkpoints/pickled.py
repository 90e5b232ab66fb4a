"""Pickled weights, through torch's weights-only loader and its memory map alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from evomerge.checkpoints.files import Complaint

_SPELLING = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


class PickledFile:
    """Opens one file of `torch.save`; the tensors are views into its memory map.

    The file is never run: the loader knows tensors and plain containers and refuses all else.

    Attributes:
        shapes: tensor names to shapes, in the order of the file.
    """

    def __init__(self, path: Path, complain: Complaint) -> None:
        """Reads the names and shapes.

        Raises:
            SourceError: if it is damaged, of the format before torch 1.6 (which cannot be
                mapped), asks for code to be run or holds anything but dense tensors.
        """
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # the loader raises many unrelated types
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise complain(
                f"{path.name} is refused by torch's weights-only loader ({reason})",
                "tensors alone, saved by torch 1.6 or later",
            ) from error
        if not isinstance(content, Mapping):
            raise complain(f"{path.name} holds a {type(content).__name__}", "tensors by name")
        self._tensors: dict[str, Tensor] = {}
        for name, tensor in content.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise complain(
                    f"{path.name} has a {type(tensor).__name__} at {name!r}", "tensors by name"
                )
            if tensor.layout != torch.strided or tensor.dtype not in _SPELLING:
                raise complain(
                    f"{path.name} has {name} of layout {tensor.layout} and {tensor.dtype}",
                    "dense tensors of a usual dtype",
                )
            self._tensors[name] = tensor.detach()
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """One tensor; copied only if the file has it strided."""
        return self._tensors[name].contiguous()

    def view(self, name: str) -> Tensor:
        """One tensor as the file has it."""
        return self._tensors[name]

    def dtype(self, name: str) -> str:
        """As safetensors would spell it."""
        return _SPELLING[self._tensors[name].dtype]


@dataclass(frozen=True)
class Strided:
    """A tensor that is not contiguous in memory; only the rows asked for are copied.

    Attributes:
        tensor: of any strides.
    """

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's."""
        return self.tensor.dtype

    def read(self, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor."""
        tensor = self.tensor
        while tensor.dim() > 1 and tensor.shape[0] == 1:
            tensor = tensor[0]
        if tensor.dim() < 2:
            return tensor.reshape(-1)[start:stop].contiguous()  # flattening may be a view
        row = prod(tensor.shape[1:])
        first, last = start // row, -(-stop // row)
        rows = tensor[first:last].reshape(-1)
        return rows[start - first * row : stop - first * row].contiguous()


def aliases(tensors: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Names that stand for the very same elements in memory, in groups of two or more."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
            groups.setdefault(key, []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]
