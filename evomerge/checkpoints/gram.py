"""Inner products of models on any interval of their flattened parameters."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.checkpoints.flat import FlatOrder
from evomerge.checkpoints.model import Model
from evomerge.errors import EvomergeError, SourceError
from evomerge.kernels.weight import Weight
from evomerge.types import FloatArray

BLOCK = 65536
_VECTOR_BLOCK = 1024
_CHUNK = 65536  # elements of each seed in memory at a time; float64 rows that fit a cache
_CACHED = 16384  # partial blocks: two for every breakpoint of a whole population
_FORMAT = 1
_UNREADABLE = (  # what numpy and zipfile raise for a file with wrong bits
    OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip

Report = Callable[[int, int], None]
"""Told the parameters that are done and those that there are."""


class _Rows(Protocol):
    """K vectors of `total` numbers that are read side by side."""

    count: int
    total: int

    def read(self, start: int, stop: int) -> FloatArray:
        """Numbers [start, stop) of each, a `K x (stop - start)` array."""


class PrefixGram:
    """Answers for the `K x K` Gram matrix of K seeds on any interval [a, b).

    Keeps prefix sums over fixed blocks, a `(blocks + 1) x K x K` array of float64 (7 billion
    parameters in blocks of 65536, 3 seeds: 7.7 MB), and reads from the seeds no more than
    the two blocks that an interval covers in part; these results are cached.

    Products of float32 numbers are exact in float64, in which they are summed pairwise. An
    interval that spans whole blocks has an absolute error of about 1e-16 times the blocks it
    spans times the Gram matrix of everything before its end; one within a block is read anew.

    Attributes:
        seeds: K.
        total: number of parameters.
        block: parameters in a block.
        key: hash of what the sums were made of: seeds, order of parameters, block size.
    """

    def __init__(self, rows: _Rows, prefix: FloatArray, block: int, key: str) -> None:
        self.seeds, self.total = rows.count, rows.total
        self.block, self.key = block, key
        self._rows, self._prefix = rows, prefix
        self._partial = lru_cache(_CACHED)(self._fresh)

    @classmethod
    def build(
        cls,
        seeds: Sequence[Model],
        order: FlatOrder | None = None,
        block: int = BLOCK,
        report: Report | None = None,
    ) -> PrefixGram:
        """Reads all seeds once, side by side.

        Args:
            seeds: the models. A tensor may have more rows than `order` says (a padded
                vocabulary): only the first count.
            order: the parameters; None for those of the first seed.
            block: parameters in a block.
            report: called after every block.

        Raises:
            SourceError: if a tensor is missing or of another shape, or holds NaN or infinity.
        """
        rows = _ModelRows(seeds, order or _first_order(seeds))
        return cls(rows, _accumulate(rows, block, report), block, _key(rows, block))

    @staticmethod
    def check(seeds: Sequence[Model], order: FlatOrder | None = None) -> None:
        """Checks names and shapes, without reading the models.

        Raises:
            SourceError: if a tensor is missing or of another shape.
        """
        _ModelRows(seeds, order or _first_order(seeds))

    @classmethod
    def of_vectors(
        cls, vectors: NDArray[np.floating[Any]], block: int = _VECTOR_BLOCK
    ) -> PrefixGram:
        """Takes a `K x n` array of float32 or float64 in place of models.

        Raises:
            ValueError: if it is not such an array, or not finite.
        """
        rows = _VectorRows(vectors)
        return cls(rows, _accumulate(rows, block, None), block, _key(rows, block))

    @classmethod
    def load(
        cls, path: Path, seeds: Sequence[Model], order: FlatOrder | None = None, block: int = BLOCK
    ) -> PrefixGram:
        """Opens what `save` wrote for the same seeds, order and block size.

        Raises:
            SourceError: if the file is missing or damaged or was made of something else.
        """
        rows = _ModelRows(seeds, order or _first_order(seeds))
        key, shape = _key(rows, block), (-(-rows.total // block) + 1, rows.count, rows.count)
        remedy = "Delete the file; the sums are then computed anew."
        try:
            with np.load(path, allow_pickle=False) as data:
                found = str(data["key"])
                prefix = np.asarray(data["prefix"]) if found == key else None
        except _UNREADABLE as error:
            raise SourceError.of(
                str(path), f"no readable file ({error})", "Gram matrices", remedy
            ) from error
        if prefix is None:
            raise SourceError.of(
                str(path), "Gram matrices of other models, order or blocks", key, remedy
            )
        if prefix.shape != shape or prefix.dtype != np.float64 or not np.isfinite(prefix).all():
            raise SourceError.of(
                str(path),
                f"{prefix.dtype} sums of shape {prefix.shape}",
                f"finite float64 sums of shape {shape}",
                remedy,
            )
        return cls(rows, prefix, block, key)

    def save(self, path: Path) -> None:
        """Writes the sums as an NPZ file, whole or not at all.

        Raises:
            EvomergeError: if the disk is full or fails.
        """
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # workers may write at once
        try:
            with temporary.open("wb") as file:
                np.savez(file, key=np.array(self.key), prefix=self._prefix)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise EvomergeError(f"{path} could not be written: {error}") from error

    @property
    def bytes(self) -> int:
        """Memory of the sums."""
        return self._prefix.nbytes

    def interval(self, start: int, stop: int) -> FloatArray:
        """Gram matrix on [start, stop), `K x K`; zeros for an empty interval.

        Raises:
            ValueError: if the interval does not lie within [0, total].
        """
        if not 0 <= start <= stop <= self.total:
            raise ValueError(f"expected 0 <= start <= stop <= {self.total}, found {start}, {stop}")
        first, last = -(-start // self.block), stop // self.block
        if stop == self.total:
            last = len(self._prefix) - 1  # the last block may be short, yet it ends here
        if first > last:
            return self._partial(start, stop).copy()
        gram: FloatArray = self._prefix[last] - self._prefix[first]
        for a, b in ((start, min(first * self.block, self.total)), (last * self.block, stop)):
            if a < b:
                gram += self._partial(a, b)
        return gram

    def intervals(self, edges: Sequence[int] | NDArray[np.int64]) -> FloatArray:
        """Gram matrices between `m + 1` rising edges, an `m x K x K` array."""
        ends = [int(e) for e in edges]
        found = [self.interval(start, stop) for start, stop in pairwise(ends)]
        return np.stack(found) if found else np.zeros((0, self.seeds, self.seeds))

    def _fresh(self, start: int, stop: int) -> FloatArray:
        gram = _gram(self._rows, start, stop)
        gram.flags.writeable = False
        return gram


def _accumulate(rows: _Rows, block: int, report: Report | None) -> FloatArray:
    """Prefix sums of the blocks' Gram matrices, `(blocks + 1) x K x K`."""
    if block < 1:
        raise ValueError(f"expected a block of at least 1 parameter, found {block}")
    starts = range(0, rows.total, block)
    prefix = np.zeros((len(starts) + 1, rows.count, rows.count))
    for i, start in enumerate(starts):
        stop = min(start + block, rows.total)
        prefix[i + 1] = prefix[i] + _gram(rows, start, stop)
        if report is not None:
            report(stop, rows.total)
    return prefix


