"""Matings as genomes: which two earlier candidates make a new one, and how."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.domain import Dimension, Domain
from evomerge.types import FloatArray

MOST = 10_000_000
"""The largest number of a member."""


@dataclass(frozen=True)
class Mating:
    """How a member comes about. Members are numbered as they are asked for, seeds first.

    Attributes:
        member: its own number.
        first: number of the first parent.
        second: number of the second parent; a seed has itself for both.
        share: of the second parent before the split, and of the first after it (the paper's w).
        split: where the parents change places, as a share in [0, 1] of the parameters.
    """

    member: int
    first: int
    second: int
    share: float
    split: float

    @classmethod
    def of_seed(cls, number: int) -> Mating:
        """The seed itself."""
        return cls(number, number, number, 0.0, 0.0)

    @classmethod
    def from_genome(cls, genome: FloatArray) -> Mating:
        """Reads a genome.

        Raises:
            ValueError: if it is not five numbers, or names a parent that is not there yet.
        """
        if np.shape(genome) != (5,) or not np.isfinite(genome).all():
            raise ValueError("a mating: expected member, first, second, share and split")
        *members, share, split = genome.tolist()
        member, first, second = map(int, members)
        mating = cls(member, first, second, share, split)
        if not mating.is_seed and max(first, second) >= member:
            raise ValueError(f"a mating: member {member} has the later parents {first}, {second}")
        return mating

    @property
    def is_seed(self) -> bool:
        """Whether nothing is mated."""
        return self.first == self.second == self.member

    def to_genome(self) -> FloatArray:
        """Five numbers that `from_genome` reads."""
        return np.array([self.member, self.first, self.second, self.share, self.split], np.float64)


def dimensions() -> tuple[Dimension, ...]:
    """The dimensions of a space of matings."""
    whole = ("member", "first", "second")
    shares = ("share", "split")
    return (
        *(Dimension(name, 0.0, float(MOST), 0.0, 1.0, "integer") for name in whole),
        *(Dimension(name, 0.0, 1.0, 0.0, 0.25) for name in shares),
    )


def domain(seeds: int, objectives: int = 1, constraints: int = 0) -> Domain:
    """A domain of matings among so many seeds."""
    return Domain(dimensions(), objectives, constraints, seeds=seeds)
