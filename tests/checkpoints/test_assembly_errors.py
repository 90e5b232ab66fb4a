"""Mistakes are named before any weight is computed, in merges within merges too."""

import pytest
import torch
from checkpoint_models import random_tensors, write_folder

from evomerge.checkpoints.merger import Merger
from evomerge.errors import RecipeError, SourceError, UserError
from evomerge.kernels.view import View
from evomerge.recipe import Recipe, Source

CONFIG = {"vocab_size": 6, "num_hidden_layers": 4}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """`a` and `b` fit together, each of the others is odd in one way."""
    root = tmp_path_factory.mktemp("errors")
    odd = {
        "a": random_tensors(0, blocks=4),
        "b": random_tensors(1, blocks=4),
        "short": random_tensors(2, blocks=3),
        "wide": {**random_tensors(3, blocks=4), "model.layers.2.mlp.weight": torch.ones(4, 5)},
        "less": random_tensors(4, blocks=4),
        "more": {**random_tensors(5, blocks=4), "model.layers.1.extra.weight": torch.ones(1)},
    }
    odd["less"].pop("model.layers.1.norm.weight")
    return {n: str(write_folder(root / n, t, 1, CONFIG)) for n, t in odd.items()}


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch):
    def read(*_):
        raise AssertionError("a weight was read for a recipe that cannot be")

    monkeypatch.setattr(View, "read", read)


def piece(pool, *parts, **more):
    sources = [
        {"model": pool[m], "layer_range": list(r), **({"parameters": p} if p else {})}
        for m, r, p in parts
    ]
    return {"sources": sources, **more}


W = {"weight": 1}


def models(pool, *names, parameters=None):
    return [
        {"model": pool[n], "parameters": W if parameters is None else parameters} for n in names
    ]


