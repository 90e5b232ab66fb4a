"""Malformed recipes: every error names the key, all data is read or refused."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import Problem, RecipeError, SourceError
from evomerge.recipe import Recipe

NAN, INF = float("nan"), float("inf")
MODELS = {"models": [{"model": "a", "parameters": {"weight": 1.0}}]}
PAIR = {"models": [{"model": "a"}, {"model": "b"}]}


def problem_of(data):
    with pytest.raises(RecipeError) as raised:
        Recipe.from_dict(data, "best.yaml")
    [problem] = raised.value.problems
    return problem


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"merge_method": None}, "merge_method"),
        ({"merge_method": 3}, "merge_method"),
        ({"merge_method": ""}, "merge_method"),
        ({"models": None}, "models"),
        ({"models": []}, "models"),
        ({"models": "a"}, "models"),
        ({"models": {"model": "a"}}, "models"),
        ({"models": ["a"]}, "models[0]"),
        ({"models": [{"model": "a"}, {"parameters": {}}]}, "models[1].model"),
        ({"models": [{"model": 3}]}, "models[0].model"),
        ({"models": [{"model": ""}]}, "models[0].model"),
        ({"models": [{"model": "a", "weight": 1}]}, "models[0].weight"),
        ({"models": [{"model": "a", "layer_range": [0, 2]}]}, "models[0].layer_range"),
        ({"models": [{"model": "a", "parameters": [1]}]}, "models[0].parameters"),
        ({"models": [{"model": "a", "parameters": {"w": NAN}}]}, "models[0].parameters.w"),
        ({"models": [{"model": "a", "parameters": {"w": INF}}]}, "models[0].parameters.w"),
        ({"models": [{"model": "a", "parameters": {"w": None}}]}, "models[0].parameters.w"),
        ({"parameters": {"w": "nan"}}, "parameters.w"),
        ({"parameters": {"w": "1e999"}}, "parameters.w"),
        ({"parameters": {"w": [0.1, None]}}, "parameters.w[1]"),
        ({"parameters": {"w": [0.1, [0.2]]}}, "parameters.w[1]"),
        ({"parameters": {"w": [0.1, NAN]}}, "parameters.w[1]"),
        ({"parameters": {"w": [{"value": 1}, 2]}}, "parameters.w[1]"),
        ({"parameters": {"w": [{"filter": "mlp"}]}}, "parameters.w[0]"),
        ({"parameters": {"w": [{"filter": 5, "value": 1}]}}, "parameters.w[0].filter"),
        ({"parameters": {"w": [{"value": -INF}]}}, "parameters.w[0].value"),
        ({"parameters": {"w": [{"value": [0, INF]}]}}, "parameters.w[0].value[1]"),
        ({"parameters": {"w": [{"value": None}]}}, "parameters.w[0].value"),
        ({"parameters": {"w": [{"filtr": "mlp", "value": 1}]}}, "parameters.w[0].filtr"),
        ({"parameters": {"w": 10**400}}, "parameters.w"),
        ({"parameters": {"w": 10**5000}}, "parameters.w"),
        ({"parameters": {"w": {"values": 1}}}, "parameters.w.values"),
        ({"parameters": {"w": {}}}, "parameters.w"),
        ({"parameters": {1: 2}}, "parameters.1"),
        ({"parameters": 5}, "parameters"),
        ({"base_model": 5}, "base_model"),
        ({"base_model": ""}, "base_model"),
        ({"base_model": {"path": "a"}}, "base_model.path"),
        ({"base_model": {"lora": "a"}}, "base_model"),
        ({"base_model": {"model": {"revision": "a"}}}, "base_model.model.path"),
        ({"base_model": {"model": {"path": "a@b", "revision": "c"}}}, "base_model.model"),
        ({"base_model": {"model": "a+b", "lora": "c"}}, "base_model.model"),
        ({"base_model": {"merge_method": "linear"}}, "base_model.models"),
        ({"base_model": {"models": [{"model": "a"}]}}, "base_model.merge_method"),
        ({"base_model": {"merge_method": "x", "models": []}}, "base_model.models"),
        ({"dtype": "float8"}, "dtype"),
        ({"dtype": "float64"}, "dtype"),
        ({"dtype": ["float32"]}, "dtype"),
        ({"dtype": ""}, "dtype"),
        ({"out_dtype": 16}, "out_dtype"),
        ({"out_dtype": "torch.int64"}, "out_dtype"),
        ({"dtype": "int8", "out_dtype": "float32"}, "dtype"),
        ({"slices": []}, "slices"),
        ({"modules": {}}, "modules"),
        ({"route": {"slots": []}}, "route"),
        ({5: 6}, "5"),
        ({"tokenizer_source": 5}, "tokenizer_source"),
        ({"tokenizer_source": "union", "tokenizer": {"source": "a"}}, "tokenizer_source"),
        ({"tokenizer": "union"}, "tokenizer"),
        ({"tokenizer": {"sauce": "a"}}, "tokenizer.sauce"),
        ({"tokenizer": {"pad_to_multiple_of": 0}}, "tokenizer.pad_to_multiple_of"),
        ({"tokenizer": {"pad_to_multiple_of": True}}, "tokenizer.pad_to_multiple_of"),
        ({"tokenizer": {"tokens": ["x"]}}, "tokenizer.tokens"),
        ({"tokenizer": {"tokens": {"x": "a"}}}, "tokenizer.tokens.x"),
        ({"tokenizer": {"tokens": {"x": {"force": 1}}}}, "tokenizer.tokens.x.force"),
        ({"tokenizer": {"tokens": {"x": {"source": 1}}}}, "tokenizer.tokens.x.source"),
        ({"tokenizer": {"tokens": {"x": {"source": {"kind": "one"}}}}}, "x.source.kind"),
        ({"tokenizer": {"tokens": {"x": {"source": {"kind": "zero", "model": "a"}}}}}, "model"),
        (
            {"tokenizer": {"tokens": {"x": {"source": {"kind": "model_token", "model": "a"}}}}},
            "x.source",
        ),
        ({"chat_template": ""}, "chat_template"),
        ({"chat_template": 5}, "chat_template"),
        ({"scope": "lm."}, "scope"),
        ({"scope": {}}, "scope.prefix"),
        ({"scope": {"prefix": ""}}, "scope.prefix"),
        ({"scope": {"prefix": "a", "rest": 5}}, "scope.rest"),
        ({"pieces": {"breakpoints": [1], "coefficients": [[1]]}}, "merge_method"),
        ({"merge_method": "pieces"}, "merge_method"),
    ],
)
def test_malformed_input_names_the_key(change, key):
    problem = problem_of({"merge_method": "linear", **MODELS, **change})
    assert problem.field.startswith("best.yaml: ")
    assert problem.field.endswith(key)
    assert len(str(problem)) < 500


A = {"model": "a", "layer_range": [0, 2]}


@pytest.mark.parametrize(
    ("slices", "key"),
    [
        ([], ""),
        ("a", ""),
        ([3], "[0]"),
        ([{}], "[0].sources"),
        ([{"sources": []}], "[0].sources"),
        ([{"sources": [{"model": "a"}]}], "[0].sources[0].layer_range"),
        ([{"sources": [{**A, "layer_range": [0]}]}], "[0].sources[0].layer_range"),
        ([{"sources": [{**A, "layer_range": [2, 2]}]}], "[0].sources[0].layer_range"),
        ([{"sources": [{**A, "layer_range": [3, 2]}]}], "[0].sources[0].layer_range"),
        ([{"sources": [{**A, "layer_range": [-1, 2]}]}], "[0].sources[0].layer_range[0]"),
        ([{"sources": [{**A, "layer_range": [0, 2.0]}]}], "[0].sources[0].layer_range[1]"),
        ([{"sources": [{**A, "layer_range": [False, 2]}]}], "[0].sources[0].layer_range[0]"),
        ([{"sources": [{**A, "layer_range": [0, 10**5000]}]}], "[0].sources[0].layer_range[1]"),
        ([{"sources": [{**A, "layers": [0, 2]}]}], "[0].sources[0].layers"),
        ([{"sources": [A]}, {"sources": [A, {**A, "layer_range": [0, 3]}]}], "[1].sources"),
        ([{"sources": [A], "residual_weight": 0.5}], "[0].residual_weight"),
        ([{"sources": [A], "base_model": 5}], "[0].base_model"),
        ([{"sources": [A], "parameters": {"t": {"value": NAN}}}], "[0].parameters.t.value"),
    ],
)
def test_malformed_slices_name_the_key(slices, key):
    data = {"merge_method": "slerp", "slices": slices}
    assert problem_of(data).field == f"best.yaml: slices{key}"
    if slices:
        inside = {"merge_method": "slerp", "modules": {"text": {"slices": slices}}}
        assert problem_of(inside).field == f"best.yaml: modules.text.slices{key}"


@pytest.mark.parametrize(
    ("module", "key"),
    [
        (None, "text"),
        ({}, "text"),
        ({"models": [{"model": "a"}], "slices": [{"sources": [A]}]}, "text"),
        ({"models": []}, "text.models"),
        ({"model": []}, "text.model"),
        ({"models": [{"model": "a"}], "parameters": 3}, "text.parameters"),
    ],
)
def test_malformed_modules_name_the_key(module, key):
    problem = problem_of({"merge_method": "linear", "modules": {"text": module}})
    assert problem.field == f"best.yaml: modules.{key}"


SLOT = {"model": "a", "layer": 1}


@pytest.mark.parametrize(
    ("route", "key"),
    [
        ("a", "route"),
        ({}, "route.slots"),
        ({"slots": []}, "route.slots"),
        ({"slots": ["a:1"]}, "route.slots[0]"),
        ({"slots": [{"model": "a"}]}, "route.slots[0].layer"),
        ({"slots": [{"layer": 1}]}, "route.slots[0].model"),
        ({"slots": [{**SLOT, "layer": -1}]}, "route.slots[0].layer"),
        ({"slots": [{**SLOT, "layer": True}]}, "route.slots[0].layer"),
        ({"slots": [{**SLOT, "scale": NAN}]}, "route.slots[0].scale"),
        ({"slots": [{**SLOT, "scale": "big"}]}, "route.slots[0].scale"),
        ({"slots": [{**SLOT, "scale": True}]}, "route.slots[0].scale"),
        ({"slots": [{**SLOT, "skale": 1}]}, "route.slots[0].skale"),
        ({"slots": [SLOT, {"identity": False}]}, "route.slots[1].identity"),
        ({"slots": [SLOT, {"identity": True, "layer": 0}]}, "route.slots[1].layer"),
        ({"slots": [SLOT, {**SLOT, "identity": True}]}, "route.slots[1].model"),
        ({"slots": [{"identity": True}]}, "route.slots"),
        ({"slots": [SLOT], "scale": "residual"}, "route.scale"),
        ({"slots": [SLOT], "scale": ["stream"]}, "route.scale"),
        ({"slots": [SLOT, SLOT], "depth": 1}, "route.depth"),
        ({"slots": [SLOT], "depth": 2.5}, "route.depth"),
    ],
)
def test_malformed_routes_name_the_key(route, key):
    assert problem_of({"route": route}).field == f"best.yaml: {key}"


def test_a_route_is_a_passthrough():
    data = {"merge_method": "linear", "route": {"slots": [SLOT]}}
    assert problem_of(data).field == "best.yaml: merge_method"


@pytest.mark.parametrize(
    ("breakpoints", "coefficients", "key"),
    [
        ([], [], "breakpoints"),
        (None, [[1, 2]], "breakpoints"),
        ([0], [[1, 2]], "breakpoints[0]"),
        ([1.5], [[1, 2]], "breakpoints[0]"),
        ([3, 3], [[1, 2], [1, 2]], "breakpoints[1]"),
        ([1, 4, 3], [[1, 2]] * 3, "breakpoints[2]"),
        ([1, 2], [[1, 2]], "coefficients"),
        ([1], [], "coefficients"),
        ([1], [1, 2], "coefficients"),
        ([1, 2], [[1, 2], [1]], "coefficients[1]"),
        ([1], [[1, 2, 3]], "coefficients[0]"),
        ([1], [[1, INF]], "coefficients[0][1]"),
        ([1], [[1, "x"]], "coefficients[0][1]"),
    ],
)
def test_malformed_pieces_name_the_key(breakpoints, coefficients, key):
    pieces = {"breakpoints": breakpoints, "coefficients": coefficients}
    problem = problem_of({"merge_method": "pieces", **PAIR, "pieces": pieces})
    assert problem.field == f"best.yaml: pieces.{key}"


def test_pieces_need_models():
    pieces = {"breakpoints": [1], "coefficients": [[1]]}
    data = {"merge_method": "pieces", "slices": [{"sources": [A]}], "pieces": pieces}
    assert problem_of(data).field == "best.yaml: pieces"


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        ({"merge_metod": "linear", **MODELS}, "merge_method"),
        ({"merge_method": "linear", **MODELS, "tokeniser_source": "union"}, "tokenizer_source"),
        ({"merge_method": "linear", "models": [{"modle": "a"}]}, "model"),
        ({"merge_method": "linear", "slices": [{"source": []}]}, "sources"),
        ({"route": {"slots": [{"model": "a", "layr": 3}]}}, "layer"),
    ],
)
def test_a_misspelt_key_is_named_with_the_right_one(data, remedy):
    assert problem_of(data).remedy == f"Did you mean {remedy}?"


@pytest.mark.parametrize("data", [None, [], "ties", 5])
def test_what_is_not_a_mapping_is_refused(data):
    with pytest.raises(RecipeError, match="recipe: found"):
        Recipe.from_dict(data)


KEYS = [
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "route",
    "pieces",
    "parameters",
    "dtype",
    "tokenizer",
    "tokenizer_source",
    "scope",
    "model",
    "sources",
    "layer_range",
    "weight",
    "value",
    "filter",
    "slots",
    "layer",
    "scale",
    "identity",
    "depth",
    "breakpoints",
    "coefficients",
    "prefix",
    "rest",
    "source",
    "tokens",
    "kind",
    "lora",
    "path",
]
WORDS = st.sampled_from(["linear", "passthrough", "pieces", "a", "union", "stream", "zero", "1e3"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)
SEEDS = [
    {"merge_method": "linear", **MODELS, "tokenizer_source": "union"},
    {"merge_method": "slerp", "slices": [{"sources": [A, A]}], "scope": {"prefix": "a"}},
    {"route": {"slots": [{**SLOT, "scale": 2}, {"identity": True}], "depth": 3}},
    {
        "merge_method": "pieces",
        **PAIR,
        "pieces": {"breakpoints": [2, 3], "coefficients": [[1, 0], [0, 1]]},
    },
    {"merge_method": "ties", "modules": {"m": MODELS}, "parameters": {"t": [{"value": [0, 1]}]}},
    {"merge_method": "ties", **MODELS, "tokenizer": {"tokens": {"x": {"source": "a"}}}},
]


def places(data):
    """Every (container, key) in plain data."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        yield data, key
        if isinstance(value, dict | list):
            yield from places(value)


