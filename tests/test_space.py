"""Genomes to recipes and back; which tensors a dimension reaches; checked bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_spaces import MIXED, NAMES, RANGES, space

from evomerge.checkpoints.checking import check_recipe
from evomerge.checkpoints.layout import layout_of
from evomerge.domain import Domain
from evomerge.errors import ConfigError
from evomerge.recipe import Recipe, resolve
from evomerge.spaces.simplex import shares


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


# -- integers, choices, simplex --------------------------------------------------------------


def draw_genome(data, dimensions):
    """A genome within bounds, whole where it has to be."""
    numbers = [
        st.floats(d.low, d.high) if d.kind == "real" else st.integers(int(d.low), int(d.high))
        for d in dimensions
    ]
    return np.array(data.draw(st.tuples(*numbers)), dtype=np.float64)


def test_kinds_and_choices_of_dimensions():
    found = {d.parameter: d for d in space(parameters=MIXED, granularity="global").dimensions}
    kinds = {name: (d.kind, d.choices, d.low, d.high, d.start) for name, d in found.items()}
    assert kinds == {
        "weight": ("real", (), 0.0, 1.0, 0.5),
        "density": ("choice", ("0.25", "0.5", "1.0"), 0.0, 2.0, 1.0),
        "lambda": ("integer", (), -1.0, 2.0, 0.0),
        "normalize": ("choice", ("false", "true"), 0.0, 1.0, 0.0),
        "rescale_norm": ("choice", ("density", "l1"), 0.0, 1.0, 0.0),
    }
    steps = {name: d.step for name, d in found.items()}
    assert steps == pytest.approx(
        {"weight": 1 / 6, "density": 0.5, "lambda": 4 / 6, "normalize": 1 / 3, "rescale_norm": 0.4}
    )


@pytest.mark.parametrize("granularity", ["layer", "global"])
@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_recipes_of_mixed_spaces_are_encoded_and_decoded_the_same(granularity, data):
    mixed = space(parameters=MIXED, granularity=granularity)
    genome = draw_genome(data, mixed.dimensions)
    recipe = mixed.decode(genome)
    check_recipe(recipe, strict=True)
    again = mixed.encode(Recipe.from_dict(recipe.to_dict()))
    assert mixed.decode(again) == recipe
    assert mixed.decode(again).digest() == recipe.digest()
    assert np.array_equal(Domain(mixed.dimensions).snap(again), again)
    other = [d.parameter != "weight" for d in mixed.dimensions]
    assert np.array_equal(again[other], genome[other])


def test_choices_and_integers_reach_the_recipe_as_they_are_written():
    mixed = space(parameters=MIXED, granularity="global")
    recipe = mixed.decode(np.array([3.0, 1.0, 2.0, 0.0, -1.0, 1.0, 0.0]))
    assert [s.parameters["density"] for s in recipe.sources] == [1.0, 0.25]
    assert [s.parameters["weight"] for s in recipe.sources] == [0.75, 0.25]
    shared = {k: recipe.parameters[k] for k in ("lambda", "normalize", "rescale_norm")}
    assert shared == {"lambda": -1, "normalize": True, "rescale_norm": "density"}
    assert recipe.parameters["normalize"] is True


@given(weights=st.lists(st.floats(0.0, 1e300), min_size=1, max_size=40))
@settings(deadline=None)
def test_shares_sum_to_one_in_proportion_and_are_their_own_shares(weights):
    found = shares(weights)
    assert sum(round(w * 10**12) for w in found) == 10**12
    assert shares(found) == found
    assert min(found) >= 0
    largest = max(weights)
    plain = [w / largest for w in weights] if largest else [1.0] * len(weights)
    exact = np.array(plain) / np.sum(plain)
    assert np.abs(np.array(found) - exact).max() <= 1.1e-12


def test_weights_of_a_simplex_sum_to_one_in_every_group():
    ranges = {"weight": {"low": 0.0, "high": 0.4, "simplex": True}}
    simplex = space(parameters=ranges, sources={"a": "A", "b": "B", "c": "C"})
    genome = np.linspace(0.0, 0.4, len(simplex.dimensions))
    genome[[3, 17, 31]] = 0.0  # block 2, all sources
    recipe = simplex.decode(genome)
    for name in NAMES:
        weights = [resolve(s.parameters["weight"], name) for s in recipe.sources]
        assert sum(weights) == pytest.approx(1.0, abs=1e-12)
    middle = [resolve(s.parameters["weight"], NAMES[5]) for s in recipe.sources]
    assert NAMES[5] == "model.layers.2.mlp.w"
    assert middle == pytest.approx([1 / 3] * 3, abs=1e-11)
    assert simplex.decode(genome / 2).digest() == recipe.digest()
    assert simplex.encode(recipe).max() <= 0.4


def karcher(**changes):
    ranges = {"max_iter": {"low": 1, "high": 20, "kind": "integer"}}
    return space(method="karcher", parameters=ranges, granularity="global", **changes)


def test_whole_parameters_are_searched_as_integers():
    recipe = karcher().decode(np.array([7.0]))
    assert recipe.parameters["max_iter"] == 7
    check_recipe(recipe, strict=True)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"weight": {"low": 0.5, "high": 1.0, "kind": "integer"}}, "weight.low"),
        ({"weight": {"low": 0, "high": 1, "kind": "choice"}}, "weight.kind"),
        ({"weight": {"low": -1, "high": 1, "simplex": True}}, "weight.simplex"),
        ({"weight": {"low": 0, "high": 1, "simplex": "yes"}}, "weight.simplex"),
        ({"weight": {"low": 0, "high": 3, "kind": "integer", "simplex": True}}, "weight.simplex"),
        ({"lambda": {"low": 0, "high": 1, "simplex": True}}, "lambda.simplex"),
        ({"normalize": {"low": 0, "high": 1}}, "normalize"),
        ({"normalize": {"choices": [True]}}, "normalize.choices"),
        ({"normalize": {"choices": "true"}}, "normalize.choices"),
        ({"normalize": {"choices": [True, True]}}, "normalize.choices"),
        ({"normalize": {"choices": [0, 1]}}, "normalize.choices"),
        ({"normalize": {"choices": [True, None]}}, "normalize.choices"),
        ({"normalize": {"choices": [True, False], "start": 1}}, "normalize.start"),
        ({"normalize": {"choices": [True, False], "step": "x"}}, "normalize.step"),
        ({"normalize": {"choices": [True, False], "low": 0}}, "normalize.low"),
        ({"rescale_norm": {"choices": ["l1", "l2"]}}, "rescale_norm.choices"),
        ({"density": {"choices": [0.5, 1.5]}}, "density.choices"),
        ({"int8_mask": {"choices": [True, False]}}, "int8_mask"),
        ({"seed": {"low": 0, "high": 9, "kind": "integer"}}, "seed"),
    ],
)
def test_wrong_kinds_name_the_key(changes, key):
    with pytest.raises(ConfigError) as raised:
        space(parameters=changes)
    assert raised.value.problems[0].field == f"space.parameters.{key}"


def test_a_whole_parameter_needs_the_kind_integer():
    with pytest.raises(ConfigError) as raised:
        space(method="karcher", parameters={"max_iter": {"low": 1, "high": 20}})
    assert raised.value.problems[0].field == "space.parameters.max_iter.kind"
