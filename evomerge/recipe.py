"""What a merge is: operator, sources and parameters, as data.

Reads and writes the mergekit YAML subset `models` + `parameters`, with scalars and
`{filter, value}` lists (substring of the tensor's name, first hit wins).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import RecipeError

Scalar = float | int | bool | str
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Case:
    """One line of a `{filter, value}` list; a filter of None matches every tensor."""

    filter: str | None
    value: Scalar


Setting = Scalar | tuple[Case, ...]
"""A parameter's value: the same for all tensors, or chosen by the tensor's name."""


@dataclass(frozen=True)
class Source:
    """A model that takes part in a merge, with the parameters that are its own."""

    model: str
    parameters: Mapping[str, Setting] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Recipe:
    """A merge as data.

    Attributes:
        method: name of the operator (`evomerge.operators.names()`).
        sources: the models, in order.
        base: the model that task vectors start from, if the operator needs one.
        parameters: parameters of the whole merge, and defaults for the sources'.
        dtype: of the tensors that come out.
    """

    method: str
    sources: tuple[Source, ...]
    base: str | None = None
    parameters: Mapping[str, Setting] = field(default_factory=dict, hash=False)
    dtype: str = "bfloat16"

    def models(self) -> tuple[str, ...]:
        """Every model that the recipe reads, the base first, without repeats."""
        refs = ([self.base] if self.base else []) + [s.model for s in self.sources]
        return tuple(dict.fromkeys(refs))

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data in mergekit's form."""
        out: dict[str, Any] = {"merge_method": self.method}
        if self.base:
            out["base_model"] = self.base
        out["models"] = [
            {"model": s.model, "parameters": _plain_parameters(s.parameters)}
            if s.parameters
            else {"model": s.model}
            for s in self.sources
        ]
        if self.parameters:
            out["parameters"] = _plain_parameters(self.parameters)
        out["dtype"] = self.dtype
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """Reads plain data in mergekit's form.

        Raises:
            RecipeError: naming the key at fault below `where`.
        """
        return _read(data, where)

    def to_yaml(self, identities: Mapping[str, str] | None = None) -> str:
        """The recipe as mergekit YAML; the digest stands in a comment on top."""
        data = self.to_dict()
        # PyYAML folds these line breaks into spaces unless it escapes all that is not ASCII.
        breaks = any(c in json.dumps(data, ensure_ascii=False) for c in "\x85\u2028\u2029")
        body = yaml.safe_dump(data, sort_keys=False, allow_unicode=not breaks)
        return f"# digest: {self.digest(identities)}\n{body}"

    @classmethod
    def from_yaml(cls, path: Path) -> Recipe:
        """Reads a YAML file.

        Raises:
            RecipeError: if the file cannot be read or is not a recipe.
        """
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            first = " ".join(str(error).split())
            raise RecipeError.of(
                str(path), first, "a readable YAML file", "Check the path and the syntax."
            ) from error
        return _read(data, str(path))

    def digest(self, identities: Mapping[str, str] | None = None) -> str:
        """sha256 of the recipe's meaning, 64 hex digits.

        With `identities` (model reference to content fingerprint) it does not depend on
        where the models lie or what they are called. Equal numbers count as one value,
        however they are written (1 and 1.0).
        """
        data = _canonical(self.to_dict())
        names = identities or {}
        if self.base:
            data["base_model"] = names.get(self.base, self.base)
        for entry in data["models"]:
            entry["model"] = names.get(entry["model"], entry["model"])
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def resolve(setting: Setting, tensor: str) -> Scalar | None:
    """Value of a setting for one tensor; None where no case matches."""
    if not isinstance(setting, tuple):
        return setting
    for case in setting:
        if case.filter is None or case.filter == "*" or case.filter in tensor:
            return case.value
    return None


