"""Inner products of models that are computed when somebody first asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evomerge.checkpoints.flat import FlatOrder
from evomerge.checkpoints.gram import PrefixGram
from evomerge.checkpoints.model import Model
from evomerge.errors import SourceError
from evomerge.types import FloatArray


class LazyGram:
    """A `PrefixGram` that reads the models at its first use, and keeps its sums in a file.

    A study that goes on takes them from there: reading all seeds takes minutes for large models.

    Attributes:
        total: number of parameters.
    """

    def __init__(self, seeds: Sequence[Model], path: Path) -> None:
        """Reads nothing yet.

        Args:
            seeds: the models, that with the smallest vocabulary first.
            path: where the sums are kept, if its directory exists by then.
        """
        self.total = FlatOrder.of(seeds[0]).total
        self._seeds = tuple(seeds)
        self._path = path
        self._gram: PrefixGram | None = None

    def check(self) -> None:
        """Checks that the models can be read side by side.

        Raises:
            SourceError: if a tensor is missing or of another shape.
        """
        PrefixGram.check(self._seeds)

    def intervals(self, edges: Sequence[int] | NDArray[np.int64]) -> FloatArray:
        """Gram matrices between `m + 1` rising edges, an `m x K x K` array.

        Raises:
            SourceError: as `PrefixGram.build`.
        """
        if self._gram is None:
            self._gram = self._opened()
        return self._gram.intervals(edges)

    def _opened(self) -> PrefixGram:
        try:
            return PrefixGram.load(self._path, self._seeds)
        except SourceError:  # nothing there, or of other models
            gram = PrefixGram.build(self._seeds)
        if self._path.parent.is_dir():
            gram.save(self._path)
        return gram
