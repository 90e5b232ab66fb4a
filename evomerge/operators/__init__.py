"""Merge operators: pure functions from a tensor's view to a plan, one file each.

An operator is a function named as its file,

    operator(view: Annotated[View, Takes(...)], *, <parameters>) -> Plan

that looks at the view's shape, and at statistics where it needs some. `Takes` says what models
it needs; the annotated keyword parameters are its search dimensions: per-source ones arrive as
a sequence with one value a source, the others as a scalar. Files whose names begin with an
underscore, and `parameters`, are no operators.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from evomerge.errors import RecipeError, SourceError
from evomerge.kernels.masks import MaskKey
from evomerge.kernels.plans import Plan
from evomerge.kernels.tensor_merge import TensorMerge
from evomerge.kernels.view import View
from evomerge.kernels.weight import Stored
from evomerge.operators.parameters import Choice, Parameter, Takes, TakesBase

_NOT_OPERATORS = frozenset({"parameters"})


@dataclass(frozen=True)
class Operator:
    """An operator with what its signature says of it.

    Attributes:
        name: as used in a recipe's `merge_method`.
        function: the pure function.
        parameters: its keyword parameters by their recipe name.
        defaults: values of the parameters that the signature gives one.
        takes_base: see `Takes`.
        least_sources: fewest sources, the base not counted.
        most_sources: most sources; None for any number.
        needs_keys: whether it draws random masks.
    """

    name: str
    function: Callable[..., Plan]
    parameters: dict[str, Parameter | Choice]
    defaults: dict[str, Any]
    takes_base: TakesBase
    least_sources: int
    most_sources: int | None
    needs_keys: bool

    def is_per_source(self, parameter: str) -> bool:
        """Whether each source has its own value of a parameter."""
        found = self.parameters.get(parameter)
        return isinstance(found, Parameter) and found.per_source

    @property
    def needs_base(self) -> bool:
        """Whether there has to be a base."""
        return self.takes_base == "required"

    def check(self, has_base: bool, sources: int) -> None:
        """Checks what models there are.

        Raises:
            RecipeError: if there is no base but has to be one, or too few or many sources.
        """
        if self.needs_base and not has_base:
            raise RecipeError.of(
                "base_model",
                "none",
                f"a base, since {self.name} needs one",
                "Name the model that the sources were fine-tuned from.",
            )
        least, most = self.least_sources, self.most_sources
        if sources < least or (most is not None and sources > most):
            if most is None:
                number = f"at least {least}"
            else:
                number = str(least) if most == least else f"{least} to {most}"
            besides = "" if self.takes_base == "never" else " besides the base"
            raise RecipeError.of(
                "models", f"{sources} sources{besides}", f"{number} for {self.name}",
                "Leave some out or add some.",
            )  # fmt: skip

    def plan(self, view: View, parameters: Mapping[str, Any]) -> Plan:
        """What the operator does to one tensor.

        Args:
            view: with a base and sources as `check` wants them, and keys if it needs them.
            parameters: by recipe name, sequences for the per-source ones; those with a default
                may be left out.
        """
        given = dict(parameters)
        for key, parameter in self.parameters.items():
            if not isinstance(parameter, Parameter) or not parameter.per_source:
                continue
            if key not in given and parameter.default is not None:
                given[key] = [parameter.default] * len(view.sources)
        return self.function(view, **{_python_name(k): v for k, v in given.items()})


@cache
def names() -> tuple[str, ...]:
    """Names of all operators, sorted."""
    found = (m.name for m in pkgutil.iter_modules(__path__))
    return tuple(sorted(n for n in found if n[0] != "_" and n not in _NOT_OPERATORS))


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
    takes: Takes = get_args(hints["view"])[1]
    return Operator(
        name=name,
        function=function,
        parameters=parameters,
        defaults=defaults,
        takes_base=takes.base,
        least_sources=takes.least,
        most_sources=takes.most,
        needs_keys=takes.keys,
    )


def merge(
    name: str,
    base: Tensor | None,
    sources: Sequence[Tensor],
    *,
    keys: Sequence[MaskKey] | None = None,
    **parameters: Any,
) -> Tensor:
    """Merges tensors that are in hand.

    Args:
        name: of the operator.
        base: the base's tensor; None where the operator does without. Left aside by an
            operator that takes none.
        sources: the sources' tensors, all of the base's shape and on one device.
        keys: what each source's random mask is drawn from, for operators that draw some;
            default: seed 0 and the source's position.
        parameters: by recipe name (`lambda_` for `lambda`): a sequence with one number a source
            for the per-source ones, a scalar for the others.

    Returns:
        A float32 tensor of the sources' shape.

    Raises:
        RecipeError: if there is no such operator or parameter, one is missing, or the number of
            models is wrong.
        SourceError: if the shapes differ.
    """
    operator = get(name)
    operator.check(base is not None, len(sources))
    if operator.takes_base == "never":
        base = None
    given = {k.rstrip("_"): v for k, v in parameters.items()}
    _check_names(operator, given, len(sources))
    tensors = [t.detach().contiguous() for t in (*sources, *([] if base is None else [base]))]
    shape = tensors[0].shape
    for i, tensor in enumerate(tensors):
        if tensor.shape != shape:
            raise SourceError.of(
                f"sources[{i}]" if i < len(sources) else "base", f"shape {list(tensor.shape)}",
                f"shape {list(shape)} as of sources[0]", "Merge tensors of one shape.",
            )  # fmt: skip
    if keys is None:
        keys = [MaskKey(0, str(i), "") for i in range(len(sources))]
    stored = [Stored(t) for t in tensors]
    view = View(None if base is None else stored[-1], stored[: len(sources)], keys)
    out = torch.empty(shape, dtype=torch.float32, device=tensors[0].device)
    TensorMerge(view, operator.plan(view, given)).write(out)
    return out


def _check_names(operator: Operator, given: Mapping[str, Any], count: int) -> None:
    for key in given:
        if key not in operator.parameters:
            raise RecipeError.of(
                f"parameters.{key}", "a parameter that the operator does not have",
                f"one of {', '.join(sorted(operator.parameters))} for {operator.name}",
                "Correct the name.",
            )  # fmt: skip
    for key, parameter in operator.parameters.items():
        own = isinstance(parameter, Parameter) and parameter.per_source
        if key in given:
            if own and (isinstance(given[key], int | float) or len(given[key]) != count):
                raise RecipeError.of(
                    f"parameters.{key}", repr(given[key]), f"a sequence of {count} numbers",
                    "Give one a source.",
                )  # fmt: skip
        elif key not in operator.defaults and (
            not isinstance(parameter, Parameter) or parameter.default is None
        ):
            raise RecipeError.of(
                f"parameters.{key}", "nothing", f"a value for {operator.name}", "Add it."
            )


def _python_name(key: str) -> str:
    return "lambda_" if key == "lambda" else key
