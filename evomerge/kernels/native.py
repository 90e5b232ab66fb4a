"""Compiles `merge.c` with the machine's own compiler, once, and calls it."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from evomerge.kernels.cache import cache_folder
from evomerge.kernels.masks import MaskKey
from evomerge.kernels.select import SHIFT, Band
from evomerge.kernels.torch_loops import LEVELS

_SOURCE = Path(__file__).with_name("merge.c")
_FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-ffp-contract=off", "-fno-math-errno",
          "-fno-trapping-math", "-Wno-psabi")  # fmt: skip
_TUNING = (
    ("-march=native", "-mprefer-vector-width=512"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ALL, _BITS, _BAND = 0, 1, 2

_Pointer, _Int, _Long, _Float = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_Word, _Key = ctypes.c_uint32, ctypes.c_uint64


@cache
def library() -> ctypes.CDLL | None:
    """The compiled loops, or None where there is no working C compiler.

    `EVOMERGE_KERNELS=torch` does without them. The library is kept in the cache folder under
    a name made of the source, the compiler and the processor.
    """
    if os.environ.get("EVOMERGE_KERNELS", "auto") == "torch":
        return None
    compiler = shlex.split(os.environ.get("CC", "")) or next(
        ([c] for c in ("cc", "gcc", "clang") if shutil.which(c)), []
    )
    if not compiler or shutil.which(compiler[0]) is None:
        _without(f"no C compiler {compiler[0] if compiler else 'cc'}")
        return None
    try:
        file = cache_folder() / "kernels" / f"merge-{_key(compiler)}.so"
        if not file.is_file():
            _compile(compiler, file)
        try:
            loaded = ctypes.CDLL(str(file))
        except OSError:  # a damaged file
            _compile(compiler, file)
            loaded = ctypes.CDLL(str(file))
    except (OSError, subprocess.SubprocessError) as error:
        _without(str(error))
        return None
    for name in ("combine", "thin", "non_finite", "gram"):
        getattr(loaded, f"evomerge_{name}").restype = _Long
    for name in ("chance", "ranked", "band_sums", "histogram", "gather", "row_table"):
        getattr(loaded, f"evomerge_{name}").restype = None
    return loaded


def _without(reason: str) -> None:
    """Says once that merging will be slow."""
    logging.getLogger(__name__).warning(
        "merging without compiled loops, several times slower: %s", reason
    )


def _key(compiler: Sequence[str]) -> str:
    """Hash of what the compiled code depends on."""
    processor = platform.processor() + platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(errors="replace").splitlines()
        processor += "".join(x for x in dict.fromkeys(lines) if x.startswith(("flags", "Features")))
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    parts = (_SOURCE.read_text(), repr(compiler), repr(_FLAGS), repr(_TUNING), version, processor)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _compile(compiler: Sequence[str], file: Path) -> None:
    """Compiles into a temporary file and renames it, so that workers may race."""
    file.parent.mkdir(parents=True, exist_ok=True)
    last: subprocess.CalledProcessError | None = None
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / "merge.so"
        for tuning in _TUNING:
            command = [*compiler, *_FLAGS, *tuning, str(_SOURCE), "-o", str(made)]
            try:
                subprocess.run(command, capture_output=True, timeout=300, check=True)
            except subprocess.CalledProcessError as error:
                last = error
                continue
            os.replace(made, file)
            return
    raise OSError(f"{' '.join(compiler)} cannot compile {_SOURCE.name}: {last}")


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (_Pointer * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


def _types(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_int]:
    return (_Int * len(tensors))(*(_TYPES[t.dtype] for t in tensors))


def _one(tensor: Tensor | None) -> tuple[ctypes.c_void_p, ctypes.c_int]:
    if tensor is None:
        return _Pointer(None), _Int(0)
    return _Pointer(tensor.data_ptr()), _Int(_TYPES[tensor.dtype])


class NativeLoops:
    """The loops on CPU tensors of float32, bfloat16 and float16; see `TorchLoops` for each."""

    def __init__(self, compiled: ctypes.CDLL) -> None:
        self._c = compiled

    def combine(
        self,
        out: Tensor,
        xs: Sequence[Tensor],
        coefficients: Tensor,
        offset: float,
        start: int,
        row_length: int,
    ) -> int:
        return int(
            self._c.evomerge_combine(
                *_one(out), _Long(out.numel()), _Long(start), _Int(len(xs)), _pointers(xs),
                _types(xs), _Pointer(coefficients.data_ptr()),
                _Long(row_length if coefficients.dim() == 2 else 0), _Float(offset),
            )
        )  # fmt: skip

    def thin(
        self,
        out: Tensor,
        base: Tensor,
        xs: Sequence[Tensor],
        factors: Sequence[float],
        weights: Sequence[float],
        keeps: Sequence[Tensor | Band | None],
        scale: float,
        normalize: bool,
        consensus: bool,
        least: float,
        start: int,
    ) -> int:
        m = len(xs)
        modes: list[int] = [_ALL] * m
        words: list[Tensor | None] = [None] * m
        ends, limits = [0.0] * (4 * m), [0] * (2 * m)
        for i, keep in enumerate(keeps):
            if isinstance(keep, Tensor):
                modes[i], words[i] = _BITS, keep
            elif keep is not None:
                inner, outer = keep
                modes[i] = _BAND
                ends[4 * i : 4 * i + 4] = *inner[:2], *outer[:2]
                limits[2 * i : 2 * i + 2] = inner[2], outer[2]
        return int(
            self._c.evomerge_thin(
                *_one(out), _Long(out.numel()), _Long(start), _Int(m), *_one(base), _pointers(xs),
                _types(xs), (_Float * m)(*factors), (_Float * m)(*weights), (_Int * m)(*modes),
                (_Float * (4 * m))(*ends), (_Word * (2 * m))(*limits), _pointers(words),
                _Float(scale), _Int(normalize), _Int(consensus), _Float(least),
            )
        )  # fmt: skip

    def chance(
        self, key: MaskKey, limit: int, base: Tensor, x: Tensor, start: int, sums: bool
    ) -> tuple[Tensor, float, float]:
        words = torch.empty((x.numel() + 31) // 32, dtype=torch.int32)
        two = (ctypes.c_double * 2)()
        self._c.evomerge_chance(
            _Pointer(words.data_ptr()), _Long(x.numel()), _Long(start), _Key(key.state() % 2**64),
            _Word(limit), *_one(base), *_one(x), two if sums else None,
        )  # fmt: skip
        return words, two[0], two[1]

    def ranked(
        self,
        key: MaskKey,
        low: float,
        inverse_step: float,
        levels: int,
        table: Tensor,
        row_length: int,
        base: Tensor,
        x: Tensor,
        start: int,
        sums: bool,
    ) -> tuple[Tensor, float, float]:
        words = torch.empty((x.numel() + 31) // 32, dtype=torch.int32)
        two = (ctypes.c_double * 2)()
        self._c.evomerge_ranked(
            _Pointer(words.data_ptr()), _Long(x.numel()), _Long(start), _Key(key.state() % 2**64),
            _Float(low), _Float(inverse_step), _Int(levels), _Pointer(table.data_ptr()),
            _Long(row_length), *_one(base), *_one(x), two if sums else None,
        )  # fmt: skip
        return words, two[0], two[1]

    def band_sums(
        self,
        band: Band,
        base: Tensor,
        x: Tensor,
        start: int,
    ) -> tuple[float, float]:
        two = (ctypes.c_double * 2)()
        inner, outer = band
        self._c.evomerge_band_sums(
            _Long(x.numel()), _Long(start), *_one(base), *_one(x),
            (_Float * 4)(*inner[:2], *outer[:2]), (_Word * 2)(inner[2], outer[2]), two,
        )  # fmt: skip
        return two[0], two[1]

    def histogram(self, base: Tensor | None, x: Tensor) -> Tensor:
        counts = torch.zeros(1 << (31 - SHIFT), dtype=torch.int32)
        self._c.evomerge_histogram(
            _Pointer(counts.data_ptr()), _Int(SHIFT), _Long(x.numel()), *_one(base), *_one(x)
        )
        return counts.to(torch.int64)

    def gather(
        self, bins: Sequence[int], room: Sequence[int], base: Tensor | None, xs: Sequence[Tensor]
    ) -> list[Tensor]:
        m = len(xs)
        values = [torch.empty(r, dtype=torch.float32) for r in room]
        found = (_Long * m)()
        self._c.evomerge_gather(
            _Long(xs[0].numel()), _Int(m), *_one(base), _pointers(xs), _types(xs),
            (_Word * m)(*bins), _Int(SHIFT), _pointers(values), (_Long * m)(*room), found,
        )  # fmt: skip
        return [v[:f].clone() for v, f in zip(values, found, strict=True)]

    def row_table(
        self, ranks: Sequence[int], row_length: int, base: Tensor | None, x: Tensor
    ) -> Tensor:
        rows = x.numel() // row_length
        table = torch.full((rows, LEVELS), float("inf"))
        work = torch.empty(2 * row_length, dtype=torch.int32)
        self._c.evomerge_row_table(
            _Pointer(table.data_ptr()), _Long(rows), _Long(row_length), _Int(len(ranks)),
            (_Long * len(ranks))(*ranks), *_one(base), *_one(x), _Pointer(work.data_ptr()),
        )  # fmt: skip
        return table

    def gram(self, base: Tensor | None, xs: Sequence[Tensor]) -> Tensor:
        out = torch.zeros(len(xs), len(xs), dtype=torch.float64)
        failed = self._c.evomerge_gram(
            _Pointer(out.data_ptr()), _Long(xs[0].numel()), _Int(len(xs)), *_one(base),
            _pointers(xs), _types(xs),
        )  # fmt: skip
        if failed:
            raise MemoryError(f"no memory for the dot products of {len(xs)} tensors")
        return out

    def non_finite(self, x: Tensor) -> int:
        return int(self._c.evomerge_non_finite(*_one(x), _Long(x.numel())))
