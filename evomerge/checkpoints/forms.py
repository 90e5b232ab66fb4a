"""Routes and merges by pieces as lists of tensors."""

from __future__ import annotations

from evomerge.checkpoints.fit import (
    check_common,
    check_config,
    check_fit,
    check_plain,
    check_vocabulary,
)
from evomerge.checkpoints.flat import FlatOrder
from evomerge.checkpoints.parts import Assembly, Input, Part, is_float, key_of, out_dtype
from evomerge.checkpoints.region import whole
from evomerge.checkpoints.routing import fold
from evomerge.checkpoints.stretches import Opener
from evomerge.errors import RecipeError
from evomerge.kernels.plans import Combination, Pieced
from evomerge.pieces import Piecewise, weights_at
from evomerge.recipe import Recipe


def routed(recipe: Recipe, open_model: Opener) -> Assembly:
    """Plans the checkpoint that a route is folded into.

    Raises:
        RecipeError: if the route cannot be.
        SourceError: if a model cannot be opened, does not fit or cannot be folded.
    """
    route = recipe.route
    assert route is not None
    models = {
        t: open_model(slot.model, f"route.slots[{t}].model")
        for t, slot in enumerate(route.slots)
        if slot.model is not None
    }
    keys = {t: key_of(s.model) for t, s in enumerate(route.slots) if s.model is not None}
    if not models:
        raise RecipeError.of(
            "route.slots", "identities only" if route.slots else "none",
            "at least one block of a model",
            "A route that keeps no block has nothing to run: give the blocks in order.",
        )  # fmt: skip
    if recipe.base is not None:
        first, home = open_model(recipe.base, "base_model"), key_of(recipe.base)
    else:
        first, home = models[min(models)], keys[min(models)]
    for model in {id(m): m for m in (first, *models.values())}.values():
        check_plain(model)
    folded = fold(route, models, first)
    parts = []
    for made in folded.tensors:
        model = first if made.slot is None else models[made.slot]
        key = home if made.slot is None else keys[made.slot]
        floating = is_float(model, made.source_name)
        parts.append(
            Part(
                name=made.name,
                shape=model.shapes[made.source_name],
                dtype=out_dtype(recipe, model, made.source_name)
                if floating
                else model.tensor(made.source_name).dtype,
                sources=(Input(model, made.source_name, key),),
                plan=Combination((made.gain,), offset=made.offset) if floating else None,
            )
        )
    config = {**first.config, **folded.config}
    return Assembly(tuple(parts), config, first, None, folded.notes)


def pieced(recipe: Recipe, open_model: Opener) -> Assembly:
    """Plans a merge by pieces of the flattened parameters.

    Raises:
        RecipeError: if the pieces are those of other models.
        SourceError: if a model cannot be opened or does not fit.
    """
    assert recipe.pieces is not None
    models = [open_model(s.model, f"models[{i}].model") for i, s in enumerate(recipe.sources)]
    keys = [key_of(s.model) for s in recipe.sources]
    first = models[0]
    notes: dict[str, None] = {}
    for model in models:
        check_fit(first, model)
        told = check_vocabulary(first, model)
        notes |= dict.fromkeys([*([told] if told else []), *check_config(first, model)])
    order = FlatOrder.of(first)
    pieces = Piecewise.from_pieces(recipe.pieces)
    if pieces.total != order.total:
        raise RecipeError.of(
            "pieces.breakpoints", f"the last at {pieces.total}",
            f"{order.total}, the number of parameters of {first.ref}",
            "Use the recipe with the models that it was made for.",
        )  # fmt: skip
    parts = []
    region = whole(first)
    for name in first.names:
        if not is_float(first, name):
            for model in models[1:]:
                if name in model.shapes:
                    check_common(name, first, model, name)
            tensor = first.tensor(name)
            one = Input(first, name, keys[0])
            parts.append(Part(name, tuple(tensor.shape), tensor.dtype, (one,)))
            continue
        inputs = []
        for model, key in zip(models, keys, strict=True):
            found = region.counterpart(name, whole(model))
            own = found is not None
            inputs.append(Input(model, found or name, key) if own else Input(first, name, keys[0]))
        offset = order.offset(name)
        runs = weights_at(pieces, [order.span(name)])
        plan = Pieced(
            tuple(stop - offset for _, stop, _ in runs),
            tuple(tuple(map(float, c)) for _, _, c in runs),
        )
        dtype = out_dtype(recipe, first, name)
        parts.append(Part(name, first.shapes[name], dtype, tuple(inputs), plan=plan))
    return Assembly(tuple(parts), dict(first.config), first, notes=tuple(notes))
