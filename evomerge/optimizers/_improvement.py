"""Fronts, dominated regions and what points would add to them; everything is maximised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.types import FloatArray


def nondominated(values: FloatArray) -> NDArray[np.bool_]:
    """Which rows of an `n x m` array no other row dominates, an `n` array.

    Of equal rows all or none are.
    """
    weakly = np.ones((len(values), len(values)), dtype=bool)
    strictly = np.zeros_like(weakly)
    for column in values.T:  # [i, j]: row i against row j
        weakly &= column[:, None] >= column
        strictly |= column[:, None] > column
    return np.asarray(~(weakly & strictly).any(axis=0))


def leading(values: FloatArray, count: int) -> NDArray[np.int64]:
    """Rows of an `n x m` array front by front, at most `count` of them.

    Of the front that does not fit whole, the best in each objective and those farthest from
    the ones already taken.
    """
    left = np.arange(len(values))
    taken: list[int] = []
    while len(left) and len(taken) < count:
        front = nondominated(values[left])
        rows, room = left[front], count - len(taken)
        taken += rows.tolist() if len(rows) <= room else rows[_spread(values[rows], room)].tolist()
        left = left[~front]
    return np.array(taken, dtype=np.int64)


def _spread(values: FloatArray, count: int) -> NDArray[np.int64]:
    """Picks rows by farthest-point sampling after the best of each objective."""
    width = np.ptp(values, axis=0)
    scaled = values / np.where(width > 0, width, 1.0)
    taken: list[int] = []
    nearest = np.full(len(values), np.inf)
    for step in range(count):
        ends = step < values.shape[1]
        row = int(np.argmax(scaled[:, step] if ends else nearest))
        if row in taken:
            row = int(np.argmax(np.where(np.isin(np.arange(len(values)), taken), -1.0, nearest)))
        taken.append(row)
        nearest = np.minimum(nearest, ((scaled - scaled[row]) ** 2).sum(axis=1))
    return np.array(taken, dtype=np.int64)


def reference_point(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """From where hypervolume is measured, and its extent, for an `n x m` array; two `m` arrays.

    A tenth of the front's range below its worst values (Ishibuchi et al. 2018); in an
    objective in which the front does not vary, all values stand in for it.
    """
    front = values[nondominated(values)]
    low, high = front.min(axis=0), front.max(axis=0)
    low = np.where(high > low, low, values.min(axis=0))
    width = high - low
    width = np.where(width > 1e-12 * np.maximum(1.0, np.abs(high)), width, 1.0)
    return low - 0.1 * width, 1.1 * width


@dataclass(frozen=True)
class Dominated:
    """The region between a reference point and a front, as disjoint boxes.

    Attributes:
        reference: where it begins, an `m` array.
        low: lower corners, a `b x m` array.
        high: upper corners, a `b x m` array.
    """

    reference: FloatArray
    low: FloatArray
    high: FloatArray

    @classmethod
    def by(cls, front: FloatArray, reference: FloatArray) -> Dominated:
        """Decomposes the region that points of an `n x m` array dominate.

        Source: Lacour, Klamroth and Fonseca, "A box decomposition algorithm to compute the
        hypervolume indicator" (2017), section 3: the corners of what is not dominated, each
        with the points that define it, after one point after the other.
        """
        m = len(reference)
        points = front[(front > reference).all(axis=1)]
        points = np.unique(points[nondominated(points)], axis=0)
        # The paper minimises: everything is negated in here.
        corners = -reference[None, :]
        defining = np.full((1, m, m), -np.inf)
        defining[0][np.diag_indices(m)] = -reference
        for point in -points:
            hit = (point < corners).all(axis=1)
            old, by = corners[hit], defining[hit]
            new, new_by = [corners[~hit]], [defining[~hit]]
            for j in range(m):
                others = np.delete(by[:, :, j], j, axis=1).max(axis=1, initial=-np.inf)
                fits = point[j] >= others
                corner, definition = old[fits].copy(), by[fits].copy()
                corner[:, j] = point[j]
                definition[:, j] = point
                new.append(corner)
                new_by.append(definition)
            corners, defining = np.concatenate(new), np.concatenate(new_by)
        low, high = corners.copy(), np.empty_like(corners)
        low[:, 0], high[:, 0] = defining[:, 0, 0], -reference[0]
        for j in range(1, m):
            low[:, j] = defining[:, :j, j].max(axis=1)
            high[:, j] = corners[:, j]
        kept = (high > low).all(axis=1)
        return cls(reference, -high[kept], -low[kept])

    @property
    def volume(self) -> float:
        """The hypervolume."""
        return float((self.high - self.low).prod(axis=1).sum())

    def added(self, points: FloatArray) -> FloatArray:
        """Hypervolume that each row of a `c x m` array would add alone, a `c` array.

        All that it dominates, less the part of each box that it dominates.
        """
        whole = np.maximum(points - self.reference, 0.0).prod(axis=1)
        shared = np.ones((len(points), len(self.low)))
        for j in range(points.shape[1]):
            reach = np.minimum(points[:, j, None], self.high[:, j]) - self.low[:, j]
            shared *= np.maximum(reach, 0.0)
        return np.asarray(np.maximum(whole - shared.sum(axis=1), 0.0))


def mean_addition(regions: Sequence[Dominated], points: FloatArray) -> FloatArray:
    """Mean over joint samples of the hypervolume that each point adds, a `c` array.

    Noisy expected hypervolume improvement: Daulton, Balandat and Bakshy (2021), eq. 5.

    Args:
        regions: what the observed and pending points dominate in each of `s` samples.
        points: the same samples at the candidates, an `s x c x m` array.
    """
    added = [region.added(sample) for region, sample in zip(regions, points, strict=True)]
    return np.asarray(np.mean(added, axis=0))