def _canonical(value: Any) -> Any:
    """Plain data with every whole float as an integer, so that 1.0 and 1 print the same."""
    if isinstance(value, dict):
        return {k: _canonical(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_canonical(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain_parameters(parameters: Mapping[str, Setting]) -> dict[str, Any]:
    return {name: _plain(setting) for name, setting in parameters.items()}


def _plain(setting: Setting) -> Any:
    if not isinstance(setting, tuple):
        return setting
    return [
        {"value": c.value} if c.filter is None else {"filter": c.filter, "value": c.value}
        for c in setting
    ]


_LARGEST = 2**63
_KEYS = ("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype")


def _read(data: Any, where: str) -> Recipe:
    if not isinstance(data, Mapping):
        raise _bad(where, type(data).__name__, "a mapping with merge_method and models")
    unknown = [str(k) for k in data if k not in _KEYS]
    if unknown:
        raise _bad(f"{where}: {unknown[0]}", "an unsupported key", f"one of {', '.join(_KEYS)}")
    method = data.get("merge_method")
    if not isinstance(method, str):
        raise _bad(f"{where}: merge_method", repr(method), "the name of an operator")
    models = data.get("models")
    if not isinstance(models, Sequence) or isinstance(models, str | bytes) or not models:
        raise _bad(f"{where}: models", repr(models), "a list of at least one model")
    base = data.get("base_model")
    if base is not None and (not isinstance(base, str) or not base):
        raise _bad(f"{where}: base_model", repr(base), "a path or a hub name")
    dtype = "bfloat16"
    for key in ("dtype", "out_dtype"):
        if data.get(key) is not None:
            dtype = data[key]
            if dtype not in DTYPES:
                raise _bad(f"{where}: {key}", repr(dtype), f"one of {', '.join(DTYPES)}")
    return Recipe(
        method=method,
        sources=tuple(_source(m, f"{where}: models[{i}]") for i, m in enumerate(models)),
        base=base,
        parameters=_settings(data.get("parameters"), f"{where}: parameters"),
        dtype=dtype,
    )


def _source(entry: Any, where: str) -> Source:
    model = entry.get("model") if isinstance(entry, Mapping) else None
    if not isinstance(model, str) or not model:
        raise _bad(where, repr(entry), "a mapping with `model: <path or hub name>`")
    unknown = [str(k) for k in entry if k not in ("model", "parameters")]
    if unknown:
        raise _bad(f"{where}.{unknown[0]}", "an unsupported key", "model or parameters")
    return Source(model, _settings(entry.get("parameters"), f"{where}.parameters"))


def _settings(data: Any, where: str) -> dict[str, Setting]:
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise _bad(where, repr(data), "a mapping of parameter names to values")
    return {str(k): _setting(v, f"{where}.{k}") for k, v in data.items()}


def _setting(value: Any, where: str) -> Setting:
    if isinstance(value, list):
        return tuple(_case(v, f"{where}[{i}]") for i, v in enumerate(value))
    return _scalar(value, where)


def _case(value: Any, where: str) -> Case:
    if not isinstance(value, Mapping) or "value" not in value:
        raise _bad(where, repr(value), "{filter: <substring of tensor names>, value: <number>}")
    unknown = [str(k) for k in value if k not in ("filter", "value")]
    if unknown:
        raise _bad(f"{where}.{unknown[0]}", "an unsupported key", "filter or value")
    pattern = value.get("filter")
    return Case(None if pattern is None else str(pattern), _scalar(value["value"], where))


def _scalar(value: Any, where: str) -> Scalar:
    if isinstance(value, float) and not math.isfinite(value):
        raise _bad(where, repr(value), "a finite number")
    if not isinstance(value, bool | int | float | str):
        raise _bad(where, repr(value), "a number, a boolean, a word or a list of cases")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise _bad(where, "an integer of more than 63 bits", "a number of ordinary size")
    return value


def _bad(field_name: str, found: str, expected: str) -> RecipeError:
    return RecipeError.of(field_name, found, expected, "Correct the recipe.")
