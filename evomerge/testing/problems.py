"""Problems with known answers, to compare optimisers on; everything is maximised.

Textbook functions are negated. Where a function's optimum would lie in the middle of the
domain, at which searches begin, it is moved to a place that the problem's seed draws.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.domain import Dimension, Domain
from evomerge.pareto import hypervolume, non_dominated
from evomerge.seeds import derive
from evomerge.types import Fitness, FloatArray


def reals(count: int, low: float, high: float) -> tuple[Dimension, ...]:
    """Real dimensions that begin in the middle; every third one is called a density.

    So that optimisers which search one parameter after the other have two of them.
    """
    names = ("density", "weight", "weight")
    return tuple(
        Dimension(f"{names[i % 3]}/{i}/all", low, high, (low + high) / 2, (high - low) / 6)
        for i in range(count)
    )


@dataclass(frozen=True, kw_only=True)
class Problem(ABC):
    """A function over a domain.

    Attributes:
        seed: draws where the optimum lies, and the noise.
        noise: standard deviation of what `evaluate` adds to each value.
    """

    seed: int = 0
    noise: float = 0.0

    @property
    @abstractmethod
    def domain(self) -> Domain:
        """What is searched."""

    @abstractmethod
    def values(self, genome: FloatArray) -> FloatArray:
        """True values of an `n` genome within the domain, one an objective."""

    def limits(self, genome: FloatArray) -> tuple[float, ...]:
        """True constraint values, satisfied at 0 or below."""
        return ()

    def evaluate(self, genome: FloatArray, number: int = 0) -> Fitness:
        """Fitness of a genome; of a noisy problem, that of evaluation `number`.

        The noise depends on the problem's seed, the genome and the number alone.
        """
        values = self.values(genome)
        if self.noise:
            seed = derive(self.seed, f"noise {np.asarray(genome).tobytes().hex()}", number)
            values = values + self.noise * np.random.default_rng(seed).standard_normal(len(values))
        stderr = (self.noise,) * len(values)
        return Fitness(tuple(values.tolist()), stderr, self.limits(genome))

    @property
    def optimum(self) -> float:
        """The largest feasible value; NaN for several objectives."""
        return float("nan")

    @property
    def reference(self) -> FloatArray:
        """Values above which hypervolume is measured, one an objective."""
        return np.zeros(0)

    @property
    def best_hypervolume(self) -> float:
        """Hypervolume of the true front; NaN for one objective."""
        return float("nan")

    def _place(self, low: float, high: float, count: int) -> FloatArray:
        """Where the optimum lies, uniform in [low, high]."""
        return np.random.default_rng(derive(self.seed, "place")).uniform(low, high, count)


@dataclass(frozen=True, kw_only=True)
class Sphere(Problem):
    """Negated squared distance to a point of [0.2, 0.8]^n in the unit cube; best 0."""

    dimensions: int = 10

    @cached_property
    def domain(self) -> Domain:
        return Domain(reals(self.dimensions, 0.0, 1.0))

    @cached_property
    def centre(self) -> FloatArray:
        """The optimum's place."""
        return self._place(0.2, 0.8, self.dimensions)

    def values(self, genome: FloatArray) -> FloatArray:
        return np.array([-np.square(genome - self.centre).sum()])

    @property
    def optimum(self) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Ellipsoid(Sphere):
    """The sphere with axes of lengths that differ, turned by a random rotation; best 0.

    Hansen et al., "Real-parameter black-box optimization benchmarking 2009", f10, scaled to the
    unit cube: the curvatures are a geometric sequence from 1 to `condition`, divided by it.
    """

    condition: float = 1e4

    @cached_property
    def _root(self) -> FloatArray:
        """Turns and scales a difference, an `n x n` matrix."""
        n = self.dimensions
        rng = np.random.default_rng(derive(self.seed, "rotation"))
        turn, upper = np.linalg.qr(rng.standard_normal((n, n)))
        turn = turn * np.sign(np.diag(upper))  # uniform over rotations and reflections
        powers = np.arange(n) / max(1, n - 1)
        return np.asarray(np.sqrt(self.condition ** (powers - 1))[:, None] * turn)

    def values(self, genome: FloatArray) -> FloatArray:
        return np.array([-np.square(self._root @ (genome - self.centre)).sum()])


