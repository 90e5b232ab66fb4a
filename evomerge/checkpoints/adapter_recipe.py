"""A recipe over LoRA adapters that is written as an adapter again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from evomerge import operators
from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.adapter_merge import (
    LINEAR,
    AdapterReport,
    deltas,
    merge_adapters,
    module_shapes,
)
from evomerge.checkpoints.arguments import Scopes, arguments, check_filters, seed_of
from evomerge.checkpoints.card import merge_card
from evomerge.checkpoints.checking import check_recipe, groups
from evomerge.checkpoints.layout import Layout, layout_of
from evomerge.errors import RecipeError
from evomerge.kernels.masks import MaskKey
from evomerge.operators import Operator
from evomerge.recipe import Recipe

_CARD = ("Merged adapter", "A LoRA adapter, merged from others by evomerge.")


def write_adapter(
    recipe: Recipe,
    out: Path,
    rank: int | None = None,
    allow_pickled: bool = False,
    extra: Mapping[str, str] | None = None,
) -> AdapterReport:
    """Merges the adapters of a recipe of `models` into one adapter.

    Task vectors are what the adapters add, so that the base is zero unless the recipe's base is
    one of the adapters. Linear sums are exact by default; everything else is factored to a rank.

    Args:
        recipe: its models are adapters of one model.
        out: must not exist.
        rank: of the result, see `merge_adapters`.
        allow_pickled: whether `.bin` adapters may be read.
        extra: further text files, name to content.

    Raises:
        RecipeError: if the recipe is of another form or has too few or many models.
        SourceError: if a model is no adapter or the adapters do not fit together.
    """
    check_recipe(recipe)
    if not recipe.sources or recipe.pieces is not None or recipe.route is not None:
        raise RecipeError.of(
            "models", "a recipe of slices, modules, a route or pieces", "a list of adapters",
            "Merge adapters by `models`.",
        )  # fmt: skip
    if recipe.methods:
        raise RecipeError.of(
            "merge_method", "a list of operators", "one operator for adapters", "Choose one."
        )
    for key in ("scope", "tokenizer", "chat_template"):
        if getattr(recipe, key) is not None:
            raise RecipeError.of(
                key, f"a {key} for adapters", "none, as an adapter has no such thing", "Remove it."
            )
    operator = operators.get(recipe.method)
    adapters = {}
    for i, source in enumerate(recipe.sources):
        if not isinstance(source.model, str):
            raise RecipeError.of(
                f"models[{i}].model", "a nested merge", "an adapter", "Merge it first."
            )
        adapters[source.model] = _open(source.model, f"models[{i}].model", allow_pickled)
    sources = list(recipe.sources)
    base = None
    if isinstance(recipe.base, str) and recipe.base in adapters and operator.takes_base != "never":
        base = adapters[recipe.base]
        sources = [s for s in sources if s.model != recipe.base]
    used = [adapters[str(s.model)] for s in sources]
    operator.check(True, len(used))
    every = list(adapters.values())
    layout = layout_of([f"{module}.weight" for module in module_shapes(every)])
    scopes = Scopes(
        tuple((s.parameters, recipe.parameters) for s in sources),
        (recipe.parameters,),
        tuple(f"models[{recipe.sources.index(s)}].parameters" for s in sources),
    )

    def given(module: str) -> dict[str, object]:
        name = f"{module}.weight"
        return arguments(operator, scopes, name, [name] * len(used), depth_of(layout, name))

    def weights(module: str) -> list[float]:
        return sum_weights(operator, given(module))

    def dense(module: str) -> Tensor:
        matrices = deltas(used if base is None else [base, *used], module)
        start = matrices.pop(0) if base is not None else torch.zeros_like(matrices[0])
        keys = None
        if operator.needs_keys:
            seed = seed_of(scopes, f"{module}.weight", depth_of(layout, f"{module}.weight"))
            keys = [MaskKey(seed, a.fingerprint, f"{module}.weight") for a in used]
        origin = None if operator.takes_base == "never" else start
        return operators.merge(operator.name, origin, matrices, keys=keys, **given(module))

    check_filters(groups(recipe), [f"{module}.weight" for module in module_shapes(every)])
    identities = {ref: adapter.fingerprint for ref, adapter in adapters.items()}
    if isinstance(recipe.base, str):
        identities.setdefault(recipe.base, "")
    text = recipe.to_yaml(identities)
    files = {
        "README.md": merge_card(*_CARD, recipe, identities),
        "recipe.yaml": text,
        **(extra or {}),
    }
    exact = operator.name in LINEAR and base is None
    report = merge_adapters(
        used, weights, out, method=operator.name, dense=None if exact else dense, rank=rank,
        dtype=getattr(torch, recipe.dtype or "float32"), extra=files | dict(extra or {}),
    )  # fmt: skip
    return replace(report, digest=recipe.digest(identities))


def _open(ref: str, field: str, allow_pickled: bool) -> Adapter:
    """An adapter; of `model+adapter` the part behind the sign."""
    alone = ref if Path(ref).is_dir() or "+" not in ref else ref.rpartition("+")[2]
    return Adapter(alone, field, allow_pickled)


def depth_of(layout: Layout, name: str) -> float:
    """Depth of a module in [0, 1]; 0 outside the blocks."""
    group = layout.group_of(name)
    if not group.startswith("block."):
        return 0.0
    return int(group.removeprefix("block.")) / (layout.blocks - 1) if layout.blocks > 1 else 1.0


def sum_weights(operator: Operator, given: Mapping[str, object]) -> list[float]:
    """Weights of a plain sum: the operator's, divided by their sum and scaled as it says."""
    raw = given["weight"]
    assert isinstance(raw, Sequence)
    weights = [float(w) for w in raw]
    total = sum(weights)
    default = operator.defaults.get("normalize", False)
    if given.get("normalize", default) and abs(total) >= 1e-8:
        weights = [w / total for w in weights]
    scale = given.get("lambda_", 1.0)
    assert isinstance(scale, int | float)
    return [w * float(scale) for w in weights]
