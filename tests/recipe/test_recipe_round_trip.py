"""Recipes written and read again are the same."""

import pickle

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe_strategies import ALL, PLAIN

from evomerge.recipe import (
    Case,
    Module,
    Pieces,
    Recipe,
    Route,
    Scope,
    Slice,
    Slot,
    Source,
    Tokenizer,
    TokenRule,
)

RELAXED = settings(
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@given(ALL)
@RELAXED
def test_dict_round_trip(recipe):
    again = Recipe.from_dict(recipe.to_dict())
    assert again == recipe
    assert again.digest() == recipe.digest()
    assert hash(again) == hash(recipe)
    assert pickle.loads(pickle.dumps(recipe)) == recipe


@given(recipe=ALL)
@RELAXED
def test_yaml_round_trip(recipe, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    again = Recipe.from_yaml(path)
    assert again == recipe
    assert again.digest() == recipe.digest()


OURS = {"route", "scope", "pieces"}


def keys_of(data):
    if isinstance(data, dict):
        yield from data
        for value in data.values():
            yield from keys_of(value)
    if isinstance(data, list):
        for value in data:
            yield from keys_of(value)


@given(PLAIN)
@RELAXED
def test_recipes_without_extensions_use_no_key_of_ours(recipe):
    data = recipe.to_dict()
    assert not OURS & set(data)
    assert list(keys_of(data)).count("merge_method") == 1
    assert not {"tokenizer", "tokenizer_source"} <= set(data)


@pytest.mark.parametrize(
    "sign", ["\n", "\r", "\t", "\0", "\x85", "\u2028", "\ufeff", "日", "'", '"', "#"]
)
def test_any_sign_survives_yaml(sign, tmp_path):
    recipe = Recipe("linear", (Source(f"a{sign}b", {"weight": (Case(sign, 1.0),)}),))
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert Recipe.from_yaml(path) == recipe


def test_yaml_names_its_digest_and_stays_mergekit():
    good = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1.0}}]}
    recipe = Recipe.from_dict({**good, "dtype": "bfloat16"})
    text = recipe.to_yaml({"a": "f" * 64})
    assert text.splitlines()[0] == f"# digest: {recipe.digest({'a': 'f' * 64})}"
    assert yaml.safe_load(text) == {**good, "dtype": "bfloat16"}


WRITTEN = [
    (
        Recipe(
            "ties",
            slices=(
                Slice((Source("a", {"w": (0, 1)}, (0, 4)),), "b", {"t": (Case("x", (1, 2)),)}),
            ),
            dtype=None,
        ),
        {
            "merge_method": "ties",
            "slices": [
                {
                    "sources": [{"model": "a", "layer_range": [0, 4], "parameters": {"w": [0, 1]}}],
                    "base_model": "b",
                    "parameters": {"t": [{"filter": "x", "value": [1, 2]}]},
                }
            ],
        },
    ),
    (
        Recipe("linear", modules={"text": Module((Source("a"),), parameters={"k": True})}),
        {
            "merge_method": "linear",
            "modules": {"text": {"models": [{"model": "a"}], "parameters": {"k": True}}},
            "dtype": "bfloat16",
        },
    ),
    (
        Recipe("linear", (Source("a"),), dtype=None, tokenizer=Tokenizer("union")),
        {"merge_method": "linear", "models": [{"model": "a"}], "tokenizer_source": "union"},
    ),
    (
        Recipe(
            "linear",
            (Source("a"),),
            dtype=None,
            chat_template="auto",
            tokenizer=Tokenizer(
                "base",
                {
                    "x": TokenRule("zero", force=True),
                    "y": TokenRule("model", "m"),
                    "z": TokenRule("model_token", "m", token_id=3),
                },
                8,
            ),
        ),
        {
            "merge_method": "linear",
            "models": [{"model": "a"}],
            "chat_template": "auto",
            "tokenizer": {
                "source": "base",
                "tokens": {
                    "x": {"source": {"kind": "zero"}, "force": True},
                    "y": {"source": "m"},
                    "z": {"source": {"kind": "model_token", "model": "m", "token_id": 3}},
                },
                "pad_to_multiple_of": 8,
            },
        },
    ),
    (
        Recipe(
            "passthrough",
            route=Route((Slot("a", 3, -0.5), Slot(None), Slot("b", 0)), "stream", 4),
            scope=Scope("lm.", "c"),
            dtype=None,
        ),
        {
            "merge_method": "passthrough",
            "route": {
                "scale": "stream",
                "depth": 4,
                "slots": [
                    {"model": "a", "layer": 3, "scale": -0.5},
                    {"identity": True},
                    {"model": "b", "layer": 0},
                ],
            },
            "scope": {"prefix": "lm.", "rest": "c"},
        },
    ),
    (
        Recipe(
            "pieces",
            (Source("a"), Source(Recipe("linear", (Source("b"),), dtype=None))),
            dtype=None,
            pieces=Pieces((5, 9), ((1.0, 0.0), (0.25, 0.75))),
        ),
        {
            "merge_method": "pieces",
            "models": [
                {"model": "a"},
                {"model": {"merge_method": "linear", "models": [{"model": "b"}]}},
            ],
            "pieces": {"breakpoints": [5, 9], "coefficients": [[1.0, 0.0], [0.25, 0.75]]},
        },
    ),
]


