"""The models that a merge is made of, with revisions and licences as their own files say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from evomerge.checkpoints.adapted import AdaptedCheckpoint
from evomerge.checkpoints.merged import MergedModel
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.model import Model
from evomerge.recipe import Recipe
from evomerge.recipe.references import is_recipe_file
from evomerge.report.licences import Parent
from evomerge.report.model_files import model_origin, read_licence


def read_parents(merger: Merger, recipe: Recipe) -> tuple[Parent, ...]:
    """Every model that a recipe reads, nested merges taken apart, each once.

    Raises:
        UserError: if a model cannot be opened.
    """
    found: dict[tuple[str, str], Parent] = {}
    for ref in recipe.models():
        for parent in _parents(merger, ref):
            found.setdefault((parent.name, parent.fingerprint), parent)
    return tuple(found.values())


def _parents(merger: Merger, ref: str) -> Iterator[Parent]:
    if is_recipe_file(ref):
        yield from read_parents(merger, Recipe.from_yaml(Path(ref).expanduser()))
        return
    yield from parents_of(merger.checkpoint(ref))


def parents_of(model: Model) -> Iterator[Parent]:
    """A model, or base and adapter; nothing of a merge, whose recipe has to be asked."""
    if isinstance(model, AdaptedCheckpoint):
        yield from parents_of(model.base)
        adapter = model.adapter
        yield _parent(adapter.ref, adapter.path, adapter.fingerprint)
    elif not isinstance(model, MergedModel):
        yield _parent(model.ref, model.path, model.fingerprint)


def _parent(ref: str, folder: Path, fingerprint: str) -> Parent:
    name, revision = model_origin(ref, folder)
    licence, found_in = read_licence(folder)
    return Parent(name, revision, fingerprint, licence, found_in)
