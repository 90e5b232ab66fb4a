"""An operator's arguments for one tensor, from the settings of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from evomerge.errors import RecipeError
from evomerge.operators import Operator
from evomerge.operators.parameters import Choice, Parameter
from evomerge.recipe import Scalar, Settings, cases, resolve, values

SEED = Parameter(0.0, 2.0**63)
"""Of the random masks; a recipe of any operator may have one."""


@dataclass(frozen=True)
class Scopes:
    """Where values are looked up, the nearest first.

    Attributes:
        sources: for each source its own settings and those around it.
        shared: the settings around all sources.
        where: field of each source's own settings, for messages.
    """

    sources: tuple[tuple[Settings, ...], ...]
    shared: tuple[Settings, ...]
    where: tuple[str, ...]


def arguments(
    operator: Operator, scopes: Scopes, name: str, inputs: Sequence[str], t: float
) -> dict[str, Any]:
    """Arguments of an operator for one tensor.

    Args:
        operator: says which there are.
        scopes: of the recipe.
        name: of the tensor in the output, which filters of shared values look at.
        inputs: its names in the sources, which filters of the sources' values look at.
        t: depth in [0, 1], for gradients.

    Raises:
        RecipeError: if a value is missing for this tensor, or a gradient leaves the range.
    """
    out: dict[str, Any] = {}
    for key, parameter in operator.parameters.items():
        if isinstance(parameter, Parameter) and parameter.per_source:
            out[_python_name(key)] = [
                _per_source(scopes, i, key, parameter, source, t) for i, source in enumerate(inputs)
            ]
            continue
        value = _lookup(scopes.shared, key, name, t)
        if value is not None:
            check_value(f"parameters.{key}", value, parameter)
            whole = isinstance(parameter, Parameter) and parameter.whole
            out[_python_name(key)] = int(value) if whole else value
        elif key not in operator.defaults:
            raise RecipeError.of(
                f"parameters.{key}", f"no value for tensor {name}", _expected(parameter), "Add it."
            )
    return out


def seed_of(scopes: Scopes, name: str, t: float) -> int:
    """The seed of the random masks of a tensor."""
    return int(_lookup(scopes.shared, "seed", name, t) or 0)


def check_settings(
    where: str,
    settings: Settings,
    known: dict[str, Parameter | Choice],
    others: frozenset[str],
    method: str,
) -> None:
    """Checks names and values of one group of settings; `others` are passed over.

    Raises:
        RecipeError: naming the parameter.
    """
    for key, setting in settings.items():
        if key not in known and key in others:
            continue
        if key not in known:
            raise RecipeError.of(
                f"{where}.{key}", "a parameter that the operator does not have",
                f"one of {', '.join(sorted(known))} for {method}", likely(key, known),
            )  # fmt: skip
        if known[key] is SEED and any(isinstance(c.value, tuple) for c in cases(setting)):
            raise RecipeError.of(f"{where}.{key}", "a gradient", "one integer", "Correct it.")
        for value in values(setting):
            check_value(f"{where}.{key}", value, known[key])
            if known[key] is SEED and not isinstance(value, int):
                raise RecipeError.of(f"{where}.{key}", repr(value), "an integer", "Correct it.")


def likely(word: str, known: Iterable[str]) -> str:
    """What to do about a name that does not exist."""
    close = get_close_matches(word, sorted(known), n=1)
    return f"Did you mean {close[0]}?" if close else "Correct the name."


def check_filters(groups: Iterable[tuple[str, Settings]], names: Iterable[str]) -> None:
    """Checks that every filter is a part of some tensor's name; a typo would go unnoticed.

    Args:
        groups: settings with their fields.
        names: of the tensors of the output and of the models.

    Raises:
        RecipeError: naming the filter, with names that are like it.
    """
    text = "\n".join(dict.fromkeys(names))
    for where, settings in groups:
        for key, setting in settings.items():
            for case in cases(setting):
                if case.filter in (None, "*") or str(case.filter) in text:
                    continue
                raise RecipeError.of(
                    f"{where}.{key}", f"the filter {case.filter!r}, which no tensor's name has",
                    f"a part of a tensor's name, such as {_examples(str(case.filter), text)}",
                    "Correct the filter, or remove its line.",
                )  # fmt: skip


def _examples(pattern: str, text: str) -> str:
    """The parts of names that are most like a filter, and a few of the names."""
    lines = text.splitlines()
    pieces = dict.fromkeys(part for line in lines for part in line.split(".") if not part.isdigit())
    close = get_close_matches(pattern, pieces, n=2, cutoff=0.5)
    return ", ".join([*close, *lines[:: max(1, len(lines) // 3)][:3]])


def check_value(where: str, value: Scalar, parameter: Parameter | Choice) -> None:
    """Checks one value.

    Raises:
        RecipeError: if it is out of range or of another kind.
    """
    if isinstance(parameter, Choice):
        if value not in parameter.values:
            raise RecipeError.of(where, repr(value), _expected(parameter), "Correct it.")
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not parameter.low <= float(value) <= parameter.high:
        raise RecipeError.of(where, repr(value), _expected(parameter), "Correct it.")
    if parameter.whole and float(value) != int(value):
        raise RecipeError.of(where, repr(value), "a whole number", "Correct it.")


def _per_source(
    scopes: Scopes, i: int, key: str, parameter: Parameter, name: str, t: float
) -> float | None:
    value = _lookup(scopes.sources[i], key, name, t)
    if value is not None:
        check_value(f"{scopes.where[i]}.{key}", value, parameter)
        return float(value)
    if parameter.default is None:
        raise RecipeError.of(
            f"{scopes.where[i]}.{key}", f"no value for tensor {name}", _expected(parameter),
            "Add it, or a case without filter.",
        )  # fmt: skip
    return parameter.default


def _lookup(scopes: Sequence[Settings], key: str, name: str, t: float) -> Scalar | None:
    for settings in scopes:
        if key in settings:
            value = resolve(settings[key], name, t)
            if value is not None:
                return value
    return None


def _expected(parameter: Parameter | Choice) -> str:
    if isinstance(parameter, Choice):
        return f"one of {', '.join(map(str, parameter.values))}"
    return f"a number in [{parameter.low:g}, {parameter.high:g}]"


def _python_name(key: str) -> str:
    return "lambda_" if key == "lambda" else key
