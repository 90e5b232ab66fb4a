"""Tree-structured Parzen estimators (Bergstra et al., NeurIPS 2011) on optuna's sampler."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.domain import Domain
from evomerge.optimizers import settings
from evomerge.optimizers.base import Optimizer, Told
from evomerge.types import FloatArray, Observation


class Tpe(Optimizer):
    """Draws candidates from the density of good results where that of the others is low.

    With several objectives the good ones are chosen by non-domination rank and hypervolume
    (Ozaki et al., 2022, doi 10.1613/jair.1.13188). Infeasible results are good only while
    feasible ones are few, in the order of their violation. Candidates at work count as bad
    ("constant liar"), so that the next ones keep away from them; failed ones too.

    Each proposal is a function of the seed, its number, what was told and what is at work.
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
        candidates: int = 24,
        multivariate: bool = True,
    ) -> None:
        """Starts with an initial design: the domain's anchors, then scrambled Sobol points.

        Args:
            domain: what is searched.
            seed: of this optimiser's own generator.
            startup: results before the densities are used; default max(10, anchors + 4).
            batch: candidates kept at work.
            anchors: whether the initial design begins with the domain's anchors.
            candidates: draws from the good density of which the best ratio is proposed.
            multivariate: whether the dimensions are drawn together or each for itself.

        Raises:
            ConfigError: for a startup below 2, or a batch or candidates below 1.
        """
        super().__init__(domain, seed)
        from evomerge.optimizers import _optuna

        self._seed = seed
        self._candidates = settings.whole("candidates", candidates, 1)
        self._multivariate = settings.flag("multivariate", multivariate)
        self._history = _optuna.History(domain, seed, startup, batch, anchors)

    @property
    def batch(self) -> int:
        """How many candidates it likes to have at work."""
        return self._history.batch

    def _ask(self, numbers: range) -> list[FloatArray]:
        return self._history.ask(numbers, self._propose)

    def _adopt(self, numbers: range, recorded: Sequence[FloatArray]) -> bool:
        self._history.adopt(numbers, recorded)
        return True

    def _tell(self, told: Sequence[Told]) -> None:
        self._history.tell(told)

    def _learn(self, observations: Sequence[Observation]) -> None:
        self._history.learn(observations)

    def _propose(self, number: int) -> FloatArray:
        from optuna.samplers import TPESampler

        from evomerge.optimizers._optuna import generator_seed, query, quietly

        results = self._history.results
        trials = self._history.finished(results, *self._history.values(results))
        with quietly():
            sampler = TPESampler(
                n_startup_trials=0,
                n_ei_candidates=self._candidates,
                seed=generator_seed(self._seed, "tpe", number),
                multivariate=self._multivariate,
                constant_liar=True,
            )
            params = query(
                sampler,
                number,
                [*trials, *self._history.at_work()],
                self._history.space.distributions,
                jointly=self._multivariate,
            )
        return self._history.space.genome(params)
