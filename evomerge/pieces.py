"""Members of an M2N2 population as coefficients of the seeds, not as weights.

Every descendant of K seeds is, between the split points of its ancestors, one linear
combination of the seeds, whatever the model's size. Slerp of two combinations is again one;
its two factors follow from an angle, and the angle from the seeds' Gram matrices.

Source: Competition and Attraction Improve Model Fusion (M2N2, 2025).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import RecipeError
from evomerge.recipe.data import Pieces
from evomerge.types import FloatArray

IntArray = NDArray[np.int64]

ANGLES = ("segment", "global")
INTERPOLATIONS = ("slerp", "lerp")
_PARALLEL = 0.9995
_ROUNDING = 1e-14  # of a squared norm, relative to the sum of its terms' magnitudes


class Grams(Protocol):
    """Inner products of the K seeds on intervals of the flattened parameters."""

    def intervals(self, edges: Sequence[int] | IntArray) -> FloatArray:
        """Gram matrices between `m + 1` rising edges, an `m x K x K` array."""


@dataclass(frozen=True, eq=False)
class Piecewise:
    """A linear combination of K seeds on each of m intervals of n parameters.

    Attributes:
        breakpoints: where intervals end, `m` integers that rise strictly to n.
        coefficients: `m x K`, read-only like the breakpoints.
    """

    breakpoints: IntArray
    coefficients: FloatArray

    def __post_init__(self) -> None:
        if np.asarray(self.breakpoints).dtype.kind not in "iu":
            raise ValueError("expected breakpoints that are integers")
        ends = np.array(self.breakpoints, dtype=np.int64)
        rows = np.array(self.coefficients, dtype=np.float64)
        if ends.ndim != 1 or not ends.size or ends[0] < 1 or bool((np.diff(ends) < 1).any()):
            raise ValueError("expected breakpoints that rise strictly from at least 1")
        if rows.ndim != 2 or len(rows) != len(ends) or not rows.shape[1]:
            raise ValueError(f"expected {len(ends)} rows of coefficients, found {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError("expected finite coefficients, found NaN or infinity")
        ends.flags.writeable = rows.flags.writeable = False
        object.__setattr__(self, "breakpoints", ends)
        object.__setattr__(self, "coefficients", rows)

    @classmethod
    def seed(cls, index: int, seeds: int, total: int) -> Piecewise:
        """The seed `index` of `seeds` itself, over `total` parameters."""
        if not 0 <= index < seeds:
            raise ValueError(f"expected a seed below {seeds}, found {index}")
        return cls(np.array([total]), np.eye(seeds)[[index]])

    @classmethod
    def from_pieces(cls, pieces: Pieces) -> Piecewise:
        """Reads the part of a recipe.

        Raises:
            RecipeError: if breakpoints or coefficients are not what `Piecewise` says.
        """
        try:
            return cls(np.array(pieces.breakpoints), np.array(pieces.coefficients))
        except (ValueError, TypeError, OverflowError) as error:
            raise RecipeError.of(
                "pieces",
                f"breakpoints and coefficients that do not fit ({error})",
                "integers that rise strictly, and for each a row of one number a source",
                "Take the recipe as evomerge wrote it.",
            ) from error

    def to_pieces(self) -> Pieces:
        """Gives the part of a recipe; `from_pieces` gives back the same numbers."""
        rows = self.coefficients.tolist()
        return Pieces(tuple(self.breakpoints.tolist()), tuple(tuple(row) for row in rows))

    @property
    def total(self) -> int:
        """Number of parameters, n."""
        return int(self.breakpoints[-1])

    @property
    def seeds(self) -> int:
        """Number of seeds, K."""
        return int(self.coefficients.shape[1])

    def __len__(self) -> int:
        """Number of intervals, m."""
        return len(self.breakpoints)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Piecewise):
            return NotImplemented
        return np.array_equal(self.breakpoints, other.breakpoints) and np.array_equal(
            self.coefficients, other.coefficients
        )

    def __hash__(self) -> int:
        return hash(self.to_pieces())


def refine(one: Piecewise, other: Piecewise) -> tuple[Piecewise, Piecewise]:
    """Writes both with the breakpoints of both; neither changes as a function.

    Raises:
        ValueError: if they have not the same n and K.
    """
    _check_alike(one, other)
    ends = np.union1d(one.breakpoints, other.breakpoints)
    return Piecewise(ends, _rows_at(one, ends)), Piecewise(ends, _rows_at(other, ends))


def simplify(piecewise: Piecewise) -> Piecewise:
    """Joins neighbours whose coefficients are equal, bit for bit or as 0.0 and -0.0 are."""
    rows = piecewise.coefficients
    last = np.append((rows[1:] != rows[:-1]).any(axis=1), True)
    return Piecewise(piecewise.breakpoints[last], rows[last])


def combine(
    one: Piecewise,
    other: Piecewise,
    weight: float,
    split: int,
    grams: Grams,
    angle: str = "segment",
    interpolation: str = "slerp",
) -> Piecewise:
    """A child of two parents: slerp(w, one, other) before the split, slerp(1 - w, ...) after.

    slerp(t, ...) begins at `one` (t = 0) and ends at `other` (t = 1), so that `weight` is
    the share of `other` before the split and that of `one` after it.

    Args:
        one: the first parent, p1 in the paper.
        other: the second parent, p2.
        weight: w, from 0 to 1.
        split: s, from 0 to n: parameters [0, s) get w, [s, n) get 1 - w.
        grams: the seeds' inner products.
        angle: `segment` takes the angle between the parents on each side of the split (the
            paper's text), `global` that between the whole parents (its released code).
        interpolation: `lerp` takes 1 - t and t as factors, whatever the angle.

    Returns:
        The child, with at most one breakpoint that the parents have not.

    Raises:
        ValueError: if the parents have not the same n and K, or an argument is out of range.
    """
    _check_alike(one, other)
    if not 0 <= weight <= 1 or not 0 <= split <= one.total:
        raise ValueError(
            f"expected a weight in [0, 1] and a split in [0, {one.total}], found {weight}, {split}"
        )
    if angle not in ANGLES or interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"expected one of {ANGLES} and of {INTERPOLATIONS}, found {angle}, {interpolation}"
        )
    ends = np.union1d(one.breakpoints, other.breakpoints)
    if split > 0:
        ends = np.union1d(ends, np.array([split], dtype=np.int64))
    mine, theirs = _rows_at(one, ends), _rows_at(other, ends)
    products = _products(mine, theirs, ends, grams) if interpolation == "slerp" else None
    child = np.empty_like(mine)
    before = ends <= split
    for side, share in ((before, weight), (~before, 1.0 - weight)):
        if not side.any():
            continue
        first, second = 1.0 - share, share
        if products is not None:
            chosen = products[side] if angle == "segment" else products
            first, second = slerp_factors(share, *chosen.sum(axis=0).tolist())
        child[side] = first * mine[side] + second * theirs[side]
    return simplify(Piecewise(ends, child))


def slerp_factors(share: float, xx: float, xy: float, yy: float) -> tuple[float, float]:
    """What x and y are multiplied by in slerp(share, x, y), given their inner products.

    Factors are sin((1 - t) a) / sin(a) and sin(t a) / sin(a) with a the angle between x and y,
    which keep their lengths. They are 1 - t and t (lerp) where |cos a| > 0.9995, so for
    opposite vectors too, and where the norm of x or y is zero.
    """
    if xx <= 0 or yy <= 0:
        return 1.0 - share, share
    cosine = xy / math.sqrt(xx) / math.sqrt(yy)
    if abs(cosine) > _PARALLEL:
        return 1.0 - share, share
    whole = math.acos(cosine)
    sine = math.sin(whole)
    return math.sin((1.0 - share) * whole) / sine, math.sin(share * whole) / sine


def weights_at(
    piecewise: Piecewise, runs: Iterable[tuple[int, int]]
) -> list[tuple[int, int, FloatArray]]:
    """Cuts runs [start, stop) of the flattened parameters where intervals end.

    Returns:
        (start, stop, coefficients) for each part, in order, the coefficients a `K` array;
        runs without elements give none.

    Raises:
        ValueError: if a run does not lie within [0, n].
    """
    parts = []
    for start, stop in runs:
        if not 0 <= start <= stop <= piecewise.total:
            raise ValueError(f"expected a run in [0, {piecewise.total}], found {start}, {stop}")
        i = int(np.searchsorted(piecewise.breakpoints, start, side="right"))
        while start < stop:
            end = min(int(piecewise.breakpoints[i]), stop)
            parts.append((start, end, piecewise.coefficients[i]))
            start, i = end, i + 1
    return parts


def _products(mine: FloatArray, theirs: FloatArray, ends: IntArray, grams: Grams) -> FloatArray:
    """Inner products of two combinations on each interval: <x, x>, <x, y>, <y, y>, `m x 3`.

    <x, y> = c_x^T G c_y with the seeds' Gram matrix G. Where rounding alone could account for
    a squared norm of all parameters of the interval, it counts as zero.
    """
    matrices = grams.intervals(np.concatenate([[0], ends]))

    def form(a: FloatArray, g: FloatArray, b: FloatArray) -> FloatArray:
        return np.asarray(np.einsum("ik,ikl,il->i", a, g, b), dtype=np.float64)

    squares = []
    for rows in (mine, theirs):
        square = form(rows, matrices, rows)
        terms = form(np.abs(rows), np.abs(matrices), np.abs(rows))
        squares.append(np.where(square <= _ROUNDING * terms, 0.0, square))
    return np.stack([squares[0], form(mine, matrices, theirs), squares[1]], axis=1)


def _rows_at(piecewise: Piecewise, ends: IntArray) -> FloatArray:
    """Coefficients on the intervals of a finer list of breakpoints."""
    return piecewise.coefficients[np.searchsorted(piecewise.breakpoints, ends)]


def _check_alike(one: Piecewise, other: Piecewise) -> None:
    if (one.total, one.seeds) != (other.total, other.seeds):
        raise ValueError(
            f"expected {one.total} parameters of {one.seeds} seeds, "
            f"found {other.total} of {other.seeds}"
        )
