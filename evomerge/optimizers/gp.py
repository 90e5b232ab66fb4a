"""Bayesian optimisation with Gaussian processes on optuna's GPSampler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.domain import Domain
from evomerge.optimizers import settings
from evomerge.optimizers.base import Optimizer, Told
from evomerge.seeds import derive
from evomerge.types import FloatArray, Observation

if TYPE_CHECKING:
    from optuna.samplers import GPSampler
    from optuna.trial import FrozenTrial

HYPERVOLUME_OBJECTIVES = 3
"""Up to here the acquisition is expected hypervolume improvement, whose cost explodes beyond."""

_SAMPLES_AT_WORK, _SAMPLES = 8, 64
"""Posterior samples of the hypervolume; each needs a front of its own while others are at work."""

_OBSERVATIONS = {2: 150, 3: 100}
"""Results that keep a proposal below a second, by number of objectives; else 200."""

_REFIT = 10
"""The kernel is fitted anew once the results have grown by a tenth."""


class Gp(Optimizer):
    """Proposes where a Gaussian process expects the largest improvement.

    A Matern 5/2 kernel with a length-scale for each dimension; expected improvement in its
    logarithm (Ament et al., arXiv 2310.20708) for one objective, expected hypervolume improvement
    (Daulton et al., arXiv 2006.05078) for two or three, and for more a random augmented Chebyshev
    scalarisation for each proposal (Knowles, ParEGO, doi 10.1109/TEVC.2005.851274). Constraints
    have a process each, and the improvement is weighted by the probability that they are
    satisfied. Candidates at work are integrated over.

    Each proposal is a function of the seed, its number, what was told and what is at work. The
    kernel's parameters belong to the results there were when they had last grown by a tenth, so
    that a resumed study finds the same.
    """

    multi_objective = True
    asynchronous = True

    def __init__(
        self,
        domain: Domain,
        seed: int,
        startup: int | None = None,
        batch: int = 8,
        anchors: bool = True,
        max_observations: int | None = None,
        noise: bool = True,
        samples: int = 256,
        restarts: int = 5,
    ) -> None:
        """Starts with an initial design: the domain's anchors, then scrambled Sobol points.

        Args:
            domain: what is searched.
            seed: of this optimiser's own generator.
            startup: results before the model is used; default max(10, anchors + 4).
            batch: candidates kept at work.
            anchors: whether the initial design begins with the domain's anchors.
            max_observations: results the model is fitted to; of more, half are the best ones
                (those that the fewest others dominate), a quarter the most recent, and the rest
                random. The cost of a fit grows with their third power. Default 200; 150 for two
                objectives and 100 for three.
            noise: whether the fitness is noisy; the variance is fitted.
            samples: points at which the acquisition function is tried.
            restarts: points from which it is climbed.

        Raises:
            ConfigError: for settings out of their range.
        """
        super().__init__(domain, seed)
        from evomerge.optimizers import _optuna

        self._seed = seed
        if max_observations is None:
            max_observations = _OBSERVATIONS.get(domain.objectives, 200)
        self._limit = settings.whole("max_observations", max_observations, 8)
        self._noise = settings.flag("noise", noise)
        self._samples = settings.whole("samples", samples, 2)
        self._restarts = settings.whole("restarts", restarts, 2)
        self._history = _optuna.History(domain, seed, startup, batch, anchors)
        self._fit_on: list[int] = []
        self._kernels: tuple[Any, Any] | None = None

    @property
    def batch(self) -> int:
        """How many candidates it likes to have at work."""
        return self._history.batch

    def _ask(self, numbers: range) -> list[FloatArray]:
        self._note_fit()
        with _one_thread():
            return self._history.ask(numbers, self._propose)

    def _adopt(self, numbers: range, recorded: Sequence[FloatArray]) -> bool:
        self._note_fit()
        self._history.adopt(numbers, recorded)
        return True

    def _tell(self, told: Sequence[Told]) -> None:
        self._history.tell(told)

    def _learn(self, observations: Sequence[Observation]) -> None:
        self._history.learn(observations)

    def _note_fit(self) -> None:
        """Notes what the next fit is to be made from; made only when a proposal needs it."""
        results = self._history.results
        due = len(self._fit_on) + max(1, len(self._fit_on) // _REFIT)
        if self._history.ready and len(results) >= due:
            self._fit_on, self._kernels = results, None

    def _propose(self, number: int) -> FloatArray | None:
        """A genome, or None where linear algebra fails, as where all values are alike."""
        from torch.linalg import LinAlgError  # type: ignore[attr-defined]

        from evomerge.optimizers._optuna import query, quietly

        scalarised = self.domain.objectives > HYPERVOLUME_OBJECTIVES
        trials = self._trials(self._history.results, number if scalarised else None)
        # Without those at work if they lie so near to each other that their joint
        # distribution is degenerate.
        for at_work in (self._history.at_work(), []):
            try:
                with quietly():
                    sampler = self._sampler("gp", number, bool(at_work))
                    if not scalarised:
                        self._warm(sampler)
                    space = self._history.space
                    params = query(sampler, number, [*trials, *at_work], space.distributions)
            except LinAlgError:
                continue
            genome = space.genome(params)
            if np.isfinite(genome).all():
                return genome
        return None

    def _trials(self, results: Sequence[int], scalarise: int | None = None) -> list[FrozenTrial]:
        """What the model is fitted to, scalarised for this proposal unless it is None."""
        values, constraints = self._history.values(results)
        failed = np.array([self._history.failed(n) for n in results])
        keep = informative(values, constraints, failed, results, self._limit, self._seed)
        values = values[keep]
        if scalarise is not None:
            rng = np.random.default_rng(derive(self._seed, "weights", scalarise))
            values = chebyshev(values, rng.dirichlet(np.ones(values.shape[1])))[:, None]
        return self._history.finished([results[i] for i in keep], values, constraints[keep])

    def _sampler(self, purpose: str, number: int, at_work: bool) -> GPSampler:
        from optuna.samplers import GPSampler

        from evomerge.optimizers._optuna import generator_seed

        sampler = GPSampler(
            seed=generator_seed(self._seed, purpose, number),
            n_startup_trials=0,
            deterministic_objective=not self._noise,
        )
        sampler._n_preliminary_samples = self._samples
        sampler._n_local_search = self._restarts
        sampler._n_qmc_samples_ehvi = _SAMPLES_AT_WORK if at_work else _SAMPLES
        return sampler

    def _warm(self, sampler: GPSampler) -> None:
        """Begins the sampler's fit at the kernels of the last one."""
        if self._kernels is None:
            from evomerge.optimizers._optuna import query

            fit = self._sampler("fit", 0, False)
            fit._n_preliminary_samples = fit._n_local_search = 2  # only the fit is wanted
            query(fit, 0, self._trials(self._fit_on), self._history.space.distributions)
            self._kernels = fit._gprs_cache_list, fit._constraints_gprs_cache_list
        sampler._gprs_cache_list, sampler._constraints_gprs_cache_list = self._kernels


