"""Surrogates of a study's objectives, constraints and failures, and the data they see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.domain import Domain
from evomerge.optimizers._gaussian import (
    GaussianProcess,
    Hyperparameters,
    JointSamples,
    features,
)
from evomerge.optimizers._improvement import leading
from evomerge.types import Fitness, FloatArray

Record = tuple[FloatArray, Fitness | None]
"""A genome and what came of it."""

_FITTED = 200
_FIRST = 8


def chosen(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """At most `count` of the records, in their order; see `chosen_rows`."""
    return [records[i] for i in chosen_rows(records, count, seed)]


def chosen_rows(records: Sequence[Record], count: int, seed: int) -> list[int]:
    """Which of the records: the best, the latest and a random rest, at most `count` in all.

    Half are those ahead by the values told, a quarter the latest; which of the others stay is
    a matter of a random number that each keeps for good.
    """
    if len(records) <= count:
        return list(range(len(records)))
    succeeded = [(i, f) for i, (_, f) in enumerate(records) if f is not None]
    feasible = [(i, f) for i, f in succeeded if f.feasible] or succeeded
    kept: set[int] = set()
    if feasible:
        lead = leading(np.array([f.values for _, f in feasible]), count // 2)
        kept.update(feasible[i][0] for i in lead)
    kept.update(range(len(records) - count // 4, len(records)))
    order = np.argsort(np.random.default_rng(seed).random(len(records)), kind="stable")
    for i in order:
        if len(kept) >= count:
            break
        kept.add(int(i))
    return sorted(kept)


def fitted_on(count: int) -> int:
    """How many of `count` records the hyperparameters are fitted to: rises in steps of 10%."""
    step = min(_FIRST, count)
    while (following := max(step + 1, step * 11 // 10)) <= count:
        step = following
    return step


class Outputs:
    """Columns that a surrogate each is made for: objectives, constraints, failures.

    A failed candidate has no values; where some failed, failing is one more constraint, +1 for
    a failure and -1 for a success.
    """

    def __init__(self, domain: Domain, records: Sequence[Record]) -> None:
        """Takes the records apart; at least one has succeeded."""
        genomes = np.array([g for g, _ in records])
        told = [f for _, f in records if f is not None]
        succeeded = np.array([f is not None for _, f in records])
        x = features(domain, genomes)
        values = np.array([f.values for f in told])
        errors = np.array([_errors(f) for f in told])
        limits = np.array([f.constraints for f in told]).reshape(len(told), -1)
        self.columns: list[tuple[FloatArray, FloatArray, FloatArray | None]] = [
            *((x[succeeded], v, e) for v, e in zip(values.T, errors.T, strict=True)),
            *((x[succeeded], c, None) for c in limits.T),
        ]
        if not succeeded.all():
            self.columns.append((x, np.where(succeeded, -1.0, 1.0), None))

    def fit(self) -> list[Hyperparameters]:
        """Hyperparameters of each column."""
        return [GaussianProcess(*column).hyper for column in self.columns]


def fit(domain: Domain, records: Sequence[Record], seed: int) -> list[Hyperparameters]:
    """Hyperparameters of each column of at most 200 of the records; none for no success."""
    if all(f is None for _, f in records):
        return []
    return Outputs(domain, chosen(records, _FITTED, seed)).fit()


def _errors(fitness: Fitness) -> tuple[float, ...]:
    given = len(fitness.stderr) == len(fitness.values)
    return fitness.stderr if given else (0.0,) * len(fitness.values)


@dataclass(frozen=True)
class Models:
    """Gaussian processes of one moment, with what is known for sure besides.

    Attributes:
        domain: what is searched.
        objectives: a process each.
        limits: a process for each constraint, and for failing if some failed.
        known: further objectives that are a function of the genome alone.
    """

    domain: Domain
    objectives: tuple[GaussianProcess, ...]
    limits: tuple[GaussianProcess, ...]
    known: tuple[Callable[[FloatArray], float], ...] = ()

    @classmethod
    def of(
        cls,
        domain: Domain,
        records: Sequence[Record],
        hypers: Sequence[Hyperparameters],
        known: tuple[Callable[[FloatArray], float], ...] = (),
    ) -> Models:
        """Conditions on the records; columns without hyperparameters take the prior's."""
        columns = Outputs(domain, records).columns
        prior = Hyperparameters.prior(columns[0][0].shape[1])
        padded = [*hypers, *[prior] * len(columns)]
        made = [GaussianProcess(*c, hyper=h) for c, h in zip(columns, padded, strict=False)]
        m = domain.objectives
        return cls(domain, tuple(made[:m]), tuple(made[m:]), known)

    @property
    def count(self) -> int:
        """Number of objectives, the known ones among them."""
        return len(self.objectives) + len(self.known)

    def sure(self, genomes: FloatArray) -> FloatArray:
        """The known objectives of `p x n` genomes, a `p x k` array."""
        found = np.array([[value(g) for value in self.known] for g in genomes], dtype=np.float64)
        if not np.isfinite(found).all():
            raise ValueError("the sparsity of a genome is not finite")
        return found.reshape(len(genomes), len(self.known))

    def means(self, genomes: FloatArray) -> FloatArray:
        """Posterior means of all objectives, a `p x m` array."""
        x = features(self.domain, genomes)
        return np.column_stack([*(p.mean(x) for p in self.objectives), self.sure(genomes)])

    def log_feasibility(self, genomes: FloatArray) -> FloatArray:
        """Logarithm of the probability that all constraints hold, a `p` array."""
        from scipy.special import log_ndtr

        x = features(self.domain, genomes)
        total = np.zeros(len(genomes))
        for process in self.limits:
            mean, variance = process.predict(x)
            total += log_ndtr(-mean / np.sqrt(variance + 1e-12 * process.deviation**2))
        return total


