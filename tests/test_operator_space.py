"""An operator per layer group: recipes of several methods, and what they merge to."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.checking import check_recipe
from evomerge.checkpoints.merger import Merger
from evomerge.domain import Domain
from evomerge.errors import ConfigError, RecipeError
from evomerge.recipe import Case, Recipe, Source, method_of, methods_of, resolve
from evomerge.space import MergeSpace
from evomerge.spaces.operator_space import OperatorSpace
from evomerge.zoo import zoo_path

BASE = str(zoo_path("models/base"))
SOURCES = {n: str(zoo_path(f"models/{n}")) for n in ("math", "japanese")}
MERGER = Merger(threads=1)
LAYOUT = MERGER.checkpoint(BASE).layout
GROUPS = {group: LAYOUT.filters(group) for group in LAYOUT.groups()}
OPERATORS = {
    "task_arithmetic": {},
    "ties": {"normalize": False},
    "dare_ties": {"rescale": True, "rescale_norm": "density"},
    "breadcrumbs": None,
}
RANGES = {
    "weight": {"low": 0.0, "high": 1.0},
    "density": {"low": 0.1, "high": 1.0},
    "gamma": {"low": 0.0, "high": 0.2},
    "lambda": {"low": 0.5, "high": 1.5},
}
NAMES = tuple(OPERATORS)
LENGTH = 6 + 7 * 6
"""Dimensions of a space per layer: a choice, and seven values, for each of six groups."""


def space(**changes):
    arguments = {
        "operators": OPERATORS,
        "parameters": RANGES,
        "base": BASE,
        "sources": SOURCES,
        "groups": GROUPS,
        "seed": 3,
        **changes,
    }
    return OperatorSpace(**arguments)


def plain(method, granularity="layer"):
    """The space of one operator alone, with the parameters that it makes use of."""
    idle = {"task_arithmetic": ("density", "gamma"), "ties": ("gamma",), "dare_ties": ("gamma",)}
    ranges = {k: v for k, v in RANGES.items() if k not in idle.get(method, ())}
    return MergeSpace(
        method, ranges, BASE, SOURCES, GROUPS, granularity, OPERATORS[method] or {}, seed=3
    )


def genome_of(spaces, seed, choices):
    genome = np.array([d.low for d in spaces.dimensions])
    rng = np.random.default_rng(seed)
    genome += rng.random(len(genome)) * np.array([d.high - d.low for d in spaces.dimensions])
    genome[: len(choices)] = choices
    return genome


def plain_genome(spaces, one, genome):
    """The genes of a combined space that a space of one operator has, too."""
    values = {d.name: g for d, g in zip(spaces.dimensions, genome, strict=True)}
    return np.array([values[d.name] for d in one.dimensions])


def draw_genome(data, dimensions):
    numbers = [
        st.floats(d.low, d.high) if d.kind == "real" else st.integers(int(d.low), int(d.high))
        for d in dimensions
    ]
    return np.array(data.draw(st.tuples(*numbers)), dtype=np.float64)


def test_dimensions_are_a_choice_a_group_and_the_parameters():
    dimensions = space().dimensions
    assert len(dimensions) == LENGTH
    assert [d.name for d in dimensions[:6]] == [f"operator/all/{g}" for g in GROUPS]
    for d in dimensions[:6]:
        assert (d.kind, d.choices, d.low, d.high, d.start) == ("choice", NAMES, 0.0, 3.0, 0.0)
    assert {d.kind for d in dimensions[6:]} == {"real"}
    assert len(space(granularity="global").dimensions) == 1 + 7
    assert {d.start for d in space(start="dare_ties").dimensions[:6]} == {2.0}


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("granularity", ["layer", "global"])
def test_one_operator_for_all_groups_is_its_own_space(number, granularity):
    mixed, one = space(granularity=granularity), plain(NAMES[number], granularity)
    count = 6 if granularity == "layer" else 1
    genome = genome_of(mixed, number, [number] * count)
    recipe = mixed.decode(genome)
    alone = one.decode(plain_genome(mixed, one, genome))
    assert recipe == alone
    assert recipe.digest() == alone.digest()


def test_every_tensor_is_that_of_its_operators_own_merge():
    """The masks of DARE and the rounding included, bit by bit."""
    mixed = space()
    choices = [1, 2, 0, 3, 1, 2]
    genome = genome_of(mixed, 7, choices)
    recipe = Recipe.from_dict(mixed.decode(genome).to_dict())
    check_recipe(recipe, strict=True)
    wanted = {}
    for number in set(choices):
        one = plain(NAMES[number])
        alone = one.decode(plain_genome(mixed, one, genome))
        wanted[number] = dict(MERGER.merge(alone))
    of_group = dict(zip(GROUPS, choices, strict=True))
    found = dict(MERGER.merge(recipe))
    assert list(found) == list(wanted[0])
    for name, tensor in found.items():
        number = of_group[LAYOUT.group_of(name)]
        assert torch.equal(tensor, wanted[number][name])
        others = [wanted[n][name] for n in wanted if n != number]
        assert not any(torch.equal(tensor, other) for other in others)


def test_a_fixed_value_of_one_operator_does_not_reach_another():
    """The head's case has no filter, so the others' defaults have to be written out."""
    mixed = space()
    genome = genome_of(mixed, 1, [1, 1, 3, 0, 1, 2])
    recipe = mixed.decode(genome)
    assert recipe.method == "dare_ties"
    found = {
        group: resolve(recipe.parameters["rescale"], patterns[0] or "")
        for group, patterns in GROUPS.items()
    }
    assert found == {group: group == "head" for group in GROUPS}
    assert resolve(recipe.parameters["rescale_norm"], "model.layers.1.x") == "l1"


@pytest.mark.parametrize("granularity", ["layer", "global"])
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_decode_and_encode(granularity, data):
    mixed = space(granularity=granularity)
    genome = draw_genome(data, mixed.dimensions)
    recipe = mixed.decode(genome)
    again = mixed.encode(Recipe.from_dict(recipe.to_dict()))
    assert mixed.decode(again) == recipe
    count = 6 if granularity == "layer" else 1
    assert np.array_equal(again[:count], genome[:count])
    chosen = dict(zip(mixed.groups, genome[:count], strict=True))
    for d, before, after in zip(mixed.dimensions, genome, again, strict=True):
        name = NAMES[int(chosen[d.name.split("/")[2]])]
        idle = {"density": {"task_arithmetic"}, "gamma": set(NAMES) - {"breadcrumbs"}}
        effect = name not in idle.get(d.parameter, ())
        assert after == (before if effect else d.start)


def test_what_an_operator_lacks_has_no_effect():
    mixed = space()
    genome = genome_of(mixed, 2, [0] * 6)
    other = genome.copy()
    changed = [d.parameter in ("density", "gamma") for d in mixed.dimensions]
    other[changed] = 0.11
    assert mixed.decode(genome).digest() == mixed.decode(other).digest()


@pytest.mark.parametrize("granularity", ["layer", "global"])
def test_anchors_are_the_sources_and_every_operators_start(granularity):
    mixed = space(granularity=granularity, start="ties")
    anchors = mixed.anchors()
    domain = Domain(mixed.dimensions)
    assert len({a.tobytes() for a in anchors}) == len(anchors)
    assert all(np.array_equal(domain.snap(a), a) for a in anchors)
    recipes = [mixed.decode(a) for a in anchors]
    assert [r.method for r in recipes] == ["ties"] * 5 + ["task_arithmetic"] + list(NAMES[2:])
    assert all(r.methods == () for r in recipes)
    for model, recipe in zip(SOURCES.values(), recipes, strict=False):
        own = MERGER.checkpoint(model)
        for name, tensor in MERGER.merge(recipe):
            wanted = own.tensor(name).float()
            assert (tensor.float() - wanted).abs().max() <= 2**-8 * wanted.abs().max()


def test_sparsity_counts_densities_where_the_operator_has_one():
    mixed = space(parameters={k: RANGES[k] for k in ("weight", "density")})
    genome = np.ones(len(mixed.dimensions))
    genome[:6] = [0, 0, 0, 1, 1, 1]
    for i, d in enumerate(mixed.dimensions):
        if d.parameter == "density":
            genome[i] = 0.4
    assert mixed.sparsity(genome) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"operators": {"ties": {}}}, "operators"),
        ({"operators": ["ties", "dare_ties"]}, "operators"),
        ({"operators": {"ties": {}, "dare_ties": 1}}, "operators.dare_ties"),
        ({"operators": {"ties": {}, "linear": {}}}, "operators.linear"),
        ({"operators": {"ties": {"weight": 1}, "breadcrumbs": {}}}, "operators.ties.weight"),
        ({"start": "linear"}, "operators.start"),
        ({"granularity": "tensor"}, "granularity"),
        ({"parameters": {}}, "parameters"),
        ({"parameters": {"epsilon": {"low": 0, "high": 1}}}, "parameters.epsilon"),
        ({"parameters": {"int8_mask": {"choices": [True, False]}}}, "parameters.int8_mask"),
        ({"parameters": {"density": {"low": 0, "high": 2}}}, "parameters.density"),
        ({"parameters": {"rescale_norm": {"choices": ["l1", "l2"]}}},
         "parameters.rescale_norm.choices"),
    ],
)  # fmt: skip
def test_wrong_spaces_name_the_key(changes, key):
    with pytest.raises(ConfigError) as raised:
        space(**changes)
    assert raised.value.problems[0].field == f"space.{key}"


@pytest.mark.parametrize("bad", [np.zeros(LENGTH - 1), np.full(LENGTH, np.nan)])
def test_wrong_genomes_are_refused(bad):
    with pytest.raises(ValueError, match="genome"):
        space().decode(bad)


# -- recipes of several methods --------------------------------------------------------------

TEXT = {
    "merge_method": [{"filter": "layers.0.", "value": "ties"}, {"value": "task_arithmetic"}],
    "base_model": BASE,
    "models": [{"model": SOURCES["math"], "parameters": {"weight": 1.0, "density": 0.5}}],
}


def test_methods_are_read_and_written():
    recipe = Recipe.from_dict(TEXT)
    assert (recipe.method, recipe.methods) == ("task_arithmetic", (Case("layers.0.", "ties"),))
    assert methods_of(recipe) == ("task_arithmetic", "ties")
    assert method_of(recipe, "model.layers.0.w") == "ties"
    assert method_of(recipe, "model.layers.10.w") == "task_arithmetic"
    assert recipe.to_dict()["merge_method"] == TEXT["merge_method"]
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    other = [{"filter": "x", "value": "ties"}, {"value": "sce"}]
    every = ("ties", "task_arithmetic", TEXT["merge_method"], other)
    digests = {Recipe.from_dict({**TEXT, "merge_method": m}).digest() for m in every}
    assert len(digests) == 4


def test_the_digest_of_one_method_is_what_it_was():
    recipe = Recipe("ties", (Source("a", {"weight": 0.5}),), "b", {"lambda": 1.0})
    assert "methods" not in str(recipe.to_dict())
    assert recipe.digest() == ("6f0a9da623187b418603eb49b027ab36738bad5b310f89ab27932c3038bc15d7")
    assert Recipe.from_dict({**TEXT, "merge_method": [{"value": "ties"}]}) == Recipe.from_dict(
        {**TEXT, "merge_method": "ties"}
    )


@pytest.mark.parametrize(
    ("methods", "key"),
    [
        ([], "merge_method"),
        ([{"filter": "a", "value": "ties"}], "merge_method[0].filter"),
        ([{"value": "ties"}, {"value": "sce"}], "merge_method[0].filter"),
        ([{"filter": 3, "value": "ties"}, {"value": "sce"}], "merge_method[0].filter"),
        ([{"filter": "a"}, {"value": "sce"}], "merge_method[0].value"),
        ([{"filter": "a", "value": "pieces"}, {"value": "sce"}], "merge_method[0].value"),
        ([{"filter": "a", "operator": "ties"}, {"value": "sce"}], "merge_method[0].operator"),
        (["ties"], "merge_method[0]"),
    ],
)
def test_wrong_lists_of_methods_name_the_key(methods, key):
    with pytest.raises(RecipeError) as raised:
        Recipe.from_dict({**TEXT, "merge_method": methods})
    assert raised.value.problems[0].field == f"recipe: {key}"


@pytest.mark.parametrize(
    ("methods", "key"),
    [
        ([{"filter": "layers.9.", "value": "ties"}, {"value": "sce"}], "merge_method.filter"),
        ([{"filter": "layers.0.", "value": "tis"}, {"value": "sce"}], "merge_method"),
        ([{"filter": "layers.0.", "value": "ties"}, {"value": "linear"}], "merge_method"),
        ([{"filter": "layers.0.", "value": "multislerp"}, {"value": "nuslerp"}], "models"),
    ],
)
def test_what_cannot_be_merged_names_the_key(methods, key):
    with pytest.raises(RecipeError) as raised:
        MERGER.assemble(Recipe.from_dict({**TEXT, "merge_method": methods}))
    assert raised.value.problems[0].field == key


def test_lists_beside_a_route_are_refused():
    data = {
        "merge_method": TEXT["merge_method"],
        "route": {"slots": [{"model": BASE, "layer": 0}]},
    }
    with pytest.raises(RecipeError) as raised:
        Recipe.from_dict(data)
    assert raised.value.problems[0].field == "recipe: merge_method"


@pytest.mark.parametrize("form", ["slices", "nested"])
def test_methods_in_slices_and_nested_merges(form):
    """What a plain merge of whole models gives, in another form."""
    recipe = Recipe.from_dict(TEXT)
    wanted = dict(MERGER.merge(recipe))
    if form == "nested":
        other = Recipe("linear", (Source(recipe, {"weight": 1.0}),))
    else:
        [source] = TEXT["models"]
        data = {k: v for k, v in TEXT.items() if k != "models"}
        other = Recipe.from_dict({**data, "slices": [{"sources": [
            {**source, "layer_range": [0, 4]}
        ]}]})  # fmt: skip
    found = dict(MERGER.merge(other))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert list(found) == list(wanted)


def test_another_parameter_than_the_operators_is_noted_once():
    recipe = Recipe.from_dict({**TEXT, "parameters": {"epsilon": 0.1}})
    assert [n for n in MERGER.assemble(recipe).notes if n.startswith("epsilon")]
    assert not [n for n in MERGER.assemble(Recipe.from_dict(TEXT)).notes if "density" in n]
    with pytest.raises(RecipeError):
        check_recipe(recipe, strict=True)