def informative(
    values: FloatArray,
    constraints: FloatArray,
    failed: FloatArray,
    numbers: Sequence[int],
    limit: int,
    seed: int,
) -> list[int]:
    """Which `limit` of `m` results to keep: half the best, a quarter the latest, random ones.

    Args:
        values: to be maximised, `m x objectives`.
        constraints: satisfied at 0 or below, `m x constraints`.
        failed: which results are failures, an `m` array.
        numbers: their ask numbers, ascending; the random order is a function of them, so that
            the choice changes little from one ask to the next.
        limit: how many to keep.
        seed: of the random order.

    Returns:
        ascending positions.
    """
    count = len(numbers)
    if count <= limit:
        return list(range(count))
    violation = np.maximum(constraints, 0.0).sum(axis=1)
    dominated = [
        np.count_nonzero((values >= v).all(1) & (values > v).any(1) & (violation <= 0.0))
        for v in values
    ]
    lots = [derive(seed, "keep", number) for number in numbers]
    by_rank = sorted(range(count), key=lambda i: (failed[i], violation[i], dominated[i], lots[i]))
    kept = set(by_rank[: limit // 2])
    latest = (i for i in reversed(range(count)) if i not in kept)
    kept |= {i for i, _ in zip(latest, range(limit // 4), strict=False)}
    rest = sorted((i for i in range(count) if i not in kept), key=lambda i: lots[i])
    return sorted(kept | set(rest[: limit - len(kept)]))


def chebyshev(values: FloatArray, weights: FloatArray) -> FloatArray:
    """One value for each of `m x k`, to be maximised: the augmented Chebyshev scalarisation.

    Values are scaled to [0, 1] first; the sum has the share 0.05 (Knowles 2006, eq. 2).
    """
    spread = np.ptp(values, axis=0)
    losses = weights * (values.max(axis=0) - values) / np.where(spread > 0.0, spread, 1.0)
    return np.asarray(-losses.max(axis=1) - 0.05 * losses.sum(axis=1), dtype=np.float64)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Runs torch on one thread and with gradients, as these small matrices want; restores both."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