@pytest.mark.parametrize(("recipe", "plain"), WRITTEN)
def test_each_kind_has_its_plain_form(recipe, plain):
    assert recipe.to_dict() == plain
    assert Recipe.from_dict(plain) == recipe


def test_models_are_named_once_base_first():
    recipe = Recipe("ties", (Source("a"), Source("b"), Source("a")), "b")
    assert recipe.models() == ("b", "a")


def test_models_are_found_wherever_they_stand():
    inner = Recipe("linear", (Source("i1"), Source("i2")), "i0", tokenizer=Tokenizer("i3"))
    run = Slice((Source("s1", {}, (0, 1)), Source(inner, {}, (0, 1))), "s0")
    rules = {"x": TokenRule("model", "t1"), "y": TokenRule("model_token", "t2", token_id=1)}
    recipe = Recipe(
        "ties",
        base="base",
        modules={"m": Module((Source("m1"),)), "n": Module(slices=(run,))},
        tokenizer=Tokenizer("t0", rules),
        scope=Scope("lm.", "rest"),
    )
    expected = ["base", "m1", "s0", "s1", "i0", "i1", "i2", "i3", "t0", "t1", "t2", "rest"]
    assert list(recipe.models()) == expected
    route = Recipe("passthrough", route=Route((Slot(inner), Slot(None), Slot("r", 1))))
    assert route.models() == ("i0", "i1", "i2", "i3", "r")
    assert Recipe("linear", (Source("a"),), tokenizer=Tokenizer("union")).models() == ("a",)


@given(ALL, st.data())
@RELAXED
def test_the_digest_needs_no_name_that_has_an_identity(recipe, data):
    """Renaming every model changes nothing once contents stand for the names."""
    names = recipe.models()
    moved = {name: f"/elsewhere/{i}" for i, name in enumerate(names)}
    prints = {name: f"{i:064x}" for i, name in enumerate(names)}
    copy = Recipe.from_dict(renamed(recipe, moved).to_dict())
    assert copy.models() == tuple(moved.values())
    assert copy.digest({moved[n]: prints[n] for n in names}) == recipe.digest(prints)


def renamed(value, names):
    """The same data with other model references, found by the fields' names."""
    if isinstance(value, tuple):
        return tuple(renamed(v, names) for v in value)
    if isinstance(value, dict):
        return {k: renamed(v, names) for k, v in value.items()}
    if not hasattr(value, "__dataclass_fields__") or isinstance(value, Case):
        return value
    fields = {}
    for key, part in vars(value).items():
        reference = key in ("model", "base", "rest") or (
            key == "source" and part not in ("base", "union")
        )
        if reference and isinstance(part, str):
            fields[key] = names[part]
        else:
            fields[key] = part if key == "parameters" else renamed(part, names)
    return type(value)(**fields)
