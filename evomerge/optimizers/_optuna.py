"""What the optimisers on optuna's samplers share: dimensions, results and candidates at work."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from evomerge.domain import Domain
from evomerge.optimizers import settings
from evomerge.optimizers.base import Told
from evomerge.optimizers.designs import InitialDesign
from evomerge.seeds import derive
from evomerge.types import FloatArray, Observation

Params = dict[str, Any]

_PROBES = 32
"""Points of the initial design that are looked at for one that was not asked for yet."""


class Space:
    """A domain as optuna's distributions; dimensions of one value only are left out.

    Attributes:
        distributions: by name: [0, 1] for a real dimension, whole numbers, or the numbers of
            a choice.
    """

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._varying = [i for i, d in enumerate(domain.dimensions) if d.high > d.low]
        self.distributions = {f"x{i}": self._distribution(i) for i in self._varying}

    def _distribution(self, i: int) -> BaseDistribution:
        dimension = self._domain.dimensions[i]
        if dimension.kind == "choice":
            return CategoricalDistribution(range(round(dimension.high - dimension.low) + 1))
        if dimension.kind == "integer":
            return IntDistribution(round(dimension.low), round(dimension.high))
        return FloatDistribution(0.0, 1.0)

    def params(self, genome: FloatArray) -> Params:
        """A genome as optuna's parameters."""
        params: Params = {}
        for i in self._varying:
            dimension, value = self._domain.dimensions[i], float(genome[i])
            if dimension.kind == "choice":
                params[f"x{i}"] = round(value - dimension.low)
            elif dimension.kind == "integer":
                params[f"x{i}"] = round(value)
            else:
                share = (value - dimension.low) / (dimension.high - dimension.low)
                params[f"x{i}"] = min(max(share, 0.0), 1.0)
        return params

    def genome(self, params: Params) -> FloatArray:
        """The genome within the domain that optuna's parameters stand for."""
        genome = self._domain.low.copy()
        for i in self._varying:
            dimension, value = self._domain.dimensions[i], params[f"x{i}"]
            if dimension.kind == "choice":
                genome[i] += value
            elif dimension.kind == "integer":
                genome[i] = value
            else:
                genome[i] += value * (dimension.high - dimension.low)
        return self._domain.snap(genome)