def read_or_refused(data):
    try:
        recipe = Recipe.from_dict(data)
    except RecipeError as error:
        assert all(problem.field for problem in error.problems)
        return False
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    return True


@given(ANYTHING)
@settings(deadline=None, max_examples=50)
def test_any_data_is_read_or_refused_by_name(data):
    read_or_refused(data)


@given(st.sampled_from(SEEDS), st.data())
@settings(deadline=None, max_examples=150)
def test_a_recipe_with_one_value_replaced_is_read_or_refused_by_name(seed, data):
    recipe = pickle.loads(pickle.dumps(seed))
    container, key = data.draw(st.sampled_from(list(places(recipe))))
    container[key] = data.draw(ANYTHING)
    read_or_refused(recipe)


def test_the_seeds_of_that_test_are_recipes():
    assert all(read_or_refused(seed) for seed in SEEDS)


@given(st.lists(st.tuples(*[st.text(min_size=1, max_size=12)] * 4), min_size=1, max_size=3))
@settings(deadline=None, max_examples=50)
def test_errors_cross_processes_whole(parts):
    error = SourceError([Problem(*p) for p in parts])
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is SourceError
    assert again.problems == error.problems
    assert str(again) == str(error)
    assert all(str(Problem(*p)) in str(again) for p in parts)
