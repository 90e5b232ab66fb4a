"""Quality indicators of sets of points. Less is better everywhere; objectives are columns.

Hypervolume, IGD and IGD+ are computed by moocore (https://multi-objective.github.io/moocore).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.types import FloatArray


@dataclass(frozen=True)
class Box:
    """The box in which fronts are measured.

    Attributes:
        ideal: the best value of each objective, mapped to 0.
        nadir: the worst value of each objective, mapped to 1.
        reference: the reference point of the hypervolume; the nadir unless the user gave one.
    """

    ideal: FloatArray
    nadir: FloatArray
    reference: FloatArray

    @classmethod
    def around(cls, points: FloatArray, reference: FloatArray | None = None) -> Box:
        """The box of the `n x objectives` points, n >= 1."""
        nadir = points.max(axis=0)
        return cls(points.min(axis=0), nadir, nadir if reference is None else reference)

    def unit(self, points: FloatArray) -> FloatArray:
        """`points` with ideal and nadir at 0 and 1; an objective that is constant stays at 0."""
        return (points - self.ideal) / self._spread

    def share(self, points: FloatArray) -> float:
        """Hypervolume as a share of the box between reference and ideal, in [0, 1].

        The hypervolume after the normalisation of `unit`, divided by that of the ideal point. An
        objective that is constant, also in the reference, has no say; a reference that is better
        than every point in another leaves 0.
        """
        reference = self.unit(self.reference[None])[0]
        constant = self.nadir <= self.ideal
        reference = np.where(constant & (reference == 0), 1.0, reference)
        if (reference <= 0).any():
            return 0.0
        return hypervolume(self.unit(points), reference) / float(reference.prod())

    @property
    def _spread(self) -> FloatArray:
        spread = self.nadir - self.ideal
        return np.where(spread > 0, spread, 1.0)


def nondominated(points: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which of `n x objectives` points no other dominates; of equal points, all."""
    if not len(points):
        return np.zeros(0, dtype=np.bool_)
    import moocore

    return np.asarray(moocore.is_nondominated(points, keep_weakly=True), dtype=np.bool_)


def hypervolume(points: FloatArray, reference: FloatArray) -> float:
    """The volume that `points` dominate up to `reference`; 0 of no points.

    A point that is not better than the reference in every objective adds nothing.
    """
    inside = points[(points < reference).all(axis=1)] if len(points) else points
    if not len(inside):
        return 0.0
    import moocore

    return float(moocore.hypervolume(inside, ref=reference))


def igd(points: FloatArray, front: FloatArray) -> float | None:
    """Mean Euclidean distance from each point of `front` to the nearest of `points`.

    None if either is empty.
    """
    if not len(points) or not len(front):
        return None
    import moocore

    return float(moocore.igd(points, ref=front))


def igd_plus(points: FloatArray, front: FloatArray) -> float | None:
    """IGD in which only what a point lacks counts as distance (Ishibuchi et al. 2015).

    None if either is empty.
    """
    if not len(points) or not len(front):
        return None
    import moocore

    return float(moocore.igd_plus(points, ref=front))


def knee(points: FloatArray) -> int | None:
    """The place of the point with the least sum of losses, each from 0 (best) to 1 (worst).

    With two objectives that is the point of the front that lies farthest from the line between
    its ends (Das 1999). None where no point lies on the better side of the plane on which the
    losses add up to 1, such as on a front of two points or on a straight one.
    """
    if len(points) < 3 or not (np.ptp(points, axis=0) > 0).all():
        return None
    sums = Box.around(points).unit(points).sum(axis=1)
    place = int(sums.argmin())
    return place if sums[place] < 1.0 - 1e-9 else None


def share_steps(points: Sequence[FloatArray | None], box: Box) -> list[tuple[int, float]]:
    """Hypervolume of all points so far: (place, share of the box) of each that raised it.

    None stands for a candidate without a point: failed, infeasible or not measured yet.
    """
    steps: list[tuple[int, float]] = []
    archive = np.zeros((0, len(box.ideal)))
    for place, point in enumerate(points):
        if point is None or (archive <= point).all(axis=1).any():
            continue
        archive = np.vstack([archive[~(point <= archive).all(axis=1)], point])
        share = box.share(archive)
        if not steps or share > steps[-1][1]:
            steps.append((place, share))
    return steps
