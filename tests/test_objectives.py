"""Objectives, constraints and scalarization against hand-made numbers."""

import math

import numpy as np
import pytest

from evomerge.errors import CandidateError, ConfigError
from evomerge.objectives import Goals, item_values, measure, read_goals
from evomerge.types import ItemScores


def part(task, scores, tokens=None, logliks=None):
    n = len(scores)
    return ItemScores(
        task,
        "search",
        tuple(map(str, range(n))),
        np.array(scores, dtype=float),
        np.full(n, np.nan) if logliks is None else np.array(logliks, dtype=float),
        ("",) * n,
        np.array(tokens or [1] * n),
    )


def goals(tasks=("a", "b"), **keys) -> Goals:
    config = {"objectives": {}, "constraints": {}, "scalarize": None, **keys}
    return read_goals(config, list(tasks), ["base", "x", "y"])


SCORES = (part("a", [1, 0, 1, 1], [3, 5, 4, 4]), part("b", [0, 0.5, 1, 0.5]))


def test_by_default_the_score_of_every_task_is_maximised():
    wanted = goals()
    assert [(o.name, o.task, o.metric, o.goal) for o in wanted.objectives] == [
        ("a", "a", "score", "maximize"), ("b", "b", "score", "maximize"),
    ]  # fmt: skip
    fitness = wanted.fitness(measure(SCORES))
    assert fitness.values == (0.75, 0.5)
    expected = [np.std([1, 0, 1, 1], ddof=1) / 2, np.std([0, 0.5, 1, 0.5], ddof=1) / 2]
    assert fitness.stderr == pytest.approx(expected)
    assert wanted.pareto and fitness.feasible


def test_minimised_metrics_are_negated_for_the_optimizer_only():
    wanted = goals(objectives={"q": {"task": "a"}, "length": {"task": "a", "metric": "tokens"}})
    measured = measure(SCORES)
    assert wanted.objectives[1].goal == "minimize"
    assert wanted.fitness(measured).values == (0.75, -4.0)
    assert wanted.raw(measured) == {"q": 0.75, "length": 4.0}


def test_seconds_are_an_item_s_and_traits_the_candidate_s():
    metrics = ("seconds", "sparsity", "blocks")
    wanted = goals(objectives={metric: {"metric": metric} for metric in metrics})
    measured = measure(SCORES, 4.0, {"sparsity": 0.25, "blocks": 6.0})
    assert wanted.fitness(measured).values == (-0.5, 0.25, -6.0)
    assert wanted.raw(measured) == {"seconds": 0.5, "sparsity": 0.25, "blocks": 6.0}
    assert wanted.ranges({}) == ((-math.inf, -0.0), (0.0, 1.0), (-math.inf, -0.0))


def test_estimates_stand_for_scores_but_not_for_constraints():
    wanted = goals(constraints={"c": {"task": "a", "at_least": 0.7}})
    fitness = wanted.fitness(measure(SCORES), {"a": (0.6, 0.01), "b": (0.4, 0.02)})
    assert fitness.values == (0.6, 0.4) and fitness.stderr == (0.01, 0.02)
    assert fitness.constraints == pytest.approx((-0.05,)) and fitness.feasible


@pytest.mark.parametrize(
    ("node", "excess"),
    [
        ({"task": "a", "at_least": 0.8}, 0.05),
        ({"task": "a", "at_least": 0.75}, 0.0),
        ({"task": "a", "metric": "tokens", "at_most": 3.5}, 0.5),
        ({"metric": "seconds", "at_most": 1}, -0.5),
    ],
)
def test_constraints_are_kept_at_zero_and_below(node, excess):
    fitness = goals(constraints={"c": node}).fitness(measure(SCORES, 4.0))
    assert fitness.constraints == pytest.approx((excess,))
    assert fitness.feasible == (excess <= 0)
    assert fitness.violation == pytest.approx(max(0.0, excess))


def test_bounds_may_be_the_sources_own_values():
    named = {
        "best": {"task": "a", "at_least": "best source", "margin": 0.1},
        "short": {"task": "a", "metric": "tokens", "at_most": "best source", "margin": 1},
        "base": {"task": "b", "at_least": "base"},
    }
    wanted = goals(constraints=named)
    assert wanted.models() == {"best source", "base"}
    with pytest.raises(ValueError, match="not measured"):
        wanted.fitness(measure(SCORES))
    values = {
        "base": {("a", "score"): 0.99, ("a", "tokens"): 1.0, ("b", "score"): 0.2},
        "x": {("a", "score"): 0.8, ("a", "tokens"): 7.0, ("b", "score"): 0.9},
        "y": {("a", "score"): 0.4, ("a", "tokens"): 5.0, ("b", "score"): 0.9},
    }
    bounds = [c.bound for c in wanted.bounded(values).constraints]
    assert bounds == pytest.approx([0.7, 6.0, 0.2])
    assert wanted.bounded(values).models() == set()


def test_weighted_sum():
    objectives = {"q": {"task": "a", "weight": 3}, "l": {"task": "a", "metric": "tokens"}}
    fitness = goals(objectives=objectives, scalarize="weighted_sum").fitness(measure(SCORES))
    assert fitness.values == pytest.approx((0.75 * 0.75 - 0.25 * 4,))
    errors = np.array([np.std([1, 0, 1, 1], ddof=1), np.std([3, 5, 4, 4], ddof=1)]) / 2
    assert fitness.stderr == pytest.approx((math.hypot(0.75 * errors[0], 0.25 * errors[1]),))


