"""Which loops carry out a merge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.kernels.compiled_loops import CompiledLoops, compiled_loops
from evomerge.kernels.native import NativeLoops, library
from evomerge.kernels.torch_loops import TorchLoops

Loops = NativeLoops | CompiledLoops | TorchLoops

_NATIVE = (torch.float32, torch.bfloat16, torch.float16)
_TORCH = TorchLoops()


def loops_for(tensors: Sequence[Tensor | None]) -> Loops:
    """The compiled loops for contiguous tensors of the common dtypes, else torch's.

    Those are C's on a CPU and torch.compile's on a GPU.
    """
    given = [t for t in tensors if t is not None]
    if not all(t.dtype in _NATIVE and t.is_contiguous() for t in given):
        return _TORCH
    devices = {t.device.type for t in given}
    if devices == {"cuda"}:
        return compiled_loops("cuda") or _TORCH
    compiled = library() if devices == {"cpu"} else None
    return _TORCH if compiled is None else NativeLoops(compiled)


def native_available() -> bool:
    """Whether there is a C compiler that works."""
    return library() is not None
