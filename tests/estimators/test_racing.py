"""Races: who goes on, how many items a stage has, and what the numbers may be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.build import build
from evomerge.errors import ConfigError
from evomerge.estimators.racing import Adaptive, Halving, NoRace, Race, Runner, Sequential, ranked
from evomerge.types import Fitness

CONF = Path(__file__).parents[2] / "conf" / "racing"


def runner(
    number: int, value: float, answered: int = 10, stderr: float = 0.1, scores: Sequence[float] = ()
) -> Runner:
    answers = {"task": (np.arange(len(scores)), np.array(scores, dtype=float))}
    return Runner(number, answered, Fitness((value,), (stderr,)), answers)


@pytest.mark.parametrize("name", ["none", "halving", "hyperband", "sequential", "adaptive"])
def test_every_yaml_builds(name: str) -> None:
    race = build(yaml.safe_load((CONF / f"{name}.yaml").read_text()), "racing")
    assert isinstance(race, Race)
    assert race.first(0, 40) <= 40


@settings(deadline=None)
@given(
    race=st.one_of(
        st.builds(Halving, st.integers(2, 30), st.floats(1.1, 5), st.integers(1, 4)),
        st.builds(Sequential, st.integers(2, 30), st.integers(1, 30)),
        st.builds(Adaptive, st.integers(2, 30), st.integers(1, 30)),
        st.builds(NoRace),
    ),
    planned=st.integers(2, 500),
    generation=st.integers(0, 5),
)
def test_stages_grow_until_all_is_answered(race: Race, planned: int, generation: int) -> None:
    answered = race.first(generation, planned)
    assert 1 < answered <= planned
    stages = 1
    while answered < planned:
        more = race.following(answered, planned)
        assert answered < more <= planned
        answered, stages = more, stages + 1
    assert stages <= 1 + planned


def test_halving_has_the_published_rungs() -> None:
    race = Halving(first=10, eta=2)
    rungs = [race.first(0, 160)]
    while rungs[-1] < 160:
        rungs.append(race.following(rungs[-1], 160))
    assert rungs == [10, 20, 40, 80, 160]


def test_hyperband_begins_at_each_rung_in_turn() -> None:
    race = Halving(first=5, eta=3, brackets=3)
    assert [race.first(g, 135) for g in range(4)] == [5, 15, 45, 5]


@settings(deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=30), eta=st.floats(1.1, 6))
def test_halving_keeps_the_best_share(values: list[float], eta: float) -> None:
    runners = [runner(i, v) for i, v in enumerate(values)]
    kept = Halving(eta=eta).going_on(runners, [], None, 100)
    assert len(kept) == int(np.ceil(len(values) / eta))
    worst = min(values[i] for i in kept)
    assert all(values[i] <= worst for i in range(len(values)) if i not in kept)


def test_alone_a_candidate_is_compared_with_those_before_it() -> None:
    race = Halving(eta=2)
    seen = [Fitness((v,), (0.1,)) for v in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert race.going_on([runner(9, 0.45)], seen, None, 100) == {9}
    assert race.going_on([runner(9, 0.25)], seen, None, 100) == set()
    assert race.going_on([runner(9, 0.0)], seen[:1], None, 100) == {9}  # too few to compare


def test_fronts_come_first_and_broken_constraints_last() -> None:
    fitness = [
        Fitness((0.1, 0.1), (0, 0)),
        Fitness((0.9, 0.1), (0, 0)),
        Fitness((0.2, 0.8), (0, 0)),
        Fitness((1.0, 1.0), (0, 0), (0.5,)),
        Fitness((1.0, 1.0), (0, 0), (0.2,)),
    ]
    assert ranked(fitness) == [2, 1, 0, 4, 3] or ranked(fitness)[:2] in ([1, 2], [2, 1])
    assert ranked(fitness)[2:] == [0, 4, 3]


def test_the_sequential_test_stops_what_is_far_behind() -> None:
    race = Sequential(first=10, step=10, alpha=0.05)
    elite = runner(0, 0.9, 100, scores=[1.0] * 90 + [0.0] * 10)
    behind = runner(1, 0.0, 20, scores=[0.0] * 20)
    level = runner(2, 0.9, 20, scores=[1.0] * 18 + [0.0] * 2)
    assert race.going_on([behind], [], elite, 100) == set()
    assert race.going_on([level], [], elite, 100) == {2}
    assert race.going_on([behind], [], None, 100) == {1}


def test_only_common_items_are_compared() -> None:
    """A candidate that answered other items than the elite is not compared at all."""
    elite = Runner(0, 30, Fitness((1.0,), (0.1,)), {"task": (np.arange(30), np.ones(30))})
    other = Runner(1, 20, Fitness((0.0,), (0.1,)), {"task": (np.arange(50, 70), np.zeros(20))})
    assert Sequential().going_on([other], [], elite, 100) == {1}


def test_adaptive_stops_when_it_knows_enough() -> None:
    race = Adaptive(stderr=0.05, confidence=0.975)
    elite = runner(0, 0.8)
    assert race.going_on([runner(1, 0.5, stderr=0.04)], [], None, 100) == set()
    assert race.going_on([runner(1, 0.5, stderr=0.1)], [], None, 100) == {1}
    assert race.going_on([runner(1, 0.5, stderr=0.1)], [], elite, 100) == set()
    assert race.going_on([runner(1, 0.7, stderr=0.1)], [], elite, 100) == {1}
    assert race.going_on([runner(1, 1.0, stderr=0.1)], [], elite, 100) == {1}  # may be the best
    assert race.enough(runner(1, 0.5, stderr=0.04), 100)
    assert not race.enough(runner(1, 0.5, stderr=0.1), 100)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Halving(first=1), "racing.first"),
        (lambda: Halving(eta=1), "racing.eta"),
        (lambda: Halving(brackets=0), "racing.brackets"),
        (lambda: Sequential(step=0), "racing.step"),
        (lambda: Sequential(alpha=0.7), "racing.alpha"),
        (lambda: Sequential(alpha=True), "racing.alpha"),
        (lambda: Adaptive(stderr=-0.1), "racing.stderr"),
        (lambda: Adaptive(confidence=0.4), "racing.confidence"),
    ],
)
def test_numbers_that_cannot_be_are_named(make, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.problems[0].field == field
