"""Runs of blocks that share their values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.recipe import resolve
from evomerge.report.coefficients import group_label, group_order
from evomerge.space import MergeSpace

TENSORS = {  # tensor to the run of two blocks that it belongs to
    "model.embed_tokens.weight": 0,
    "model.layers.0.mlp.up_proj.weight": 0,
    "model.layers.1.mlp.up_proj.weight": 0,
    "model.layers.2.self_attn.q_proj.weight": 1,
    "model.layers.3.self_attn.q_proj.weight": 1,
    "model.norm.weight": 1,
    "lm_head.weight": 1,
}


def groups(blocks: int) -> dict[str, tuple[str | None, ...]]:
    middle = {f"block.{i}": (f"model.layers.{i}.",) for i in range(blocks)}
    return {"embedding": ("model.embed_tokens.weight",), **middle, "head": (None,)}


def space(granularity: object, blocks: int = 4) -> MergeSpace:
    return MergeSpace(
        "task_arithmetic", {"weight": {"low": 0.0, "high": 1.0}}, "base", {"a": "A", "b": "B"},
        groups(blocks), granularity,
    )  # fmt: skip


def test_every_tensor_has_the_value_of_its_run() -> None:
    genome = np.array([0.1, 0.2, 0.3, 0.4])  # a: runs 0 and 1, b: runs 0 and 1
    recipe = space(2).decode(genome)
    for tensor, run in TENSORS.items():
        for number, source in enumerate(recipe.sources):
            assert resolve(source.parameters["weight"], tensor) == genome[2 * number + run]


@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.data())
def test_decode_and_encode_are_inverse(size: int, data: st.DataObject) -> None:
    one = space(size, 12)
    assert len(one.dimensions) == 2 * 12 // size
    values = st.lists(st.floats(0, 1), min_size=24 // size, max_size=24 // size)
    genome = np.array(data.draw(values))
    np.testing.assert_array_equal(one.encode(one.decode(genome)), genome)


@pytest.mark.parametrize("size", [0, -1, 3, 8, True, "two"])
def test_a_size_that_cannot_be_is_named(size: object) -> None:
    with pytest.raises(ConfigError, match=r"space\.granularity"):
        space(size)


def test_reports_show_runs_in_the_order_of_the_model() -> None:
    names = list(dict.fromkeys(d.name.split("/")[-1] for d in space(2, 24).dimensions))
    assert sorted(names[::-1], key=group_order) == names
    assert group_label(names[5]) == "10-11"
