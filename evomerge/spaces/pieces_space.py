"""Matings of whole models: each candidate is made of two earlier ones, without any weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from evomerge import mating
from evomerge.domain import Dimension
from evomerge.errors import ConfigError
from evomerge.mating import Mating
from evomerge.pieces import ANGLES, INTERPOLATIONS, Grams, Piecewise, combine
from evomerge.recipe import Recipe, Source
from evomerge.spaces.grid import Groups
from evomerge.types import FloatArray


class SeedGrams(Grams, Protocol):
    """Inner products of the seeds, and what they are taken over.

    Attributes:
        total: number of parameters.
    """

    total: int

    def check(self) -> None:
        """Checks that the seeds can be read side by side.

        Raises:
            SourceError: if a tensor is missing or of another shape.
        """


class PiecesSpace:
    """Describes candidates by their parents; the sources are the seeds of the population.

    A member is kept as a linear combination of the seeds on each interval between the splits of
    its ancestors: a few hundred numbers, whatever the size of the models. An interval ends where
    an ancestor was split, so a member has at most one interval more than it has ancestors.

    Genomes name members by number, so a candidate has to be decoded after its parents; a study
    decodes in the order of the asks, and again when it resumes.

    Source: Competition and Attraction Improve Model Fusion (M2N2, 2025).

    Attributes:
        seeds: number of seeds, members 0 to `seeds` - 1.
        dimensions: member, first and second parent, share and split; see `evomerge.mating`.
    """

    def __init__(
        self,
        base: str,
        sources: Mapping[str, str],
        groups: Groups,
        grams: Callable[[Sequence[str]], SeedGrams],
        include_base: bool = False,
        angle: str = "segment",
        interpolation: str = "slerp",
        dtype: str = "bfloat16",
        seed: int = 0,
    ) -> None:
        """Knows the seeds and no other member.

        Args:
            base: model reference of the base.
            sources: name to model reference.
            groups: layer groups; not used, splits lie anywhere.
            grams: gives the inner products of models by their references.
            include_base: whether the base is a seed, too; then it is the first.
            angle: `segment` or `global`, see `evomerge.pieces.combine`.
            interpolation: `slerp`, or `lerp`, which needs no inner products.
            dtype: of the merged tensors.
            seed: not used; nothing is drawn.

        Raises:
            ConfigError: naming the key at fault, and for fewer than two seeds.
            SourceError: if the inner products of the seeds cannot be had.
        """
        if not isinstance(include_base, bool):
            raise ConfigError.of(
                "space.include_base", repr(include_base), "true or false", "Correct it."
            )
        for key, value, known in (
            ("angle", angle, ANGLES), ("interpolation", interpolation, INTERPOLATIONS)
        ):  # fmt: skip
            if value not in known:
                raise ConfigError.of(f"space.{key}", repr(value), " or ".join(known), "Correct it.")
        refs = [*([base] if include_base else []), *sources.values()]
        if len(refs) < 2:
            raise ConfigError.of(
                "models.sources", "one seed", "at least two models that can be mated",
                "Add a source, or set space.include_base=true.",
            )  # fmt: skip
        self.seeds = len(refs)
        self.dimensions: tuple[Dimension, ...] = mating.dimensions()
        self.angle = angle
        self.interpolation = interpolation
        self.dtype = dtype
        self._sources = tuple(Source(ref) for ref in refs)
        self._grams = grams(refs)
        if interpolation == "slerp":
            self._grams.check()
        self._members: dict[int, tuple[Mating, Piecewise]] = {}

    def decode(self, genome: FloatArray) -> Recipe:
        """Recipe of a mating, which becomes known as a parent.

        Raises:
            ValueError: if it is no mating, its parents were not decoded before, or its number is
                that of another member.
        """
        one = Mating.from_genome(genome)
        if one.member not in self._members or self._members[one.member][0] != one:
            self._members[one.member] = one, self._made(one)
        piecewise = self._members[one.member][1]
        return Recipe("pieces", self._sources, dtype=self.dtype, pieces=piecewise.to_pieces())

    def encode(self, recipe: Recipe) -> FloatArray:
        """Genome of a member, the first one that is this merge.

        Raises:
            ValueError: if no member that was decoded is; a merge does not tell its ancestors.
        """
        known = recipe.pieces is not None and recipe.sources == self._sources
        for one, piecewise in self._members.values() if known else ():
            if piecewise.to_pieces() == recipe.pieces:
                return one.to_genome()
        raise ValueError("no member of this population; a merge by pieces has no known parents")

    def anchors(self) -> tuple[FloatArray, ...]:
        """The seeds."""
        return tuple(Mating.of_seed(k).to_genome() for k in range(self.seeds))

    def extremes(self) -> tuple[FloatArray, ...]:
        """The seeds, the only members that need no others."""
        return self.anchors()

    def sparsity(self, genome: FloatArray) -> float:
        """0: a mating leaves nothing out."""
        return 0.0

    def fresh(self) -> PiecesSpace:
        """The same space without members, for a search with matings of its own."""
        other = copy.copy(self)
        other._members = {}
        return other

    def member(self, number: int) -> Piecewise:
        """A member as a combination of the seeds.

        Raises:
            ValueError: if it was not decoded yet.
        """
        if number in self._members:
            return self._members[number][1]
        if 0 <= number < self.seeds:
            return Piecewise.seed(number, self.seeds, self._grams.total)
        raise ValueError(f"member {number} was not decoded before, but is named as a parent")

    def _made(self, one: Mating) -> Piecewise:
        if one.member in self._members:
            raise ValueError(f"member {one.member} is another mating than that decoded before")
        if one.is_seed != (one.member < self.seeds):
            raise ValueError(f"members below {self.seeds} are seeds, found {one}")
        if one.is_seed:
            return Piecewise.seed(one.member, self.seeds, self._grams.total)
        return combine(
            self.member(one.first),
            self.member(one.second),
            one.share,
            round(one.split * self._grams.total),
            self._grams,
            self.angle,
            self.interpolation,
        )
