"""What keeps a running engine from holding the routes of a space, found before it starts."""

from __future__ import annotations

import numpy as np

from evomerge.checkpoints.deepening import is_tied
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.model import Model
from evomerge.checkpoints.parts import Assembly
from evomerge.checkpoints.route_config import layer_values
from evomerge.errors import ConfigError
from evomerge.recipe import Recipe
from evomerge.space import SearchSpace


def check_routes(space: SearchSpace, base: str, merger: Merger) -> None:
    """Checks that one engine can run every route of a space; other spaces have nothing to check.

    Args:
        space: any.
        base: reference of the study's base, which runs in the same engine.
        merger: opens the models.

    Raises:
        ConfigError: if blocks are of different kinds, since the engine's places keep theirs, or
            if some routes tie the head to the embedding and others do not.
        RecipeError, SourceError: as `Merger.assemble`.
    """
    if not hasattr(space, "depth"):
        return
    begin = [np.array([d.start for d in space.dimensions]), *space.anchors()]
    ends = space.extremes() if hasattr(space, "extremes") else ()
    recipes = [space.decode(genome) for genome in (*begin, *ends)]
    if recipes[0].route is None:
        return
    _check_kinds(recipes, base, merger)
    heads = {is_tied(assembly.config) for assembly in _assembled(recipes, merger)}
    if len(heads) > 1:
        raise ConfigError.of(
            "space.scale_embedding", "true, and a head that is tied to the embedding",
            "one shape for all routes: a scaled embedding unties the head, for which the engine "
            "has no room",
            "Set space.scale_embedding=false, or use sources whose head is a tensor of its own.",
        )  # fmt: skip


def _assembled(recipes: list[Recipe], merger: Merger) -> list[Assembly]:
    """The merges that can be made; candidates without blocks fail by themselves."""
    return [merger.assemble(r) for r in recipes if r.route is not None and r.route.slots]


def _check_kinds(recipes: list[Recipe], base: str, merger: Merger) -> None:
    """Checks that all blocks of all models are of one kind.

    Raises:
        ConfigError: naming two kinds.
    """
    slots = [slot for recipe in recipes for slot in (recipe.route.slots if recipe.route else ())]
    refs = dict.fromkeys([base, *(slot.model for slot in slots if slot.model is not None)])
    kinds: dict[str, tuple[Model, int, object]] = {}
    for model in map(merger.model, refs):
        for key, values in layer_values(model.config, model.layout.blocks).items():
            for layer, value in enumerate(values):
                known, place, other = kinds.setdefault(key, (model, layer, value))
                if value != other:
                    raise ConfigError.of(
                        "space", f"routes through blocks of different kinds: {key} is {other} in "
                        f"block {place} of {known.ref} and {value} in block {layer} of {model.ref}",
                        "blocks of one kind, since a running engine keeps that of each place",
                        "Use a space that leaves blocks in place, or sources whose blocks are "
                        "alike.",
                    )  # fmt: skip
