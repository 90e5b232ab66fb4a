"""What may vary: named, bounded dimensions over a recipe template."""

from __future__ import annotations

from typing import Protocol

from evomerge.domain import Dimension
from evomerge.recipe import Recipe
from evomerge.spaces.merge_space import MergeSpace
from evomerge.types import FloatArray


class SearchSpace(Protocol):
    """Maps genomes to recipes."""

    dimensions: tuple[Dimension, ...]

    def decode(self, genome: FloatArray) -> Recipe:
        """Recipe of a genome, an array of `len(dimensions)` numbers."""

    def encode(self, recipe: Recipe) -> FloatArray:
        """Genome of a recipe of this space; the inverse of `decode`."""

    def anchors(self) -> tuple[FloatArray, ...]:
        """Genomes worth a first look, within bounds, without repeats, in a fixed order."""

    def sparsity(self, genome: FloatArray) -> float:
        """Share in [0, 1] of the sources' changes that a genome leaves out."""


__all__ = ["MergeSpace", "SearchSpace"]
