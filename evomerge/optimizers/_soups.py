"""What the searches among soups share: their domain, their order, and how much may be asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from evomerge.domain import Domain
from evomerge.errors import ConfigError
from evomerge.optimizers.base import Told
from evomerge.types import Fitness, Rank

_FAILED: Rank = (0, 0.0)


def check_weights(domain: Domain, name: str) -> None:
    """Refuses domains whose dimensions are not weights in [0, 1].

    Raises:
        ConfigError: naming the first dimension that is something else.
    """
    for d in domain.dimensions:
        if d.kind != "real" or (d.low, d.high) != (0.0, 1.0):
            raise ConfigError.of(
                "optimizer", f"{name} over {d.name}, {d.kind} in [{d.low:g}, {d.high:g}]",
                "a space of soups: one weight in [0, 1] for each source",
                "It is a control: list it below controls, not as the optimizer.",
            )  # fmt: skip


def check_asked(n: int, batch: int) -> None:
    """Refuses to propose more than makes sense now.

    Raises:
        ValueError: with both numbers.
    """
    if n > batch:
        raise ValueError(
            f"ask({n}): expected at most {batch}, which is all that it can propose now; ask for no "
            "more than `batch`"
        )


def ranks(fitnesses: Sequence[Fitness | None]) -> list[Rank]:
    """What candidates are ordered by; larger is better.

    Feasible candidates come first, by their value, or where there are several objectives by
    the sum of the values after each was scaled to [0, 1] over all candidates given here (one
    that is the same for all counts 0). Infeasible ones follow by their violation, then those
    that failed.
    """
    known = [f.values for f in fitnesses if f is not None]
    if not known:
        return [_FAILED] * len(fitnesses)
    low, high = np.min(known, axis=0), np.max(known, axis=0)
    if len(low) == 1:  # as it is: scaling could round two values to one
        low, high = np.zeros(1), np.ones(1)
    width = np.where(high > low, high - low, 1.0)

    def rank(fitness: Fitness | None) -> Rank:
        if fitness is None:
            return _FAILED
        if not fitness.feasible:
            return fitness.rank()
        return 2, float(((np.array(fitness.values) - low) / width).sum())

    return [rank(fitness) for fitness in fitnesses]


def best_first(fitnesses: Sequence[Fitness | None]) -> list[int]:
    """Places of the candidates that did not fail, the best first; equals keep their order."""
    found = ranks(fitnesses)
    order = sorted(range(len(found)), key=lambda i: found[i], reverse=True)
    return [i for i in order if found[i] != _FAILED]


def ranks_by_number(told: Iterable[Told]) -> dict[int, Rank]:
    """The ranks of results among one another, by ask number."""
    results = list(told)
    found = ranks([t.fitness for t in results])
    return {t.number: rank for t, rank in zip(results, found, strict=True)}
