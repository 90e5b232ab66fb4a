"""A recipe as data: reading, writing, filters and the digest."""

import pickle
import string

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import Problem, RecipeError, SourceError
from evomerge.recipe import Case, Recipe, Source, resolve

WORDS = st.text(min_size=1, max_size=12)
NUMBERS = st.floats(-1e6, 1e6) | st.integers(-(2**62), 2**62)
SCALARS = NUMBERS | st.booleans() | WORDS
CASES = st.builds(Case, st.none() | WORDS, SCALARS)
SETTINGS = SCALARS | st.lists(CASES, max_size=3).map(tuple)
PARAMETERS = st.dictionaries(WORDS, SETTINGS, max_size=3)
SOURCES = st.lists(st.builds(Source, WORDS, PARAMETERS), min_size=1, max_size=3).map(tuple)
RECIPES = st.builds(
    Recipe,
    method=WORDS,
    sources=SOURCES,
    base=st.none() | WORDS,
    parameters=PARAMETERS,
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
)


@given(RECIPES)
@settings(deadline=None, max_examples=50)
def test_dict_round_trip(recipe):
    again = Recipe.from_dict(recipe.to_dict())
    assert again == recipe
    assert again.digest() == recipe.digest()
    assert hash(again) == hash(recipe)


@given(recipe=RECIPES)
@settings(deadline=None, max_examples=40)
def test_yaml_round_trip(recipe, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    again = Recipe.from_yaml(path)
    assert again == recipe
    assert again.digest() == recipe.digest()


@pytest.mark.parametrize(
    "sign", ["\n", "\r", "\t", "\0", "\x85", "\u2028", "\ufeff", "日", "'", '"', "#"]
)
def test_any_sign_survives_yaml(sign, tmp_path):
    recipe = Recipe("linear", (Source(f"a{sign}b", {"weight": (Case(sign, 1.0),)}),))
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert Recipe.from_yaml(path) == recipe


def test_reads_a_mergekit_file(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(
        """
merge_method: ties
base_model: org/base
models:
  - model: org/a
    parameters:
      weight:
        - {filter: mlp, value: 0.5}
        - value: 1
  - model: org/b
    parameters: {weight: 0.3, density: 0.7}
parameters: {normalize: true, lambda: 1.2}
dtype: float32
out_dtype: bfloat16
"""
    )
    recipe = Recipe.from_yaml(path)
    assert recipe == Recipe(
        "ties",
        (
            Source("org/a", {"weight": (Case("mlp", 0.5), Case(None, 1))}),
            Source("org/b", {"weight": 0.3, "density": 0.7}),
        ),
        "org/base",
        {"normalize": True, "lambda": 1.2},
        "bfloat16",
    )
    assert recipe.models() == ("org/base", "org/a", "org/b")


def test_models_are_named_once_base_first():
    recipe = Recipe("ties", (Source("a"), Source("b"), Source("a")), "b")
    assert recipe.models() == ("b", "a")


def test_first_hit_wins():
    setting = (Case("layers.1.", 1.0), Case("mlp", 2.0), Case(None, 3.0), Case("norm", 4.0))
    assert resolve(setting, "model.layers.1.mlp.w") == 1.0
    assert resolve(setting, "model.layers.11.mlp.w") == 2.0
    assert resolve(setting, "model.norm.weight") == 3.0
    assert resolve((Case("*", 5), Case("mlp", 6)), "mlp") == 5
    assert resolve((Case("mlp", 2.0),), "attn") is None
    assert resolve((), "attn") is None
    assert resolve(0.5, "anything") == 0.5


@given(
    st.lists(st.tuples(st.text("ab.", max_size=3), st.integers()), max_size=5),
    st.text("ab.", max_size=6),
)
@settings(deadline=None, max_examples=50)
def test_filters_are_a_first_substring_search(pairs, tensor):
    hits = [value for pattern, value in pairs if tensor.find(pattern) != -1]
    setting = tuple(Case(p, v) for p, v in pairs)
    assert resolve(setting, tensor) == (hits[0] if hits else None)


def test_digest_follows_contents_not_places():
    def at(folder):
        sources = (Source(f"{folder}/a", {"weight": 0.5}), Source(f"{folder}/b", {"weight": 0.5}))
        recipe = Recipe("ties", sources, f"{folder}/base")
        return recipe.digest({f"{folder}/{n}": n * 64 for n in ("a", "b", "base")})

    assert at("/here") == at("there/deep")


def test_digest_changes_with_every_value():
    recipe = Recipe(
        "ties",
        (Source("a", {"weight": (Case("x", 0.5), Case(None, 1.0))}), Source("b", {"weight": 0.5})),
        "base",
        {"lambda": 1.5},
    )
    data = recipe.to_dict()
    digests = {recipe.digest()}

    def changed(edit):
        copy = pickle.loads(pickle.dumps(data))
        edit(copy)
        digests.add(Recipe.from_dict(copy).digest())

    edits = [
        lambda d: d.update(merge_method="linear"),
        lambda d: d.update(base_model="other"),
        lambda d: d.update(dtype="float32"),
        lambda d: d["parameters"].update({"lambda": float(np.nextafter(1.5, 2))}),
        lambda d: d["parameters"].update({"normalize": True}),
        lambda d: d["models"][0].update(model="c"),
        lambda d: d["models"].reverse(),
        lambda d: d["models"][1]["parameters"].update(weight=0.25),
        lambda d: d["models"][0]["parameters"]["weight"][0].update(filter="y"),
        lambda d: d["models"][0]["parameters"]["weight"].reverse(),
        lambda d: d["models"].pop(),
    ]
    for edit in edits:
        changed(edit)
    assert len(digests) == len(edits) + 1


def test_digest_is_the_same_for_equal_numbers():
    one, other = (Recipe("linear", (Source("a", {"weight": w}),)) for w in (1, 1.0))
    assert one.digest() == other.digest()
    assert Recipe("linear", (Source("a", {"weight": True}),)).digest() != one.digest()


GOOD = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1.0}}]}
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"merge_method": None}, "merge_method"),
        ({"merge_method": 3}, "merge_method"),
        ({"models": None}, "models"),
        ({"models": []}, "models"),
        ({"models": "a"}, "models"),
        ({"models": {"model": "a"}}, "models"),
        ({"models": ["a"]}, "models[0]"),
        ({"models": [{"model": "a"}, {"parameters": {}}]}, "models[1]"),
        ({"models": [{"model": 3}]}, "models[0]"),
        ({"models": [{"model": ""}]}, "models[0]"),
        ({"models": [{"model": "a", "weight": 1}]}, "models[0].weight"),
        ({"models": [{"model": "a", "parameters": [1]}]}, "models[0].parameters"),
        ({"models": [{"model": "a", "parameters": {"weight": NAN}}]}, "parameters.weight"),
        ({"models": [{"model": "a", "parameters": {"weight": INF}}]}, "parameters.weight"),
        ({"models": [{"model": "a", "parameters": {"weight": None}}]}, "parameters.weight"),
        ({"models": [{"model": "a", "parameters": {"weight": [0.1, 0.9]}}]}, "weight[0]"),
        ({"parameters": {"weight": [{"filter": "mlp"}]}}, "parameters.weight[0]"),
        ({"parameters": {"weight": [{"value": -INF}]}}, "parameters.weight[0]"),
        ({"parameters": {"weight": [{"filtr": "mlp", "value": 1}]}}, "weight[0].filtr"),
        ({"parameters": {"weight": 10**400}}, "parameters.weight"),
        ({"parameters": {"t": {"value": 1}}}, "parameters.t"),
        ({"parameters": 5}, "parameters"),
        ({"base_model": 5}, "base_model"),
        ({"base_model": ""}, "base_model"),
        ({"dtype": "float8"}, "dtype"),
        ({"dtype": ["float32"]}, "dtype"),
        ({"dtype": ""}, "dtype"),
        ({"out_dtype": 16}, "out_dtype"),
        ({"dtype": "int8", "out_dtype": "float32"}, "dtype"),
        ({"slices": []}, "slices"),
        ({5: 6}, "5"),
    ],
)
def test_malformed_input_names_the_key(change, key):
    with pytest.raises(RecipeError) as raised:
        Recipe.from_dict({**GOOD, **change}, "best.yaml")
    [problem] = raised.value.problems
    assert problem.field.startswith("best.yaml: ")
    assert problem.field.endswith(key)


