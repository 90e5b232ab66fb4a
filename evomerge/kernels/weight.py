"""A tensor that is read in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Weight(Protocol):
    """A tensor of a source model, never held whole unless it already is.

    Attributes:
        shape: of the tensor.
        dtype: of what `read` returns.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor, 1-D and contiguous.

        A view into the file's memory map where that is possible; never to be written to.
        """


@dataclass(frozen=True)
class Stored:
    """A tensor that lies in memory or in a memory map."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def read(self, start: int, stop: int) -> Tensor:
        return self.tensor.reshape(-1)[start:stop]


def whole(weight: Weight) -> Tensor:
    """All of a weight in its own shape."""
    count = 1
    for size in weight.shape:
        count *= size
    return weight.read(0, count).reshape(weight.shape)
