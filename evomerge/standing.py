"""Which candidates of a search are best, as far as is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from evomerge.pareto import Values, joined
from evomerge.rating import Rating
from evomerge.trials import Trial, best_trials
from evomerge.types import Observation


@dataclass
class Standing:
    """The trials of a search, the best of them, and when the best last changed.

    Attributes:
        pareto: whether there is a front rather than one best.
        trials: in the order in which they ended.
        best: the first of the fittest; None before the first trial.
        improved: number of trials when the best, or the front, last changed.
    """

    pareto: bool
    trials: list[Trial] = field(default_factory=list)
    best: Trial | None = None
    improved: int = 0
    _front: list[Values] = field(default_factory=list)
    _places: dict[str, list[int]] = field(default_factory=dict)

    def add(self, trial: Trial) -> None:
        """Takes a trial that ended."""
        self._places.setdefault(trial.digest, []).append(len(self.trials))
        self.trials.append(trial)
        self._compare(trial)

    def update(self, digest: str, rating: Rating, file: str | None = None) -> None:
        """Takes what is known of a merge after more answers; all its trials are worth that.

        Args:
            digest: of the merge.
            rating: from all of its answers.
            file: where the further answers are.
        """
        found = False
        for place in self._places.get(digest, ()):
            trial = self.trials[place]
            if trial.fitness is not None:
                files = trial.files if file is None else (*trial.files, file)
                found = True
                self.trials[place] = replace(
                    trial, fitness=rating.fitness, values=rating.values, files=files
                )
        if not found:
            raise RuntimeError(f"no trial with the digest {digest}")
        improved, self.best, self._front = self.improved, None, []
        for trial in self.trials:  # the best may have fallen behind
            self._compare(trial)
        self.improved = improved

    def elite(self) -> Trial | None:
        """The best that is feasible and complete; None while there is none."""
        best = self.best
        good = best is not None and best.fitness is not None and best.fitness.feasible
        return best if good and best is not None and best.complete else None

    @property
    def front_size(self) -> int:
        """Number of different values that no feasible trial exceeds; 0 with one objective."""
        return len(self._front)

    def files_of(self, digest: str) -> tuple[str, ...]:
        """Where all answers of a merge are; none if it never answered."""
        trials = (self.trials[place] for place in reversed(self._places.get(digest, ())))
        return next((t.files for t in trials if t.files), ())

    def leaders(self, count: int) -> list[Trial]:
        """The fittest distinct complete trials."""
        return [t for t in best_trials(self.trials, count) if t.complete]

    def _compare(self, trial: Trial) -> None:
        if self.best is None or trial.rank > self.best.rank:
            self.best = trial
            if not self.pareto:
                self.improved = len(self.trials)
        if self.pareto and trial.fitness is not None and trial.fitness.feasible:
            front = joined(self._front, trial.fitness.values)
            if front is not self._front:
                self._front = front
                self.improved = len(self.trials)


def levelled(observations: Sequence[Observation], answered: Sequence[int]) -> list[Observation]:
    """What the candidates of one race are told to be worth, so that who is out stays behind.

    With one objective the value of a candidate that stopped early is at most the lowest of those
    that answered more: it lost to them on the items that all of them answered, and what they
    lost on further items must not lift it. Several objectives stay as they are.

    Args:
        observations: of the candidates of a generation.
        answered: how many items each of them answered.
    """
    out = list(observations)
    floor = np.inf
    for stage in sorted(set(answered), reverse=True):
        own = [i for i, n in enumerate(answered) if n == stage]
        for i in own:
            fitness = out[i].fitness
            if fitness is not None and len(fitness.values) == 1 and fitness.values[0] > floor:
                out[i] = replace(out[i], fitness=replace(fitness, values=(float(floor),)))
        told = [f.values[0] for i in own if (f := out[i].fitness) is not None]
        floor = min([floor, *told])
    return out
