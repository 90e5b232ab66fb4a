"""MAP-Elites (Mouret and Clune, arXiv 1504.04909) on the `ribs` package.

With several objectives it is the search of CycleQD (Kuroki et al., arXiv 2410.14735): each
objective in turn is the quality, the others are what the map is laid out by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evomerge.domain import Domain
from evomerge.errors import ConfigError
from evomerge.optimizers import settings
from evomerge.optimizers._genetic import TRIES, move_whole
from evomerge.optimizers.base import Optimizer, Told
from evomerge.optimizers.designs import InitialDesign
from evomerge.seeds import derive
from evomerge.types import Fitness, FloatArray, Observation

CELLS = 15, 10_000
"""Cells a descriptor, as in CycleQD, and cells of a whole map, unless told otherwise."""

MOST_CELLS = 1_000_000


class MapElites(Optimizer):
    """Keeps the best candidate of every kind, and breeds from all kinds alike.

    A kind is a cell of a map whose axes are descriptors. Map t has objective t as quality and
    the other objectives' values as descriptors. With a single objective two descriptors are
    made of the genome: its projection on two random directions that the seed fixes, choices
    counted as indicators; so distant genomes are told apart on average, which a mean or spread
    of the numbers would not do.

    The axes need no known ranges. They run from the lowest to the highest value so far, but a
    value below the outer fence (first quartile - 3 interquartile ranges; Tukey 1977) shares the
    lowest cell, so that a broken merge does not squeeze all others into one. They are laid out
    anew, and every result so far is entered again, once the results have grown by a tenth and by
    `batch`; between these times results beyond the ends enter the cells there.

    Infeasible results enter no map once there is a feasible one. As long as there is none, every
    result enters, and the quality in all maps is the negated violation.

    A child is made of two elites drawn from the map in turn, uniformly over its filled cells, by
    Iso+LineDD (Vassiliades and Mouret 2018) in coordinates scaled to [0, 1]; integers are rounded,
    choices come from either parent, and both mutate with probability 1 / n. The first
    `batch` results come from the domain's anchors and Sobol points. No genome is asked for twice
    while unseen ones are found. Results count at once, so candidates may be at work at any time.
    """

    multi_objective = True
    asynchronous = True

    def __init__(
        self,
        domain: Domain,
        seed: int,
        batch: int = 32,
        cells: int | None = None,
        sigma: float = 0.05,
        line_sigma: float = 0.5,
        rotate: bool = True,
        anchors: bool = True,
    ) -> None:
        """Starts with empty maps.

        Args:
            domain: what is searched.
            seed: of this optimiser's own generator.
            batch: candidates kept at work, and asks after which the next map has its turn.
            cells: of each descriptor; default 15, or as many as make up to 10,000 cells a map.
            sigma: standard deviation of a child's noise, in units of each range.
            line_sigma: standard deviation of a child's place on the line through its parents,
                in units of their distance.
            rotate: whether the maps take turns; else parents come from the first alone, whose
                quality is the first objective.
            anchors: whether the domain's anchors come first.

        Raises:
            ConfigError: for a batch below 1, fewer than 2 cells, a map of more than a million
                cells, a sigma that is not positive or a line_sigma below 0.
        """
        super().__init__(domain, seed)
        self._seed = seed
        self._batch = settings.whole("batch", batch, 1)
        self._sigma = settings.positive("sigma", sigma)
        self._line_sigma = settings.within("line_sigma", line_sigma, 0, math.inf)
        self._rotate = settings.flag("rotate", rotate)
        self._descriptors = domain.objectives - 1 or 2
        self._cells = _cells(cells, self._descriptors)
        anchored = settings.flag("anchors", anchors)
        self._design = InitialDesign(domain, derive(seed, "initial maps"), anchored)
        self._projection = self._directions()
        self._maps: list[Any] = []
        self._axes = np.zeros((2, 0))  # lower and upper ends, one column a coordinate
        self._laid_out = 0  # results when the axes were chosen
        self._entered = 0  # results that the maps have seen
        self._feasible = False  # whether any result is
        self._results: list[tuple[FloatArray, Fitness]] = []
        self._told: list[Told] = []
        self._designed: set[int] = set()
        self._seen: set[bytes] = set()

    @property
    def batch(self) -> int:
        """How many candidates are kept at work."""
        return self._batch

    @property
    def maps(self) -> list[Any]:
        """The maps: a `ribs.archives.GridArchive` an objective; none before there is a result.

        Solutions are points of the unit cube, measures are scaled to [0, 1] along each axis.
        """
        self._enter()
        return self._maps

    def _ask(self, numbers: range) -> list[FloatArray]:
        self._enter()
        return [self._next(number) for number in numbers]

    def _replace(self, number: int, recorded: FloatArray) -> None:
        self._seen.add(recorded.tobytes())

    def _tell(self, told: Sequence[Told]) -> None:
        self._told.extend(told)

    def _learn(self, observations: Sequence[Observation]) -> None:
        self._seen.update(o.genome.tobytes() for o in observations)
        known = [(np.asarray(o.genome), o.fitness) for o in observations if o.fitness is not None]
        self._results.extend(known)

    def _next(self, number: int) -> FloatArray:
        if not self._maps or len(self._results) + len(self._designed) < self._batch:
            self._designed.add(number)
            genome = self._unseen(lambda: self._design.take(1)[0])
        else:
            turn = number // self._batch % len(self._maps) if self._rotate else 0
            genome = self._unseen(lambda: self._child(self._maps[turn]))
        self._seen.add(genome.tobytes())
        return genome

    def _unseen(self, draw: Callable[[], FloatArray]) -> FloatArray:
        """What `draw` gives; something new if that is found."""
        for _ in range(TRIES):
            genome = self.domain.snap(draw())
            if genome.tobytes() not in self._seen:
                break
        return genome

    def _child(self, archive: Any) -> FloatArray:
        """A genome made of two elites."""
        from ribs.emitters.operators import IsoLineOperator

        parents = archive.sample_elites(2)["solution"][:, None]
        operator = IsoLineOperator(self._sigma, self._line_sigma, self._drawn_seed())
        unit = np.clip(operator.ask(parents), 0.0, 1.0)
        other = self.rng.random(unit.shape) < 0.5
        mixed = np.where(self.domain.categorical, np.where(other, *parents), unit)
        moved = self.domain.whole & (self.rng.random(unit.shape) < 1 / len(self.domain))
        upward = self.rng.random(unit.shape) < 0.5
        genomes = self.domain.from_unit(mixed)
        return move_whole(self.domain, genomes, moved, upward, self.rng)[0]

    def _enter(self) -> None:
        """Enters what was told since the last time, in the order in which it was asked for."""
        told = sorted(self._told, key=lambda t: t.number)
        self._told = []
        self._designed.difference_update(t.number for t in told)
        self._results.extend((t.genome, t.fitness) for t in told if t.fitness is not None)
        new = self._results[self._entered :]
        if not new:
            return
        feasible = self._feasible or any(fitness.feasible for _, fitness in new)
        due = len(self._results) - self._laid_out >= max(self._batch, self._laid_out / 10)
        if due or not self._maps or feasible != self._feasible:
            self._feasible = feasible
            self._lay_out()
            new = self._results
        self._insert(new)
        self._entered = len(self._results)

    def _lay_out(self) -> None:
        """Makes empty maps whose axes span the results."""
        from ribs.archives import GridArchive

        genomes, values, _ = self._arrays(self._results)
        self._axes = spans(self._coordinates(genomes, values))
        self._laid_out = len(self._results)
        self._maps = [
            GridArchive(
                solution_dim=len(self.domain),
                dims=[self._cells] * self._descriptors,
                ranges=[(0.0, 1.0)] * self._descriptors,
                seed=self._drawn_seed(),
            )
            for _ in range(self.domain.objectives)
        ]

    def _drawn_seed(self) -> int:
        """A seed for ribs, which takes no generator."""
        return int(self.rng.integers(2**63 - 1))

    def _insert(self, results: Sequence[tuple[FloatArray, Fitness]]) -> None:
        """Adds results to all maps; of equal ones in a cell the earlier stays."""
        genomes, values, violations = self._arrays(results)
        if not len(genomes):
            return
        units = self.domain.to_unit(genomes)
        low, high = self._axes
        width = np.where(high > low, high - low, 1.0)
        at = (np.clip(self._coordinates(genomes, values), low, high) - low) / width
        for t, archive in enumerate(self._maps):
            quality = values[:, t] if self._feasible else -violations
            measures = at if self.domain.objectives == 1 else np.delete(at, t, axis=1)
            archive.add(units, quality, measures)

    def _arrays(
        self, results: Sequence[tuple[FloatArray, Fitness]]
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Genomes `m x n`, values `m x k`, violations `m` of the results that may enter."""
        some = [r for r in results if r[1].feasible or not self._feasible]
        m, n, k = len(some), len(self.domain), self.domain.objectives
        genomes = np.array([genome for genome, _ in some]).reshape(m, n)
        values = np.array([fitness.values for _, fitness in some]).reshape(m, k)
        return genomes, values, np.array([fitness.violation for _, fitness in some])

    def _coordinates(self, genomes: FloatArray, values: FloatArray) -> FloatArray:
        """Unscaled places on the axes: values, or with one objective projections of genomes."""
        if self.domain.objectives > 1:
            return values
        return indicators(self.domain, genomes) @ self._projection

    def _directions(self) -> FloatArray:
        """Two orthogonal unit vectors in columns, drawn once; one dimension leaves the second 0."""
        rng = np.random.default_rng(derive(self._seed, "descriptors"))
        size = indicators(self.domain, self.domain.start[None]).shape[1]
        first, second = rng.standard_normal((2, size))
        first /= np.linalg.norm(first)
        second -= (first @ second) * first
        norm = np.linalg.norm(second)
        return np.stack([first, second / norm if size > 1 else 0.0 * second], axis=1)


