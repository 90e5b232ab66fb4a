"""Recipes to plain data and YAML text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from evomerge.recipe.data import Case, Module, Recipe, Route, Slice, Slot, Source
from evomerge.recipe.references import plain_tokenizer
from evomerge.recipe.settings import plain_settings

_Names = Mapping[str, str]


def plain_recipe(recipe: Recipe, names: _Names | None = None) -> dict[str, Any]:
    """A recipe as plain data, in mergekit's form wherever that can say it.

    Args:
        recipe: to be written.
        names: what to write for a model reference instead of itself.
    """
    names = names or {}
    out: dict[str, Any] = {"merge_method": recipe.method}
    if recipe.methods:
        listed = (*recipe.methods, Case(None, recipe.method))
        out = plain_settings({"merge_method": listed})
    if recipe.base:
        out["base_model"] = _model(recipe.base, names)
    if recipe.sources or not (recipe.slices or recipe.modules or recipe.route):
        out["models"] = _sources(recipe.sources, names)
    if recipe.slices:
        out["slices"] = _slices(recipe.slices, names)
    if recipe.modules:
        out["modules"] = {key: _module(m, names) for key, m in recipe.modules.items()}
    if recipe.route:
        out["route"] = _route(recipe.route, names)
    if recipe.pieces:
        rows = [list(row) for row in recipe.pieces.coefficients]
        out["pieces"] = {"breakpoints": list(recipe.pieces.breakpoints), "coefficients": rows}
    if recipe.parameters:
        out["parameters"] = plain_settings(recipe.parameters)
    if recipe.tokenizer:
        long = plain_tokenizer(recipe.tokenizer, names)
        plain = long.keys() == {"source"}
        out.update({"tokenizer_source": long["source"]} if plain else {"tokenizer": long})
    if recipe.chat_template is not None:
        out["chat_template"] = recipe.chat_template
    if recipe.scope:
        out["scope"] = {"prefix": recipe.scope.prefix}
        if recipe.scope.rest is not None:
            out["scope"]["rest"] = _model(recipe.scope.rest, names)
    if recipe.dtype is not None:
        out["dtype"] = recipe.dtype
    return out


def _model(model: str | Recipe, names: _Names) -> Any:
    return names.get(model, model) if isinstance(model, str) else plain_recipe(model, names)


def _sources(sources: Iterable[Source], names: _Names) -> list[dict[str, Any]]:
    return [_source(source, names) for source in sources]


def _source(source: Source, names: _Names) -> dict[str, Any]:
    out = {"model": _model(source.model, names)}
    if source.layer_range is not None:
        out["layer_range"] = list(source.layer_range)
    if source.parameters:
        out["parameters"] = plain_settings(source.parameters)
    return out


def _slices(slices: Iterable[Slice], names: _Names) -> list[dict[str, Any]]:
    return [_slice(run, names) for run in slices]


def _slice(run: Slice, names: _Names) -> dict[str, Any]:
    out: dict[str, Any] = {"sources": _sources(run.sources, names)}
    if run.base:
        out["base_model"] = _model(run.base, names)
    if run.parameters:
        out["parameters"] = plain_settings(run.parameters)
    return out


def _module(module: Module, names: _Names) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if module.sources:
        out["models"] = _sources(module.sources, names)
    if module.slices:
        out["slices"] = _slices(module.slices, names)
    if module.parameters:
        out["parameters"] = plain_settings(module.parameters)
    return out


def _route(route: Route, names: _Names) -> dict[str, Any]:
    out: dict[str, Any] = {"scale": route.scale}
    if route.depth is not None:
        out["depth"] = route.depth
    out["slots"] = [_slot(slot, names) for slot in route.slots]
    return out


def _slot(slot: Slot, names: _Names) -> dict[str, Any]:
    if slot.model is None:
        out: dict[str, Any] = {"identity": True}
    else:
        out = {"model": _model(slot.model, names), "layer": slot.layer}
    return out if slot.scale == 1.0 else {**out, "scale": slot.scale}


def yaml_text(data: Mapping[str, Any]) -> str:
    """Plain data as YAML."""
    # PyYAML folds these line breaks into spaces unless it escapes all that is not ASCII.
    breaks = any(c in json.dumps(data, ensure_ascii=False) for c in "\x85\u2028\u2029")
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=not breaks)


def references(recipe: Recipe) -> Iterator[str]:
    """Every model reference of a recipe and of the merges in it, repeats included."""
    for model in _blocks(recipe):
        if isinstance(model, Recipe):
            yield from references(model)
        elif model:
            yield model
    if recipe.tokenizer:
        if recipe.tokenizer.source not in ("base", "union"):
            yield recipe.tokenizer.source
        yield from (rule.model for rule in recipe.tokenizer.tokens.values() if rule.model)
    if recipe.scope and recipe.scope.rest:
        yield recipe.scope.rest


def _blocks(recipe: Recipe) -> Iterator[str | Recipe | None]:
    yield recipe.base
    parts = [Module(recipe.sources, recipe.slices), *recipe.modules.values()]
    for part in parts:
        yield from (source.model for source in part.sources)
        for run in part.slices:
            yield run.base
            yield from (source.model for source in run.sources)
    if recipe.route:
        yield from (slot.model for slot in recipe.route.slots)
