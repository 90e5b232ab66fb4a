"""Control variates: what the sources' known answers say of the items that a candidate got."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from evomerge.estimators.choice import Indices
from evomerge.estimators.estimate import Estimate, checked, spread, widening
from evomerge.types import FloatArray

_RIDGES = tuple(10.0**k for k in (-2, -1, 0, 1, 2, 4))


@dataclass(frozen=True, eq=False)
class ControlVariate:
    """Corrects the mean by how much easier the chosen items were for the sources than all items.

    value = mean_S(y) + b . (mean(x) - mean_S(x)), where x are the sources' answers, whose means
    over all items are known, and b are ridge coefficients of y on x, or 0, whichever has the least
    leave-one-out error. Items are taken to be drawn at random.
    stderr^2 = t^2 (1 - n/N) s^2 / n with s^2 from the leave-one-out errors and t as for `Mean`.

    Attributes:
        sources: the sources' answers to all items, `K x N`.

    Source: regression estimators, Cochran, Sampling Techniques, chapter 7.
    """

    sources: FloatArray

    def estimate(
        self, indices: ArrayLike, answers: ArrayLike, weights: ArrayLike | None = None
    ) -> Estimate:
        """See `Predictor`; weights are not looked at."""
        n_items = self.sources.shape[1]
        places, y, _ = checked(n_items, indices, answers)
        n = len(y)
        if n == n_items:
            return Estimate(float(y.mean()), 0.0)
        value, squares = self._regressed(places, y)
        # pseudo-answers as in `spread`, for the part of the variance that x does not explain
        free = float(((y - y.mean()) ** 2).sum())
        left = min(1.0, squares / free) if free > 0 else 1.0
        variance = (squares + left * (spread(y) * (n + 4) - free)) / (n + 4)
        error = widening(n) * math.sqrt((1 - n / n_items) * variance / n)
        return Estimate(min(1.0, max(0.0, value)), error)

    def _regressed(self, places: Indices, y: FloatArray) -> tuple[float, float]:
        """The estimate and the sum of squared leave-one-out errors of the best ridge."""
        n = len(y)
        best_value, best = (
            float(y.mean()),
            float(((y - y.mean()) ** 2).sum()) * (n / max(1, n - 1)) ** 2,
        )
        if n < 3:
            return best_value, best
        x = self.sources[:, places].T
        centre = x.mean(axis=0)
        u, s, vt = np.linalg.svd(x - centre, full_matrices=False)
        away = self.sources.mean(axis=1) - centre
        target = u.T @ (y - y.mean())
        for ridge in _RIDGES:
            shrink = s**2 / (s**2 + ridge)
            fitted = u @ (shrink * target)
            leverage = (u**2) @ shrink + 1 / n
            errors = (y - y.mean() - fitted) / np.maximum(1 - leverage, 1 / n)
            squares = float(errors @ errors)
            if squares < best:
                best = squares
                slope = vt.T @ (s / (s**2 + ridge) * target)
                best_value = float(y.mean() + slope @ away)
        return best_value, best
