"""MM-MO: multi-objective Bayesian optimisation of merges (arXiv 2407.00487)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from evomerge.domain import Domain
from evomerge.optimizers import _models as models
from evomerge.optimizers._gaussian import Hyperparameters
from evomerge.optimizers._improvement import Dominated, leading, mean_addition, reference_point
from evomerge.optimizers._models import Draws, Models, Record
from evomerge.optimizers.base import Optimizer, Told
from evomerge.optimizers.designs import InitialDesign
from evomerge.optimizers.settings import flag, whole
from evomerge.seeds import derive
from evomerge.types import FloatArray, Observation

_ELITES = 16
_BASE = 96
_STEPS = (0.01, 0.03, 0.1, 0.3)
_LOCAL = 64
_PARENTS = 8
_NEAR = 0.5
_FAR = 2.0


class MmMo(Optimizer):
    """Proposes the candidate that is expected to add most hypervolume to the front.

    Each objective and constraint has a Gaussian process. A proposal is the best of a pool by
    noisy expected hypervolume improvement (Daulton, Balandat and Bakshy 2021), sampled jointly
    with the best observed and all pending candidates, times the probability that the
    constraints hold. With one objective this is expected improvement.

    From the paper: candidates made by the weak-to-strong method, Fisher information in the
    choice among good candidates, and sparsity as one more objective. How they are carried out
    is ours:

    - weak-to-strong: g = weak + gamma (strong - other), with gamma uniform in [0.5, 1.5], strong
      one of the elites, weak and other any two of the rest (which may be the same one: then
      it is an interpolation or extrapolation); a choice is the strong one's with probability
      1/2, else the weak one's;
    - Fisher screening: among the `screened` best of the pool, those whose improvement is at
      least half of the best one's and whose distance (`Domain.distance`) is at most twice that
      of the farthest elite; of these the farthest, since a merge that changes more of what
      matters tells more. Without any such candidate, and in a domain without distance, the
      best of the pool;
    - sparsity: `Domain.sparsity` is known for every genome and needs no model.

    Where candidates failed, failing is modelled as one more constraint. A proposal is a
    function of seed, number, told and pending candidates alone, so a resume computes none.
    """

    multi_objective = True
    uses_distance = True
    asynchronous = True

    def __init__(
        self,
        domain: Domain,
        seed: int,
        startup: int | None = None,
        batch: int = 4,
        pool: int = 512,
        weak_to_strong: bool = True,
        screened: int = 8,
        sparsity: bool | None = None,
        samples: int = 16,
        max_observations: int = 500,
    ) -> None:
        """See the class.

        Args:
            domain: what is searched.
            seed: of every random number.
            startup: candidates of the initial design, anchors first, then Sobol points;
                default: the anchors and n + 1 points, of these at most 20.
            batch: candidates kept at work.
            pool: candidates among which the surrogates choose.
            weak_to_strong: whether a quarter of the pool is made by the weak-to-strong method.
            screened: best candidates among which distance decides; 1 switches it off.
            sparsity: whether the domain's sparsity is one more objective; by default it is
                where there are at least two.
            samples: joint samples of the posterior; rounded up to a power of two.
            max_observations: most observations that the surrogates see.

        Raises:
            ConfigError: for a setting that cannot be.
        """
        super().__init__(domain, seed)
        points = min(len(domain) + 1, 20) + len({domain.snap(g).tobytes() for g in domain.anchors})
        self._startup = points if startup is None else whole("startup", startup, 2)
        self._batch = whole("batch", batch, 1)
        self._pool_size = whole("pool", pool, 16)
        self._weak_to_strong = flag("weak_to_strong", weak_to_strong)
        self._screened = whole("screened", screened, 1)
        wanted = domain.objectives > 1 if sparsity is None else flag("sparsity", sparsity)
        self._known: tuple[Callable[[FloatArray], float], ...] = ()
        if wanted and domain.sparsity is not None:
            self._known = (domain.sparsity,)
        self._samples = 1 << (whole("samples", samples, 1) - 1).bit_length()
        self._most = whole("max_observations", max_observations, 10)
        self._seed = seed
        self._design = InitialDesign(domain, derive(seed, "design")).take(self._startup)
        self._pending: dict[int, FloatArray] = {}
        self._told: dict[int, Record] = {}
        self._foreign: list[Record] = []
        self._models: Models | None = None
        self._hypers: tuple[tuple[bytes, ...], list[Hyperparameters]] = ((), [])

    @property
    def batch(self) -> int:
        """How many candidates it likes to keep at work."""
        return self._batch

    def _ask(self, numbers: range) -> list[FloatArray]:
        genomes = []
        for number in numbers:
            genome = self.domain.snap(self._proposal(number))
            self._pending[number] = genome
            genomes.append(genome)
        return genomes

    def _adopt(self, numbers: range, recorded: Sequence[FloatArray]) -> bool:
        self._pending.update(zip(numbers, recorded, strict=True))
        return True

    def _tell(self, told: Sequence[Told]) -> None:
        for one in told:
            del self._pending[one.number]
            self._told[one.number] = (one.genome, one.fitness)
        self._models = None

    def _learn(self, observations: Sequence[Observation]) -> None:
        self._foreign += [(np.asarray(o.genome, dtype=float), o.fitness) for o in observations]
        self._models = None

    def _proposal(self, number: int) -> FloatArray:
        if number < self._startup:
            return self._design[number]
        records = [*self._foreign, *(self._told[i] for i in sorted(self._told))]
        rng = np.random.default_rng(derive(self._seed, "pool", number))
        if sum(f is not None for _, f in records) < 2:
            return self.domain.from_unit(rng.random(len(self.domain)))
        if self._models is None:
            self._models = self._surrogates(records)
        return self._best(number, records, self._models, rng)

    def _surrogates(self, records: Sequence[Record]) -> Models:
        """Conditioned on all records that count; fitted to the first ones, again and again."""
        seed = derive(self._seed, "records")
        first = records[: models.fitted_on(len(records))]
        key = tuple(g.tobytes() + repr(f).encode() for g, f in first)
        if self._hypers[0] != key:
            self._hypers = key, models.fit(self.domain, first, seed)
        kept = models.chosen(records, self._most, seed)
        return Models.of(self.domain, kept, self._hypers[1], self._known)

    def _best(
        self, number: int, records: Sequence[Record], surrogates: Models, rng: np.random.Generator
    ) -> FloatArray:
        """The proposal of one number, an `n` array."""
        good, rest = _ranked(records, surrogates)
        pending = np.array(list(self._pending.values())).reshape(-1, len(self.domain))
        acquisition = Acquisition(
            surrogates, good, pending, self._samples, derive(self._seed, "draws", number)
        )
        taken = {g.tobytes() for g, _ in records} | {g.tobytes() for g in pending}
        elites = good[:_ELITES]
        weak = np.concatenate([good[_ELITES:], rest])
        found = self._fresh(self._pool(number, elites, weak if len(weak) else elites, rng), taken)
        values = acquisition(found)
        # A second look around the best ones, with smaller steps.
        parents = found[np.argsort(-values, kind="stable")[:_PARENTS]]
        near = self._fresh(self._perturbed(parents, _LOCAL, rng, _STEPS[:2]), taken)
        found, values = np.concatenate([found, near]), np.append(values, acquisition(near))
        order = np.argsort(-values, kind="stable")[: self._screened]
        return self._screen(found[order], values[order], elites)

    def _pool(
        self, number: int, elites: FloatArray, weak: FloatArray, rng: np.random.Generator
    ) -> FloatArray:
        """Genomes to choose from, a `pool x n` array: half Sobol points, half made of elites."""
        crossed = self._pool_size // 4 if self._weak_to_strong else 0
        spread = self._pool_size // 2
        sobol = InitialDesign(self.domain, derive(self._seed, "sobol", number), anchors=False)
        parts = [
            np.array(sobol.take(spread)),
            self._perturbed(elites, self._pool_size - spread - crossed, rng, _STEPS),
        ]
        if crossed:
            parts.append(self._crossed(elites, weak, crossed, rng))
        return np.concatenate(parts)

    def _perturbed(
        self, parents: FloatArray, count: int, rng: np.random.Generator, steps: Sequence[float]
    ) -> FloatArray:
        """Parents with normal steps in the unit cube, in all or in a few of the dimensions."""
        n, domain = len(self.domain), self.domain
        unit = domain.to_unit(parents[rng.integers(len(parents), size=count)])
        share = np.where(rng.random(count) < 0.5, 1.0, min(1.0, 3.0 / n))[:, None]
        moved = rng.random((count, n)) < share
        moved[np.arange(count), rng.integers(n, size=count)] = True
        size = np.asarray(steps)[rng.integers(len(steps), size=count)][:, None]
        stepped = unit + size * rng.standard_normal((count, n))
        stepped = np.where(domain.categorical, rng.random((count, n)), stepped)
        out = domain.from_unit(np.clip(np.where(moved, stepped, unit), 0.0, 1.0))
        return domain.snap(out)

    def _crossed(
        self, elites: FloatArray, weak: FloatArray, count: int, rng: np.random.Generator
    ) -> FloatArray:
        """Weak ones moved along the way from others to elites; see the class."""
        strong = elites[rng.integers(len(elites), size=count)]
        start = weak[rng.integers(len(weak), size=count)]
        other = weak[rng.integers(len(weak), size=count)]
        gamma = rng.uniform(0.5, 1.5, (count, 1))
        choice = np.where(rng.random(strong.shape) < 0.5, strong, start)
        moved = start + gamma * (strong - other)
        return self.domain.snap(np.where(self.domain.categorical, choice, moved))

    def _fresh(self, genomes: FloatArray, taken: set[bytes]) -> FloatArray:
        """Genomes that are new, each once; all of them if none is."""
        new = {g.tobytes(): g for g in genomes}
        kept = [g for key, g in new.items() if key not in taken]
        return np.array(kept) if kept else genomes

    def _screen(self, found: FloatArray, values: FloatArray, elites: FloatArray) -> FloatArray:
        """Chooses among the best by Fisher-weighted change; see the class."""
        measure = self.domain.distance
        if measure is None or len(found) == 1:
            return np.asarray(found[0])
        farthest = _FAR * max((d for d in map(measure, elites) if np.isfinite(d)), default=0.0)
        distances = np.array([measure(g) for g in found])
        fit = np.isfinite(distances) & (distances <= farthest)
        fit &= values >= values[0] + np.log(_NEAR)
        if not fit.any():
            return np.asarray(found[0])
        return np.asarray(found[np.argmax(np.where(fit, distances, -np.inf))])


class Acquisition:
    """Logarithm of expected hypervolume improvement times probability of feasibility."""

    def __init__(
        self, surrogates: Models, good: FloatArray, pending: FloatArray, samples: int, seed: int
    ) -> None:
        """Draws the posterior at the best observed and all pending genomes.

        Args:
            surrogates: the posteriors.
            good: observed genomes, the best first, a `b x n` array.
            pending: a `p x n` array.
            samples: joint samples, a power of two.
            seed: of the samples.
        """
        self._models = surrogates
        base = np.concatenate([good, pending])
        self._draws = Draws(surrogates, base, samples, seed)
        reference, self._width = reference_point(surrogates.means(good))
        self._regions = [
            Dominated.by(values[allowed], reference)
            for values, allowed in zip(self._draws.values, self._draws.allowed, strict=True)
        ]

    def __call__(self, genomes: FloatArray) -> FloatArray:
        """Values of `p x n` genomes, a `p` array.

        Where no sample improves, what is least known comes first.
        """
        points = self._draws.at(genomes)
        share = mean_addition(self._regions, points) / self._width.prod()
        unknown = (points.std(axis=0) / self._width).mean(axis=1)
        return np.asarray(
            np.log(share + 1e-12 * unknown + 1e-100) + self._models.log_feasibility(genomes)
        )


def _ranked(records: Sequence[Record], surrogates: Models) -> tuple[FloatArray, FloatArray]:
    """Genomes that succeeded, the leading ones and the rest.

    The leading ones are, front by front of the posterior means, at most 96 feasible genomes;
    where nothing is feasible, those that are nearest to it.
    """
    done = [(g, f) for g, f in records if f is not None]
    genomes = np.array([g for g, _ in done])
    violations = np.array([f.violation for _, f in done])
    rows = np.flatnonzero(violations == violations.min())
    if violations.min() > 0:
        rows = np.argsort(violations, kind="stable")[:_ELITES]
    lead = rows[leading(surrogates.means(genomes[rows]), _BASE)]
    others = np.setdiff1d(np.arange(len(genomes)), lead)
    return genomes[lead], genomes[others]