CASES = {
    "other depth": (
        lambda p: {"merge_method": "linear", "models": models(p, "a", "short")},
        RecipeError, ["models[1].model", "3 blocks", "4, as in the first"],
    ),
    "base of other depth": (
        lambda p: {"merge_method": "ties", "base_model": p["short"], "models": models(p, "a", "b")},
        RecipeError, ["base_model", "3 blocks", "4, as the models have"],
    ),
    "shape": (
        lambda p: {"merge_method": "linear", "models": models(p, "a", "wide")},
        SourceError, ["model.layers.2.mlp.weight of shape [4, 5]", "[3, 5]"],
    ),
    "shape in a slice": (
        lambda p: {"merge_method": "linear", "slices": [
            piece(p, ("a", (0, 2), W), ("wide", (1, 3), W))]},
        SourceError, ["model.layers.2.mlp.weight of shape [4, 5]"],
    ),
    "missing tensor": (
        lambda p: {"merge_method": "linear", "models": models(p, "a", "less")},
        SourceError, ["no tensor model.layers.1.norm.weight", "1 missing, 0 extra"],
    ),
    "missing in a slice": (
        lambda p: {"merge_method": "linear", "slices": [
            piece(p, ("a", (0, 2), W), ("less", (0, 2), W))]},
        SourceError, ["slices[0].sources[1].model", "no tensor model.layers.1.norm.weight"],
    ),
    "missing in the first of a slice": (
        lambda p: {"merge_method": "linear", "slices": [
            piece(p, ("less", (0, 2), W), ("a", (2, 4), W))]},
        SourceError, ["slices[0].sources[1].model", "unknown tensor model.layers.3.norm.weight"],
    ),
    "extra tensor": (
        lambda p: {"merge_method": "ties", "base_model": p["a"], "models": models(p, "more")},
        SourceError, ["unknown tensor model.layers.1.extra.weight"],
    ),
    "filter of a source": (
        lambda p: {"merge_method": "linear", "models": models(
            p, "a", "b", parameters={"weight": [{"filter": "mpl", "value": 0}, {"value": 1}]})},
        RecipeError, ["models[0].parameters.weight", "'mpl'", "such as mlp", "model.embed_tokens"],
    ),
    "filter of the merge": (
        lambda p: {"merge_method": "slerp", "base_model": p["a"], "models": models(p, "a", "b"),
                   "parameters": {"t": [{"filter": "layers.9.", "value": 0}, {"value": 1}]}},
        RecipeError, ["parameters.t", "the filter 'layers.9.', which no tensor's name has"],
    ),
    "filter of a slice": (
        lambda p: {"merge_method": "passthrough", "slices": [
            piece(p, ("a", (0, 4), {"scale": [{"filter": "o_proj", "value": 0.5}]}))]},
        RecipeError, ["slices[0].sources[0].parameters.scale", "'o_proj'"],
    ),
    "gradient": (
        lambda p: {"merge_method": "ties", "base_model": p["a"], "models": models(p, "b"),
                   "parameters": {"density": [0.5, 1, 1.5]}},
        RecipeError, ["parameters.density: found 1.5", "[0, 1]"],
    ),
    "gradient of a filter": (
        lambda p: {"merge_method": "ties", "base_model": p["a"], "models": models(p, "b"),
                   "parameters": {"density": [{"filter": "mlp", "value": [-1, 0]}, {"value": 1}]}},
        RecipeError, ["parameters.density: found -1"],
    ),
    "fraction of a whole number": (
        lambda p: {"merge_method": "karcher", "models": models(p, "a", "b"),
                   "parameters": {"max_iter": 2.5}},
        RecipeError, ["parameters.max_iter: found 2.5", "a whole number"],
    ),
    "fraction between whole numbers": (
        lambda p: {"merge_method": "karcher", "models": models(p, "a", "b"),
                   "parameters": {"max_iter": [1, 2]}},
        RecipeError, ["parameters.max_iter", "a whole number"],
    ),
    "misspelt": (
        lambda p: {"merge_method": "ties", "base_model": p["a"], "models": models(p, "b"),
                   "parameters": {"densty": 0.5}},
        RecipeError, ["parameters.densty", "Did you mean density?"],
    ),
    "misspelt in a source": (
        lambda p: {"merge_method": "ties", "base_model": p["a"], "models": models(
            p, "b", parameters={"wieght": 0.5})},
        RecipeError, ["models[0].parameters.wieght", "Did you mean weight?"],
    ),
    "misspelt in a slice of a module": (
        lambda p: {"merge_method": "passthrough", "modules": {"default": {"slices": [
            piece(p, ("a", (0, 4), None), parameters={"scael": 1})]}}},
        RecipeError, ["modules.default.slices[0].parameters.scael", "Did you mean scale?"],
    ),
    "no weight": (
        lambda p: {"merge_method": "linear", "models": models(p, "a", "b", parameters={})},
        RecipeError, ["models[0].parameters.weight: found nothing"],
    ),
    "no weight for a tensor": (
        lambda p: {"merge_method": "linear", "models": models(
            p, "a", "b", parameters={"weight": [{"filter": "mlp", "value": 1}]})},
        RecipeError, ["models[0].parameters.weight: found no value for tensor"],
    ),
    "no t": (
        lambda p: {"merge_method": "slerp", "base_model": p["a"], "models": models(p, "b")},
        RecipeError, ["parameters.t: found nothing"],
    ),
    "no base": (
        lambda p: {"merge_method": "slerp", "models": models(p, "a", "b"), "parameters": {"t": 0}},
        RecipeError, ["base_model: found none"],
    ),
    "too many": (
        lambda p: {"merge_method": "slerp", "base_model": p["a"], "parameters": {"t": 0},
                   "models": models(p, "b", "less")},
        RecipeError, ["models: found 2 models", "1 beside the base for slerp"],
    ),
    "two for passthrough": (
        lambda p: {"merge_method": "passthrough", "slices": [
            piece(p, ("a", (0, 1), None), ("b", (0, 1), None))]},
        RecipeError, ["slices[0].sources: found 2 models", "1 for passthrough"],
    ),
    "too few": (
        lambda p: {"merge_method": "nuslerp", "models": models(p, "a")},
        RecipeError, ["models: found 1 models", "2 for nuslerp"],
    ),
    "beyond the last block": (
        lambda p: {"merge_method": "passthrough", "slices": [piece(p, ("a", (2, 5), None))]},
        RecipeError, ["slices[0].sources[0].layer_range: found [2, 5]", "which has 4"],
    ),
    "of the whole merge": (
        lambda p: {"merge_method": "ties", "base_model": p["a"],
                   "models": models(p, "b", parameters={"weight": 1, "normalize": False})},
        RecipeError, ["models[0].parameters.normalize", "Move it to parameters.normalize"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_named(pool, case):
    make, kind, parts = CASES[case]
    with pytest.raises(kind) as raised:
        Merger().stream(Recipe.from_dict(make(pool)))
    for part in parts:
        assert part in str(raised.value)


@pytest.mark.parametrize("case", CASES)
def test_the_same_in_a_merge_within(pool, case):
    make, kind, parts = CASES[case]
    inner = Recipe.from_dict(make(pool))
    outer = Recipe("task_arithmetic", (Source(inner, W),), pool["a"])
    with pytest.raises(UserError) as raised:
        Merger().stream(outer)
    assert isinstance(raised.value, kind)
    for part in parts:
        assert part in str(raised.value)


def test_a_base_of_a_slice_needs_no_weight(pool):
    """In a module's slice, too."""
    slices = [piece(pool, ("a", (0, 4), None), ("b", (0, 4), W), base_model=pool["a"])]
    for form in ({"slices": slices}, {"modules": {"default": {"slices": slices}}}):
        recipe = Recipe.from_dict({"merge_method": "task_arithmetic", **form})
        assembly = Merger().assemble(recipe)
        assert {p.base.key for p in assembly.parts} == {pool["a"]}
        assert {tuple(i.key for i in p.sources) for p in assembly.parts} == {(pool["b"],)}


@pytest.mark.parametrize("pattern", ["*", "", "lm_head", "layers.3.", "model", "weight"])
def test_filters_that_match_are_fine(pool, pattern):
    t = [{"filter": pattern, "value": 0.5}, {"value": 0}]
    data = {"merge_method": "slerp", "base_model": pool["a"], "models": models(pool, "b")}
    Merger().assemble(Recipe.from_dict({**data, "parameters": {"t": t}}))


def test_a_filter_may_name_a_tied_head(tmp_path):
    """As the commonest of mergekit's recipes does for every model."""
    tensors = random_tensors(0, blocks=2)
    tensors.pop("lm_head.weight")
    ref = str(write_folder(tmp_path / "m", tensors))
    t = [{"filter": "lm_head", "value": 0.5}, {"filter": "embed_tokens", "value": 1}, {"value": 0}]
    data = {"merge_method": "slerp", "base_model": ref, "models": [{"model": ref}, {"model": ref}]}
    Merger().assemble(Recipe.from_dict({**data, "parameters": {"t": t}}))


def test_filters_of_sources_know_their_blocks(pool):
    """Block 3 of the source is block 0 of a merge of one block."""
    scale = {"scale": [{"filter": "layers.3.", "value": 0.5}, {"value": 1}]}
    data = {"merge_method": "passthrough", "slices": [piece(pool, ("a", (3, 4), scale))]}
    assembly = Merger().assemble(Recipe.from_dict(data))
    (part,) = (p for p in assembly.parts if "mlp" in p.name)
    assert part.arguments == {"scale": [0.5]}


def test_parameters_of_other_operators_are_passed_over_with_a_note(pool):
    data = {
        "merge_method": "linear",
        "models": models(pool, "a", "b"),
        "parameters": {"density": 0.5},
    }
    assert any("density" in note for note in Merger().assemble(Recipe.from_dict(data)).notes)


def test_whole_numbers_arrive_as_such(pool):
    data = {
        "merge_method": "karcher",
        "models": models(pool, "a", "b"),
        "parameters": {"max_iter": 3.0},
    }
    assembly = Merger().assemble(Recipe.from_dict(data))
    assert {type(p.arguments["max_iter"]) for p in assembly.parts} == {int}