def _gram(rows: _Rows, start: int, stop: int) -> FloatArray:
    """Gram matrix on [start, stop), `K x K`, read a chunk at a time."""
    gram = np.zeros((rows.count, rows.count))
    for at in range(start, stop, _CHUNK):
        part = rows.read(at, min(at + _CHUNK, stop))
        # Products and a sum along rows: for few seeds twice as fast as BLAS, and the same
        # bits whatever the BLAS and its number of threads.
        for i in range(rows.count):
            gram[i, i:] += (part[i:] * part[i]).sum(axis=1)
    return np.triu(gram) + np.triu(gram, 1).T


class _ModelRows:
    """Reads models along an order of parameters."""

    def __init__(self, models: Sequence[Model], order: FlatOrder) -> None:
        self.models, self.order = tuple(models), order
        self.count, self.total = len(self.models), order.total
        self._open: tuple[str, tuple[Weight, ...]] | None = None
        for model in self.models:
            for name, shape in order.shapes.items():
                _check(model, name, shape)

    @property
    def identity(self) -> list[str]:
        return [self.order.digest, *(model.fingerprint for model in self.models)]

    def read(self, start: int, stop: int) -> FloatArray:
        out = np.empty((self.count, stop - start))
        at = 0
        for name, first, end in self.order.runs(start, stop):
            for row, weight in zip(out, self._weights(name), strict=True):
                torch.from_numpy(row[at : at + end - first]).copy_(weight.read(first, end))
            at += end - first
        if not np.isfinite(out).all():
            self._refuse(start, stop)
        return out

    def _weights(self, name: str) -> tuple[Weight, ...]:
        """The tensor in every model; kept for the next call, since calls go tensor by tensor."""
        if self._open is None or self._open[0] != name:
            self._open = name, tuple(model.weight(name) for model in self.models)
        return self._open[1]

    def _refuse(self, start: int, stop: int) -> None:
        for name, _, _ in self.order.runs(start, stop):
            for model, weight in zip(self.models, self._weights(name), strict=True):
                values = weight.read(0, self.order.span(name)[1] - self.order.offset(name))
                bad = int((~torch.isfinite(values.to(torch.float64))).sum())
                if bad:
                    raise SourceError.of(
                        model.field,
                        f"{bad} values of {name} that are NaN or infinite in {model.ref}",
                        "finite weights",
                        "Use a model whose training did not diverge.",
                    )


class _VectorRows:
    """Reads the rows of an array."""

    def __init__(self, vectors: NDArray[np.floating[Any]]) -> None:
        if vectors.ndim != 2 or not vectors.size or vectors.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"expected a K x n array of float32 or float64, "
                f"found {vectors.dtype} of shape {vectors.shape}"
            )
        if not np.isfinite(vectors).all():
            raise ValueError("expected finite vectors, found NaN or infinity")
        self.vectors = vectors
        self.count, self.total = vectors.shape

    @property
    def identity(self) -> list[str]:
        shape = f"{self.vectors.dtype} {self.vectors.shape}"
        return [shape, hashlib.sha256(np.ascontiguousarray(self.vectors).tobytes()).hexdigest()]

    def read(self, start: int, stop: int) -> FloatArray:
        return self.vectors[:, start:stop].astype(np.float64)


def _first_order(seeds: Sequence[Model]) -> FlatOrder:
    if not seeds:
        raise ValueError("expected at least one seed, found none")
    return FlatOrder.of(seeds[0])


def _check(model: Model, name: str, shape: tuple[int, ...]) -> None:
    """Refuses a model whose tensor cannot be read along the order."""
    found = model.shapes.get(name)
    fits = found == shape or (
        bool(shape) and found is not None and found[1:] == shape[1:] and found[0] > shape[0]
    )
    if not fits:
        raise SourceError.of(
            model.field,
            f"no tensor {name} in {model.ref}"
            if found is None
            else f"shape {found} of {name} in {model.ref}",
            f"shape {shape}, as in the first model",
            "Use models of one architecture, that with the smallest vocabulary first.",
        )


def _key(rows: _ModelRows | _VectorRows, block: int) -> str:
    identity = json.dumps([_FORMAT, block, *rows.identity])
    return hashlib.sha256(identity.encode()).hexdigest()
