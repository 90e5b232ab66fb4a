"""M2N2: merging of natural niches, with competition for items and attraction of parents.

Source: Competition and Attraction Improve Model Fusion (M2N2, 2025).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.domain import Domain
from evomerge.errors import ConfigError
from evomerge.mating import Mating
from evomerge.optimizers import settings
from evomerge.optimizers._niches import Archive
from evomerge.optimizers.base import Optimizer, Told
from evomerge.optimizers.designs import InitialDesign
from evomerge.seeds import derive
from evomerge.types import FloatArray

_BLOCK = 256  # asks whose numbers are drawn at once; a generator for each ask costs 40 us
_MUTATION = 0.05


class M2N2(Optimizer):
    """Breeds specialists: members share the items that they solve, and mate with their opposites.

    It reads what each candidate scored on each item, not the fitness: an item counts the less
    the more members solve it (competition), and the second parent is drawn by how strong it is
    where the first is weak (attraction). The parents are interpolated, and change places behind
    a split. Each child enters the archive, from which the least fit leaves.

    - In a domain of matings the first K candidates are the seeds, and the others name their
      parents, share and split. As long as fewer than two results are there, the parents are
      drawn among the seeds, so that no worker has to wait.
    - In any other domain the archive starts with the domain's anchors and Sobol points. A child
      is interpolated number by number (of a choice it takes either parent's), changes places
      behind a split of the dimensions, and mutates.

    Failed candidates never enter the archive; infeasible ones enter with a score of 0 in every
    item. Results enter before the next ask, in the order in which they were asked for. Random
    numbers are a function of the seed and the number of the ask alone. Results of other studies
    come without item scores, so nothing is learnt from them.
    """

    multi_objective = True
    asynchronous = True
    uses_item_scores = True
    mates = True

    def __init__(
        self,
        domain: Domain,
        seed: int,
        population: int = 20,
        alpha: float = 1.0,
        attraction: bool = True,
        split: bool = True,
        batch: int = 8,
        mutation: float | None = None,
    ) -> None:
        """Starts with an empty archive.

        Args:
            domain: what is searched.
            seed: of this optimiser's own generators.
            population: P, members of the archive.
            alpha: how strongly members that solve the same items compete; 0: not at all.
            attraction: whether the second parent is drawn by what the first lacks, not by
                its fitness.
            split: whether parents change places somewhere; else the share holds throughout.
            batch: candidates kept at work.
            mutation: standard deviation of a child's noise in units of each range, and chance
                of each choice to become another one; default 0.05. Matings do not mutate.

        Raises:
            ConfigError: for a population below 2, an alpha outside [0, 10], a batch below 1, a
                mutation outside [0, 1], or one of matings.
        """
        super().__init__(domain, seed)
        self._archive = Archive(
            settings.whole("population", population, 2), settings.within("alpha", alpha, 0, 10)
        )
        self._attraction = settings.flag("attraction", attraction)
        self._split = settings.flag("split", split)
        self._batch = settings.whole("batch", batch, 1)
        self._mutation = _MUTATION
        if mutation is not None:
            self._mutation = settings.within("mutation", mutation, 0, 1)
        if domain.seeds and mutation:
            raise ConfigError.of(
                "optimizer.mutation", str(mutation), "null or 0 for a space of matings",
                "Remove it: a mating says all that a merge consists of.",
            )  # fmt: skip
        self._seed = derive(seed, "matings")
        self._drawn: tuple[int, FloatArray] = (-1, np.zeros((0, 4)))
        self._told: list[Told] = []
        self._genomes: dict[int, FloatArray] = {}  # of the archive, where they are no matings
        self._designed: list[FloatArray] = []
        self._design = (
            None if domain.seeds else InitialDesign(domain, derive(seed, "initial archive"))
        )

    @property
    def batch(self) -> int:
        """How many candidates are kept at work."""
        return self._batch

    @property
    def archive(self) -> tuple[int, ...]:
        """Numbers of the members that may become parents: of the archive, and just told."""
        waiting = (t.number for t in self._told if t.fitness is not None)
        return (*self._archive.numbers, *waiting)

    def _ask(self, numbers: range) -> list[FloatArray]:
        self._enter()
        make = self._bred if self._design else self._mated
        return [make(number) for number in numbers]

    def _tell(self, told: Sequence[Told]) -> None:
        self._told.extend(told)

    def _enter(self) -> None:
        """Lets what was told into the archive, in the order in which it was asked for."""
        told, self._told = sorted(self._told, key=lambda t: t.number), []
        for one in told:
            if one.fitness is None:
                continue
            gone = self._archive.insert(one.number, one.scores if one.fitness.feasible else None)
            if self._design:
                self._genomes[one.number] = one.genome
                if gone is not None:
                    del self._genomes[gone]

    def _uniforms(self, number: int) -> FloatArray:
        """Four uniform numbers for an ask, whatever was asked for before."""
        block, row = divmod(number, _BLOCK)
        if self._drawn[0] != block:
            rng = np.random.Generator(np.random.PCG64([self._seed, block]))
            self._drawn = block, rng.random((_BLOCK, 4))
        return self._drawn[1][row]

    def _mated(self, number: int) -> FloatArray:
        """A seed, or a mating of two members."""
        seeds = self.domain.seeds
        if number < seeds:
            return Mating.of_seed(number).to_genome()
        u1, u2, share, split = self._uniforms(number).tolist()
        if len(self._archive) > 1:
            first, second = self._archive.parents(u1, u2, self._attraction)
        else:
            first = int(u1 * seeds)
            second = (first + 1 + int(u2 * (seeds - 1))) % seeds
        # w ~ U(0, 1), s ~ U(0, 1)
        return Mating(number, first, second, share, split if self._split else 1.0).to_genome()

    def _bred(self, number: int) -> FloatArray:
        """A genome of the design, or a child of two members."""
        if number < self._archive.capacity or len(self._archive) < 2:
            return self._designed_genome(number)
        u1, u2, share, split = self._uniforms(number).tolist()
        first, second = (self._genomes[n] for n in self._archive.parents(u1, u2, self._attraction))
        n = len(self.domain)
        before = np.arange(n) < round(split * n) if self._split else np.ones(n, bool)
        w = np.where(before, share, 1.0 - share)
        return self._mutate(first, second, w, number)

    def _mutate(
        self, first: FloatArray, second: FloatArray, shares: FloatArray, number: int
    ) -> FloatArray:
        """A genome between two, each number with its share of the second, and some noise.

        Whole numbers are rounded up as often as they lie near the next one, so that noise and
        shares count in short ranges, too.
        """
        rng = np.random.Generator(np.random.PCG64([self._seed, number, 1]))
        low, high = self.domain.low, self.domain.high
        dither, other, changes = rng.random((3, len(self.domain)))
        noise = self._mutation * (high - low) * rng.standard_normal(len(self.domain))
        mixed = first + shares * (second - first) + noise
        whole = np.floor(mixed + dither)
        choice = np.where(other < shares, second, first)
        another = low + np.mod(choice - low + 1 + np.floor(dither * (high - low)), high - low + 1)
        choice = np.where(changes < self._mutation, another, choice)
        numeric = np.where(self.domain.whole, whole, mixed)
        return np.where(self.domain.categorical, choice, numeric)

    def _designed_genome(self, number: int) -> FloatArray:
        """Point of the design with the number of the ask; later ones only if results lack."""
        assert self._design is not None
        missing = number + 1 - len(self._designed)
        if missing > 0:
            self._designed.extend(self._design.take(missing))
        return self._designed[number]
