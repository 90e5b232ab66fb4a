"""Fronts: which candidates no other one beats, and which one of them to choose."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.types import FloatArray

Values = tuple[float, ...]

_AUGMENTATION = 0.05


def non_dominated(values: FloatArray) -> NDArray[np.bool_]:
    """Which rows no other row beats: at least as good everywhere and better somewhere.

    Args:
        values: `m x k`, to be maximised.

    Returns:
        An `m` array; of equal rows all count.
    """
    import moocore

    if not len(values):
        return np.zeros(0, dtype=bool)
    return np.asarray(moocore.is_nondominated(values, maximise=True, keep_weakly=True), dtype=bool)


def joined(front: list[Values], own: Values) -> list[Values]:
    """The different values that none of a front and one more exceeds, all to be maximised.

    The very same list if the front has a member that is as good everywhere.
    """
    if any(all(a >= b for a, b in zip(f, own, strict=True)) for f in front):
        return front
    kept = [f for f in front if any(a > b for a, b in zip(f, own, strict=True))]
    return [*kept, own]


def hypervolume(values: FloatArray, reference: FloatArray) -> float:
    """Volume that the rows of an `m x k` array dominate above a `k` reference point.

    Source: Zitzler & Thiele (1998), computed by moocore.
    """
    import moocore

    above = values[(values > reference).all(axis=1)] if len(values) else values
    return float(moocore.hypervolume(above, ref=reference, maximise=True)) if len(above) else 0.0


def normalised(values: FloatArray, among: FloatArray | None = None) -> FloatArray:
    """Each column of an `m x k` array from its worst (0) to its best (1); 1 where all agree.

    Worst and best are those of `among`, a `p x k` array, or by default of the values themselves.
    """
    among = values if among is None else among
    low, high = among.min(axis=0), among.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    return np.asarray(np.where(high > low, (values - low) / span, 1.0), dtype=np.float64)


def preference(
    values: FloatArray, weights: FloatArray, among: FloatArray | None = None
) -> FloatArray:
    """How good each row is for one who weighs the columns so; higher is better, an `m` array.

    Augmented achievement scalarizing function (Wierzbicki 1980) on normalised columns: the
    negated largest weighted shortfall from the best of each column, and a little of their sum.

    Args:
        values: `m x k`, to be maximised.
        weights: `k`, at least 0; they are divided by their sum.
        among: `p x k`, whose worst and best give the columns their scale; None: `values`.
    """
    short = (1.0 - normalised(values, among)) * (weights / weights.sum())
    return np.asarray(-short.max(axis=1) - _AUGMENTATION * short.sum(axis=1), dtype=np.float64)


def spread(values: FloatArray, count: int) -> NDArray[np.int64]:
    """`count` rows of an `m x k` array that cover it well, ascending.

    The best row of each column first, then whichever row is farthest from those taken.
    """
    if len(values) <= count:
        return np.arange(len(values), dtype=np.int64)
    points = normalised(values)
    taken = list(dict.fromkeys(int(i) for i in points.argmax(axis=0)))[:count]
    distance = np.full(len(points), np.inf)
    for i in taken:
        distance = np.minimum(distance, np.linalg.norm(points - points[i], axis=1))
    distance[taken] = -1.0  # not again, even where all rows are equal
    while len(taken) < count:
        farthest = int(distance.argmax())
        taken.append(farthest)
        distance = np.minimum(distance, np.linalg.norm(points - points[farthest], axis=1))
        distance[farthest] = -1.0
    return np.sort(np.array(taken, dtype=np.int64))
