"""The mean estimator: which items it chooses, and what it makes of scores."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import CandidateError, ConfigError
from evomerge.estimators.base import Indices, Pool
from evomerge.estimators.mean import MeanEstimator, mean_estimate
from evomerge.types import ItemScores


def scores_of(values: list[float], logliks: list[float] | None = None) -> ItemScores:
    n = len(values)
    return ItemScores(
        task="sums",
        split="search",
        ids=tuple(f"i{k}" for k in range(n)),
        scores=np.array(values, dtype=float),
        logliks=np.array(logliks if logliks is not None else [np.nan] * n, dtype=float),
        texts=("",) * n,
        tokens=np.zeros(n, dtype=np.int64),
    )


def choose(estimator: MeanEstimator, n: int, generation: int, seed: int) -> Indices:
    pool = Pool("sums", tuple(f"i{k}" for k in range(n)), seed)
    return estimator.plan(pool).choose(generation)


def test_all_items_in_order_by_default() -> None:
    for generation in range(3):
        assert choose(MeanEstimator(), 5, generation, 7).tolist() == [0, 1, 2, 3, 4]


@settings(deadline=None)
@given(
    n=st.integers(2, 60),
    k=st.integers(2, 70),
    seed=st.integers(0, 2**40),
    generation=st.integers(0, 1000),
    rotate=st.booleans(),
)
def test_a_subset_is_distinct_ascending_and_repeatable(
    n: int, k: int, seed: int, generation: int, rotate: bool
) -> None:
    chosen = choose(MeanEstimator(k, rotate), n, generation, seed)
    assert len(chosen) == min(n, k)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert chosen.min() >= 0 and chosen.max() < n
    assert np.array_equal(chosen, choose(MeanEstimator(k, rotate), n, generation, seed))


def test_rotation() -> None:
    fixed, rotating = MeanEstimator(10), MeanEstimator(10, rotate=True)
    assert len({tuple(choose(fixed, 50, g, 3)) for g in range(20)}) == 1
    drawn = [tuple(choose(rotating, 50, g, 3)) for g in range(200)]
    assert len(set(drawn)) > 190
    counts = np.bincount(np.concatenate(drawn), minlength=50)
    assert counts.min() > 20 and counts.max() < 65  # 40 expected of each, 5.7 standard deviation
    assert tuple(choose(fixed, 50, 0, 3)) != tuple(choose(fixed, 50, 0, 4))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(-20, 0)), min_size=2, max_size=40),
    st.floats(0.01, 2),
)
def test_mean_and_standard_error(pairs: list[tuple[float, float]], weight: float) -> None:
    values, logliks = [a for a, _ in pairs], [b for _, b in pairs]
    found = mean_estimate(scores_of(values, logliks), weight)
    plain = mean_estimate(scores_of(values), 0)
    sums = [a + weight * b for a, b in pairs]
    root = len(pairs) ** 0.5
    for pair, expected in (
        (found.value, sums),
        (found.score, values),
        (found.loglik, logliks),
        (plain.value, values),
    ):
        assert pair == pytest.approx(
            (statistics.fmean(expected), statistics.stdev(expected) / root), abs=1e-9
        )
    assert plain.loglik is None


@settings(deadline=None)
@given(n=st.integers(2, 60), k=st.integers(2, 60), seed=st.integers(0, 2**40))
def test_a_race_asks_the_same_items_in_a_random_order_and_then_others(
    n: int, k: int, seed: int
) -> None:
    plan = MeanEstimator(k).plan(Pool("sums", tuple(map(str, range(n))), seed))
    order = plan.order(0, at_random=True)
    assert sorted(order.tolist()) == plan.choose(0).tolist()
    more = plan.next(order, np.zeros(len(order)), n, None)
    assert sorted([*order.tolist(), *more.tolist()]) == list(range(n))


@pytest.mark.parametrize(
    ("scores", "weight"),
    [
        (scores_of([0.0, float("nan")]), 0.0),
        (scores_of([0.0, 1.0], [-1.0, float("-inf")]), 0.1),
        (scores_of([0.0, 1.0]), 0.1),
        (scores_of([1.0]), 0.0),
        (scores_of([]), 0.0),
    ],
)
def test_unusable_scores_fail_the_candidate(scores: ItemScores, weight: float) -> None:
    with pytest.raises(CandidateError, match="'sums'"):
        mean_estimate(scores, weight)


@pytest.mark.parametrize("items", [1, 0, -3, 2.5, True, "5"])
def test_items_must_be_a_number_of_items(items: int) -> None:
    with pytest.raises(ConfigError) as caught:
        MeanEstimator(items)
    assert caught.value.problems[0].field == "estimator.items"


def test_the_config_builds_it() -> None:
    from pathlib import Path

    import yaml

    config = yaml.safe_load((Path(__file__).parents[2] / "conf/estimator/mean.yaml").read_text())
    assert config.pop("_target_") == "evomerge.estimators.mean.MeanEstimator"
    made = MeanEstimator(**config)
    assert made.items is None and made.rotate is False
