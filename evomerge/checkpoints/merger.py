"""Turns a recipe and its checkpoints into a stream of (name, tensor)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from evomerge import operators
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import RecipeError, SourceError
from evomerge.operators import Operator
from evomerge.operators.masks import MaskKey
from evomerge.operators.parameters import Choice, Parameter
from evomerge.recipe import Recipe, Scalar, Setting, resolve

_SEED = Parameter(0.0, 2.0**63)
"""Of the random masks; a recipe of any operator may have one."""


class Merger:
    """Merges recipes tensor by tensor; opened sources stay memory-mapped between recipes.

    Peak memory beyond the maps is a few copies of the largest tensor.
    """

    def __init__(self) -> None:
        self._open: dict[str, Checkpoint] = {}

    def checkpoint(self, ref: str, field: str = "model") -> Checkpoint:
        """A source, opened at its first use."""
        if ref not in self._open:
            self._open[ref] = Checkpoint(ref, field)
        return self._open[ref]

    def identities(self, recipe: Recipe) -> dict[str, str]:
        """Content fingerprint of every model of a recipe, for its digest."""
        return {ref: self.checkpoint(ref).fingerprint for ref in recipe.models()}

    def merge(self, recipe: Recipe) -> Iterator[tuple[str, Tensor]]:
        """Yields every tensor of the merged model, in the order of the base's files.

        Integer and boolean tensors (position ids, masks) are not merged but passed on as they
        are; the sources have to agree on them.

        Raises:
            RecipeError: if the operator does not know or lacks a parameter.
            SourceError: if the sources do not fit together.
        """
        operator = operators.get(recipe.method)
        base = self.checkpoint(recipe.base, "base_model") if recipe.base else None
        if operator.needs_base and base is None:
            raise RecipeError.of(
                "base_model",
                "none",
                f"a base, since {recipe.method} merges task vectors",
                "Name the model that the sources were fine-tuned from.",
            )
        sources = [self.checkpoint(s.model) for s in recipe.sources]
        check_recipe(recipe)
        template = base or sources[0]
        for source in sources:
            check_fit(template, source)
        dtype = getattr(torch, recipe.dtype)
        for name in template.names:
            if template.tensor(name).is_floating_point():
                merged = _merge_tensor(operator, recipe, name, base, sources, template)
                yield name, merged.to(dtype)
            else:
                yield name, _common(name, template, sources)


def check_recipe(recipe: Recipe) -> None:
    """Checks parameter names, values and ranges against the operator's signature.

    Raises:
        RecipeError: naming the parameter.
    """
    operator = operators.get(recipe.method)
    known: dict[str, Parameter | Choice] = {**operator.parameters, "seed": _SEED}
    own = {k: p for k, p in known.items() if isinstance(p, Parameter) and p.per_source}
    _check_settings("parameters", recipe.parameters, known, recipe.method)
    for i, source in enumerate(recipe.sources):
        where = f"models[{i}].parameters"
        for key in source.parameters:
            if key in known and key not in own:
                raise RecipeError.of(
                    f"{where}.{key}", "a parameter of the whole merge", "it below parameters",
                    f"Move it to parameters.{key}.",
                )  # fmt: skip
        _check_settings(where, source.parameters, own, recipe.method)
        for key, parameter in own.items():
            given = key in source.parameters or key in recipe.parameters
            if not given and parameter.default is None:
                raise RecipeError.of(
                    f"{where}.{key}", "nothing", f"a number in {_interval(parameter)}",
                    f"Add it there or to parameters.{key}.",
                )  # fmt: skip


def _check_settings(
    where: str,
    settings: Mapping[str, Setting],
    known: Mapping[str, Parameter | Choice],
    method: str,
) -> None:
    for key, setting in settings.items():
        if key not in known:
            raise RecipeError.of(
                f"{where}.{key}", "a parameter that the operator does not have",
                f"one of {', '.join(sorted(known))} for {method}", "Correct the name.",
            )  # fmt: skip
        for value in _values(setting):
            _check_value(f"{where}.{key}", value, known[key])
            if known[key] is _SEED and not isinstance(value, int):
                raise RecipeError.of(f"{where}.{key}", repr(value), "an integer", "Correct it.")


def check_fit(template: Checkpoint, source: Checkpoint) -> None:
    """Checks that a source has the template's tensors in the template's shapes.

    Extra rows at the end of embeddings and heads (tokens added by a fine-tuner) are allowed.

    Raises:
        SourceError: naming the first tensor that does not fit.
    """
    missing = [n for n in template.names if n not in source.shapes]
    extra = [n for n in source.names if n not in template.shapes]
    if missing or extra:
        found = f"no tensor {missing[0]}" if missing else f"an unknown tensor {extra[0]}"
        raise SourceError.of(
            source.field,
            f"{found} in {source.ref} ({len(missing)} missing, {len(extra)} extra)",
            f"the same tensors as {template.ref}",
            "Merge models of one architecture and depth.",
        )
    for name in template.names:
        have, want = source.shapes[name], template.shapes[name]
        grown = have[1:] == want[1:] and len(have) == 2 and have[0] > want[0]
        if have != want and not (grown and _is_vocabulary(template, name)):
            raise SourceError.of(
                source.field,
                f"{name} of shape {list(have)} in {source.ref}",
                f"shape {list(want)} as in {template.ref}",
                "Merge models of one architecture and vocabulary.",
            )


def _common(name: str, template: Checkpoint, sources: list[Checkpoint]) -> Tensor:
    tensor = template.tensor(name)
    for source in sources:
        if not torch.equal(source.tensor(name), tensor):
            raise SourceError.of(
                source.field, f"{name} ({source.dtype(name)}) in {source.ref} with other values",
                f"those of {template.ref}, since integers cannot be merged",
                "Merge models that are not quantised.",
            )  # fmt: skip
    return tensor


def _is_vocabulary(template: Checkpoint, name: str) -> bool:
    text = template.config.get("text_config")
    rows = template.config.get("vocab_size") or (text or {}).get("vocab_size")
    return template.shapes[name][0] == rows and template.layout.group_of(name) in (
        "embedding",
        "head",
    )


def _merge_tensor(
    operator: Operator,
    recipe: Recipe,
    name: str,
    base: Checkpoint | None,
    sources: list[Checkpoint],
    template: Checkpoint,
) -> Tensor:
    rows = template.shapes[name][0] if template.shapes[name] else 0

    def read(checkpoint: Checkpoint) -> Tensor:
        tensor = checkpoint.tensor(name)
        if tensor.dim() and tensor.shape[0] > rows:
            tensor = tensor[:rows]
        return tensor.to(torch.float32)

    arguments: dict[str, Any] = {}
    for key, parameter in operator.parameters.items():
        if isinstance(parameter, Parameter) and parameter.per_source:
            values = [_per_source(recipe, i, key, parameter, name) for i in range(len(sources))]
            arguments[_python_name(key)] = values
        else:
            value = _lookup(recipe.parameters, key, name)
            if value is not None:
                arguments[_python_name(key)] = value
    if operator.needs_keys:
        seed = int(_lookup(recipe.parameters, "seed", name) or 0)
        arguments["keys"] = [MaskKey(seed, s.fingerprint, name) for s in sources]
    merged: Tensor = operator.function(
        read(base) if base else None, [read(s) for s in sources], **arguments
    )
    return merged


def _per_source(recipe: Recipe, i: int, key: str, parameter: Parameter, name: str) -> float:
    value = _lookup(recipe.sources[i].parameters, key, name)
    if value is None:
        value = _lookup(recipe.parameters, key, name)
    if value is None:
        value = parameter.default
    if value is None:
        raise RecipeError.of(
            f"models[{i}].parameters.{key}",
            f"no value for tensor {name}",
            f"a number in {_interval(parameter)}",
            "Add it, or a case without filter.",
        )
    return float(value)


def _lookup(settings: Any, key: str, name: str) -> Scalar | None:
    return resolve(settings[key], name) if key in settings else None


def _values(setting: Setting) -> list[Scalar]:
    return [c.value for c in setting] if isinstance(setting, tuple) else [setting]


def _check_value(where: str, value: Scalar, parameter: Parameter | Choice) -> None:
    if isinstance(parameter, Choice):
        if value not in parameter.values:
            raise RecipeError.of(
                where, repr(value), f"one of {', '.join(map(str, parameter.values))}", "Correct it."
            )
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not parameter.low <= float(value) <= parameter.high:
        raise RecipeError.of(
            where, repr(value), f"a number in {_interval(parameter)}", "Correct it."
        )


def _interval(parameter: Parameter) -> str:
    return f"[{parameter.low:g}, {parameter.high:g}]"


def _python_name(key: str) -> str:
    return "lambda_" if key == "lambda" else key
