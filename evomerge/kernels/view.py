"""One tensor of the base and the sources, with what operators ask of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.kernels.loops import loops_for
from evomerge.kernels.masks import MaskKey
from evomerge.kernels.select import SHIFT, Cut, Histogram, cuts
from evomerge.kernels.torch_loops import LEVELS
from evomerge.kernels.weight import Stored, Weight

RUN = 1 << 20
"""Elements of a run: what a thread takes at a time. Sums are made of sums of runs, so their
rounding does not depend on the number of threads."""

DEVICE_RUN = 1 << 25
"""The same on a GPU, where starting a run costs as much as a million elements of it."""

Arrays = dict[str, NDArray[np.generic]]
T = TypeVar("T")


class Memory(Protocol):
    """Keeps statistics that take a pass over the weights."""

    def recall(self, kind: str, members: tuple[str, ...], compute: Callable[[], Arrays]) -> Arrays:
        """What was computed before for these weights, else what `compute` gives."""


class Forgetful:
    """Computes every statistic anew."""

    def recall(self, kind: str, members: tuple[str, ...], compute: Callable[[], Arrays]) -> Arrays:
        return compute()


class View:
    """Reads one tensor of all models in runs and knows statistics of it.

    Attributes:
        shape: of the tensor, the same in all models.
        count: number of elements.
        row_length: elements of a row: those of all dimensions but the first; of the whole
            tensor if it has one dimension or none.
        base: the base's tensor, or None.
        sources: the sources' tensors.
        keys: what each source's random mask is drawn from.
        device: where runs are read to.
    """

    def __init__(
        self,
        base: Weight | None,
        sources: Sequence[Weight],
        keys: Sequence[MaskKey] = (),
        names: Sequence[str] = (),
        memory: Memory | None = None,
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        """Looks at shapes only.

        Args:
            base: the base's tensor, if the operator takes task vectors.
            sources: at least one tensor, all of the base's shape.
            keys: one a source for operators that draw masks.
            names: what base (if any) and sources are remembered by; empty for not at all.
            memory: keeps statistics under those names.
            pool: threads that share the runs of large tensors.
        """
        first = base or sources[0]
        self.shape = first.shape
        self.count = math.prod(self.shape)
        rows = self.shape[0] if len(self.shape) > 1 else 1
        self.row_length = self.count // rows if rows else 0
        self.base = base
        self.sources = tuple(sources)
        self.keys = tuple(keys)
        self._names = tuple(names)
        self._memory: Memory = memory if memory is not None and names else Forgetful()
        one = self.sources[0]
        self.device = one.tensor.device if isinstance(one, Stored) else torch.device("cpu")
        self._pool = pool if self.device.type == "cpu" else None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.count // self.row_length if self.row_length else 0

    def read(self, start: int, stop: int) -> tuple[Tensor | None, list[Tensor]]:
        """One run of the base and of every source, in their own dtypes."""
        base = None if self.base is None else self.base.read(start, stop)
        return base, [s.read(start, stop) for s in self.sources]

    @property
    def run_length(self) -> int:
        """Elements of a run, as many as suit the device."""
        return RUN if self.device.type == "cpu" else DEVICE_RUN

    def runs(self) -> list[tuple[int, int]]:
        """Runs that cover the tensor."""
        step = self.run_length
        return [(a, min(a + step, self.count)) for a in range(0, self.count, step)]

    def over_runs(self, work: Callable[[int, int], T]) -> list[T]:
        """Does some work for every run, on several threads where the tensor is large."""
        return self._over(self.runs(), work)

    def _over(self, runs: Sequence[tuple[int, int]], work: Callable[[int, int], T]) -> list[T]:
        if self._pool is None or len(runs) < 2:
            return [work(a, b) for a, b in runs]
        return list(self._pool.map(lambda run: work(*run), runs))

    def blocks(self) -> Iterator[tuple[Tensor | None, list[Tensor]]]:
        """The tensor in float32 blocks of whole rows, each rows x row length."""
        for a, b in self.row_blocks():
            base, xs = self.read(a, b)
            yield _rows(base, self.row_length), [_as_rows(x, self.row_length) for x in xs]

    def row_blocks(self) -> list[tuple[int, int]]:
        """Runs of whole rows."""
        if not self.count:
            return []
        step = max(1, self.run_length // 4 // self.row_length) * self.row_length
        return [(a, min(a + step, self.count)) for a in range(0, self.count, step)]

    # -- statistics ---------------------------------------------------------------------------

    def gram(self, deltas: bool = True) -> NDArray[np.float64]:
        """Dot products, m x m: of the task vectors, or of base (if any) and sources.

        Accumulated in float32 over 256 elements, then in float64.
        """

        def compute() -> Arrays:
            def work(a: int, b: int) -> Tensor:
                base, xs = self.read(a, b)
                if deltas or base is None:
                    return loops_for([base, *xs]).gram(base, xs)
                return loops_for([base, *xs]).gram(None, [base, *xs])

            parts = self.over_runs(work)
            size = len(self.sources) + (0 if deltas or self.base is None else 1)
            total = sum(parts, torch.zeros(size, size, dtype=torch.float64))
            return {"gram": total.numpy()}

        kind = "gram_deltas" if deltas and self.base is not None else "gram"
        return self._memory.recall(kind, self._names, compute)["gram"].astype(np.float64)

    def row_gram(self, deltas: bool = True) -> NDArray[np.float64]:
        """The same for every row apart, rows x m x m."""
        parts = []
        for base, xs in self.blocks():
            if deltas and base is not None:
                xs = [x - base for x in xs]
            elif base is not None:
                xs = [base, *xs]
            wide = torch.stack(xs).to(torch.float64)
            parts.append(torch.einsum("arc,brc->rab", wide, wide).cpu())
        return torch.cat(parts).numpy()

    def histogram(self, source: int) -> Histogram:
        """Of the magnitudes of one task vector."""

        def compute() -> Arrays:
            total = torch.zeros(1 << (31 - SHIFT), dtype=torch.int64)
            lock = Lock()

            # added up at once, as one of every run of a large tensor would be much memory
            def work(a: int, b: int) -> None:
                base, x = self._pair(source, a, b)
                part = loops_for([base, x]).histogram(base, x)
                with lock:
                    total.add_(part)

            self.over_runs(work)
            return dict(vars(Histogram.of(total)))

        kept = self._memory.recall("histogram", self._members(source), compute)
        return Histogram(**{k: v.astype(np.int64) for k, v in kept.items()})

    def cuts(self, wanted: Sequence[tuple[int, int]]) -> list[Cut]:
        """For each (source, k) the cut that keeps the k largest of its task vector.

        Where base and sources are all bfloat16 or float16, magnitudes are told apart to 2**-9
        of their size, which saves a pass over the weights; those that are as large as the k-th
        share the places left by draws, so that k is the count on average.
        """
        needed = [(self.histogram(i), k) if 0 < k < self.count else (_EMPTY, k) for i, k in wanted]

        def gather(which: Sequence[int], bins: Sequence[int]) -> list[Tensor]:
            sizes = [h.place(k)[2] for h, k in (needed[i] for i in which)]

            def work(a: int, b: int) -> list[Tensor]:
                base, xs = self.read(a, b)
                chosen = [xs[wanted[i][0]] for i in which]
                room = [min(size, b - a) for size in sizes]
                return loops_for([base, *chosen]).gather(bins, room, base, chosen)

            parts = self.over_runs(work)
            return [torch.cat([p[j] for p in parts]) for j in range(len(which))]

        def magnitudes(i: int) -> Callable[[], Iterator[Tensor]]:
            def run() -> Iterator[Tensor]:
                for a, b in self.runs():
                    base, x = self._pair(wanted[i][0], a, b)
                    wide = x.to(torch.float32)
                    yield (wide if base is None else wide - base.to(torch.float32)).abs()

            return run

        weights = [w for w in (self.base, *self.sources) if w is not None]
        coarse = all(w.dtype in (torch.bfloat16, torch.float16) for w in weights)
        return cuts(self.count, needed, None if coarse else gather, magnitudes)

    def row_table(self, source: int) -> tuple[Tensor, int]:
        """Magnitudes of one task vector at equally spaced ranks of every row.

        Returns:
            A float32 tensor rows x 32 whose entry r tells level r from the one before: what is
            larger reaches it, and what is equal lies on both sides (-1 for the first, infinity
            above the last); and the number of levels: 32, or the row's length if that is less.
        """
        levels = min(LEVELS, self.row_length)

        # level r begins at the rank ceil(r * n / levels)
        ranks = [-(-r * self.row_length // levels) for r in range(levels)]

        def work(a: int, b: int) -> Tensor:
            base, x = self._pair(source, a, b)
            return loops_for([base, x]).row_table(ranks, self.row_length, base, x)

        def compute() -> Arrays:
            table = torch.cat(self._over(self.row_blocks(), work))
            table[:, 0] = -1.0
            return {"table": table.numpy()}

        kept = self._memory.recall("row_table", self._members(source), compute)["table"]
        return torch.from_numpy(np.ascontiguousarray(kept, dtype=np.float32)), levels

    def _pair(self, source: int, start: int, stop: int) -> tuple[Tensor | None, Tensor]:
        base = None if self.base is None else self.base.read(start, stop)
        return base, self.sources[source].read(start, stop)

    def _members(self, source: int) -> tuple[str, ...]:
        if not self._names:
            return ()
        if self.base is None:
            return (self._names[source],)
        return (self._names[0], self._names[source + 1])


_EMPTY = Histogram(*(np.zeros(0, dtype=np.int64) for _ in range(2)))


def _rows(x: Tensor | None, row_length: int) -> Tensor | None:
    return None if x is None else _as_rows(x, row_length)


def _as_rows(x: Tensor, row_length: int) -> Tensor:
    return x.to(torch.float32).view(-1, row_length)
