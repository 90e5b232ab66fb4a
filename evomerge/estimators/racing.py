"""Races: candidates answer items in stages, and those that cannot win stop early.

All candidates answer the same items in the same order (common random numbers; with `adaptive` each
has its own), so a race compares what they did with the same questions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import numpy as np

from evomerge.errors import ConfigError
from evomerge.estimators.base import Indices
from evomerge.estimators.sequential import Wealth, unreachable
from evomerge.pareto import non_dominated
from evomerge.types import Fitness, FloatArray


@dataclass(frozen=True)
class Runner:
    """A candidate in a race.

    Attributes:
        id: its number.
        answered: items that it answered, of the task of which it answered most.
        fitness: what these are worth.
        answers: by task, the items in the order in which they were answered, and their values.
    """

    id: int
    answered: int
    fitness: Fitness
    answers: Mapping[str, tuple[Indices, FloatArray]]


class Race(ABC):
    """Says when candidates answer how many items.

    Attributes:
        together: whether the candidates of a generation are compared with one another; they then
            wait for each other after each stage, where the optimiser has generations.
        at_random: whether items have to come in a random order.
        adaptive: whether each candidate has items of its own.
        against_elite: whether runners are compared with the best candidate so far.
    """

    together: ClassVar[bool] = False
    at_random: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    against_elite: ClassVar[bool] = False

    @abstractmethod
    def first(self, generation: int, planned: int) -> int:
        """Items of each task in the first stage, at most `planned`."""

    @abstractmethod
    def following(self, answered: int, planned: int) -> int:
        """How many items a runner has answered after its next stage, at most `planned`."""

    def enough(self, runner: Runner, planned: int) -> bool:
        """Whether a runner that stops is known as well as one that answered everything."""
        return runner.answered >= planned

    @abstractmethod
    def going_on(
        self,
        runners: Sequence[Runner],
        before: Sequence[Fitness],
        elite: Runner | None,
        planned: int,
    ) -> set[int]:
        """Numbers of the runners that answer more.

        Args:
            runners: that have just answered as many items as each other.
            before: fitness of earlier candidates after as many items.
            elite: the best candidate that answered all items; None while there is none.
            planned: items of each task that a candidate answers if nothing stops it.
        """


@dataclass(frozen=True)
class NoRace(Race):
    """Every candidate answers all items of the estimator at once."""

    def first(self, generation: int, planned: int) -> int:
        """All of them."""
        return planned

    def following(self, answered: int, planned: int) -> int:
        """All of them."""
        return planned

    def going_on(
        self,
        runners: Sequence[Runner],
        before: Sequence[Fitness],
        elite: Runner | None,
        planned: int,
    ) -> set[int]:
        """Nobody: all is answered."""
        return set()


@dataclass(frozen=True)
class Halving(Race):
    """Successive halving over items, or with `brackets` above 1 Hyperband.

    A stage has `eta` times the items of the one before; the best `1 / eta` of the candidates of
    a generation go on (Jamieson & Talwalkar, AISTATS 2016, "Non-stochastic best arm
    identification and hyperparameter optimization"). With an optimiser without generations a
    candidate goes on if it is among the best `1 / eta` of all that were at its stage before, as
    in ASHA (Li et al., MLSys 2020, "A system for massively parallel hyperparameter tuning");
    the first `eta` of each stage always do.

    With `brackets`, generation g begins at stage `g mod brackets` (Hyperband; Li et al., JMLR
    2018): some generations trust few items, some do not.

    Args:
        first: items of each task in the first stage, at least 2.
        eta: factor of the items and divisor of the candidates, above 1.
        brackets: number of stages with which a generation may begin.

    Raises:
        ConfigError: for numbers outside these bounds.
    """

    together: ClassVar[bool] = True

    first_items: int
    eta: float
    brackets: int

    def __init__(self, first: int = 10, eta: float = 2.0, brackets: int = 1) -> None:
        object.__setattr__(self, "first_items", _whole("first", first, 2))
        object.__setattr__(self, "eta", _above("eta", eta, 1.0))
        object.__setattr__(self, "brackets", _whole("brackets", brackets, 1))

    def first(self, generation: int, planned: int) -> int:
        """Items of the stage with which a generation begins."""
        items = self.first_items
        for _ in range(generation % self.brackets):
            items = self.following(items, planned)
        return min(items, planned)

    def following(self, answered: int, planned: int) -> int:
        """`eta` times as many; all of them where a further stage would be less than one more."""
        wanted = math.ceil(answered * self.eta)
        return planned if wanted * math.sqrt(self.eta) > planned else wanted

    def going_on(
        self,
        runners: Sequence[Runner],
        before: Sequence[Fitness],
        elite: Runner | None,
        planned: int,
    ) -> set[int]:
        """The best of a generation, or those among the best of their stage so far."""
        if len(runners) > 1:
            kept = math.ceil(len(runners) / self.eta)
            return {runners[i].id for i in ranked([r.fitness for r in runners])[:kept]}
        (runner,) = runners
        if len(before) + 1 <= self.eta:
            return {runner.id}
        order = ranked([*before, runner.fitness])
        return {runner.id} if order.index(len(before)) < (len(before) + 1) / self.eta else set()


@dataclass(frozen=True)
class Sequential(Race):
    """Stops a candidate as soon as it cannot reach the best one so far.

    After each stage a candidate is compared with the elite on the items that both answered. It
    stops (a) if even full marks for the rest would not be enough, which is certain; (b) if a
    test by betting says so (`evomerge.estimators.sequential`): a candidate that is at least as
    good as the elite on the estimator's items is stopped with probability at most `alpha`,
    however often it is looked at. Items come in a random order, which the bound needs.

    Args:
        first: items in the first stage, at least 2.
        step: items of each further stage.
        alpha: probability of stopping a candidate wrongly, in (0, 0.5].

    Raises:
        ConfigError: for numbers outside these bounds.
    """

    at_random: ClassVar[bool] = True
    against_elite: ClassVar[bool] = True

    first_items: int
    step: int
    alpha: float

    def __init__(self, first: int = 10, step: int = 10, alpha: float = 0.05) -> None:
        object.__setattr__(self, "first_items", _whole("first", first, 2))
        object.__setattr__(self, "step", _whole("step", step, 1))
        object.__setattr__(self, "alpha", _within("alpha", alpha, 0.0, 0.5))

    def first(self, generation: int, planned: int) -> int:
        """The configured number."""
        return min(self.first_items, planned)

    def following(self, answered: int, planned: int) -> int:
        """One step more."""
        return min(answered + self.step, planned)

    def going_on(
        self,
        runners: Sequence[Runner],
        before: Sequence[Fitness],
        elite: Runner | None,
        planned: int,
    ) -> set[int]:
        """Those whose difference to the elite is not settled."""
        return {r.id for r in runners if elite is None or not self._beaten(r, elite, planned)}

    def _beaten(self, runner: Runner, elite: Runner, planned: int) -> bool:
        (task,) = runner.answers
        items, values = runner.answers[task]
        theirs = dict(zip(elite.answers[task][0].tolist(), elite.answers[task][1], strict=True))
        common = [i for i, item in enumerate(items.tolist()) if item in theirs]
        ahead = np.array([theirs[int(items[i])] for i in common]) - values[common]
        if unreachable(ahead, planned, 1.0):
            return True
        return Wealth(planned).after(ahead) >= 1.0 / self.alpha


@dataclass(frozen=True)
class Adaptive(Race):
    """Chooses each candidate's next items by its answers so far, until they say enough.

    A candidate stops when its standard error is at most `stderr`, or when its value differs from
    the best candidate's by more than the quantile of `confidence` times its standard error. The
    second rule is nominal: it holds as far as the estimator's standard errors do, and looks
    again at each stage.

    Args:
        first: items in the first stage, at least 2.
        step: items of each further stage.
        stderr: standard error that is small enough, at least 0.
        confidence: of the comparison with the best, in (0.5, 1); 1 leaves it out.

    Raises:
        ConfigError: for numbers outside these bounds.
    """

    adaptive: ClassVar[bool] = True
    against_elite: ClassVar[bool] = True

    first_items: int
    step: int
    stderr: float
    confidence: float

    def __init__(
        self, first: int = 10, step: int = 5, stderr: float = 0.03, confidence: float = 0.975
    ) -> None:
        object.__setattr__(self, "first_items", _whole("first", first, 2))
        object.__setattr__(self, "step", _whole("step", step, 1))
        object.__setattr__(self, "stderr", _within("stderr", stderr, -1e-12, 1.0))
        object.__setattr__(self, "confidence", _within("confidence", confidence, 0.5, 1.0))

    def first(self, generation: int, planned: int) -> int:
        """The configured number."""
        return min(self.first_items, planned)

    def following(self, answered: int, planned: int) -> int:
        """One step more."""
        return min(answered + self.step, planned)

    def enough(self, runner: Runner, planned: int) -> bool:
        """With a small standard error, or all items."""
        return runner.answered >= planned or max(runner.fitness.stderr) <= self.stderr

    def going_on(
        self,
        runners: Sequence[Runner],
        before: Sequence[Fitness],
        elite: Runner | None,
        planned: int,
    ) -> set[int]:
        """Those that are neither known well enough nor clearly behind the elite."""
        return {r.id for r in runners if not self._known(r, elite)}

    def _known(self, runner: Runner, elite: Runner | None) -> bool:
        error = max(runner.fitness.stderr)
        if error <= self.stderr:
            return True
        if elite is None or self.confidence >= 1.0:
            return False
        # Better ones go on: only a full evaluation makes an elite.
        short = elite.fitness.values[0] - runner.fitness.values[0]
        return short > NormalDist().inv_cdf(self.confidence) * error


def ranked(fitness: Sequence[Fitness]) -> list[int]:
    """Places of the fittest first: feasible ones by value (by fronts if several), then the rest.

    Earlier ones come first among equals.
    """
    feasible = [i for i, f in enumerate(fitness) if f.feasible]
    rest = [i for i, f in enumerate(fitness) if not f.feasible]
    out: list[int] = []
    while feasible:
        values = np.array([fitness[i].values for i in feasible])
        if values.shape[1] == 1:
            order = np.argsort(-values[:, 0], kind="stable")
            out += [feasible[int(k)] for k in order]
            break
        on_front = non_dominated(values)
        front = [i for i, keep in zip(feasible, on_front, strict=True) if keep]
        spread = {i: float(np.sum(fitness[i].values)) for i in front}
        out += sorted(front, key=lambda i: -spread[i])
        feasible = [i for i, keep in zip(feasible, on_front, strict=True) if not keep]
    return out + sorted(rest, key=lambda i: fitness[i].violation)


def _whole(key: str, value: object, low: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError.of(
            f"racing.{key}", repr(value), f"a whole number of at least {low}", "Correct it."
        )
    return value


def _above(key: str, value: object, low: float) -> float:
    return _within(key, value, low, math.inf)


def _within(key: str, value: object, low: float, high: float) -> float:
    number = float(value) if isinstance(value, int | float) else math.nan
    if isinstance(value, bool) or not low < number <= high or not math.isfinite(number):
        most = "" if math.isinf(high) else f" and at most {high:g}"
        raise ConfigError.of(
            f"racing.{key}", repr(value), f"a number above {low:g}{most}", "Correct it."
        )
    return number