@pytest.mark.parametrize("data", [None, [], "ties", 5])
def test_what_is_not_a_mapping_is_refused(data):
    with pytest.raises(RecipeError, match="recipe: found"):
        Recipe.from_dict(data)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.ascii_letters),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["merge_method", "models", "model", "parameters", "weight", "value", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(PLAIN)
@settings(deadline=None, max_examples=50)
def test_any_data_is_read_or_refused_by_name(data):
    try:
        recipe = Recipe.from_dict(data)
    except RecipeError as error:
        assert all(problem.field for problem in error.problems)
        return
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    "text",
    ["a: [", "a: 2001-13-45", "{1: 2", "\t- x", "? [a]\n: b", "!!python/object:os.system {}", ""],
)
def test_unreadable_yaml_names_the_file(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"bad\.yaml"):
        Recipe.from_yaml(path)


def test_missing_and_binary_files_are_named(tmp_path):
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("none.yaml", "b.yaml", ""):
        with pytest.raises(RecipeError):
            Recipe.from_yaml(tmp_path / name)


def test_yaml_names_its_digest_and_stays_mergekit(tmp_path):
    recipe = Recipe.from_dict(GOOD)
    text = recipe.to_yaml({"a": "f" * 64})
    assert text.splitlines()[0] == f"# digest: {recipe.digest({'a': 'f' * 64})}"
    assert yaml.safe_load(text) == {**GOOD, "dtype": "bfloat16"}


@given(st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=1, max_size=3))
@settings(deadline=None, max_examples=50)
def test_errors_cross_processes_whole(parts):
    error = SourceError([Problem(*p) for p in parts])
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is SourceError
    assert again.problems == error.problems
    assert str(again) == str(error)
    assert all(str(Problem(*p)) in str(again) for p in parts)
