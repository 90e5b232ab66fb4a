"""The space of soups: weighted averages of whole sources, one number a source."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from evomerge.domain import Dimension
from evomerge.recipe import Recipe, Source
from evomerge.types import FloatArray

_ONE = 1e-12
"""Sums this close to 1 are not divided by, so that normalised weights stay as they are."""


class SoupSpace:
    """Averages sources with weights that are made to sum to 1; sources of weight 0 are left out.

    A one-hot genome is the source alone, and its recipe that of the source itself. Genomes
    that differ by a factor are the same merge.

    Source: Wortsman et al., "Model soups" (arXiv 2203.05482).
    """

    def __init__(
        self, base: str | None, sources: Mapping[str, str], dtype: str = "bfloat16"
    ) -> None:
        """Lays out one dimension a source.

        Args:
            base: model reference of the pool's base, of which a soup takes nothing.
            sources: name to model reference.
            dtype: of the merged tensors.

        Raises:
            ValueError: without sources.
        """
        if not sources:
            raise ValueError("a soup needs at least one source")
        self.base = base
        self.sources = dict(sources)
        self.dtype = dtype
        start = 1.0 / len(self.sources)
        self.dimensions: tuple[Dimension, ...] = tuple(
            Dimension(f"weight/{name}/all", 0.0, 1.0, start, 1 / 6) for name in self.sources
        )

    def decode(self, genome: FloatArray) -> Recipe:
        """Recipe of a genome, an array of one weight a source.

        Raises:
            ValueError: if it has another length, holds NaN, infinity or a number below 0, or
                if all of it is 0.
        """
        if len(genome) != len(self.dimensions):
            raise ValueError(f"genome of {len(genome)} numbers; expected {len(self.dimensions)}")
        if not np.isfinite(genome).all() or (np.asarray(genome) < 0).any():
            raise ValueError("genome with NaN, infinity or a weight below 0")
        total = math.fsum(genome)
        if total == 0:
            raise ValueError("genome of zeros; expected a source with a weight above 0")
        unit = 1.0 if abs(total - 1.0) <= _ONE else total
        weighed = zip(self.sources.values(), map(float, genome), strict=True)
        sources = tuple(Source(ref, {"weight": w / unit}) for ref, w in weighed if w > 0)
        return Recipe("linear", sources, dtype=self.dtype)

    def encode(self, recipe: Recipe) -> FloatArray:
        """Weights of a recipe of this space, which sum to 1; decoding them gives the recipe.

        Raises:
            ValueError: for a recipe of something else than these sources in their order.
        """
        genome = np.zeros(len(self.dimensions))
        left = list(recipe.sources)
        for i, ref in enumerate(self.sources.values()):
            if left and left[0].model == ref:
                weight = left.pop(0).parameters.get("weight")
                if not isinstance(weight, int | float):
                    raise ValueError(f"weight {weight!r} of {ref}; expected a number")
                genome[i] = weight
        if left or recipe.method != "linear" or not recipe.sources:
            raise ValueError("expected a linear recipe of this space's sources, in their order")
        return genome

    def anchors(self) -> tuple[FloatArray, ...]:
        """Each source alone, then the average of all."""
        alone = np.eye(len(self.dimensions))
        return (*alone, np.full(len(alone), 1.0 / len(alone)))

    def sparsity(self, genome: FloatArray) -> float:
        """Share of the sources that a genome leaves out."""
        return 1.0 - np.count_nonzero(genome) / len(self.dimensions)
