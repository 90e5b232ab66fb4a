"""The MAP-Elites that the digits experiment of M2N2 compares with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from evomerge.domain import Domain
from evomerge.mating import Mating
from evomerge.optimizers import settings
from evomerge.optimizers.base import Optimizer, Told
from evomerge.types import FloatArray


class CellElites(Optimizer):
    """Keeps the best member of each cell of a map, and mates two of them.

    The map's axes are the accuracies on two halves of the items; a member of equal accuracy does
    not displace another. Parents are two different elites, drawn with probability proportional
    to their accuracy on all items (twice the same while there is only one, or while none but one
    has solved anything); share and split are uniform, as in M2N2.

    Unlike `evomerge.optimizers.map_elites`, which keeps every genome that was told, it needs no
    more memory than its map, and its children are those of M2N2.

    Source: Mouret and Clune, arXiv 1504.04909, as the released code of M2N2 (2025) sets it up.
    """

    asynchronous = True
    uses_item_scores: ClassVar[bool] = True
    mates: ClassVar[bool] = True

    def __init__(
        self, domain: Domain, seed: int, halves: NDArray[np.bool_], cells: int = 10, batch: int = 1
    ) -> None:
        """Starts with an empty map.

        Args:
            domain: of matings.
            seed: of this optimiser's own generator.
            halves: which items belong to the second half, an `n` array with both kinds.
            cells: along each axis.
            batch: candidates kept at work.

        Raises:
            ValueError: if one half is empty, or the domain is not one of matings.
            ConfigError: for fewer than 2 cells or a batch below 1.
        """
        super().__init__(domain, seed)
        self._halves = np.asarray(halves, dtype=bool)
        if self._halves.all() or not self._halves.any() or not domain.seeds:
            raise ValueError("expected a domain of matings and items in both halves")
        self._cells = settings.whole("cells", cells, 2)
        self._batch = settings.whole("batch", batch, 1)
        self._map: dict[tuple[int, int], tuple[float, int]] = {}

    @property
    def batch(self) -> int:
        """How many candidates are kept at work."""
        return self._batch

    @property
    def archive(self) -> tuple[int, ...]:
        """Numbers of the members in the map."""
        return tuple(number for _, number in self._map.values())

    def _ask(self, numbers: range) -> list[FloatArray]:
        return [self._mating(number).to_genome() for number in numbers]

    def _mating(self, number: int) -> Mating:
        if number < self.domain.seeds:
            return Mating.of_seed(number)
        first, second = self._parents()
        share, split = self.rng.random(2)
        return Mating(number, first, second, float(share), float(split))

    def _parents(self) -> tuple[int, int]:
        if not self._map:
            return 0, 0
        qualities, members = (np.array(column) for column in zip(*self._map.values(), strict=True))
        some = np.count_nonzero(qualities)
        chances: Any = qualities / qualities.sum() if some else None
        drawn = self.rng.choice(members, size=2, replace=bool(some < 2), p=chances)
        return int(drawn[0]), int(drawn[1])

    def _tell(self, told: Sequence[Told]) -> None:
        for result in told:
            if result.scores is None:
                continue
            if result.scores.shape != self._halves.shape:
                raise ValueError(f"tell: expected the scores of {len(self._halves)} items")
            sides = result.scores[~self._halves].mean(), result.scores[self._halves].mean()
            row, column = (min(int(s * self._cells), self._cells - 1) for s in sides)
            quality = float(result.scores.mean())
            member = int(result.genome[0])
            if quality > self._map.get((row, column), (-1.0, 0))[0]:
                self._map[row, column] = quality, member
