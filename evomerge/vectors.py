"""Members of an M2N2 population as plain vectors, for models small enough to keep.

The same children as `evomerge.pieces.combine` makes of coefficients, made of the numbers
themselves, and with a mutation, which coefficients of seeds cannot say.

Source: Competition and Attraction Improve Model Fusion (M2N2, 2025).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from evomerge.mating import Mating
from evomerge.pieces import ANGLES, INTERPOLATIONS, slerp_factors

Vector = NDArray[np.float32]


class VectorMembers:
    """Makes members of matings and holds those that may still become parents.

    A child is slerp(share, first, second) before `round(split * n)` and slerp(1 - share, first,
    second) from there on. Inner products are summed in double precision and the child's numbers
    in single precision, so that each differs by at most two roundings from the exact one.
    """

    def __init__(
        self,
        seeds: Sequence[Vector],
        angle: str = "segment",
        interpolation: str = "slerp",
        mutation: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Takes the seeds, which are made by matings like every other member.

        Args:
            seeds: float32 vectors of one size n.
            angle: `segment` takes the angle between the parents on each side of the split (the
                paper's text), `global` that between the whole parents (its released code).
            interpolation: `lerp` takes 1 - t and t as factors, whatever the angle.
            mutation: standard deviation of the noise that is added to every child.
            seed: of the noise. A member's noise follows from this seed and its number alone.

        Raises:
            ValueError: for vectors that are not alike, or an argument out of range.
        """
        sizes = {np.shape(vector) for vector in seeds}
        if len(sizes) != 1 or len(next(iter(sizes))) != 1 or next(iter(sizes)) == (0,):
            raise ValueError(f"expected vectors of one size, found the shapes {sorted(sizes)}")
        if angle not in ANGLES or interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"expected one of {ANGLES} and of {INTERPOLATIONS}, found {angle}, {interpolation}"
            )
        if not 0 <= mutation < np.inf:
            raise ValueError(f"expected a mutation of at least 0, found {mutation}")
        self._seeds = [_frozen(np.array(vector, dtype=np.float32)) for vector in seeds]
        self._slerp = interpolation == "slerp"
        self._whole = angle == "global"
        self._mutation = float(mutation)
        self._seed = seed
        self._members: dict[int, Vector] = {}
        size = self.size
        self._first, self._second = np.empty(size), np.empty(size)  # parents in double precision
        self._spare = np.empty(size, dtype=np.float32)

    @property
    def size(self) -> int:
        """Numbers of one member, n."""
        return len(self._seeds[0])

    def __len__(self) -> int:
        """Members held."""
        return len(self._members)

    def __contains__(self, number: object) -> bool:
        return number in self._members

    def __getitem__(self, number: int) -> Vector:
        """A member that is held, read-only.

        Raises:
            ValueError: if it was not made, or forgotten since.
        """
        if number not in self._members:
            raise ValueError(f"member {number} was not made, or is forgotten")
        return self._members[number]

    def make(self, mating: Mating) -> Vector:
        """Makes a member and holds it; its parents must be held.

        Raises:
            ValueError: for a seed or a parent that is not there.
        """
        if mating.is_seed:
            if mating.member >= len(self._seeds):
                raise ValueError(f"expected one of {len(self._seeds)} seeds, found {mating.member}")
            vector = self._seeds[mating.member]
        else:
            vector = _frozen(self._child(mating))
        self._members[mating.member] = vector
        return vector

    def keep(self, numbers: Collection[int]) -> None:
        """Forgets all other members, so that memory stays at those kept and those made since.

        Parents of matings that were asked for and not yet made must be among them.
        """
        for number in self._members.keys() - set(numbers):
            del self._members[number]

    def _child(self, mating: Mating) -> Vector:
        one, other = self[mating.first], self[mating.second]
        n = self.size
        split = round(mating.split * n)
        sides = [(slice(0, split), mating.share), (slice(split, n), 1.0 - mating.share)]
        factors = self._factors(one, other, sides)
        child = np.empty(n, dtype=np.float32)
        for (side, _), (first, second) in zip(sides, factors, strict=True):
            np.multiply(one[side], np.float32(first), out=child[side])
            np.multiply(other[side], np.float32(second), out=self._spare[side])
        np.add(child, self._spare, out=child)
        if self._mutation:
            np.add(child, normals(n, self._seed, mating.member, self._mutation), out=child)
        return child

    def _factors(
        self, one: Vector, other: Vector, sides: Sequence[tuple[slice, float]]
    ) -> list[tuple[float, float]]:
        """What the parents are multiplied by on each side."""
        if not self._slerp:
            return [(1.0 - share, share) for _, share in sides]
        np.copyto(self._first, one)
        np.copyto(self._second, other)
        products = [_products(self._first[side], self._second[side]) for side, _ in sides]
        if self._whole:
            before, after = products
            products = [(before[0] + after[0], before[1] + after[1], before[2] + after[2])] * 2
        return [
            slerp_factors(share, *three) for (_, share), three in zip(sides, products, strict=True)
        ]


def normals(n: int, seed: int, number: int, deviation: float = 1.0) -> Vector:
    """Normally distributed numbers that follow from a seed and a number, an `n` array.

    Each is one of 65 536 levels, all equally likely: the means of as many equal slices of the
    normal distribution, the outermost at 4.4 standard deviations. Looking them up takes half
    the time of the formula of Box and Muller (1958) in `numpy`, or of its own generator, for
    which a search over small networks would wait a sixth of its time.

    Args:
        n: how many.
        seed: of all of them.
        number: of these.
        deviation: standard deviation.
    """
    bits = np.random.SFC64(np.random.SeedSequence((seed, number))).random_raw((n + 3) // 4)
    chosen = bits.astype("<u8", copy=False).view("<u2")[:n].astype(np.intp)
    return levels(deviation).take(chosen, mode="clip")  # all are within; `raise` checks it


@lru_cache(maxsize=8)
def levels(deviation: float) -> Vector:
    """The means of 65 536 equally likely slices of N(0, deviation^2), ascending, float32.

    Of the slice from a to b it is (pdf(a) - pdf(b)) / (cdf(b) - cdf(a)).
    """
    from scipy.special import ndtri  # not loaded by searches that do not mutate

    count = 1 << 16
    edges = ndtri(np.arange(count + 1) / count)
    density = np.exp(-0.5 * edges**2) / math.sqrt(2.0 * math.pi)
    return _frozen((-np.diff(density) * count * deviation).astype(np.float32))


def _products(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float]:
    """<x, x>, <x, y>, <y, y>."""
    return float(x @ x), float(x @ y), float(y @ y)


def _frozen(vector: Vector) -> Vector:
    vector.flags.writeable = False
    return vector
