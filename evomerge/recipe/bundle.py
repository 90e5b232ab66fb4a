"""A recipe and copies of the recipe files that it names, which go beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from evomerge.recipe.data import Recipe
from evomerge.recipe.references import is_recipe_file
from evomerge.recipe.writing import plain_recipe, yaml_text

Identify = Callable[[Recipe], Mapping[str, str]]
"""Content fingerprint of every model of a recipe, by reference."""


def bundled(recipe: Recipe, identify: Identify) -> tuple[str, dict[str, str]]:
    """A recipe's YAML that depends on no recipe file elsewhere, and the files to go beside it.

    A file stands for the model that it makes, rounded as it would be written, which a merge in
    its place would not be; so files stay files. They are named after their digest, and found
    because a reference to a recipe file is looked up beside the recipe first.

    Returns:
        the text, and name to text of each further file; none for a recipe of models only.

    Raises:
        RecipeError, SourceError: for a file that is not there, is no recipe or contains itself.
    """
    files: dict[str, str] = {}
    return _text(recipe, identify, files), files


def _text(recipe: Recipe, identify: Identify, files: dict[str, str]) -> str:
    digest = recipe.digest(identify(recipe))
    names = {
        ref: _copied(Path(ref).expanduser(), identify, files)
        for ref in recipe.models()
        if is_recipe_file(ref)
    }
    return f"# digest: {digest}\n{yaml_text(plain_recipe(recipe, names))}"


def _copied(path: Path, identify: Identify, files: dict[str, str]) -> str:
    """The name of a copy, which is among the files then."""
    recipe = Recipe.from_yaml(path)
    name = f"merge-{recipe.digest(identify(recipe))[:8]}.yaml"
    files[name] = _text(recipe, identify, files)
    return name


def renamed(recipe: Recipe, names: Mapping[str, str]) -> Recipe:
    """The same recipe with other names for some of its models."""
    return Recipe.from_dict(plain_recipe(recipe, names)) if names else recipe
