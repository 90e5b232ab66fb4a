"""Genomes to recipes and back; which tensors a dimension reaches; checked bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.layout import layout_of
from evomerge.errors import ConfigError
from evomerge.recipe import Recipe, resolve
from evomerge.space import MergeSpace

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}" for i in range(12) for part in ("mlp.w", "self_attn.1.w")),
    "model.norm.weight",
    "lm_head.weight",
]
LAYOUT = layout_of(NAMES)
GROUPS = {group: LAYOUT.filters(group) for group in LAYOUT.groups()}
RANGES = {"weight": {"low": -1.0, "high": 2.0}, "density": {"low": 0.1, "high": 1.0}}


def space(**changes):
    arguments = {
        "method": "ties",
        "parameters": RANGES,
        "base": "base",
        "sources": {"math": "/m/math", "japanese": "/m/ja"},
        "groups": GROUPS,
        **changes,
    }
    return MergeSpace(**arguments)


def genomes(granularity):
    count = len(space(granularity=granularity).dimensions)
    return st.lists(st.floats(0.1, 1.0), min_size=count, max_size=count).map(np.array)


@pytest.mark.parametrize(("granularity", "groups"), [("layer", 14), ("global", 1)])
def test_dimensions_are_named_and_bounded(granularity, groups):
    dimensions = space(granularity=granularity).dimensions
    assert len(dimensions) == 2 * 2 * groups
    assert len({d.name for d in dimensions}) == len(dimensions)
    for dimension in dimensions:
        low, high = (-1.0, 2.0) if dimension.name.startswith("weight/") else (0.1, 1.0)
        assert (dimension.low, dimension.high) == (low, high)
        assert dimension.start == pytest.approx((low + high) / 2)
        assert dimension.step == pytest.approx((high - low) / 6)


@pytest.mark.parametrize("granularity", ["layer", "global"])
@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_decode_and_encode_are_inverse(granularity, data):
    genome = data.draw(genomes(granularity))
    merge_space = space(granularity=granularity)
    recipe = merge_space.decode(genome)
    assert np.array_equal(merge_space.encode(recipe), genome)
    assert merge_space.decode(merge_space.encode(recipe)) == recipe
    assert np.array_equal(merge_space.encode(Recipe.from_dict(recipe.to_dict())), genome)


def test_each_dimension_reaches_exactly_its_tensors():
    """Distinct values: what a tensor gets tells which dimension it came from."""
    merge_space = space()
    genome = np.arange(len(merge_space.dimensions), dtype=float)
    recipe = merge_space.decode(genome)
    expected = {d.name: v for d, v in zip(merge_space.dimensions, genome, strict=True)}
    for name in NAMES:
        parts = name.split(".")
        group = f"block.{parts[2]}" if parts[1] == "layers" else "head"
        group = "embedding" if "embed" in name else group
        for source, label in zip(recipe.sources, ("math", "japanese"), strict=True):
            for parameter in ("weight", "density"):
                value = resolve(source.parameters[parameter], name)
                assert value == expected[f"{parameter}/{label}/{group}"]


def test_global_values_reach_every_tensor():
    recipe = space(granularity="global").decode(np.array([1.0, 2.0, 0.3, 0.4]))
    for name in (*NAMES, "something.else"):
        found = [[resolve(s.parameters[p], name) for p in RANGES] for s in recipe.sources]
        assert found == [[1.0, 0.3], [2.0, 0.4]]


def test_recipe_holds_what_does_not_vary():
    merge_space = space(fixed={"normalize": True, "lambda": 1.5}, seed=7, dtype="float32")
    recipe = merge_space.decode(np.full(56, 0.5))
    assert recipe.method == "ties"
    assert recipe.base == "base"
    assert recipe.dtype == "float32"
    assert [s.model for s in recipe.sources] == ["/m/math", "/m/ja"]
    assert recipe.parameters == {"normalize": True, "lambda": 1.5, "seed": 7}


def test_source_names_may_hold_any_sign():
    merge_space = space(sources={"a/b": "one", "c/d/e": "two"})
    genome = np.linspace(0, 1, len(merge_space.dimensions))
    assert np.array_equal(merge_space.encode(merge_space.decode(genome)), genome)


def test_one_model_under_two_names_keeps_two_values():
    merge_space = space(sources={"a": "same", "b": "same"}, granularity="global")
    genome = np.array([0.1, 0.2, 0.3, 0.4])
    assert np.array_equal(merge_space.encode(merge_space.decode(genome)), genome)


def test_a_layout_without_embeddings_has_no_idle_dimension():
    layout = layout_of([n for n in NAMES if "embed" not in n])
    merge_space = space(groups={g: layout.filters(g) for g in layout.groups()})
    assert len(merge_space.dimensions) == 2 * 2 * 13
    genome = np.linspace(0, 1, 52)
    assert np.array_equal(merge_space.encode(merge_space.decode(genome)), genome)


@pytest.mark.parametrize("length", [0, 3, 5])
def test_genomes_of_another_length_are_refused(length):
    with pytest.raises(ValueError, match=f"genome of {length} numbers; expected 4"):
        space(granularity="global").decode(np.zeros(length))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_is_never_let_in(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        space(granularity="global").decode(np.array([0.1, bad, 0.1, 0.1]))


def test_start_and_step_can_be_given():
    ranges = {"weight": {"low": 0, "high": 1, "start": 0, "step": 0.25}}
    for dimension in space(parameters=ranges).dimensions:
        assert (dimension.start, dimension.step) == (0.0, 0.25)


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        ({"low": 1.0, "high": 1.0}, "weight"),
        ({"low": 2.0, "high": 1.0}, "weight"),
        ({"high": 1.0}, "weight"),
        ({"low": 0.0, "high": None}, "weight"),
        ({}, "weight"),
        (0.5, "weight"),
        (None, "weight"),
        ([0, 1], "weight"),
        ({"low": float("nan"), "high": 1.0}, "weight.low"),
        ({"low": 0.0, "high": float("inf")}, "weight.high"),
        ({"low": "0", "high": 1.0}, "weight.low"),
        ({"low": False, "high": 1.0}, "weight.low"),
        ({"low": 0.0, "high": 1.0, "start": 1.1}, "weight"),
        ({"low": 0.0, "high": 1.0, "start": "middle"}, "weight.start"),
        ({"low": 0.0, "high": 1.0, "step": 0.0}, "weight"),
        ({"low": 0.0, "high": 1.0, "step": -0.1}, "weight"),
        ({"low": 0.0, "high": 1.0, "sigma": 0.1}, "weight.sigma"),
    ],
)
def test_wrong_ranges_name_the_key(spec, key):
    with pytest.raises(ConfigError) as raised:
        space(parameters={"weight": spec})
    assert raised.value.problems[0].field == f"space.parameters.{key}"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"granularity": "tensor"}, "space.granularity"),
        ({"parameters": {}}, "space.parameters"),
        ({"parameters": ["weight"]}, "space.parameters"),
        ({"fixed": {"weight": 0.5}}, "space.fixed.weight"),
    ],
)
def test_wrong_spaces_name_the_key(changes, key):
    with pytest.raises(ConfigError) as raised:
        space(**changes)
    assert raised.value.problems[0].field == key
