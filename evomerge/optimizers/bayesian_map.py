"""Bayesian MAP: quadratic surrogates of few samples, placed where they err (arXiv 2406.07529)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from evomerge.domain import Domain
from evomerge.optimizers import settings
from evomerge.optimizers._predicted_front import filled, picks, search
from evomerge.optimizers._quadratic import Basis, unknowns
from evomerge.optimizers._rounds import Known, Rounds, within
from evomerge.optimizers._surrogates import Latest, Surrogates, read_fitting
from evomerge.optimizers.base import Optimizer, Told
from evomerge.seeds import derive
from evomerge.types import FloatArray, Observation

_POOL = 4096
_SPREAD = 0.5


class BayesianMap(Optimizer):
    """Begins with few candidates and adds more where the surrogates err.

    The surrogates are those of `Map`. The box is divided into bins by direction from its centre
    and by radius. A bin's score is the mean absolute error of the surrogates at its observations
    plus half of that mean's bootstrap deviation, the next candidates come from bins drawn by a
    softmax of the scores, and everything is fitted again.

    Where the released code differs: there, bins without an observation are never drawn, new
    observations do not change the scores, and the last batch is measured but not fitted. Here
    every batch is fitted, scores follow from all observations, and an empty bin has the largest
    score of any other. Further ours:

    - errors are those of leaving the observation out, since few observations are fitted almost
      exactly, in units of each objective's deviation, and their mean over the objectives;
    - directions are the axes and as many more in between, and an observation belongs to the one
      it has the least angle with, since bins by each of n - 1 angles are too many to fill;
    - shells have equal volumes, by the largest coordinate;
    - every `verify_every`-th batch measures points of the front that the surrogates predict, since
      an optimiser does not know when the budget ends.
    """

    multi_objective = True

    def __init__(
        self,
        domain: Domain,
        seed: int,
        startup: int | None = None,
        batch: int = 4,
        verify_every: int = 3,
        directions: int | None = None,
        radii: int = 2,
        temperature: float = 0.5,
        box: Sequence[float] | None = None,
        link: str = "auto",
        items: int | None = None,
        gate: float = 0.5,
        population: int = 120,
        generations: int = 40,
    ) -> None:
        """See the class.

        Args:
            domain: what is searched.
            seed: of every random number.
            startup: candidates of the design; default: half of the unknowns, and no fewer than
                the anchors and n + 1 points.
            batch: candidates a round.
            verify_every: every so many rounds the predicted front is measured; 1: in all rounds.
            directions: bins by direction; default four for each variable.
            radii: bins by radius.
            temperature: of the softmax, in units of the mean score; the lower, the more the
                largest errors draw.
            box: see `Map`.
            link: see `Map`.
            items: see `Map`.
            gate: see `Map`.
            population: see `Map`.
            generations: see `Map`.

        Raises:
            ConfigError: for a setting that cannot be.
        """
        super().__init__(domain, seed)
        self._fitting = read_fitting(domain, box, link, items, gate)
        low, high = self._fitting.low, self._fitting.high
        least = len(domain.anchors) + len(domain) + 2  # one more for the zero merge
        usual = max(unknowns(domain, low, high) // 2, least)
        first = usual if startup is None else settings.whole("startup", startup, 2)
        self._every = settings.whole("verify_every", verify_every, 1)
        many = None if directions is None else settings.whole("directions", directions, 1)
        self._division = many, settings.whole("radii", radii, 1)
        self._temperature = settings.positive("temperature", temperature)
        self._population = settings.whole("population", population, max(4, domain.objectives))
        self._generations = settings.whole("generations", generations, 1)
        self._seed = seed
        size = settings.whole("batch", batch, 1)
        corners = self._fitting.low, self._fitting.high
        self._rounds = Rounds(domain, corners, derive(seed, "design"), first, size, self._propose)
        self._model = Latest(self._fitting)

    def least_candidates(self) -> int:
        """The design, and one round of each kind."""
        return self._rounds.first + self._every * self._rounds.size

    def least_reason(self) -> tuple[str, str]:
        """Why it needs them, and what to do where they are too many."""
        parts = f"a design of {self._rounds.first} and {self._every} batches up to the first front"
        return parts, "Lower optimizer.startup, optimizer.batch or optimizer.verify_every."

    @property
    def batch(self) -> int:
        """What is left of the design or the round."""
        return self._rounds.left

    def model(self) -> Surrogates | None:
        """The surrogates of all results so far; None before the first success."""
        return self._model(self.domain, self._rounds.records)

    @property
    def verifies(self) -> bool:
        """Whether the next candidate is to verify what the surrogates predict."""
        step = self._asked - self._rounds.first
        return step >= 0 and self._fronts(step // self._rounds.size)

    def _fronts(self, number: int) -> bool:
        """Whether a round measures the predicted front."""
        return (number + 1) % self._every == 0

    @cached_property
    def _bins(self) -> Bins:
        """Made when first needed: of hundreds of dimensions they take long."""
        basis = Basis.of(self.domain, self._fitting.low, self._fitting.high)
        many, radii = self._division
        return Bins.of(basis, 4 * len(basis.owner) if many is None else many, radii)

    def _ask(self, numbers: range) -> list[FloatArray]:
        return self._rounds.ask(numbers)

    def _adopt(self, numbers: range, recorded: Sequence[FloatArray]) -> bool:
        self._rounds.adopt(numbers, recorded)
        return True

    def _tell(self, told: Sequence[Told]) -> None:
        self._rounds.tell(told)

    def _learn(self, observations: Sequence[Observation]) -> None:
        self._rounds.learn(observations)

    def _propose(self, known: Known) -> list[FloatArray]:
        """The genomes of one round."""
        seed, size = derive(self._seed, "round", known.number), self._rounds.size
        box = within(self.domain, self._fitting.low, self._fitting.high)
        surrogates = self._model(self.domain, known.records)
        chosen: list[FloatArray] = []
        if surrogates is not None and self._fronts(known.number):
            found = search(surrogates, seed, self._population, self._generations)
            chosen = picks(found, surrogates, known.asked, size)
        elif surrogates is not None:
            rng = np.random.default_rng(derive(seed, "bins"))
            pool = box.from_unit(rng.random((_POOL, len(box))))
            scores = self._bins.scores(surrogates.genomes, errors(known, surrogates))
            chosen = self._bins.draw(scores, pool, self._temperature, size, rng)
        return filled(box, chosen, known.asked, size, seed)


def errors(known: Known, surrogates: Surrogates) -> FloatArray:
    """Absolute error at each observation, predicted without it, an `m` array.

    In units of each objective's deviation; the mean over the objectives.
    """
    values = np.array([f.values for _, f in known.records if f is not None])
    spread = values.std(axis=0)
    left_out = np.column_stack([s.left_out for s in surrogates.objectives])
    wrong = np.abs(values - left_out) / np.where(spread > 0, spread, 1.0)
    return np.asarray(np.where(np.isfinite(wrong), wrong, 0.0).mean(axis=1))


@dataclass(frozen=True)
class Bins:
    """A division of the box by direction from its centre, and by radius.

    Attributes:
        basis: whose variables the directions are of.
        directions: unit vectors, a `d x v` array.
        radii: how many shells of equal volume.
    """

    basis: Basis
    directions: FloatArray
    radii: int

    @classmethod
    def of(cls, basis: Basis, count: int, radii: int) -> Bins:
        """Bins of the axes both ways and further directions in between, `count` in all."""
        v = len(basis.owner)
        if not v:
            return cls(basis, np.zeros((1, 0)), radii)
        rng = np.random.default_rng(0)  # the same bins for every seed
        made = list(np.concatenate([np.eye(v), -np.eye(v)]))[:count]
        while len(made) < count:
            tried = rng.standard_normal((32, v))
            tried /= np.linalg.norm(tried, axis=1, keepdims=True)
            nearest = (tried @ np.array(made).T).max(axis=1)
            made.append(tried[nearest.argmin()])
        return cls(basis, np.array(made), radii)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.directions) * self.radii

    def place(self, genomes: FloatArray) -> NDArray[np.int64]:
        """The bin of each of `m x n` genomes, an `m` array."""
        x = self.basis.coordinates(genomes)
        if not x.shape[1]:
            return np.zeros(len(genomes), dtype=np.int64)
        radius = np.minimum(np.abs(x).max(axis=1), 1.0)
        # A box of half width r has the share r^v of the volume.
        shell = np.minimum(np.floor(radius ** x.shape[1] * self.radii), self.radii - 1)
        return np.asarray((x @ self.directions.T).argmax(axis=1) * self.radii + shell, np.int64)

    def scores(self, genomes: FloatArray, wrong: FloatArray) -> FloatArray:
        """Score of each bin: mean + 0.5 bootstrap deviation of that mean; a `count` array.

        Of infinitely many bootstrap samples the deviation is that of the errors over the root
        of their number. A bin without an observation has the largest score of any other.

        Args:
            genomes: observed, an `m x n` array.
            wrong: their errors, an `m` array.
        """
        places = self.place(genomes)
        out = np.full(self.count, -np.inf)
        for b in np.unique(places):
            own = wrong[places == b]
            out[b] = own.mean() + _SPREAD * own.std() / np.sqrt(len(own))
        return np.where(np.isfinite(out), out, out.max())

    def draw(
        self,
        scores: FloatArray,
        pool: FloatArray,
        temperature: float,
        count: int,
        rng: np.random.Generator,
    ) -> list[FloatArray]:
        """Genomes of a pool, each from a bin drawn by a softmax of the scores.

        Args:
            scores: of the bins; those that no genome of the pool lies in are left out.
            pool: uniform in the box, an `m x n` array.
            temperature: in units of the mean score.
            count: how many genomes.
            rng: draws bins, and genomes in them.
        """
        places = self.place(pool)
        present = np.unique(places)
        weights = self.weights(scores[present], temperature)
        bins = rng.choice(present, size=count, p=weights)
        return [pool[rng.choice(np.flatnonzero(places == b))] for b in bins]

    @staticmethod
    def weights(scores: FloatArray, temperature: float) -> FloatArray:
        """Softmax of scores in units of their mean."""
        mean = float(scores.mean())
        if mean <= 0:
            return np.full(len(scores), 1.0 / len(scores))
        raised = np.exp((scores - scores.max()) / (mean * temperature))
        return np.asarray(raised / raised.sum())
