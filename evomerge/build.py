"""Builds components from plain config: `{_target_: package.module.Name, argument: value}`.

Only names of this package and of registered plug-ins (entry points of the group
`evomerge.plugins`) are accepted, so a config file cannot run foreign code.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from evomerge.errors import ConfigError

TARGET = "_target_"


def build(spec: Mapping[str, Any], field: str, **extra: Any) -> Any:
    """Calls the target of a config node with the node's other keys as arguments.

    Nested nodes with a target are built first.

    Args:
        spec: the node.
        field: where it stands in the config, for error messages.
        extra: arguments that the program adds.

    Raises:
        ConfigError: for a target that is not allowed or does not exist, and for
            arguments that it does not take or lacks.
    """
    target = load_target(spec, field)
    arguments = {k: _nested(v, f"{field}.{k}") for k, v in spec.items() if k != TARGET}
    _check_arguments(target, arguments, extra, field)
    return target(**arguments, **extra)


def load_target(spec: Mapping[str, Any], field: str) -> Any:
    """Imports what `_target_` names.

    Raises:
        ConfigError: if it is missing, not allowed or does not exist.
    """
    path = spec.get(TARGET) if isinstance(spec, Mapping) else None
    if not isinstance(path, str) or "." not in path:
        raise ConfigError.of(
            f"{field}.{TARGET}", repr(path), "the dotted name of a component",
            f"Choose one by its group, for example {field.split('.')[0]}=NAME.",
        )  # fmt: skip
    module_name, name = path.rsplit(".", 1)
    if module_name.split(".")[0] not in _allowed():
        raise ConfigError.of(
            f"{field}.{TARGET}", path, f"a name below {', '.join(sorted(_allowed()))}",
            "Register other packages as an entry point of the group evomerge.plugins.",
        )  # fmt: skip
    try:
        found = getattr(import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError.of(
            f"{field}.{TARGET}", path, "a component that exists", f"({error})"
        ) from error
    if str(getattr(found, "__module__", "")).split(".")[0] not in _allowed():
        raise ConfigError.of(
            f"{field}.{TARGET}", path, "a component defined by that package", "Correct the name."
        )
    if not callable(found) or inspect.isabstract(found) or getattr(found, "_is_protocol", False):
        raise ConfigError.of(
            f"{field}.{TARGET}", path, "a class or function that can be called", "Correct the name."
        )
    return found


@cache
def _allowed() -> frozenset[str]:
    plugins = (e.value.split(":")[0].split(".")[0] for e in entry_points(group="evomerge.plugins"))
    return frozenset({"evomerge", *plugins})


def _nested(value: Any, field: str) -> Any:
    if isinstance(value, Mapping):
        if TARGET in value:
            return build(value, field)
        return {k: _nested(v, f"{field}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_nested(v, f"{field}[{i}]") for i, v in enumerate(value)]
    return value


def _check_arguments(
    target: Any, arguments: Mapping[str, Any], extra: Mapping[str, Any], field: str
) -> None:
    parameters = inspect.signature(target).parameters.values()
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    foreign = [] if open_ended else [name for name in extra if name not in named]
    if foreign:
        raise ConfigError.of(
            f"{field}.{TARGET}", f"{target.__qualname__}, which takes no {foreign[0]}",
            f"a component for {field.split('.')[0]}", "Correct the name.",
        )  # fmt: skip
    settable = [name for name in named if name not in extra]
    for key in arguments:
        if key in extra or (key not in settable and not open_ended):
            close = get_close_matches(key, settable, n=1)
            hint = f"Did you mean {field}.{close[0]}?" if close else "Remove it."
            expected = f"one of {', '.join(settable)}" if settable else "no key"
            raise ConfigError.of(f"{field}.{key}", "an unknown key", expected, hint)
    for name in settable:
        if named[name].default is inspect.Parameter.empty and name not in arguments:
            raise ConfigError.of(f"{field}.{name}", "nothing", "a value", f"Set {field}.{name}.")
