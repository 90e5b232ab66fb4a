"""The model card that goes with a merge."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.markdown import fenced, front_matter, markdown_text, short_name
from evomerge.recipe import Recipe
from evomerge.recipe.writing import plain_recipe, yaml_text


def merge_card(title: str, about: str, recipe: Recipe, identities: Mapping[str, str]) -> str:
    """The README.md of a merge: its parents and its recipe, without paths of this machine.

    Args:
        title: heading of the page.
        about: a sentence on what it is.
        recipe: of the merge.
        identities: model reference to content fingerprint, for the digest.
    """
    names = {ref: "+".join(map(short_name, ref.split("+"))) for ref in recipe.models()}
    parents = list(dict.fromkeys(part for name in names.values() for part in name.split("+")))
    text = f"# digest: {recipe.digest(identities)}\n{yaml_text(plain_recipe(recipe, names))}"
    return "\n".join(
        [
            "---",
            front_matter(parents),
            "---",
            "",
            f"# {title}",
            "",
            f"{about} No gradient training was done.",
            "",
            "## Parents",
            "",
            *[f"- {markdown_text(parent)}" for parent in parents],
            "",
            "## Recipe",
            "",
            fenced(text, "yaml"),
            "",
        ]
    )