@dataclass(frozen=True, kw_only=True)
class ConstrainedSphere(Sphere):
    """The sphere, of which the half with a small mean is forbidden; its best lies on the border.

    The mean of the genome has to be at least `margin` above that of the sphere's centre. The
    optimum is the centre's projection, `centre + margin`, and its value -n margin^2.
    """

    margin: float = 0.15

    @cached_property
    def domain(self) -> Domain:
        return Domain(reals(self.dimensions, 0.0, 1.0), constraints=1)

    def limits(self, genome: FloatArray) -> tuple[float, ...]:
        return (float(self.centre.mean() + self.margin - np.mean(genome)),)

    @property
    def optimum(self) -> float:
        return -self.dimensions * self.margin**2


@dataclass(frozen=True, kw_only=True)
class MixedRastrigin(Problem):
    """A rugged function of reals, integers and a choice; its best is 0.

    Negated sum of z^2 + 1 - cos(2 pi z) (Rastrigin's function with a tenth of its ripples), where
    z is the distance to a best place in [-1.2, 1.2]; an integer i stands for i / 10. Each choice
    has a best place of its own, and choice c costs 2 c. Searches begin at the worst choice.
    """

    real: int = 6
    integer: int = 3
    choices: int = 4

    @cached_property
    def domain(self) -> Domain:
        integers = tuple(
            Dimension(f"layer/{i}/all", -20, 20, 0, 7, "integer") for i in range(self.integer)
        )
        names = tuple("abcdefgh"[: self.choices])
        last = self.choices - 1
        choice = Dimension("operator/all/all", 0, last, last, 1.0, "choice", names)
        return Domain((*reals(self.real, -2.0, 2.0), *integers, choice))

    @cached_property
    def _centres(self) -> FloatArray:
        """Best places, one a choice; multiples of a tenth for the integers."""
        count = self.real + self.integer
        return np.round(self._place(-1.2, 1.2, self.choices * count), 1).reshape(-1, count)

    def values(self, genome: FloatArray) -> FloatArray:
        choice = int(genome[-1])
        scaled = np.r_[genome[: self.real], genome[self.real : -1] / 10]
        z = scaled - self._centres[choice]
        rugged = np.square(z) + 1.0 - np.cos(2 * np.pi * z)
        return np.array([-rugged.sum() - 2.0 * choice])

    @property
    def best(self) -> FloatArray:
        """The optimum's genome."""
        centre = self._centres[0]
        return np.r_[centre[: self.real], np.round(10 * centre[self.real :]), 0.0]

    @property
    def optimum(self) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Zdt(Problem):
    """ZDT1, ZDT2 and ZDT3, two objectives (Zitzler, Deb & Thiele 2000, eqs. 7 to 9)."""

    kind: int = 1
    dimensions: int = 12

    @cached_property
    def domain(self) -> Domain:
        return Domain(reals(self.dimensions, 0.0, 1.0), 2)

    def values(self, genome: FloatArray) -> FloatArray:
        f = float(genome[0])
        g = 1.0 + 9.0 * float(np.mean(genome[1:]))
        return np.array([-f, -g * self._shape(f / g, f)])

    def _shape(self, share: float, f: float) -> float:
        if self.kind == 2:
            return 1.0 - share**2
        wave = share * float(np.sin(10 * np.pi * f)) if self.kind == 3 else 0.0
        return 1.0 - float(np.sqrt(share)) - wave

    def front(self, count: int) -> FloatArray:
        """Points of the true front, at most `count x 2`."""
        points = [[-f, -self._shape(f, f)] for f in np.linspace(0.0, 1.0, count)]
        values = np.array(points)
        return np.asarray(values[non_dominated(values)])

    @property
    def reference(self) -> FloatArray:
        return np.array([-1.1, -6.0])

    @cached_property
    def best_hypervolume(self) -> float:
        return hypervolume(self.front(20_001), self.reference)


