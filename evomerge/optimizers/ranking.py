"""One order for candidates that succeeded, broke a constraint or failed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.types import Fitness, FloatArray


def losses(fitnesses: Sequence[Fitness | None]) -> FloatArray:
    """Numbers to be minimised, an `m` array, from the first value of each fitness.

    Feasible candidates have their negated value; infeasible ones follow in the order of their
    violation (Deb 2000), then those that failed. All are finite.
    """
    feasible = [f.values[0] for f in fitnesses if f is not None and f.feasible]
    worst = -min(feasible, default=0.0)
    violations = [f.violation for f in fitnesses if f is not None and not f.feasible]
    last = worst + max(violations, default=0.0) + 1.0
    out = []
    for fitness in fitnesses:
        if fitness is None:
            out.append(last)
        elif fitness.feasible:
            out.append(-fitness.values[0])
        else:
            out.append(worst + fitness.violation)
    return np.array(out, dtype=np.float64)
