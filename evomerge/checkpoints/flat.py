"""The flattened parameter order of a model: all its floating-point tensors, end to end."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from math import prod

from evomerge.checkpoints.model import Model


class FlatOrder:
    """Numbers the parameters of a model from 0 to `total`, tensor by tensor, row-major.

    Attributes:
        names: the tensors, in order.
        shapes: the shape of each of them.
        total: number of parameters.
    """

    def __init__(self, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Lays the tensors end to end.

        Args:
            names: the tensors, in order, each once.
            shapes: shapes of at least these tensors.

        Raises:
            ValueError: if a name occurs twice.
        """
        self.names = tuple(names)
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"expected each name once, found {list(names)}")
        self.shapes = {name: tuple(shapes[name]) for name in self.names}
        self._edges = [0, *accumulate(prod(self.shapes[name]) for name in self.names)]
        self._offset_of = dict(zip(self.names, self._edges, strict=False))
        self.total = self._edges[-1]

    @classmethod
    def of(cls, model: Model) -> FlatOrder:
        """The floating-point tensors of a model, in the order of its files."""
        names = [n for n in model.shapes if model.dtype(n).startswith(("F", "BF"))]
        return cls(names, model.shapes)

    @property
    def digest(self) -> str:
        """Hash of names and shapes, 64 hex digits."""
        listed = [[name, list(shape)] for name, shape in self.shapes.items()]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()

    def offset(self, name: str) -> int:
        """Number of a tensor's first parameter."""
        return self._offset_of[name]

    def span(self, name: str) -> tuple[int, int]:
        """Numbers [start, stop) of a tensor's parameters."""
        start = self._offset_of[name]
        return start, start + prod(self.shapes[name])

    def runs(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """Parts that the interval [start, stop) covers, in order.

        Yields:
            (tensor, first, end): elements [first, end) of the flattened tensor, never none.

        Raises:
            ValueError: if the interval does not lie within [0, total].
        """
        if not 0 <= start <= stop <= self.total:
            raise ValueError(f"expected 0 <= start <= stop <= {self.total}, found {start}, {stop}")
        i = bisect_right(self._edges, start) - 1
        while start < stop:
            begin, end = self._edges[i], min(self._edges[i + 1], stop)
            if end > start:  # tensors without elements cover nothing
                yield self.names[i], start - begin, end - begin
                start = end
            i += 1
