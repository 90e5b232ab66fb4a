"""How many bytes a study's models take: in memory, and where they are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from evomerge.checkpoints.held import HeldModel
from evomerge.checkpoints.merged import MergedModel
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.model import Model
from evomerge.checkpoints.parts import Assembly
from evomerge.checkpoints.writer import output_bytes
from evomerge.errors import UserError
from evomerge.setup import Config
from evomerge.workers import template_recipe


def size(model: Model) -> int:
    """Bytes of a model's tensors, wherever they come from."""
    return output_bytes(model.assembly) if isinstance(model, MergedModel) else model.bytes()


def largest(model: Model) -> int:
    """Elements of a model's largest tensor."""
    return max(map(math.prod, model.shapes.values()), default=0)


def engine(config: Config, merger: Merger, base: Model) -> int:
    """Bytes of the model that engines hold: the base, or one of another shape if that is larger."""
    return max(size(base), template(config, merger))


def held(config: Config, merger: Merger) -> int:
    """Bytes of the merges that a worker keeps: a recipe file as a source is merged once.

    A recipe that such a file names in the place of a model is one more. What cannot be opened is
    left out; that is said elsewhere.
    """
    found: dict[str, HeldModel] = {}
    for ref in (config["models"]["base"], *config["models"]["sources"].values()):
        if ref is None:
            continue
        try:
            found |= _held([merger.checkpoint(ref)])
        except UserError:
            continue
    return sum(size(model) for model in found.values())


def _held(models: Iterable[Model]) -> dict[str, HeldModel]:
    """The merges kept for models, by reference, those that they are made of included."""
    found: dict[str, HeldModel] = {}
    for model in models:
        if isinstance(model, MergedModel):
            found |= _held(_inputs(model.assembly))
            if isinstance(model, HeldModel):
                found[model.ref] = model
    return found


def _inputs(assembly: Assembly) -> Iterator[Model]:
    """Every model that a merge reads, once."""
    models = {id(i.model): i.model for part in assembly.parts for i in part.inputs}
    yield from models.values()


def template(config: Config, merger: Merger) -> int:
    """Bytes of the model that engines start on where it is not the base; else 0."""
    if config["models"]["base"] is None:
        return 0
    try:
        recipe = template_recipe(config, merger)
        return 0 if recipe is None else output_bytes(merger.assemble(recipe))
    except UserError:
        return 0  # said where the space is checked