def spans(coordinates: FloatArray) -> FloatArray:
    """Ends of the axes, `2 x c`, for coordinates `m x c`: see `MapElites`."""
    lowest, quarter, three_quarters, highest = np.percentile(coordinates, [0, 25, 75, 100], axis=0)
    reach = three_quarters - quarter
    fence = np.where(reach > 0, quarter - 3 * reach, lowest)
    return np.stack([np.maximum(lowest, fence), highest])


def indicators(domain: Domain, genomes: FloatArray) -> FloatArray:
    """Numbers in [0, 1] for genomes `m x n`: an indicator a choice, else the scaled value.

    Two different choices are as far apart as the two ends of a range.
    """
    columns = []
    for i, (column, unit) in enumerate(zip(genomes.T, domain.to_unit(genomes).T, strict=True)):
        if domain.categorical[i]:
            names = np.arange(domain.low[i], domain.high[i] + 1)
            columns.append((column[:, None] == names) / math.sqrt(2))
        else:
            columns.append(unit[:, None])
    return np.concatenate(columns, axis=1)


def _cells(cells: int | None, descriptors: int) -> int:
    """Cells of each descriptor."""
    most, whole_map = CELLS
    if cells is None:
        cells = max(2, min(most, math.floor(whole_map ** (1 / descriptors) + 1e-9)))
    settings.whole("cells", cells, 2)
    if cells**descriptors > MOST_CELLS:
        raise ConfigError.of(
            "optimizer.cells", f"{cells} with {descriptors} descriptors",
            f"a map of at most {MOST_CELLS:,} cells",
            "Take fewer cells, or fewer objectives.",
        )  # fmt: skip
    return cells