@dataclass(frozen=True, kw_only=True)
class Dtlz2(Problem):
    """DTLZ2 with a spherical front (Deb, Thiele, Laumanns & Zitzler 2002, eq. 9)."""

    objectives: int = 3
    dimensions: int = 12

    @cached_property
    def domain(self) -> Domain:
        return Domain(reals(self.dimensions, 0.0, 1.0), self.objectives)

    def values(self, genome: FloatArray) -> FloatArray:
        k = self.objectives
        angles = np.asarray(genome[: k - 1]) * np.pi / 2
        radius = 1.0 + float(np.square(genome[k - 1 :] - 0.5).sum())
        cosines = np.r_[1.0, np.cumprod(np.cos(angles))][::-1]
        sines = np.r_[1.0, np.sin(angles)[::-1]]
        return np.asarray(-radius * cosines * sines)

    @property
    def reference(self) -> FloatArray:
        return np.full(self.objectives, -2.0)

    @property
    def best_hypervolume(self) -> float:
        """The cube up to the reference without the sphere's part in it."""
        from math import gamma, pi

        k = self.objectives
        return 2.0**k - pi ** (k / 2) / gamma(k / 2 + 1) / 2**k


@dataclass(frozen=True, kw_only=True)
class MixedFront(Problem):
    """Two spheres over reals and integers; a choice favours one of them or neither.

    The objectives are negated mean squared distances, the reals' and the integers' alike in
    weight, to `a` and to `b` = 1 - a, less 0.15 and 0 for choice 0, 0 and 0.15 for choice 2, 0.05
    and 0.05 for choice 1, and 0.3 and 0.3 for choice 3. The front follows from the straight line
    between the reals' places and all integers.
    """

    real: int = 6
    integer: int = 3

    @cached_property
    def domain(self) -> Domain:
        integers = tuple(
            Dimension(f"layer/{i}/all", 0, 7, 3, 1.5, "integer") for i in range(self.integer)
        )
        choice = Dimension("operator/all/all", 0, 3, 3, 1.0, "choice", tuple("abcd"))
        return Domain((*reals(self.real, 0.0, 1.0), *integers, choice), 2)

    @cached_property
    def centre(self) -> FloatArray:
        """Where the first objective is best, of reals; the second is at 1 less this."""
        return self._place(0.1, 0.4, self.real)

    _OFFSETS = ((0.15, 0.0), (0.05, 0.05), (0.0, 0.15), (0.3, 0.3))

    def values(self, genome: FloatArray) -> FloatArray:
        real, whole = genome[: self.real], genome[self.real : -1] / 7
        out = []
        for centre, low, offset in zip(
            (self.centre, 1 - self.centre), (1 / 7, 6 / 7), self._OFFSETS[int(genome[-1])],
            strict=True,
        ):  # fmt: skip
            apart = np.mean(np.square(real - centre)) + np.mean(np.square(whole - low))
            out.append(-float(apart) - offset)
        return np.array(out)

    def front(self, count: int) -> FloatArray:
        """Points of the true front, from `count` places on the line of the reals."""
        line = np.linspace(0.0, 1.0, count)[:, None]
        real = self.centre + line * (1 - 2 * self.centre)
        parts = []
        for whole in {tuple(sorted(w)) for w in product(range(1, 7), repeat=self.integer)}:
            for choice in range(4):
                ends = np.array([self.values(np.r_[real[i], whole, choice]) for i in (0, -1)])
                # Along the line each distance is quadratic: t^2 and (1 - t)^2 times the whole.
                apart = float(np.mean(np.square(1 - 2 * self.centre)))
                first = ends[0, 0] - apart * line[:, 0] ** 2
                second = ends[1, 1] - apart * (1 - line[:, 0]) ** 2
                parts.append(np.c_[first, second])
        values = np.concatenate(parts)
        return np.asarray(values[non_dominated(values)])

    @property
    def reference(self) -> FloatArray:
        return np.array([-0.8, -0.8])

    @cached_property
    def best_hypervolume(self) -> float:
        return hypervolume(self.front(501), self.reference)


