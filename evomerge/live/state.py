"""What is known of a running study at one moment; plain values, whoever shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Budget:
    """One limit of a search: what it counts, how much is used, and the most it may be."""

    name: str
    used: float
    limit: float

    @property
    def left(self) -> float:
        """What may still be used; not below 0."""
        return max(0.0, self.limit - self.used)


@dataclass(frozen=True)
class Searching:
    """How a search stands after its latest result.

    Attributes:
        best: each objective of the best candidate, in its own unit; of the first objective's best
            where there are several; empty before there is one.
        feasible: whether the best keeps all constraints.
        front: size of the Pareto front; None with one objective.
        constraints: whether the study has any.
        failed: candidates that could not be evaluated.
        infeasible: candidates that break a constraint.
        stopped: candidates that a race stopped early.
        budgets: the limits that the study has.
    """

    best: Mapping[str, float] = field(default_factory=dict)
    feasible: bool = True
    front: int | None = None
    constraints: bool = False
    failed: int = 0
    infeasible: int = 0
    stopped: int = 0
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True)
class Work:
    """A job at work: its number, for how many seconds it is out, and its untrusted name, if any."""

    id: int
    seconds: float
    name: str | None = None


@dataclass(frozen=True)
class Failure:
    """A candidate or model that could not be evaluated, and why; the text is untrusted."""

    what: str
    reason: str


@dataclass(frozen=True)
class Rates:
    """Speed over the latest outcomes; None where it is not known."""

    candidates: float | None = None  # a second
    items: float | None = None  # a second, of those that a model answered
    tokens: float | None = None  # a second


@dataclass(frozen=True)
class State:
    """A phase of a study, and all that is known of it.

    Attributes:
        phase: its label.
        done: candidates, models or other things that are ready.
        total: how many there will be; None if only time limits them, or nothing is counted.
        unit: what is counted.
        elapsed: seconds since the phase began.
        left: seconds that it will still take; None if unknown.
        search: None in a phase that is no search.
        rates: how fast it goes.
        workers: how many there are; None before they start.
        work: what they do, the longest at work first.
        usual: mean seconds of merging and of answering of the latest jobs; None before the first.
        failures: the latest ones, newest last.
    """

    phase: str
    done: int = 0
    total: int | None = None
    unit: str = "candidates"
    elapsed: float = 0.0
    left: float | None = None
    search: Searching | None = None
    rates: Rates = field(default_factory=Rates)
    workers: int | None = None
    work: tuple[Work, ...] = ()
    usual: tuple[float, float] | None = None
    failures: tuple[Failure, ...] = ()
