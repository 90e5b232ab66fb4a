"""What suits a preference: choices by brute force, optima of known surrogates."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from weighted_sums import by_hand

from evomerge.domain import Dimension, Domain
from evomerge.errors import ConfigError
from evomerge.objectives import Objective
from evomerge.optimizers.map import Map
from evomerge.picking import Bound, Preference, maximise, ranked, read_preference
from evomerge.types import Fitness, Observation

OBJECTIVES = (
    Objective("good", "a"),
    Objective("polite", "b"),
    Objective("tokens", "a", "tokens", "minimize"),
)


VALUES = arrays(np.float64, (6, 3), elements=st.floats(0, 1).map(lambda v: round(v, 3)))


SIGNS = (1.0, 1.0, -1.0)


@given(VALUES, st.lists(st.integers(0, 5), min_size=3, max_size=3), st.floats(0, 1))
@settings(deadline=None, max_examples=100)
def test_nothing_that_keeps_the_bounds_is_better(
    raw: np.ndarray,  # type: ignore[type-arg]
    weights: list[int],
    bound: float,
) -> None:
    if not sum(weights):
        return
    shares = np.array(weights) / sum(weights)
    preference = Preference(OBJECTIVES, shares, (Bound("polite", True, bound),))
    order = ranked(preference, raw)
    assert set(order) == {i for i in range(6) if raw[i, 1] >= bound}
    rows = [
        {o.name: s * v for o, s, v in zip(OBJECTIVES, SIGNS, row, strict=True)}
        for row in raw.tolist()
    ]
    sums = by_hand(rows, {o.name: float(w) for o, w in zip(OBJECTIVES, weights, strict=True)})
    for better, worse in itertools.pairwise(order):
        assert sums[better] >= sums[worse] - 1e-9
        if (raw[better] == raw[worse]).all():
            assert better < worse


def test_what_is_not_kept_together() -> None:
    preference = Preference(OBJECTIVES, np.ones(3) / 3, (Bound("polite", True, 0.5),))
    raw = np.array([[0.1, 0.2, 3.0], [0.4, 0.9, 5.0]])
    said = preference.unkept(raw, np.array([[0.0], [0.4]]), ["cost"])
    assert said.startswith("all bounds and the study's constraint cost at once")
    assert "good 0.1, polite 0.2" in said  # misses the bound by 0.3, the other one by 0.4
    alone = Preference(OBJECTIVES, np.ones(3) / 3)
    said = alone.unkept(raw, np.array([[0.1, 0.0], [0.0, 0.2]]), ["a", "b"])
    assert said.startswith("the study's constraint a and the study's constraint b at once")


def test_preference_texts() -> None:
    found = read_preference(OBJECTIVES, "good=3, tokens=1", "polite=0.5", "tokens=20")
    assert found.weights.tolist() == [0.75, 0, 0.25]
    assert found.bounds == (Bound("polite", True, 0.5), Bound("tokens", False, 20.0))
    short = found.shortfall(np.array([[0.0, 0.4, 10.0], [0.0, 0.6, 23.0], [0.0, 0.5, 20.0]]))
    assert short == pytest.approx([0.1, 3.0, 0.0])
    with pytest.raises(ConfigError, match="weight"):
        read_preference(OBJECTIVES, "")


# -- surrogates -------------------------------------------------------------------------------


def known(count: int = 40, kind: str = "real") -> Map:
    """MAP told of two exact paraboloids of two weights, with optima at (.2, .7) and (.8, .3)."""
    dimensions = [Dimension(f"weight/{s}/all", 0.0, 1.0, 0.5, 0.2) for s in "ab"]
    if kind == "integer":
        dimensions[1] = replace(dimensions[1], high=10.0, start=5.0, kind="integer")
    domain = Domain(tuple(dimensions), 2)
    optimizer = Map(domain, 1)
    rng = np.random.default_rng(0)
    genomes = domain.from_unit(rng.random((count, 2)))
    optimizer.learn([Observation(g, Fitness(truth(domain, g), (0.0, 0.0))) for g in genomes])
    return optimizer


def truth(domain: Domain, genome: np.ndarray) -> tuple[float, float]:  # type: ignore[type-arg]
    x = (genome - domain.low) / (domain.high - domain.low)
    first, second = np.square(x - [0.2, 0.7]).sum(), np.square(x - [0.8, 0.3]).sum()
    return 1.0 - float(first), 1.0 - float(second)


def wish(*bounds: Bound, weights: tuple[float, float] = (0.5, 0.5)) -> Preference:
    return Preference((Objective("one", "a"), Objective("two", "b")), np.array(weights), bounds)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_optimum_of_known_paraboloids(share: float) -> None:
    """The weighted sum of the two is a paraboloid about the weighted mean of their optima."""
    model = known().model()
    assert model is not None and model.kinds == ("quadratic", "quadratic")
    preference = wish(weights=(1 - share, share))
    genome, kept, _ = maximise(preference, model, np.zeros(2), np.ones(2))
    expected = (1 - share) * np.array([0.2, 0.7]) + share * np.array([0.8, 0.3])
    assert kept and genome == pytest.approx(expected, abs=1e-3)


def test_a_bound_on_a_prediction_is_kept() -> None:
    """Along the line between the optima, where the second is worth exactly its bound."""
    model = known().model()
    assert model is not None
    bound = Bound("two", True, 0.9)
    genome, kept, _ = maximise(wish(bound, weights=(1.0, 0.0)), model, np.zeros(2), np.ones(2))
    way = np.array([0.2, 0.7]) - [0.8, 0.3]
    expected = np.array([0.8, 0.3]) + way / np.linalg.norm(way) * np.sqrt(0.1)
    assert kept and genome == pytest.approx(expected, abs=5e-3)
    assert model.predict(genome[None])[0][0, 1] >= 0.9 - 1e-6


def test_an_unreachable_prediction_says_what_is_reachable() -> None:
    model = known().model()
    assert model is not None
    preference = wish(Bound("one", True, 0.95), Bound("two", True, 0.95))
    _, kept, said = maximise(preference, model, np.zeros(2), np.ones(2))
    assert not kept and "all bounds at once" in said
    _, kept, said = maximise(wish(Bound("one", True, 1.5)), model, np.zeros(2), np.ones(2))
    assert not kept and "one of at least 1.5: the best reachable is 1" in said


def test_whole_numbers_stay_whole() -> None:
    model = known(60, "integer").model()
    assert model is not None
    genome, kept, _ = maximise(wish(weights=(1.0, 0.0)), model, np.zeros(2), np.ones(2))
    assert kept and genome == pytest.approx([0.2, 7.0], abs=2e-3)
