"""Evo-Merging: densities first, then signed weights, by CMA-ES (black-box LoRA merging)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.optimizers import settings
from evomerge.optimizers.base import Optimizer, Told
from evomerge.optimizers.cma_es import CmaEs
from evomerge.optimizers.ranking import losses
from evomerge.seeds import derive
from evomerge.types import Fitness, FloatArray


class EvoMerging(Optimizer):
    """Searches one kind of dimensions with the others at their starts, then the others.

    Stage one proposes the starts themselves and from then on lets CMA-ES vary the dimensions of
    the parameters `first`. Stage two fixes the best candidate's values of these and lets another
    CMA-ES vary the rest; there the fitness is lowered by `penalty` times the mean absolute
    value of what it varies. Stage two begins with the ask of candidate `first_candidates`
    whatever is known by then; later results of stage one are dropped.

    The first samples of a real dimension have `step` as standard deviation, in the dimension's
    own unit (0.05 means 0.05 of a weight, whatever its bounds are) but at most a third of its
    range; integers and choices keep the domain's step. Where a start lies nearer than that to
    a bound, CMA-ES begins one step inside: at a bound it would see changes of one sign only.
    """

    def __init__(
        self,
        domain: Domain,
        seed: int,
        first: Sequence[str] = ("density",),
        first_candidates: int = 400,
        population: int = 20,
        step: float = 0.05,
        penalty: float = 0.05,
    ) -> None:
        """Splits the domain.

        Args:
            domain: what is searched.
            seed: of this optimiser's own generator.
            first: parameters of stage one.
            first_candidates: length of stage one.
            population: candidates a generation in both stages.
            step: standard deviation of the first samples, in the dimensions' own units.
            penalty: weight of the mean absolute value in stage two.

        Raises:
            ConfigError: if one of the stages has nothing to vary, and for settings of another
                type or out of range.
        """
        super().__init__(domain, seed)
        in_first = _split(domain, first)
        self._length = settings.whole("first_candidates", first_candidates, 1)
        self._population = settings.whole("population", population, 3)
        self._step = settings.positive("step", step)
        self._stage = 1
        self._penalty = settings.within("penalty", penalty, 0, 1e6)
        self._seed = seed
        self._template = domain.start
        self._varied = in_first
        self._search = self._searcher(1)
        self._results: list[Told] = []

    @property
    def batch(self) -> int:
        """The population, or what is left of stage one where that is less."""
        left = self._length - self._asked
        return min(self._population, left) if left > 0 else self._population

    def _ask(self, numbers: range) -> list[FloatArray]:
        one = range(numbers.start, min(numbers.stop, self._length))
        two = range(max(numbers.start, self._length), numbers.stop)
        genomes = []
        if one:
            genomes += self._whole(self._search._ask(one))
            if one.start == 0:
                genomes[0] = self._template
                self._search._replace(0, self._template[self._varied])
        if two:
            if self._stage == 1:
                self._begin_stage_two()
            genomes += self._whole(self._search._ask(two))
        return genomes

    def _replace(self, number: int, recorded: FloatArray) -> None:
        if self._of_stage(number):
            self._search._replace(number, recorded[self._varied])

    def _tell(self, told: Sequence[Told]) -> None:
        current = [t for t in told if self._of_stage(t.number)]
        if self._stage == 1:
            self._results.extend(current)
        self._search._tell(
            [replace(t, genome=t.genome[self._varied], fitness=self._worth(t)) for t in current]
        )

    def recommend(self) -> FloatArray | None:
        """The mean of this stage's distribution, in place of the values that it varies."""
        mean = self._search.recommend()
        return None if mean is None else self._whole([mean])[0]

    def _begin_stage_two(self) -> None:
        """Fixes the best values of stage one; the starts if nothing succeeded."""
        known = sorted((t for t in self._results if t.fitness), key=lambda t: t.number)
        if known:
            self._template = known[int(np.argmin(losses([t.fitness for t in known])))].genome
        self._stage = 2
        self._varied = ~self._varied
        self._search = self._searcher(2)

    def _of_stage(self, number: int) -> bool:
        return (number < self._length) == (self._stage == 1)

    def _worth(self, told: Told) -> Fitness | None:
        """Fitness, in stage two less the penalty."""
        if told.fitness is None or self._stage == 1:
            return told.fitness
        scales = told.genome[self._varied & ~self.domain.whole]
        size = float(np.abs(scales).mean()) if len(scales) else 0.0
        return replace(told.fitness, values=(told.fitness.values[0] - self._penalty * size,))

    def _whole(self, parts: Sequence[FloatArray]) -> list[FloatArray]:
        """Genomes that have these values where the stage varies any."""
        genomes = [self._template.copy() for _ in parts]
        for genome, part in zip(genomes, parts, strict=True):
            genome[self._varied] = part
        return genomes

    def _searcher(self, stage: int) -> CmaEs:
        """CMA-ES on the dimensions of a stage."""
        dimensions = tuple(
            self._begun(d)
            for d, varied in zip(self.dimensions, self._varied, strict=True)
            if varied
        )
        seed = derive(self._seed, "evo_merging", stage)
        domain = Domain(dimensions, constraints=self.domain.constraints)
        return CmaEs(domain, seed, population=self._population)

    def _begun(self, dimension: Dimension) -> Dimension:
        """A dimension with the start and step of this search."""
        if dimension.kind != "real":
            return dimension
        low, high = dimension.low, dimension.high
        step = min(self._step, (high - low) / 3)
        start = min(max(dimension.start, low + step), high - step)
        return replace(dimension, start=start, step=step)


def _split(domain: Domain, first: Any) -> NDArray[np.bool_]:
    """Which dimensions stage one varies, an `n` array; refuses a stage without any."""
    if isinstance(first, str) or not isinstance(first, Sequence):
        raise ConfigError.of(
            "optimizer.first", repr(first), "a list of parameters",
            "For example optimizer.first=[density].",
        )  # fmt: skip
    known = sorted({d.parameter for d in domain.dimensions})
    varied = np.array([d.parameter in first for d in domain.dimensions], dtype=bool)
    if not varied.any() or varied.all():
        stage = "one" if not varied.any() else "two"
        raise ConfigError.of(
            "optimizer.first", f"{list(first)} where the space varies {', '.join(known)}",
            "some of the parameters that vary, but not all of them",
            f"Stage {stage} would have nothing to vary. Use space=evo_merging, which varies "
            "density and weight, or name the parameters of stage one in optimizer.first.",
        )  # fmt: skip
    return varied
