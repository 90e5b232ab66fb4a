"""Plain data in mergekit's form, and in ours where that has no word, to recipes.

The form was read off mergekit 0.1.5 (config.py, tokenizer/config.py, common.py). Keys that
it does not know, and would skip in silence, are errors here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from evomerge.errors import RecipeError
from evomerge.recipe.data import (
    READINGS,
    Case,
    Module,
    Pieces,
    Recipe,
    Route,
    Slice,
    Slot,
    Source,
    Tokenizer,
)
from evomerge.recipe.extensions import read_dtype, read_pieces, read_scope
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
from evomerge.recipe.loading import TooMuchError, check_size, load_yaml
from evomerge.recipe.references import read_reference, read_tokenizer
from evomerge.recipe.settings import read_settings

_T = TypeVar("_T")
_BLOCKS = 10_000
"""Most blocks that a route is written with."""
_SHAPES = ("models", "slices", "modules", "route")
_KEYS = (
    "merge_method",
    "base_model",
    *_SHAPES,
    "pieces",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "scope",
)


def read_dict(data: Any, where: str) -> Recipe:
    """A recipe from plain data; `where` stands in front of the keys in errors.

    Raises:
        RecipeError: naming the key at fault.
    """
    try:
        check_size(data, _parts)
    except TooMuchError as error:
        raise RecipeError.of(
            where, str(error), "a recipe of ordinary size", "Shorten it."
        ) from error
    return _read_recipe(data, Place(where))


def read_file(path: Path) -> Recipe:
    """A recipe from a YAML file.

    Raises:
        RecipeError: naming the line or the key at fault.
    """
    return _read_recipe(load_yaml(path), Place(str(path)))


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _read_recipe(data: Any, place: Place) -> Recipe:
    keys = given(read_mapping(data, place, _KEYS, "a mapping with merge_method and models"))
    shapes = [key for key in _SHAPES if key in keys]
    if len(shapes) != 1:
        raise place.key(shapes[1] if shapes else "models").error(
            " and ".join(shapes) or "nothing", f"exactly one of {', '.join(_SHAPES)}"
        )

    def read(key: str, reader: Callable[[Any, Place], _T], absent: _T) -> _T:
        return reader(keys[key], place.key(key)) if key in keys else absent

    def read_own_pieces(data: Any, at: Place) -> Pieces:
        return read_pieces(data, at, len(sources))

    def read_own_route(data: Any, at: Place) -> Route:
        return _read_route(data, at, "base_model" in keys)

    sources: tuple[Source, ...] = read("models", _read_sources, ())
    method, methods = _read_methods(keys, place)
    return Recipe(
        method=method,
        sources=sources,
        base=read("base_model", _read_model, None),
        parameters=read("parameters", read_settings, {}),
        dtype=read("out_dtype", read_dtype, read("dtype", read_dtype, None)),
        slices=read("slices", _read_slices, ()),
        modules=read("modules", _read_modules, {}),
        tokenizer=_read_vocabulary(keys, place),
        chat_template=read("chat_template", _read_template, None),
        scope=read("scope", read_scope, None),
        route=read("route", read_own_route, None),
        pieces=read("pieces", read_own_pieces, None),
        methods=methods,
    )


def _read_methods(keys: Mapping[str, Any], place: Place) -> tuple[str, tuple[Case, ...]]:
    """The operator of most tensors, and cases for the others."""
    data = keys.get("merge_method")
    if not isinstance(data, list | tuple):
        return _read_method(keys, place), ()
    place = place.key("merge_method")
    for key in ("route", "pieces"):
        if key in keys:
            raise place.error("a list of operators", f"one operator beside {key}")
    form = "{filter: <part of tensor names>, value: <operator>}"
    entries = read_list(data, place, "case")
    found = []
    for i, entry in enumerate(entries):
        at = place.item(i)
        case = given(read_mapping(entry, at, ("filter", "value"), form))
        pattern = case.get("filter")
        if pattern is not None:
            pattern = read_text(pattern, at.key("filter"), "a part of tensor names, in quotes")
        if (pattern in (None, "*")) != (i == len(entries) - 1):
            raise at.key("filter").error(
                shown(pattern), "a filter in every case but the last, which is for all the rest"
            )
        name = read_text(case.get("value"), at.key("value"), "the name of an operator")
        if name == "pieces":
            raise at.key("value").error(shown(name), "an operator; pieces stand alone")
        found.append(Case(pattern, name))
    return str(found[-1].value), tuple(found[:-1])


def _read_method(keys: Mapping[str, Any], place: Place) -> str:
    default = "passthrough" if "route" in keys else None
    place = place.key("merge_method")
    method = read_text(keys.get("merge_method", default), place, "the name of an operator")
    if "route" in keys and method != "passthrough":
        raise place.error(shown(method), "passthrough, for a route", "Remove it.")
    if ("pieces" in keys) != (method == "pieces"):
        beside = "beside" if "pieces" in keys else "without"
        raise place.error(f"{shown(method)} {beside} the key pieces", "merge_method: pieces "
                          "together with the key pieces, or neither")  # fmt: skip
    return method


def _read_model(data: Any, place: Place) -> str | Recipe:
    if isinstance(data, Mapping) and any(key in data for key in _KEYS):
        return _read_recipe(data, place.nested())
    return read_reference(data, place)


def _read_sources(data: Any, place: Place) -> tuple[Source, ...]:
    entries = read_list(data, place, "model")
    return tuple(_read_source(entry, place.item(i)) for i, entry in enumerate(entries))


def _read_source(data: Any, place: Place, in_slice: bool = False) -> Source:
    form = "{model: <path or hub name>, parameters: {...}}"
    if isinstance(data, Mapping) and "layer_range" in data and not in_slice:
        raise place.key("layer_range").error(
            "a range of layers outside slices", "it below slices[].sources[]",
            "Remove it to merge whole models, or write slices.",
        )  # fmt: skip
    allowed = ("model", "layer_range", "parameters") if in_slice else ("model", "parameters")
    keys = read_mapping(data, place, allowed, form)
    return Source(
        _read_model(keys.get("model"), place.key("model")),
        read_settings(keys.get("parameters"), place.key("parameters")),
        _read_range(keys.get("layer_range"), place.key("layer_range")) if in_slice else None,
    )


def _read_range(data: Any, place: Place) -> tuple[int, int]:
    expected = "two whole numbers [first, end], 0 <= first < end"
    if not isinstance(data, list | tuple) or len(data) != 2:
        raise place.error(shown(data), expected)
    first, end = (read_whole(v, place.item(i)) for i, v in enumerate(data))
    if first >= end:
        raise place.error(shown(list(data)), expected)
    return first, end


def _read_slices(data: Any, place: Place) -> tuple[Slice, ...]:
    entries = read_list(data, place, "slice")
    return tuple(_read_slice(entry, place.item(i)) for i, entry in enumerate(entries))


def _read_slice(data: Any, place: Place) -> Slice:
    allowed = ("sources", "base_model", "parameters", "residual_weight")
    keys = given(read_mapping(data, place, allowed, "{sources: [...]}"))
    if "residual_weight" in keys:
        raise place.key("residual_weight").error(
            shown(keys["residual_weight"]), "null; mergekit ignores it", "Remove it."
        )
    at = place.key("sources")
    entries = read_list(keys.get("sources"), at, "source")
    sources = tuple(_read_source(e, at.item(i), in_slice=True) for i, e in enumerate(entries))
    lengths = [end - first for first, end in (s.layer_range or (0, 0) for s in sources)]
    if len(set(lengths)) > 1:
        raise at.error(f"layer ranges of {', '.join(map(str, lengths))} layers", "equal lengths")
    base = keys.get("base_model")
    return Slice(
        sources,
        None if base is None else _read_model(base, place.key("base_model")),
        read_settings(keys.get("parameters"), place.key("parameters")),
    )


def _read_modules(data: Any, place: Place) -> dict[str, Module]:
    modules = read_mapping(data, place, None, "a mapping of module names to models or slices")
    if not modules:
        raise place.error("an empty mapping", "at least one module")
    return {name: _read_module(entry, place.key(name)) for name, entry in modules.items()}


def _read_module(data: Any, place: Place) -> Module:
    allowed = ("models", "slices", "parameters")
    keys = given(read_mapping(data, place, allowed, "{models: [...]} or {slices: [...]}"))
    if ("models" in keys) == ("slices" in keys):
        found = "both" if "models" in keys else "neither"
        raise place.error(f"{found} of models and slices", "one of them")
    parameters = read_settings(keys.get("parameters"), place.key("parameters"))
    if "models" in keys:
        return Module(_read_sources(keys["models"], place.key("models")), (), parameters)
    return Module((), _read_slices(keys["slices"], place.key("slices")), parameters)


def _read_vocabulary(keys: Mapping[str, Any], place: Place) -> Tokenizer | None:
    if "tokenizer" in keys:
        if "tokenizer_source" in keys:
            raise place.key("tokenizer_source").error(
                "tokenizer and tokenizer_source", "one of them", "Move it to tokenizer.source."
            )
        return read_tokenizer(keys["tokenizer"], place.key("tokenizer"))
    if "tokenizer_source" not in keys:
        return None
    return Tokenizer(read_reference(keys["tokenizer_source"], place.key("tokenizer_source")))


def _read_template(data: Any, place: Place) -> str:
    return read_text(data, place, "auto or a Jinja template")


def _read_route(data: Any, place: Place, has_base: bool) -> Route:
    keys = given(read_mapping(data, place, ("scale", "depth", "slots"), "{slots: [...]}"))
    at = place.key("slots")
    entries = read_list(keys.get("slots"), at, "slot")
    slots = tuple(_read_slot(entry, at.item(i)) for i, entry in enumerate(entries))
    if all(slot.model is None for slot in slots) and not has_base:
        raise at.error("identities only", "at least one block of a model, or a base_model")
    reading = keys.get("scale", READINGS[0])
    if reading not in READINGS:
        raise place.key("scale").error(shown(reading), f"one of {', '.join(READINGS)}")
    depth = keys.get("depth")
    if depth is not None and read_whole(depth, place.key("depth"), 0, _BLOCKS) < len(slots):
        raise place.key("depth").error(f"{depth} for {len(slots)} slots", f"{len(slots)} or more")
    return Route(slots, reading, depth)


def _read_slot(data: Any, place: Place) -> Slot:
    form = "{model: ..., layer: ..., scale: ...} or {identity: true}"
    keys = given(read_mapping(data, place, ("model", "layer", "scale", "identity"), form))
    scale = read_number(keys.get("scale", 1.0), place.key("scale"))
    if "identity" in keys:
        if keys["identity"] is not True:
            raise place.key("identity").error(shown(keys["identity"]), "true, or no such key")
        for key in ("model", "layer"):
            if key in keys:
                raise place.key(key).error("a block for an identity", form)
        return Slot(None, scale=scale)
    model = _read_model(keys.get("model"), place.key("model"))
    return Slot(model, read_whole(keys.get("layer"), place.key("layer")), scale)
