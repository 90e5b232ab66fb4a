"""Recipes that are their base and one adapter: weighted sums of LoRA adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from evomerge import operators
from evomerge.checkpoints.adapted import AdaptedCheckpoint
from evomerge.checkpoints.adapter_merge import LINEAR
from evomerge.checkpoints.adapter_recipe import depth_of, sum_weights
from evomerge.checkpoints.arguments import Scopes, arguments
from evomerge.checkpoints.model import Model
from evomerge.recipe import Recipe

Stack = dict[str, tuple[Tensor, Tensor]]
"""Module names to `rank x in` and `out x rank` float32 factors, whose product is added."""


def stacked(recipe: Recipe, open_model: Callable[[str], Model], base: Path) -> Stack | None:
    """The adapter that turns a base into what a recipe merges, exactly.

    It is there for `linear` and `task_arithmetic` over adapters of that base (and the base
    itself), where what is not adapted stays the base's own. Factors are put side by side, so
    that ranks add up; adapters of weight 0 are left out.

    Args:
        recipe: a merge that has been checked.
        open_model: opens a reference of the recipe.
        base: folder of the base.

    Returns:
        None for every other recipe; nothing in it for the base itself.
    """
    special = (recipe.route, recipe.pieces, recipe.scope, recipe.tokenizer, recipe.methods)
    if recipe.method not in LINEAR or not recipe.sources or any(special):
        return None
    references = [source.model for source in recipe.sources]
    named = [r for r in references if isinstance(r, str)]
    if len(named) != len(references):
        return None
    models = [open_model(ref) for ref in named]
    if not all(_plain(model, base) for model in models):
        return None
    operator = operators.get(recipe.method)
    vectors = operator.takes_base != "never"
    if vectors:
        if not isinstance(recipe.base, str) or not _is_base(open_model(recipe.base), base):
            return None
        if recipe.base in named:  # the base is no source of its own
            return None
    scopes = Scopes(
        tuple((s.parameters, recipe.parameters) for s in recipe.sources),
        (recipe.parameters,),
        tuple(f"models[{i}].parameters" for i in range(len(models))),
    )
    layout = models[0].layout
    found: Stack = {}
    for name in models[0].names:
        inputs = [name] * len(models)
        given = arguments(operator, scopes, name, inputs, depth_of(layout, name))
        weights = sum_weights(operator, given)
        if not vectors and abs(sum(weights) - 1.0) > 1e-6:
            return None
        pairs = [_factors(m, name, w) for m, w in zip(models, weights, strict=True) if w]
        kept = [pair for pair in pairs if pair is not None]
        if kept:
            a, b = (torch.cat(part, axis) for axis, part in enumerate(zip(*kept, strict=True)))
            found[name.removesuffix(".weight")] = a, b
    return found


def projections(model: Model) -> list[str]:
    """Last parts of the names of the matrices in a model's blocks, such as `q_proj`."""
    inside = [n for n in model.names if model.layout.group_of(n).startswith("block.")]
    found = {n.removesuffix(".weight").rpartition(".")[2] for n in inside
             if n.endswith(".weight") and len(model.shapes[n]) == 2}  # fmt: skip
    return sorted(found)


def rank_of(stack: Stack) -> int:
    """The largest rank of any module; 0 of nothing."""
    return max((a.shape[0] for a, _ in stack.values()), default=0)


def _is_base(model: Model, base: Path) -> bool:
    return not isinstance(model, AdaptedCheckpoint) and model.path.resolve() == base.resolve()


def _plain(model: Model, base: Path) -> bool:
    """Whether a model is the base, or the base with factors beside its projections alone."""
    if not isinstance(model, AdaptedCheckpoint):
        return _is_base(model, base)
    adapter, layout = model.adapter, model.layout
    inside = [n for n in model.names if layout.group_of(n).startswith("block.")]
    return (
        _is_base(model.base, base)
        and not adapter.saved
        and not adapter.fan_in_fan_out
        and not any(factors.embedding for factors in adapter.modules.values())
        and set(adapter.modules) <= {name.removesuffix(".weight") for name in inside}
    )


def _factors(model: Model, name: str, weight: float) -> tuple[Tensor, Tensor] | None:
    """What a model adds to a tensor of its base, times a weight."""
    module = name.removesuffix(".weight")
    if not isinstance(model, AdaptedCheckpoint) or module not in model.adapter.modules:
        return None
    factors = model.adapter.modules[module]
    a = model.adapter.tensor(factors.a).float()
    return a, model.adapter.tensor(factors.b).float() * (weight * factors.scale)
