"""Merges of any depth up to that of a running model: identities fill the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evomerge.checkpoints.layout import layout_of
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.parts import Assembly
from evomerge.checkpoints.route_config import layer_entries, layer_values
from evomerge.checkpoints.routing import fixed_depth
from evomerge.errors import CandidateError
from evomerge.recipe import Recipe, Route, Slot

_TIE = "tie_word_embeddings"


def blocks_of(assembly: Assembly) -> int:
    """Number of transformer blocks that a merge writes."""
    return layout_of(part.name for part in assembly.parts).blocks


def at_depth(recipe: Recipe, merger: Merger, depth: int) -> Assembly:
    """Plans a merge for a running model of a fixed number of blocks.

    A merge that is no route is taken for the route through its own blocks; its values stay the
    same.

    Args:
        recipe: of `depth` blocks or fewer.
        merger: opens the models.
        depth: blocks of the running model.

    Raises:
        CandidateError: if the merge has more blocks.
        RecipeError, SourceError: as `Merger.assemble`.
    """
    assembly = merger.assemble(recipe)
    blocks = blocks_of(assembly)
    if blocks > depth:
        raise too_deep(blocks, depth)
    if blocks == depth:
        return assembly
    if recipe.route is None:
        slots = tuple(Slot(recipe, layer) for layer in range(blocks))
        recipe = Recipe("passthrough", dtype=recipe.dtype, route=Route(slots))
    route = recipe.route
    assert route is not None
    return merger.assemble(replace(recipe, route=fixed_depth(route, depth)))


def too_deep(blocks: int, depth: int) -> CandidateError:
    """What to tell of a merge that a running model has no room for."""
    return CandidateError(
        f"the merge has {blocks} blocks and the engine {depth}: lower the depth of the recipe, or "
        "start the engine on a model of that depth (a study does so for space.depth)"
    )


class Places:
    """What a running model does at each place, whichever block's weights it is given.

    The attention of Gemma 2, say, is local at every second place. A block that a route moves
    there would compute something else than in the model that is written.
    """

    def __init__(self, config: Mapping[str, Any], depth: int) -> None:
        """Takes the running language model's whole config and its number of blocks."""
        self._values = layer_entries(config, depth)

    def check(self, assembly: Assembly) -> None:
        """Checks that the blocks of a merge stand where they compute what they are meant to.

        Raises:
            CandidateError: naming the first place where the merge's config says something else.
        """
        if not self._values:
            return
        wanted = layer_values(assembly.config, blocks_of(assembly))
        for key in self._values.keys() & wanted.keys():
            for place, (now, own) in enumerate(zip(self._values[key], wanted[key], strict=False)):
                if now != own:
                    raise CandidateError(
                        f"block {place} of the merge has {own} in {key}, and the engine {now} at "
                        "that place, whatever weights it is given: write the merge and start an "
                        "engine on it, or leave blocks where their kind stays the same"
                    )


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether a merge's config lets its head be the embedding, as far as it says."""
    parts = [config, *(v for v in config.values() if isinstance(v, Mapping))]
    return all(part.get(_TIE) is not False for part in parts)
