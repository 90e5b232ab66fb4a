"""Competition for items and attraction between parents: the equations of M2N2.

Source: Competition and Attraction Improve Model Fusion (M2N2, 2025). S is a `P x J` array: the
score of each of P members on each of J items.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.types import FloatArray


def niche_weights(scores: FloatArray, alpha: float) -> FloatArray:
    """What a member gets of each item for a score of 1, a `J` array.

    The capacity c_j is the best score of an item: 1 for scores of 0 and 1, where nobody solves
    an item its weight is 0.

    Args:
        scores: S.
        alpha: how strongly an item is shared; 0: not at all.
    """
    return _shared(scores.sum(axis=0), scores.max(axis=0), alpha)


def _shared(crowd: FloatArray, capacity: FloatArray, alpha: float) -> FloatArray:
    """c_j / z_j ** alpha of z_j = sum_k S_kj and c_j, `J` arrays."""
    powers = crowd**alpha
    powers[powers == 0] = 1.0  # 0 -> 1; the power, since that of a tiny number may be 0
    return np.asarray(capacity / powers, dtype=np.float64)


def fitness(scores: FloatArray, weights: FloatArray) -> FloatArray:
    """sum_j F_kj with F_kj = c_j S_kj / z_j ** alpha, a `P` array.

    Members with equal scores get equal sums to the last bit, since each is an inner product of
    its own; a product of matrix and vector does not promise it.
    """
    return np.asarray(np.vecdot(scores, weights), dtype=np.float64)


def attraction(
    scores: FloatArray, weights: FloatArray, first: int, room: FloatArray | None = None
) -> FloatArray:
    """g_k = sum_j max(0, F_kj - F_p1j), a `P` array; how strong k is where p1 is weak.

    Computed as sum_j max(S_kj, S_p1j) w_j less the same of p1, which takes one pass less and is
    exactly 0 for a member that is nowhere better than p1.

    Args:
        scores: S.
        weights: of the items.
        first: p1.
        room: a `P x J` array that is overwritten; new memory costs more than the sums.
    """
    united = fitness(np.maximum(scores, scores[first], out=room), weights)
    return np.asarray(united - united[first], dtype=np.float64)


def draw(chances: FloatArray, uniform: float, but: int | None = None) -> int:
    """An index in proportion to chances; any with the same chance if all are 0.

    Args:
        chances: at least 0, a `P` array.
        uniform: in [0, 1), what decides.
        but: an index that is not drawn, unless there is no other one.
    """
    if len(chances) == 1:
        return 0
    ends = _ends(chances, but)
    if not ends[-1] > 0:
        ends = _ends(np.ones(len(chances)), but)
    found = int(ends.searchsorted(uniform * ends[-1], side="right"))
    last = int(ends.searchsorted(ends[-1]))  # rounding may lead beyond it
    return min(found, last)


def _ends(chances: FloatArray, but: int | None) -> FloatArray:
    """Sums of the chances up to each, without that of `but`."""
    if but is not None:
        chances = chances.copy()
        chances[but] = 0.0
    return chances.cumsum()


class Archive:
    """Members and their scores; the least fit leaves when there is one too many.

    As long as all scores are 0 or 1, z is kept up to date instead of summed anew: whole numbers
    add up without rounding, so that the shares are the same to the last bit.

    Attributes:
        capacity: P.
        alpha: how strongly an item is shared.
        numbers: of the members, in no particular order.
    """

    def __init__(self, capacity: int, alpha: float) -> None:
        """Starts empty.

        Args:
            capacity: members that stay.
            alpha: how strongly an item is shared.
        """
        self.capacity = capacity
        self.alpha = alpha
        self.numbers: list[int] = []
        self._rows = np.zeros((capacity + 1, 0))  # a row more than members stay, for the newcomer
        self._room = np.empty_like(self._rows)
        self._crowd: NDArray[np.intp] | None = None  # z, where all scores are 0 or 1
        counts = np.arange(capacity + 2, dtype=np.float64)
        self._worth = _shared(counts, np.minimum(counts, 1.0), alpha)  # of an item, by its z
        self._weights: FloatArray | None = None
        self._fitness: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def scores(self) -> FloatArray:
        """S, `P x J`, in the order of `numbers`; a view that the next insertion changes."""
        return self._rows[: len(self)]

    def insert(self, number: int, scores: FloatArray | None) -> int | None:
        """Takes a member in; if it is one too many, the least fit of all leaves.

        Args:
            number: of the member.
            scores: of each item, a `J` array; None for zeros.

        Returns:
            number of the member that left, which may be the new one.
        """
        if scores is not None and self._rows.shape[1] != len(scores):
            self._rows = np.zeros((self.capacity + 1, len(scores)))  # those before had zeros
            self._room = np.empty_like(self._rows)
            self._crowd = np.zeros(len(scores), dtype=np.intp)
        self._rows[len(self)] = 0.0 if scores is None else scores
        self.numbers.append(number)
        self._weights = self._fitness = None
        if self._crowd is not None and scores is not None:
            solved = scores.astype(bool)
            self._crowd = self._crowd + solved if (solved == scores).all() else None
        if len(self) <= self.capacity:
            return None
        worst = self._least()
        if self._crowd is not None:
            self._crowd -= self._rows[worst].astype(bool)
        gone, self.numbers[worst] = self.numbers[worst], self.numbers[-1]
        self._rows[worst] = self._rows[-1]
        self.numbers.pop()
        return gone

    def parents(self, first: float, second: float, attracted: bool) -> tuple[int, int]:
        """Draws two members, different ones if there are two.

        Args:
            first: uniform in [0, 1); decides on p1, in proportion to fitness.
            second: the same for p2, in proportion to g; to fitness if all g are 0.
            attracted: whether g counts at all.

        Returns:
            their numbers.
        """
        if self._weights is None or self._fitness is None:
            self._weights = self._shares()
            self._fitness = fitness(self.scores, self._weights)
        one = draw(self._fitness, first)  # p1 ~ fit / sum(fit)
        pull = self._fitness
        if attracted:
            pull = self._attraction(one, self._weights)
            if not pull.any():
                pull = self._fitness
        other = draw(pull, second, but=one)  # p2 ~ g / sum(g)
        return self.numbers[one], self.numbers[other]

    def _shares(self) -> FloatArray:
        """`niche_weights` of the members."""
        if self._crowd is None:
            return niche_weights(self.scores, self.alpha)
        return self._worth.take(self._crowd, mode="clip")  # all are within; `raise` checks it

    def _attraction(self, one: int, weights: FloatArray) -> FloatArray:
        """`attraction` to a member; of scores of 0 and 1 by what the items it lacks are worth."""
        if self._crowd is None:
            return attraction(self.scores, weights, one, self._room[: len(self)])
        return fitness(self.scores, weights * (1.0 - self.scores[one]))

    def _least(self) -> int:
        """argmin_k sum_j E_kj c_j / z_j ** alpha over the archive with the child, E.

        Of equals the oldest, so that the archive goes on changing where nothing gets better.
        """
        fit = fitness(self.scores, self._shares())
        return int(min((fit == fit.min()).nonzero()[0].tolist(), key=self.numbers.__getitem__))
