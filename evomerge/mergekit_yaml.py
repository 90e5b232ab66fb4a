"""A recipe as mergekit reads it, or what keeps it from being said there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from evomerge import operators
from evomerge.errors import Problem, RecipeError
from evomerge.recipe import Recipe
from evomerge.recipe.references import is_recipe_file
from evomerge.recipe.writing import plain_recipe, yaml_text

_OURS = ("seed", "rescale_norm")
_AVERAGED = ("linear", "karcher")
"""Operators whose base mergekit averages in as one more model, and ours does not."""


def mergekit_yaml(recipe: Recipe) -> tuple[str, tuple[str, ...]]:
    """A recipe's YAML without keys of ours, and notes on what mergekit does otherwise.

    Raises:
        RecipeError: with everything in the recipe that mergekit cannot say.
    """
    problems = list(_unsaid(recipe))
    if problems:
        raise RecipeError(problems)
    notes = []
    operator = operators.get(recipe.method)
    if operator.needs_keys:
        notes.append(
            f"{recipe.method} draws random masks: mergekit draws others, so its merge is another "
            "draw of the same recipe"
        )
    if recipe.base and recipe.method in _AVERAGED and recipe.base not in set(_models(recipe)):
        recipe = replace(recipe, base=None)
        notes.append(
            f"base_model is left out: mergekit's {recipe.method} would average it in; config and "
            "tokenizer are then those of the first model"
        )
    kept = {k: v for k, v in recipe.parameters.items() if k not in _OURS}
    return yaml_text(plain_recipe(replace(recipe, parameters=kept))), tuple(notes)


def _models(recipe: Recipe) -> Iterator[object]:
    yield from (source.model for source in recipe.sources)
    for run in recipe.slices:
        yield from (source.model for source in run.sources)


def _unsaid(recipe: Recipe) -> Iterator[Problem]:
    """What mergekit's format has no words for."""

    def problem(field: str, found: str, expected: str) -> Problem:
        return Problem(
            field, found, f"{expected}, as mergekit's recipes have nothing else",
            "Export it with --format recipe or --format hf.",
        )  # fmt: skip

    if recipe.methods:
        yield problem("merge_method", "an operator for each filter", "one operator")
    if recipe.route is not None:
        yield problem("route", "a route of single blocks with scales", "slices")
    if recipe.pieces is not None:
        yield problem("pieces", "intervals of the parameters", "whole tensors")
    if recipe.scope is not None:
        yield problem("scope", "a merge of a part of the model", "a merge of all of it")
    if recipe.parameters.get("rescale_norm") is not None:
        norm = recipe.parameters["rescale_norm"]
        if norm != "l1":
            yield problem("parameters.rescale_norm", repr(norm), "l1")
    for ref in recipe.models():
        if is_recipe_file(ref):
            yield problem("models", f"the recipe file {ref}", "models")
    nested = [m for m in (*_models(recipe), recipe.base) if isinstance(m, Recipe)]
    if nested:
        yield problem("models", "a merge within the merge", "models")
