"""Members of an M2N2 population as plain vectors, for models small enough to keep.

The same children as `evomerge.pieces.combine` makes of coefficients, made of the numbers
themselves, and with a mutation, which coefficients of seeds cannot say.

Source: Competition and Attraction Improve Model Fusion (M2N2, 2025).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.mating import Mating
from evomerge.pieces import ANGLES, INTERPOLATIONS, slerp_factors

Vector = NDArray[np.float32]

_TABLE = 1 << 22  # 16 MiB


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
        self._members: dict[int, Vector] = {}
        size = self.size
        self._noise = NoiseTable(mutation, seed, size) if mutation else None
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
            out, spare = child[side], self._spare[side]
            np.multiply(one[side], np.float32(first), out=out)
            np.multiply(other[side], np.float32(second), out=spare)
            np.add(out, spare, out=out)
        if self._noise is not None:
            np.add(child, self._noise.of(mating.member, n), out=child)
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


class NoiseTable:
    """Normally distributed numbers, drawn once; each member gets a stretch of them.

    Drawing 19 210 numbers for every child would take a fifth of the time of a search over small
    networks. Where a member's stretch begins follows from the seed and its number. Two of them
    overlap seldom, and then other parameters get the same numbers (Salimans et al. 2017,
    arXiv 1703.03864, section 2.1).
    """

    def __init__(self, deviation: float, seed: int, size: int) -> None:
        """Draws the table.

        Args:
            deviation: standard deviation of the numbers.
            seed: of the table and of the places.
            size: of the longest stretch.
        """
        self._seed = seed
        rng = np.random.Generator(np.random.PCG64(seed))
        count = max(_TABLE, 8 * size)
        self._table = rng.standard_normal(count, dtype=np.float32) * np.float32(deviation)

    def of(self, number: int, size: int) -> Vector:
        """The stretch of a member, a `size` view."""
        drawn = np.random.SeedSequence((self._seed, number)).generate_state(1, np.uint64)
        first = int(drawn[0]) % (len(self._table) - size)
        return self._table[first : first + size]


def _products(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float]:
    """<x, x>, <x, y>, <y, y>."""
    return float(x @ x), float(x @ y), float(y @ y)


def _frozen(vector: Vector) -> Vector:
    vector.flags.writeable = False
    return vector