def test_chebyshev_prefers_balance_where_the_weighted_sum_does_not():
    def value(how, a, b):
        scores = (part("a", [a, a]), part("b", [b, b]))
        return goals(scalarize=how).fitness(measure(scores)).values[0]

    assert value("weighted_sum", 1.0, 0.0) == value("weighted_sum", 0.5, 0.5)
    assert value("chebyshev", 0.5, 0.5) > value("chebyshev", 1.0, 0.0)
    assert value("chebyshev", 1.0, 1.0) == 0
    assert not goals(scalarize="chebyshev").pareto


def test_chebyshev_sees_what_is_minimised():
    objectives = {"q": {"task": "a"}, "toxic": {"task": "b", "goal": "minimize"}}
    wanted = goals(objectives=objectives, scalarize="chebyshev")
    clean, toxic = (
        wanted.fitness(measure((part("a", [q, q]), part("b", [t, t])))).values[0]
        for q, t in ((0.85, 0.0), (0.9, 1.0))
    )
    assert clean > toxic


def test_a_scalarized_fitness_grows_with_every_objective():
    rng = np.random.default_rng(0)
    for how in ("weighted_sum", "chebyshev"):
        for a, b, more in rng.uniform(0, 0.5, (50, 3)):
            less, better = (
                goals(scalarize=how).fitness(measure((part("a", [x, x]), part("b", [b, b]))))
                for x in (a, a + more)
            )
            assert better.values[0] > less.values[0]


def test_log_likelihoods_are_read_only_where_asked_for():
    with_logliks = (part("a", [1, 0], logliks=[-1.0, -2.0]), SCORES[1])
    wanted = goals(objectives={"l": {"task": "a", "metric": "loglik"}, "b": {"task": "b"}})
    assert wanted.wants_loglik("a") and not wanted.wants_loglik("b")
    assert wanted.fitness(measure(with_logliks)).values == (-1.5, 0.5)


def test_items_count_with_what_the_objectives_read_of_them():
    parts = (part("a", [1, 0], logliks=[-1.0, -2.0]), SCORES[1])
    both = goals(objectives={"l": {"task": "a", "metric": "loglik"}, "b": {"task": "b"}})
    found = item_values(both.by_item(), parts[::-1], {"a": 0.0})
    np.testing.assert_allclose(found, [math.exp(-1), math.exp(-2), 0, 0.5, 1, 0.5])
    found = item_values(goals().by_item(), parts, {"a": 0.1, "b": 0.0})
    expected = [1 + 0.1 * math.exp(-1), 0.1 * math.exp(-2), 0, 0.5, 1, 0.5]
    np.testing.assert_allclose(found, expected)
    tokens = goals(objectives={"t": {"task": "a", "metric": "tokens"}, "b": {"task": "b"}})
    assert [o.name for o in tokens.by_item()] == ["b"]


def test_ranges_are_those_of_what_the_optimizer_maximises():
    nodes = {
        "a": {"task": "a"}, "less": {"task": "b", "goal": "minimize"},
        "sure": {"task": "a", "metric": "loglik"}, "short": {"task": "a", "metric": "tokens"},
    }  # fmt: skip
    found = goals(objectives=nodes).ranges({"b": 0.1})
    inf = math.inf
    assert found == ((0.0, 1.0), (-1.0, inf), (-inf, 0.0), (-inf, 0.0))
    assert goals(scalarize="chebyshev").ranges({}) == ()


@pytest.mark.parametrize(
    "bad",
    [
        part("a", [1.0, float("nan")]),
        part("a", [1.0]),
        part("a", [1.0, 0.0], logliks=[-1.0, -math.inf]),
    ],
)
def test_values_that_are_not_finite_fail_the_candidate(bad):
    with pytest.raises(CandidateError, match="'a'"):
        measure([bad])


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"objectives": {"o": {"task": "z"}}}, "objectives.o.task"),
        ({"objectives": {"o": {}}}, "objectives.o.task"),
        ({"objectives": {"o": {"task": "a", "metric": "beauty"}}}, "objectives.o.metric"),
        ({"objectives": {"o": {"task": "a", "goal": "max"}}}, "objectives.o.goal"),
        ({"objectives": {"o": {"task": "a", "weight": -1}}}, "objectives.o.weight"),
        ({"objectives": {"o": {"task": "a", "weigth": 1}}}, "objectives.o.weigth"),
        ({"objectives": {"o": {"task": "a", "weight": 0}}}, "objectives"),
        ({"objectives": {"o": {"task": "a", "metric": "seconds"}}}, "objectives.o.task"),
        ({"objectives": {"o": "a"}}, "objectives.o"),
        ({"constraints": {"c": {"task": "a"}}}, "constraints.c"),
        ({"constraints": {"c": {"task": "a", "at_least": 1, "at_most": 2}}}, "constraints.c"),
        ({"constraints": {"c": {"task": "a", "at_least": "zed"}}}, "constraints.c.at_least"),
        ({"constraints": {"c": {"task": "a", "at_least": True}}}, "constraints.c.at_least"),
        (
            {"constraints": {"c": {"task": "a", "at_least": "x", "margin": -1}}},
            "constraints.c.margin",
        ),
        (
            {"constraints": {"c": {"task": "a", "at_least": 1, "margin": 1}}},
            "constraints.c.margin",
        ),
        (
            {"constraints": {"c": {"metric": "sparsity", "at_least": "best source"}}},
            "constraints.c.at_least",
        ),
        (
            {"constraints": {"c": {"metric": "seconds", "at_most": "x"}}},
            "constraints.c.at_most",
        ),
        ({"scalarize": "sum"}, "scalarize"),
    ],
)
def test_mistakes_are_named(keys, field):
    with pytest.raises(ConfigError) as caught:
        goals(**keys)
    assert caught.value.problems[0].field == field