class Draws:
    """Joint samples of all objectives and constraints at base points and further ones.

    Attributes:
        values: samples of the objectives at the base, an `s x b x m` array.
        allowed: which base points satisfy all constraints in the sample, an `s x b` array.
    """

    def __init__(self, models: Models, base: FloatArray, samples: int, seed: int) -> None:
        """Draws with scrambled Sobol numbers.

        Args:
            models: the posteriors.
            base: `b x n` genomes.
            samples: how many; a power of two.
            seed: of the numbers.
        """
        from scipy.special import ndtri
        from scipy.stats import qmc

        processes = (*models.objectives, *models.limits)
        width = len(base) + 1
        # Beyond the dimensions that the sequence has, plain random numbers.
        rng = np.random.default_rng(seed)
        if width * len(processes) <= qmc.Sobol.MAXDIM:
            uniform = qmc.Sobol(width * len(processes), rng=rng).random(samples)
        else:
            uniform = rng.random((samples, width * len(processes)))
        normals = ndtri(np.clip(uniform, 1e-12, 1.0 - 1e-12))
        x = features(models.domain, base)
        self._models = models
        self._joint = [
            JointSamples(process, x, normals[:, i * width : (i + 1) * width])
            for i, process in enumerate(processes)
        ]
        m = len(models.objectives)
        sure = np.broadcast_to(models.sure(base), (samples, len(base), len(models.known)))
        self.values = np.dstack([*(j.values for j in self._joint[:m]), sure])
        limits = [j.values <= 0 for j in self._joint[m:]]
        self.allowed = np.logical_and.reduce([np.ones((samples, len(base)), bool), *limits])

    def at(self, genomes: FloatArray) -> FloatArray:
        """Samples of the objectives at `p x n` genomes, an `s x p x m` array."""
        x = features(self._models.domain, genomes)
        objectives = self._joint[: len(self._models.objectives)]
        sure = self._models.sure(genomes)
        shape = (len(self.values), *sure.shape)
        return np.dstack([*(j.at(x) for j in objectives), np.broadcast_to(sure, shape)])
