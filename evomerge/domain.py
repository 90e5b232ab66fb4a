"""What an optimiser searches: bounded dimensions, and how many objectives and constraints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evomerge.types import FloatArray

KINDS = ("real", "integer", "choice")


@dataclass(frozen=True)
class Dimension:
    """One number of a genome.

    Attributes:
        name: `parameter/source/group`.
        low: lower bound.
        high: upper bound, included.
        start: where a search begins.
        step: standard deviation of a search's first samples.
        kind: real, integer (whole numbers from low to high) or choice (the number of one of
            `choices`, whose order means nothing).
        choices: what the numbers of a choice stand for.
    """

    name: str
    low: float
    high: float
    start: float
    step: float
    kind: str = "real"
    choices: tuple[str, ...] = ()

    @property
    def parameter(self) -> str:
        """The part of the name that says what varies: weight, density, ..."""
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Domain:
    """Everything about a search that an optimiser may know.

    Attributes:
        dimensions: of the genomes, at least one.
        objectives: values a fitness has; all are maximised.
        constraints: constraint values a fitness has; satisfied at 0 or below.
        anchors: genomes worth a first look, such as each source alone and the uniform merge.
        sparsity: share in [0, 1] of the sources' changes that a genome leaves out.
        distance: how far, in units of its own, a genome's merge lies from the base where it
            matters: the sum over the parameters of Fisher information times squared change.
        ranges: (lowest, highest) value that each objective can have as it is maximised,
            infinite where there is no bound; empty if nothing is known.
        seeds: if positive, genomes are matings of earlier candidates (`evomerge.mating`), and
            the first so many candidates are the seeds themselves.
    """

    dimensions: tuple[Dimension, ...]
    objectives: int = 1
    constraints: int = 0
    anchors: tuple[FloatArray, ...] = ()
    sparsity: Callable[[FloatArray], float] | None = None
    distance: Callable[[FloatArray], float] | None = None
    ranges: tuple[tuple[float, float], ...] = ()
    seeds: int = 0

    def __len__(self) -> int:
        return len(self.dimensions)

    @cached_property
    def low(self) -> FloatArray:
        """Lower bounds, an `n` array."""
        return np.array([d.low for d in self.dimensions], dtype=np.float64)

    @cached_property
    def high(self) -> FloatArray:
        """Upper bounds, an `n` array."""
        return np.array([d.high for d in self.dimensions], dtype=np.float64)

    @cached_property
    def start(self) -> FloatArray:
        """Where a search begins, an `n` array."""
        return np.array([d.start for d in self.dimensions], dtype=np.float64)

    @cached_property
    def step(self) -> FloatArray:
        """Standard deviations of the first samples, an `n` array."""
        return np.array([d.step for d in self.dimensions], dtype=np.float64)

    @cached_property
    def whole(self) -> NDArray[np.bool_]:
        """Which dimensions take whole numbers only (integers and choices), an `n` array."""
        return np.array([d.kind != "real" for d in self.dimensions], dtype=bool)

    @cached_property
    def categorical(self) -> NDArray[np.bool_]:
        """Which dimensions are choices, an `n` array."""
        return np.array([d.kind == "choice" for d in self.dimensions], dtype=bool)

    @cached_property
    def _cells(self) -> FloatArray:
        """Values of each whole dimension; widths of the real ones."""
        return np.asarray(self.high - self.low + self.whole, dtype=np.float64)

    def snap(self, genome: FloatArray) -> FloatArray:
        """The nearest genome within bounds, whole where it has to be; `n` or `m x n`."""
        rounded = np.where(self.whole, np.floor(np.asarray(genome) + 0.5), genome)
        return np.asarray(np.clip(rounded, self.low, self.high), dtype=np.float64)

    def from_unit(self, unit: FloatArray) -> FloatArray:
        """Genomes of points of the unit cube, `n` or `m x n`; whole values get equal shares."""
        values = self.low + np.asarray(unit) * self._cells
        values = np.where(self.whole, np.floor(values), values)
        return np.asarray(np.clip(values, self.low, self.high), dtype=np.float64)

    def to_unit(self, genome: FloatArray) -> FloatArray:
        """Points of the unit cube that `from_unit` maps to these genomes, `n` or `m x n`.

        A whole value comes from the middle of its share.
        """
        return np.asarray((genome - self.low + 0.5 * self.whole) / self._cells, dtype=np.float64)
