"""Tests that may be looked at after every item, on a finite set in random order.

Testing by betting, Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting"
(JRSS B 2024), section 4 on sampling without replacement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.types import FloatArray

_MOST = 0.5
"""Share of the largest bet that cannot ruin the gambler."""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Wealth:
    """The capital of a gambler who bets that one model is better than another on `total` items.

    If it is not better (mean difference at most 0 over all `total` items), the capital is a
    nonnegative supermartingale that begins at 1, so by Ville's inequality it reaches `1 / alpha`
    at any time with probability at most `alpha`. The items have to come in a random order.
    """

    total: int

    def after(self, differences: FloatArray) -> float:
        """The largest capital after the first differences, each in [-1, 1], an `n` array."""
        capital = largest = 1.0
        seen = spent = 0.0
        squares = 1.0  # one imaginary difference of 1 holds the first bets back
        for place, difference in enumerate(np.asarray(differences, dtype=np.float64)):
            left = self.total - place
            # Mean of what is left if all differences sum to 0: the null hypothesis' border.
            mean = -spent / left if left > 0 else 0.0
            if mean >= 1.0:
                break  # everything left would have to be 1
            # Bets are fixed before the item is seen: mean over variance of what was seen (aGRAPA).
            edge = seen / (place + 1.0) - mean
            bet = edge / (squares / (place + 1.0))
            bet = min(max(bet, 0.0), _MOST / max(1.0 + mean, _ROUNDING))
            capital *= 1.0 + bet * (float(difference) - mean)
            largest = max(largest, capital)
            spent += float(difference)
            if spent > left - 1 + _ROUNDING:
                return float("inf")  # not even -1 for all that is left would make the sum 0
            seen += float(difference)
            squares += (float(difference) - mean) ** 2
        return largest


def unreachable(ahead: FloatArray, total: int, most: float) -> bool:
    """Whether a model that is behind by these differences stays behind whatever comes.

    Args:
        ahead: of the other model on the items seen, an `n` array.
        total: number of all items.
        most: largest possible difference on one item.
    """
    return float(np.sum(ahead)) > most * (total - len(ahead))
