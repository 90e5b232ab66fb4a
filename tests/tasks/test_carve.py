"""Carving splits: disjoint, complete, the right size, and the same in every order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import TaskError
from evomerge.tasks.carve import Carve, carve
from evomerge.types import Item


def prompt(item: Item) -> str:
    return item.fields["q"]


@settings(deadline=None)
@given(
    texts=st.lists(st.integers(0, 30), min_size=1, max_size=60),
    one=st.floats(0.01, 0.5),
    two=st.floats(0.01, 0.4),
    seed=st.integers(0, 99),
)
def test_carving_divides(texts: list[int], one: float, two: float, seed: int) -> None:
    items = [Item(str(n), {"q": str(text)}, "") for n, text in enumerate(texts)]
    shares = {"validation": one, "test": two}
    rest, parts = carve(items, shares, prompt)
    ids = [item.id for part in (rest, *parts.values()) for item in part]
    assert sorted(ids) == sorted(item.id for item in items)
    for part in (rest, *parts.values()):
        assert [int(item.id) for item in part] == sorted(int(item.id) for item in part)
    sides = [{prompt(item) for item in part} for part in (rest, *parts.values())]
    assert sum(map(len, sides)) == len(set(texts))  # equal prompts stay together
    shuffled = random.Random(seed).sample(items, len(items))
    _, again = carve(shuffled, shares, prompt)
    assert {name: {i.id for i in part} for name, part in again.items()} == {
        name: {i.id for i in part} for name, part in parts.items()
    }


@settings(deadline=None)
@given(st.integers(10, 200), st.floats(0.05, 0.6))
def test_shares_are_met_where_prompts_differ(n: int, fraction: float) -> None:
    items = [Item(str(i), {"q": str(i)}, "") for i in range(n)]
    rest, parts = carve(items, {"validation": fraction}, prompt)
    assert len(parts["validation"]) == max(1, round(fraction * n))
    assert len(rest) == n - len(parts["validation"])


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"split_from": "search", "fraction": 0.2, "seed": 1}, "task.validation.seed"),
        ({"split_from": "train", "fraction": 0.2}, "task.validation.split_from"),
        ({"split_from": "validation", "fraction": 0.2}, "task.validation.split_from"),
        ({"split_from": "search"}, "task.validation.fraction"),
        ({"split_from": "search", "fraction": 1}, "task.validation.fraction"),
        ({"split_from": "search", "fraction": True}, "task.validation.fraction"),
    ],
)
def test_bad_carves_name_the_key(spec: object, field: str) -> None:
    with pytest.raises(TaskError) as caught:
        Carve.of(spec, "validation", ("search", "test"), "task.validation")
    assert caught.value.problems[0].field == field
