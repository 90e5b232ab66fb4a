"""Which loops carry out a merge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.kernels.native import NativeLoops, library
from evomerge.kernels.torch_loops import TorchLoops

Loops = NativeLoops | TorchLoops

_NATIVE = (torch.float32, torch.bfloat16, torch.float16)
_TORCH = TorchLoops()


def loops_for(tensors: Sequence[Tensor | None]) -> Loops:
    """The compiled loops for contiguous CPU tensors of the common dtypes, else torch's."""
    compiled = library()
    if compiled is not None and all(
        t is None or (t.device.type == "cpu" and t.dtype in _NATIVE and t.is_contiguous())
        for t in tensors
    ):
        return NativeLoops(compiled)
    return _TORCH


def native_available() -> bool:
    """Whether there is a C compiler that works."""
    return library() is not None
