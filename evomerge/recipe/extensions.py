"""Single keys of a recipe: the type of what is written, the scope, the pieces."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from evomerge.recipe.data import DTYPES, Pieces, Scope
from evomerge.recipe.fields import (
    Place,
    given,
    read_list,
    read_mapping,
    read_number,
    read_text,
    read_whole,
    shown,
)
from evomerge.recipe.references import read_reference


def read_dtype(data: Any, place: Place) -> str:
    """The type of the written tensors, also with `torch.` in front.

    Raises:
        RecipeError: for another type; wider ones would only cost memory.
    """
    name = data.removeprefix("torch.") if isinstance(data, str) else None
    if name not in DTYPES:
        raise place.error(
            shown(data), f"one of {', '.join(DTYPES)}",
            "It is the type of the written tensors; sums are formed in float32 in any case.",
        )  # fmt: skip
    return str(name)


def read_scope(data: Any, place: Place) -> Scope:
    """A part of the model and the parent of the rest.

    Raises:
        RecipeError: naming the key at fault.
    """
    keys = given(read_mapping(data, place, ("prefix", "rest"), "{prefix: ..., rest: MODEL}"))
    prefix = read_text(keys.get("prefix"), place.key("prefix"), "the start of tensor names")
    rest = keys.get("rest")
    return Scope(prefix, None if rest is None else read_reference(rest, place.key("rest")))


def read_pieces(data: Any, place: Place, sources: int) -> Pieces:
    """Intervals, and as many coefficients for each as there are sources.

    Raises:
        RecipeError: naming the number or the row at fault.
    """
    form = "{breakpoints: [...], coefficients: [[...], ...]}"
    keys = read_mapping(data, place, ("breakpoints", "coefficients"), form)
    if not sources:
        raise place.error("pieces without models", "the key models beside it")
    at = place.key("breakpoints")
    breakpoints = tuple(
        read_whole(v, at.item(i), 1)
        for i, v in enumerate(read_list(keys.get("breakpoints"), at, "whole number"))
    )
    for i, (before, after) in enumerate(pairwise(breakpoints), 1):
        if before >= after:
            raise at.item(i).error(f"{after} after {before}", "strictly increasing numbers")
    at = place.key("coefficients")
    rows = read_list(keys.get("coefficients"), at, "row")
    if len(rows) != len(breakpoints):
        raise at.error(f"{len(rows)} rows", f"{len(breakpoints)}, one for each breakpoint")
    return Pieces(
        breakpoints, tuple(_read_row(row, at.item(i), sources) for i, row in enumerate(rows))
    )


def _read_row(data: Any, place: Place, length: int) -> tuple[float, ...]:
    row = read_list(data, place, "number")
    if len(row) != length:
        raise place.error(f"{len(row)} numbers", f"{length}, one for each model")
    return tuple(read_number(v, place.item(j)) for j, v in enumerate(row))
