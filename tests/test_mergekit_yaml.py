"""Recipes as mergekit reads them; what its format has no words for is refused."""

from __future__ import annotations

import pytest
import yaml

from evomerge.errors import RecipeError
from evomerge.mergekit_yaml import mergekit_yaml
from evomerge.recipe import Recipe

MODELS = [
    {"model": "org/a", "parameters": {"weight": 0.5, "density": 0.3}},
    {"model": "org/b+org/lora", "parameters": {"weight": [0.1, 0.9], "density": 1.0}},
]
MERGEKIT_KEYS = {
    "merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype",
    "tokenizer_source", "tokenizer", "chat_template",
}  # fmt: skip
"""Of a merge configuration of mergekit 0.1.5."""


def made(data: dict[str, object]) -> tuple[dict[str, object], tuple[str, ...]]:
    text, notes = mergekit_yaml(Recipe.from_dict(data))
    return yaml.safe_load(text), notes


def test_what_mergekit_knows_is_written_as_it_is() -> None:
    data = {"merge_method": "ties", "base_model": "org/base", "models": MODELS, "dtype": "bfloat16"}
    written, notes = made({**data, "parameters": {"lambda": 0.7, "seed": 3}})
    assert written == {**data, "parameters": {"lambda": 0.7}} and not notes
    assert written.keys() <= MERGEKIT_KEYS


def test_other_masks_are_told() -> None:
    _, notes = made({"merge_method": "dare_ties", "base_model": "org/base", "models": MODELS})
    assert len(notes) == 1 and "mergekit draws others" in notes[0]


def test_a_base_that_mergekit_would_average_in_is_left_out() -> None:
    models = [{"model": "org/a", "parameters": {"weight": 1}}]
    written, notes = made({"merge_method": "linear", "base_model": "org/base", "models": models})
    assert "base_model" not in written and "average it in" in notes[0]
    written, notes = made({"merge_method": "linear", "base_model": "org/a", "models": models})
    assert written["base_model"] == "org/a" and not notes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("merge_method", [{"filter": "mlp", "value": "linear"}, {"value": "ties"}]),
        ("scope", {"prefix": "model."}),
        ("parameters", {"rescale_norm": "density"}),
        ("models", [{"model": "other.yaml", "parameters": {"weight": 1}}]),
        ("models", [{"model": {"merge_method": "linear", "models": MODELS[:1]}}]),
        ("route", {"scale": "block_output", "slots": [{"model": "org/a", "layer": 0}]}),
        ("pieces", {"breakpoints": [5], "coefficients": [[1.0, 0.0]]}),
    ],
)
def test_what_mergekit_cannot_say_is_named(key: str, value: object) -> None:
    data = {"merge_method": "ties", "base_model": "org/base", "models": MODELS, key: value}
    if key == "route":
        data = {"route": value}
    if key == "pieces":
        data = {"merge_method": "pieces", "models": MODELS, "pieces": value}
    with pytest.raises(RecipeError) as caught:
        made(data)
    problem = caught.value.problems[0]
    assert key in problem.field and "--format recipe" in problem.remedy
