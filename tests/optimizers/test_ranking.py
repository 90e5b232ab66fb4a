"""The order of candidates that succeeded, broke a constraint or failed."""

import itertools

import numpy as np

from evomerge.optimizers.cma_es import CmaEs
from evomerge.optimizers.ranking import losses
from evomerge.testing.optimizers import domain
from evomerge.types import Fitness, Observation


def fitness(value, *limits):
    return Fitness((value,), (0.0,), limits)


def test_feasible_by_value_then_by_violation_then_failed():
    best_first = [
        fitness(3.0, -1.0), fitness(-5.0, 0.0), fitness(9.0, 0.1), fitness(99.0, 0.2, 0.1), None,
    ]  # fmt: skip
    for order in itertools.permutations(range(5)):
        found = losses([best_first[i] for i in order])
        assert np.isfinite(found).all()
        assert [order[i] for i in np.argsort(found)] == [0, 1, 2, 3, 4]


def test_nothing_feasible_and_nothing_at_all():
    found = losses([None, fitness(0.0, 2.0), fitness(0.0, 1.0)])
    assert found[0] > found[1] > found[2]
    assert losses([None, None]).tolist() == [1.0, 1.0]


def test_cma_es_finds_the_best_feasible_point():
    """The sum grows without bound, but only the unit disc is feasible."""
    optimizer = CmaEs(domain(2, constraints=1), 0)
    for _ in range(60):
        batch = optimizer.ask(optimizer.batch)
        optimizer.tell([Observation(g, fitness(float(g.sum()), float(g @ g) - 1.0)) for g in batch])
    found = optimizer.recommend()
    assert found.sum() == np.clip(found.sum(), 2**0.5 - 0.01, 2**0.5 + 0.001)
