"""Values of parameters: by the tensor's name, by depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.recipe.data import Case, Recipe, Scalar, Setting, Value
from evomerge.recipe.fields import Place, read_mapping, read_scalar, shown


def resolve(setting: Setting, tensor: str, t: float = 0.0) -> Scalar | None:
    """Value of a setting for one tensor; None where it says nothing.

    The first case whose filter is None, `*` or a part of the name decides. A gradient of n
    values has value i at depth i / (n - 1): numbers are interpolated linearly between
    neighbours, booleans and words hold until the next one.

    Args:
        setting: of one parameter.
        tensor: the tensor's name.
        t: the tensor's depth in its slice, from 0 (first block) to 1 (last block).

    Raises:
        ValueError: for a depth outside [0, 1].
    """
    for case in cases(setting):
        if case.filter is None or case.filter == "*" or case.filter in tensor:
            value = case.value
            return _at(value, t) if isinstance(value, tuple) else value
    return None


def method_of(recipe: Recipe, tensor: str) -> str:
    """Name of the operator that makes one tensor."""
    chosen = resolve(recipe.methods, tensor)
    return recipe.method if chosen is None else str(chosen)


def methods_of(recipe: Recipe) -> tuple[str, ...]:
    """Names of all operators of a recipe, `method` first, without repeats."""
    return tuple(dict.fromkeys((recipe.method, *(str(c.value) for c in recipe.methods))))


def cases(setting: Setting) -> tuple[Case, ...]:
    """A setting as cases; what holds for all tensors is one case without a filter."""
    if not isinstance(setting, tuple):
        return (Case(None, setting),)
    filtered = tuple(c for c in setting if isinstance(c, Case))
    if filtered or not setting:
        return filtered
    return (Case(None, tuple(v for v in setting if not isinstance(v, Case))),)


def values(setting: Setting) -> Iterator[Scalar]:
    """Every single value that stands in a setting, in order."""
    for case in cases(setting):
        yield from case.value if isinstance(case.value, tuple) else (case.value,)


def _at(gradient: tuple[Scalar, ...], t: float) -> Scalar | None:
    if not 0.0 <= t <= 1.0:
        raise ValueError(f"depth {t}; expected a number in [0, 1]")
    if not gradient:
        return None
    position = t * (len(gradient) - 1)
    i = int(position)
    first, second = gradient[i], gradient[min(i + 1, len(gradient) - 1)]
    part = position - i
    if part == 0.0 or any(isinstance(v, bool | str) for v in gradient):
        return first
    return (1.0 - part) * float(first) + part * float(second)


def read_settings(data: Any, place: Place) -> dict[str, Setting]:
    """Parameters from plain data; null is none.

    Raises:
        RecipeError: naming the parameter at fault.
    """
    if data is None:
        return {}
    names = read_mapping(data, place, None, "a mapping of parameter names to values")
    return {name: _read_setting(value, place.key(name)) for name, value in names.items()}


def _read_setting(data: Any, place: Place) -> Setting:
    if isinstance(data, Mapping):
        return (_read_case(data, place),)
    if isinstance(data, list | tuple) and any(isinstance(v, Mapping) for v in data):
        return tuple(_read_case(v, place.item(i)) for i, v in enumerate(data))
    return _read_value(data, place, "a number, a boolean, a word, a gradient or a list of cases")


def _read_case(data: Any, place: Place) -> Case:
    form = "{filter: <part of tensor names>, value: <number>}"
    case = read_mapping(data, place, ("filter", "value"), form)
    if "value" not in case:
        raise place.error(shown(data), form)
    pattern = case.get("filter")
    if pattern is not None and not isinstance(pattern, str):
        raise place.key("filter").error(shown(pattern), "a part of tensor names, in quotes")
    value = _read_value(case["value"], place.key("value"), "a number, a boolean or a word")
    return Case(pattern, value)


def _read_value(data: Any, place: Place, expected: str) -> Value:
    if not isinstance(data, list | tuple):
        return read_scalar(data, place, expected)
    one = "a number, a boolean or a word"
    return tuple(read_scalar(v, place.item(i), one) for i, v in enumerate(data))


def plain_settings(settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Parameters as plain data; `read_settings` reads them back."""
    return {name: _plain(setting) for name, setting in settings.items()}


def _plain(setting: Setting) -> Any:
    if not isinstance(setting, tuple):
        return setting
    return [_plain_case(v) if isinstance(v, Case) else v for v in setting]


def _plain_case(case: Case) -> dict[str, Any]:
    value = list(case.value) if isinstance(case.value, tuple) else case.value
    return {"value": value} if case.filter is None else {"filter": case.filter, "value": value}