class History:
    """Keeps what was asked and told, and asks a sampler once enough is known.

    Everything is ordered by ask number, so that the order of tells makes no difference. Results
    that were learnt have numbers below 0. Both samplers pass over failed trials, and would
    propose the same spot again; so a failed candidate is shown to them with the worst of all
    values seen.
    """

    def __init__(
        self, domain: Domain, seed: int, startup: int | None, batch: int, anchors: bool
    ) -> None:
        """Checks the settings that the optimisers share.

        Args:
            domain: what is searched.
            seed: of the initial design.
            startup: results before a sampler is asked; default max(10, anchors + 4).
            batch: candidates kept at work.
            anchors: whether the initial design begins with the domain's anchors.

        Raises:
            ConfigError: for a startup below 2, a batch below 1 or anchors not true or false.
        """
        first = len(domain.anchors) if settings.flag("anchors", anchors) else 0
        chosen = max(10, first + 4) if startup is None else startup
        self.startup = settings.whole("startup", chosen, 2)
        self.batch = settings.whole("batch", batch, 1)
        self.space = Space(domain)
        self._design = InitialDesign(domain, derive(seed, "design"), anchors)
        self._points: list[FloatArray] = []
        self._seen: set[bytes] = set()
        self._at_work: dict[int, FrozenTrial] = {}
        self._results: dict[int, FrozenTrial] = {}

    @property
    def results(self) -> list[int]:
        """Numbers of the candidates that were told or learnt, in ascending order."""
        return sorted(self._results)

    @property
    def ready(self) -> bool:
        """Whether enough is known to ask a sampler, and there is something to choose."""
        succeeded = sum(t.state == TrialState.COMPLETE for t in self._results.values())
        return len(self._results) >= self.startup and succeeded > 1 and self._varies

    @property
    def _varies(self) -> bool:
        return bool(self.space.distributions)

    def ask(self, numbers: range, propose: Callable[[int], FloatArray | None]) -> list[FloatArray]:
        """A genome for each ask number, each with those before it at work.

        What `propose` gives is taken unless it is None or was asked for before, where a point
        of the initial design was not.
        """
        genomes = []
        for number in numbers:
            genome = propose(number) if self.ready else None
            if genome is None or genome.tobytes() in self._seen:
                point = self._point(number)
                if genome is None or point.tobytes() not in self._seen:
                    genome = point
            self.adopt(range(number, number + 1), [genome])
            genomes.append(genome)
        return genomes

    def adopt(self, numbers: range, genomes: Sequence[FloatArray]) -> None:
        """Notes genomes that are at work from now on."""
        for number, genome in zip(numbers, genomes, strict=True):
            self._seen.add(genome.tobytes())
            self._at_work[number] = self._trial(number, genome, state=TrialState.RUNNING)

    def tell(self, told: Sequence[Told]) -> None:
        """Takes results of genomes that were at work."""
        for one in told:
            del self._at_work[one.number]
            self._finish(one)

    def learn(self, observations: Sequence[Observation]) -> None:
        """Takes results of genomes that were not asked for, before the first ask."""
        for observation in observations:
            self._seen.add(observation.genome.tobytes())
            number = min([0, *self._results]) - 1
            self._finish(Told(number, observation.genome, observation.fitness))

    def _finish(self, told: Told) -> None:
        if told.fitness is None:
            trial = self._trial(told.number, told.genome, state=TrialState.FAIL)
        else:
            limits = {str(i): c for i, c in enumerate(told.fitness.constraints)}
            values = list(told.fitness.values)
            trial = self._trial(told.number, told.genome, values=values, constraints=limits)
        self._results[told.number] = trial

    def _trial(self, number: int, genome: FloatArray, **kwargs: Any) -> FrozenTrial:
        trial = create_trial(
            params=self.space.params(genome), distributions=self.space.distributions, **kwargs
        )
        trial.number = number
        return trial

    def _point(self, number: int) -> FloatArray:
        """The first point of the initial design from this number on that is new."""
        missing = number + _PROBES - len(self._points)
        if missing > 0:
            self._points += self._design.take(missing)
        probes = self._points[number : number + _PROBES]
        return next((p for p in probes if p.tobytes() not in self._seen), probes[0])

    def at_work(self) -> list[FrozenTrial]:
        """Trials that run, in the order of asking, each set of parameters once."""
        unique = {tuple(t.params.values()): t for t in self._at_work.values()}
        return sorted(unique.values(), key=lambda t: t.number)

    def values(self, numbers: Sequence[int]) -> tuple[FloatArray, FloatArray]:
        """Values (`m x objectives`) and constraints (`m x constraints`) of these results.

        A failed candidate has the worst of each that a candidate among them has that did not
        fail; all are NaN if every one failed.
        """
        trials = [self._results[n] for n in numbers]
        done = [i for i, t in enumerate(trials) if t.state == TrialState.COMPLETE]
        good = [trials[i] for i in done]
        pairs = (
            (np.array([t.values for t in good], dtype=np.float64), np.min),
            (np.array([[*t.constraints.values()] for t in good], dtype=np.float64), np.max),
        )
        filled = []
        for array, worst in pairs:
            full = np.tile(worst(array, axis=0), (len(trials), 1))
            full[done] = array
            filled.append(full)
        return filled[0], filled[1]

    def finished(
        self, numbers: Sequence[int], values: FloatArray, constraints: FloatArray
    ) -> list[FrozenTrial]:
        """Complete trials of these results with the given values and constraints."""
        trials = []
        for number, value, limits in zip(numbers, values, constraints, strict=True):
            trial = copy.copy(self._results[number])
            trial.state = TrialState.COMPLETE
            trial.values = value.tolist()
            if len(limits):
                trial.system_attrs = {}
                for i, limit in enumerate(limits.tolist()):
                    trial.set_constraint(str(i), limit)
            trials.append(trial)
        return trials

    def failed(self, number: int) -> bool:
        """Whether this result is a failure."""
        return self._results[number].state == TrialState.FAIL


class _Shown(InMemoryStorage):
    """Shows a study the trials that it is given, without a copy of each."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._shown = trials

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Those in one of `states`."""
        return [t for t in self._shown if states is None or t.state in states]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Drops what a sampler notes for other processes."""


def query(
    sampler: optuna.samplers.BaseSampler,
    number: int,
    trials: Sequence[FrozenTrial],
    distributions: dict[str, BaseDistribution],
    jointly: bool = True,
) -> Params:
    """What a sampler proposes for trial `number` of a study with these trials; maximises.

    Args:
        sampler: freshly seeded.
        number: of the trial.
        trials: complete ones and running ones.
        distributions: of the parameters.
        jointly: whether the parameters are drawn together or one by one.
    """
    objectives = next(len(t.values) for t in trials if t.state == TrialState.COMPLETE)
    study = optuna.create_study(
        storage=_Shown(trials), sampler=sampler, directions=["maximize"] * objectives
    )
    trial = create_trial(state=TrialState.RUNNING)
    trial.number = number
    if jointly:
        return sampler.sample_relative(study, trial, distributions)
    return {
        name: sampler.sample_independent(study, trial, name, distribution)
        for name, distribution in distributions.items()
    }


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps optuna's log lines and warnings away; leaves both as they were."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def generator_seed(seed: int, purpose: str, number: int) -> int:
    """A seed for numpy's RandomState, which takes 32 bits."""
    return derive(seed, purpose, number) % 2**32
