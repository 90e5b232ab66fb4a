"""MAP: amortised Pareto fronts by quadratic surrogates (arXiv 2406.07529)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.domain import Domain
from evomerge.optimizers import settings
from evomerge.optimizers._models import Record
from evomerge.optimizers._predicted_front import filled, picks, search
from evomerge.optimizers._quadratic import unknowns
from evomerge.optimizers._rounds import Known, Rounds, within
from evomerge.optimizers._surrogates import Latest, Surrogates, read_fitting
from evomerge.optimizers.base import Optimizer, Told
from evomerge.pareto import hypervolume, non_dominated
from evomerge.seeds import derive
from evomerge.types import FloatArray, Observation

_FEW = 5
"""Candidates a round of a single objective, whose front is one point; and how many of the first
round a budget has to hold."""

_EXACT = 5
"""Objectives up to which hypervolume is computed exactly; beyond, a front of 200 takes long."""


class Map(Optimizer):
    """Fits a quadratic to each objective and measures the front that the quadratics predict.

    - A design: the zero merge, the anchors, and scrambled Sobol points; a third more candidates
      than a quadratic has unknowns, (n + 1)(n + 2) / 2 for n reals, and at least 10 more.
      After results of another study, only as many as they leave to be found out.
    - A surrogate of each objective: m(c) = link(e + b'c + 1/2 c'Ac), and of each constraint
      without a link. The link is a sigmoid for objectives with two bounds, a softplus with one.
    - NSGA-III on the surrogates alone, within the box that was sampled.
    - A round: points of the predicted front are measured, so that no front is believed unseen;
      then everything is fitted again. Rounds go on until the measured front stands still.

    Ours are the closed-form fit, the design, the verification, and a Gaussian process for an
    objective whose quadratic does not predict what it has not seen (`gate`). Integers are
    numbers; a choice is a variable for each further option, without squares. Failed candidates
    are left out.
    """

    multi_objective = True

    def __init__(
        self,
        domain: Domain,
        seed: int,
        design: int | None = None,
        verify: int = 15,
        box: Sequence[float] | None = None,
        link: str = "auto",
        items: int | None = None,
        gate: float = 0.5,
        population: int = 120,
        generations: int = 40,
        tolerance: float = 0.01,
        patience: int | None = 2,
    ) -> None:
        """See the class.

        Args:
            domain: what is searched.
            seed: of every random number.
            design: candidates of the design; default the unknowns and a third of them, at least
                10 more and at least 20 in all.
            verify: points of the predicted front that a round measures; of a single objective
                at most 5.
            box: lower and upper bound of the real dimensions where they are sampled and
                searched; None takes the domain's bounds.
            link: identity, sigmoid, softplus, or auto, by the objective's range.
            items: behind each bounded metric; None infers it from the standard errors.
            gate: leave-one-out R2 below which a Gaussian process takes a quadratic's place.
            population: of NSGA-III on the surrogates.
            generations: of NSGA-III on the surrogates.
            tolerance: least growth of the measured front's hypervolume, as a share of it, in
                `patience` rounds; below it the search ends.
            patience: rounds; None never ends the search.

        Raises:
            ConfigError: for a setting that cannot be.
        """
        super().__init__(domain, seed)
        self._fitting = read_fitting(domain, box, link, items, gate)
        self._unknowns = unknowns(domain, self._fitting.low, self._fitting.high)
        size = settings.whole("verify", verify, 1)
        size = size if domain.objectives > 1 else min(size, _FEW)
        usual = max(20, self._unknowns + max(10, self._unknowns // 3))
        first = usual if design is None else settings.whole("design", design, 1)
        self._population = settings.whole("population", population, max(4, domain.objectives))
        self._generations = settings.whole("generations", generations, 1)
        self._tolerance = settings.within("tolerance", tolerance, 0.0, 1.0)
        self._patience = None if patience is None else settings.whole("patience", patience, 1)
        self._seed = seed
        corners = self._fitting.low, self._fitting.high
        self._rounds = Rounds(domain, corners, derive(seed, "design"), first, size, self._propose)
        self._volumes: list[float] = []
        self._model = Latest(self._fitting)

    def least_candidates(self) -> int:
        """The design, or the unknowns where it has fewer, and a look at the predicted front.

        After results were learnt: what the design lacks, and the look.
        """
        first = self._rounds.first
        least = first if self._rounds.learnt else max(first, self._unknowns)
        return least + min(_FEW, self._rounds.size)

    def least_reason(self) -> tuple[str, str]:
        """Why, and what to do where these are too many."""
        n, look = len(self.domain), min(_FEW, self._rounds.size)
        reason = (
            f"MAP over {n} dimensions has {self._unknowns} unknowns; its design has "
            f"{self._rounds.first} candidates, and {look} are to verify the front"
        )
        fewer = _without_groups([d.name for d in self.dimensions])
        wide = f"space.granularity=global ({fewer} dimensions: {(fewer + 1) * (fewer + 2) // 2})"
        first = f"Use {wide}, or " if fewer < n else "Use "
        return reason, f"{first}optimizer=bayesian_map or nested_map."

    @property
    def batch(self) -> int:
        """What is left of the design or the round; 0 once the measured front stands still."""
        return 0 if self._ended() else self._rounds.left

    def model(self) -> Surrogates | None:
        """The surrogates of all results so far; None before the first success."""
        return self._model(self.domain, self._rounds.records)

    @property
    def verifies(self) -> bool:
        """Whether the next candidate is to verify what the surrogates predict."""
        return self._asked >= self._rounds.first

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
        seed = derive(self._seed, "round", known.number)
        surrogates = self._model(self.domain, known.records)
        chosen: list[FloatArray] = []
        if surrogates is not None:
            found = search(surrogates, seed, self._population, self._generations)
            chosen = picks(found, surrogates, known.asked, self._rounds.size)
        box = within(self.domain, self._fitting.low, self._fitting.high)
        return filled(box, chosen, known.asked, self._rounds.size, seed)

    def _ended(self) -> bool:
        """Whether the measured front stands still."""
        if self._patience is None:
            return False
        while (records := self._rounds.until(self._end(len(self._volumes)))) is not None:
            self._volumes.append(self._volume(records))
        if len(self._volumes) <= self._patience:
            return False
        before, now = self._volumes[-1 - self._patience], self._volumes[-1]
        return before > 0.0 and now - before < self._tolerance * now

    def _end(self, step: int) -> int:
        """How many candidates the design and `step` rounds have."""
        return self._rounds.first + step * self._rounds.size

    def _volume(self, records: Sequence[Record]) -> float:
        """Hypervolume of a measured front; 0 while nothing is feasible.

        Above a point a tenth of the design's spread below the worst of the design, in units
        of that spread. Results that were learnt belong to both.
        """
        learnt = self._rounds.learnt
        design = (*learnt, *records[: self._rounds.first])
        first = [f.values for _, f in design if f is not None]
        values = [f.values for _, f in (*learnt, *records) if f is not None and f.feasible]
        if not first or not values:
            return 0.0
        low, width = np.min(first, axis=0), np.ptp(first, axis=0)
        width = np.where(width > 0, width, 1.0)
        return volume((np.array(values) - low) / width + 0.1)


def _without_groups(names: Sequence[str]) -> int:
    """How many dimensions a space would have with one layer group, by the names of all it has.

    Those of routes and of plain parameters are no weights of sources by layer group.
    """
    parts = [tuple(name.split("/")) for name in names]
    grouped = all(len(p) == 3 for p in parts) and any(p[1] != "all" for p in parts)
    if not grouped or any(p[0] == "keep" for p in parts):
        return len(names)
    return len({p[:2] for p in parts})


def volume(values: FloatArray) -> float:
    """Hypervolume of an `m x k` array above 0; beyond five objectives in proportion to it.

    Then the mean over directions of how far the front reaches, to the power of k (Deng and
    Zhang, "Approximating hypervolume and hypervolume contributions using polar coordinate",
    2019).
    """
    k = values.shape[1]
    if k <= _EXACT:
        return hypervolume(values, np.zeros(k))
    rays = np.abs(np.random.default_rng(0).standard_normal((2048, k)))
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    reach = np.zeros(len(rays))
    for point in np.maximum(values[non_dominated(values)], 0.0):
        reach = np.maximum(reach, (point / rays).min(axis=1))
    return float(np.mean(reach**k))
