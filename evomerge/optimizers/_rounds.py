"""A fixed design, then rounds of a fixed size that are each decided by what is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from evomerge.domain import Domain
from evomerge.optimizers._models import Record
from evomerge.optimizers._quadratic import Basis
from evomerge.optimizers.base import Told
from evomerge.optimizers.designs import InitialDesign
from evomerge.types import FloatArray, Observation

_LEAST = 1e-6
"""Of the sum of squares along a direction, below which nothing is known of it."""

_MOST = 1000
"""Unknowns up to which a design is completed, in a few seconds."""

_PLACES = 256
"""Points of the box at which the variance of predictions is looked at."""


@dataclass(frozen=True)
class Known:
    """What a round is decided by.

    Attributes:
        number: of the round, from 0.
        records: results that were learnt, then those told in the order of their asks.
        asked: all genomes asked for before the round, an `m x n` array.
    """

    number: int
    records: tuple[Record, ...]
    asked: FloatArray


Propose = Callable[[Known], list[FloatArray]]
"""Makes the genomes of a round, as many as its size."""


class Rounds:
    """Numbers the design and the rounds, and remembers what each round could know.

    Candidate k belongs to the design, or to round (k - design) // size. A round is a function of
    what was told when its first candidate was asked for; it is computed when its genomes are
    needed, so that a resumed study computes none of the recorded ones.
    """

    def __init__(
        self,
        domain: Domain,
        box: tuple[FloatArray, FloatArray],
        seed: int,
        first: int,
        size: int,
        propose: Propose,
    ) -> None:
        """Starts without results.

        Args:
            domain: of the genomes.
            box: its lower and upper corner, two `n` arrays.
            seed: of the design.
            first: candidates of the design, where nothing was learnt. It is made when the first
                of them is asked for, since one that no budget can pay may be too large to be made.
            size: of each round.
            propose: makes a round.
        """
        self.size = size
        self._domain, self._box, self._seed = domain, box, seed
        self._whole = first
        self._propose = propose
        self._foreign: list[Record] = []
        self._told: dict[int, Record] = {}
        self._asked: list[FloatArray] = []
        self._now: tuple[int, tuple[int, ...]] = (-1, ())
        self._made: list[FloatArray] | None = None

    @property
    def left(self) -> int:
        """Candidates to be asked for until the design or the round ends."""
        begun = len(self._asked)
        return self.first - begun if begun < self.first else self.size - self._step(begun)[1]

    @property
    def first(self) -> int:
        """Candidates of the design."""
        return len(self._design) if self._knows else self._whole

    @property
    def _knows(self) -> bool:
        """Whether something was learnt that the design may go on from."""
        return any(fitness is not None for _, fitness in self._foreign)

    @cached_property
    def _design(self) -> list[FloatArray]:
        whole = design(self._domain, *self._box, self._seed, self._whole)
        if not self._knows:
            return whole
        known = np.array([genome for genome, fitness in self._foreign if fitness is not None])
        return missing(Basis.of(self._domain, *self._box), known, whole)

    @property
    def learnt(self) -> list[Record]:
        """Results of another study."""
        return list(self._foreign)

    @property
    def records(self) -> list[Record]:
        """All results, those that were learnt first."""
        return [*self._foreign, *(self._told[i] for i in sorted(self._told))]

    def until(self, stop: int) -> list[Record] | None:
        """Results of the asks before `stop`; None while some of them are missing."""
        if len(self._told) < stop or any(i not in self._told for i in range(stop)):
            return None
        return [self._told[i] for i in range(stop)]

    def ask(self, numbers: range) -> list[FloatArray]:
        """Genomes for these asks."""
        genomes = []
        for number in numbers:
            genome = self._design[number] if number < self.first else self._next(number)
            genomes.append(genome)
            self._asked.append(genome)
        return genomes

    def adopt(self, numbers: range, recorded: Sequence[FloatArray]) -> None:
        """Takes recorded genomes as asked for."""
        for number, genome in zip(numbers, recorded, strict=True):
            self._begin(number)
            self._asked.append(genome)

    def tell(self, told: Sequence[Told]) -> None:
        """Takes results."""
        self._told.update({one.number: (one.genome, one.fitness) for one in told})

    def learn(self, observations: Sequence[Observation]) -> None:
        """Takes results of another study; only before the first ask."""
        self.__dict__.pop("_design", None)
        self._foreign += [(np.asarray(o.genome, dtype=float), o.fitness) for o in observations]

    def _step(self, number: int) -> tuple[int, int]:
        return divmod(number - self.first, self.size)

    def _begin(self, number: int) -> None:
        """Notes what the round knows that begins with this ask, if one does."""
        if number >= self.first and self._step(number)[1] == 0:
            self._now = self._step(number)[0], tuple(sorted(self._told))
            self._made = None

    def _next(self, number: int) -> FloatArray:
        self._begin(number)
        if self._made is None:
            index, told = self._now
            records = (*self._foreign, *(self._told[i] for i in told))
            asked = np.array(self._asked[: self.first + index * self.size])
            self._made = self._propose(Known(index, records, asked))
        return self._made[self._step(number)[1]]


def design(
    domain: Domain, low: FloatArray, high: FloatArray, seed: int, count: int
) -> list[FloatArray]:
    """`count` genomes: the zero merge and the domain's anchors, then Sobol points of a box.

    Args:
        domain: of the genomes.
        low: lower corner of the box, an `n` array.
        high: upper corner, an `n` array.
        seed: of the scrambling.
        count: how many.
    """
    first: dict[bytes, FloatArray] = {}
    for genome in (*_zero(domain), *domain.anchors):
        snapped = domain.snap(genome)
        first.setdefault(snapped.tobytes(), snapped)
    anchors = list(first.values())[:count]
    return [*anchors, *InitialDesign(within(domain, low, high), seed).take(count - len(anchors))]


def missing(basis: Basis, known: FloatArray, design: Sequence[FloatArray]) -> list[FloatArray]:
    """The points that a design has to add to known ones, in their order.

    With them a quadratic is as sure of the box as with the whole design alone: the mean of
    z' (Z'Z)^-1 z, the variance of a prediction in units of a measurement's, over points z of the
    box. The point with the largest such variance is taken first, so that directions of which
    nothing is known come before all others.

    Args:
        basis: the terms of the quadratic, and the box.
        known: an `m x n` array.
        design: `n` arrays; all stay if the quadratic has more than 1000 unknowns.
    """
    if basis.unknowns > _MOST:
        return list(design)
    rows, points = (_terms(basis, np.asarray(g)) for g in (known, design))
    box = within(basis.domain, basis.low, basis.high)
    places = _terms(basis, np.array(InitialDesign(box, 0, anchors=False).take(_PLACES)))
    enough = _variances(places, _inverse(points)).mean()
    spread, left = _inverse(rows), np.ones(len(points), dtype=bool)
    there, here = _variances(places, spread), _variances(points, spread)
    while left.any() and there.mean() > enough:
        best = int(np.where(left, here, -np.inf).argmax())
        left[best] = False
        along = spread @ points[best]
        share = 1.0 + points[best] @ along
        spread -= np.outer(along, along) / share  # Sherman and Morrison
        there -= (places @ along) ** 2 / share
        here -= (points @ along) ** 2 / share
    return [genome for genome, out in zip(design, left, strict=True) if not out]


def _inverse(rows: FloatArray) -> FloatArray:
    """(Z'Z)^-1 of `m x p` terms; very large along directions of which they say nothing."""
    return np.asarray(np.linalg.inv(_LEAST * np.eye(rows.shape[1]) + rows.T @ rows))


def _variances(rows: FloatArray, spread: FloatArray) -> FloatArray:
    """z' S z of `m x p` terms, an `m` array."""
    return np.asarray(((rows @ spread) * rows).sum(axis=1))


def _terms(basis: Basis, genomes: FloatArray) -> FloatArray:
    """The constant and all other terms of `m x n` genomes."""
    columns = basis.expand(genomes)
    return np.hstack([np.ones((len(columns), 1)), columns])


def within(domain: Domain, low: FloatArray, high: FloatArray) -> Domain:
    """The domain with other bounds and without anchors."""
    dimensions = tuple(
        replace(d, low=float(a), high=float(b), start=float(np.clip(d.start, a, b)))
        for d, a, b in zip(domain.dimensions, low, high, strict=True)
    )
    return Domain(dimensions, domain.objectives, domain.constraints)


def _zero(domain: Domain) -> list[FloatArray]:
    """The start with all weights 0, as near as the bounds permit; none without weights."""
    weights = np.array([d.parameter == "weight" for d in domain.dimensions])
    return [np.where(weights, 0.0, domain.start)] if weights.any() else []