def matern(one: FloatArray, two: FloatArray, lengths: FloatArray) -> FloatArray:
    """Matern 5/2 correlations of `p x n` with `q x n` points, a `p x q` array."""
    a, b = one / lengths, two / lengths
    squared = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    r = np.sqrt(5.0 * np.maximum(squared, 0.0))
    return np.asarray((1 + r + r * r / 3) * np.exp(-r))


@dataclass(frozen=True, kw_only=True, eq=False)
class MergeLandscape(Problem):
    """Scores of merges of the zoo's small models, as a smooth model of real evaluations has them.

    The model and how it was fitted are in `benchmarks/fit_landscape.py`; `read` takes its file.

    Attributes:
        data: the file's content.
        weights: of the tasks in a single objective; None has an objective for each task.
    """

    data: Mapping[str, Any] | None = None
    weights: tuple[float, ...] | None = None

    @classmethod
    def read(cls, path: Path, weights: tuple[float, ...] | None = None) -> MergeLandscape:
        """Reads the JSON file of a fitted landscape."""
        return cls(data=json.loads(path.read_text(encoding="utf-8")), weights=weights)

    @cached_property
    def _data(self) -> Mapping[str, Any]:
        if self.data is None:
            raise ValueError("MergeLandscape: data is missing; use MergeLandscape.read")
        return self.data

    @cached_property
    def domain(self) -> Domain:
        made = tuple(Dimension(**d) for d in self._data["dimensions"])
        anchors = tuple(np.array(a) for a in self._data["anchors"])
        count = 1 if self.weights is not None else len(self._data["tasks"])
        return Domain(made, count, anchors=anchors)

    @cached_property
    def measured(self) -> FloatArray:
        """The genomes that were evaluated, an `m x n` array."""
        return np.array(self._data["genomes"])

    @cached_property
    def _models(self) -> list[tuple[FloatArray, FloatArray, float, bool]]:
        return [
            (np.array(m["lengths"]), np.array(m["weights"]), m["mean"], m["link"] == "logit")
            for m in self._data["models"]
        ]

    @cached_property
    def _unit(self) -> FloatArray:
        return self.domain.to_unit(self.measured)

    def scores(self, genomes: FloatArray) -> FloatArray:
        """Predicted share of right answers of `p x n` genomes, a `p x tasks` array in [0, 1]."""
        unit = self.domain.to_unit(genomes)
        columns = []
        for lengths, weights, mean, link in self._models:
            latent = mean + matern(unit, self._unit, lengths) @ weights
            columns.append(1 / (1 + np.exp(-latent)) if link else np.clip(latent, 0.0, 1.0))
        return np.stack(columns, axis=1)

    def values(self, genome: FloatArray) -> FloatArray:
        scores = self.scores(np.asarray(genome)[None])[0]
        if self.weights is None:
            return scores
        weights = np.array(self.weights)
        return np.array([float(scores @ weights / weights.sum())])

    @property
    def optimum(self) -> float:
        """Best value known (for equal weights: of many local searches); NaN for several."""
        if self.weights is None or len(set(self.weights)) > 1:
            return float("nan")
        return float(self._data["known"]["best"])

    @property
    def reference(self) -> FloatArray:
        return np.zeros(self.domain.objectives)

    @property
    def best_hypervolume(self) -> float:
        """Hypervolume of the best front known; NaN for one objective."""
        if self.weights is not None:
            return float("nan")
        return float(self._data["known"]["hypervolume"])
