"""Domains and problems with known fronts, for the tests of the MAP optimisers."""

import numpy as np

from evomerge.domain import Dimension, Domain
from evomerge.types import Fitness, Observation

SEARCH = {"population": 12, "generations": 3}
SMALL = {"population": 40, "generations": 15}


def box(n, objectives=1, constraints=0, ranges=(), low=0.0, high=1.0):
    made = tuple(Dimension(f"weight/s{i}/all", low, high, 0.5, 0.2) for i in range(n))
    anchors = (*np.eye(n), np.full(n, 1 / n))
    return Domain(made, objectives, constraints, anchors, ranges=ranges)


def play(optimizer, measure, count):
    """Observations of whole batches, up to `count` or the end."""
    found = []
    while len(found) < count and (size := min(optimizer.batch, count - len(found))):
        told = [Observation(g, measure(g)) for g in optimizer.ask(size)]
        optimizer.tell(told)
        found += told
    return found


def two_bowls(n, constrained=False):
    """Two negated squared distances, to 0.25 and to 0.75 in all dimensions."""

    def measure(g):
        values = tuple(-float(((g - at) ** 2).mean()) for at in (0.25, 0.75))
        return Fitness(values, (0.0, 0.0), (float(g.mean()) - 0.5,) if constrained else ())

    return measure


def front_of_two_bowls(constrained=False):
    """The straight line between the two places."""
    t = np.linspace(0.0, 0.5 if constrained else 1.0, 2001)[:, None]
    return np.hstack([-((0.5 * t) ** 2), -((0.5 * (1 - t)) ** 2)])


def values_of(observations):
    return np.array([o.fitness.values for o in observations if o.fitness.feasible])
