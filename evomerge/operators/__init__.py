"""Merge operators: pure functions on tensors, one file each.

An operator is a function named as its file,

    operator(base, sources, *, <parameters>) -> Tensor

where `base` is a float32 tensor or None, `sources` are float32 tensors of one shape, and
the annotated keyword parameters are its search dimensions: `PerSource` ones arrive as a
sequence with one value a source, the others as a scalar. A parameter called `keys` receives
the `MaskKey` of each source for operators that draw random masks.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from evomerge.errors import RecipeError
from evomerge.operators.parameters import Choice, Parameter

_NOT_OPERATORS = frozenset({"parameters", "masks", "vectors"})


@dataclass(frozen=True)
class Operator:
    """An operator with what its signature says of it.

    Attributes:
        name: as used in a recipe's `merge_method`.
        function: the pure function.
        parameters: searchable and settable parameters by their recipe name.
        defaults: values of the parameters that the signature gives one.
        needs_base: whether `base` may not be None.
        needs_keys: whether it draws random masks.
    """

    name: str
    function: Callable[..., Any]
    parameters: dict[str, Parameter | Choice]
    defaults: dict[str, Any]
    needs_base: bool
    needs_keys: bool


@cache
def names() -> tuple[str, ...]:
    """Names of all operators, sorted."""
    found = (m.name for m in pkgutil.iter_modules(__path__))
    return tuple(sorted(n for n in found if n not in _NOT_OPERATORS))


@cache
def get(name: str) -> Operator:
    """Loads one operator.

    Raises:
        RecipeError: if there is none of that name.
    """
    if name not in names():
        raise RecipeError.of(
            "merge_method", repr(name), f"one of {', '.join(names())}", "Correct the name."
        )
    function = getattr(import_module(f"{__name__}.{name}"), name)
    signature = inspect.signature(function)
    hints = get_type_hints(function, include_extras=True)
    parameters: dict[str, Parameter | Choice] = {}
    defaults: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        hint = hints[parameter.name]
        if parameter.kind is parameter.KEYWORD_ONLY and get_origin(hint) is Annotated:
            recipe_name = parameter.name.rstrip("_")
            parameters[recipe_name] = get_args(hint)[1]
            if parameter.default is not parameter.empty:
                defaults[recipe_name] = parameter.default
    base_hint = hints["base"]
    return Operator(
        name=name,
        function=function,
        parameters=parameters,
        defaults=defaults,
        needs_base=type(None) not in get_args(base_hint),
        needs_keys="keys" in signature.parameters,
    )
