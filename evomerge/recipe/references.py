"""How a recipe names models and vocabularies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.recipe.data import Tokenizer, TokenRule
from evomerge.recipe.fields import (
    Place,
    given,
    read_mapping,
    read_text,
    read_whole,
    shown,
)

_NAME = "a path, a hub name or model+adapter"
_ROWS = 1_000_000
"""Most rows that an embedding is padded to a multiple of."""


def read_reference(data: Any, place: Place) -> str:
    """A model's name from text or from mergekit's long form.

    The long form `{model: {path, revision}, lora: {path, revision}}` becomes
    `path@revision+path@revision`. Its `override_architecture` picks an entry of mergekit's
    table of architectures; there is no such table here, so it says nothing. A recipe file is
    looked up beside the recipe that names it, and where it is not there from the working
    directory on, as models are.

    Raises:
        RecipeError: if it is neither, or has a sign that separates the parts inside one.
    """
    if not isinstance(data, Mapping):
        name = read_text(data, place, _NAME)
        beside = Path(place.file).parent / name
        return str(beside) if is_recipe_file(name) and beside.is_file() else name
    parts = given(read_mapping(data, place, ("model", "lora", "override_architecture"), _NAME))
    if "model" not in parts:
        raise place.error(shown(data), "{model: {path: ..., revision: ...}, lora: {path: ...}}")
    return "+".join(_path(parts[k], place.key(k)) for k in ("model", "lora") if k in parts)


def is_recipe_file(ref: str) -> bool:
    """Whether a reference names a recipe, which stands for the model that it makes."""
    return ref.endswith((".yaml", ".yml")) and not Path(ref).is_dir()


def _path(data: Any, place: Place) -> str:
    if not isinstance(data, Mapping):
        name = read_text(data, place, "a path or a hub name")
    else:
        parts = given(read_mapping(data, place, ("path", "revision"), "{path, revision}"))
        texts = [read_text(parts.get("path"), place.key("path"), "a path or a hub name")]
        if "revision" in parts:
            texts.append(read_text(parts["revision"], place.key("revision"), "a revision"))
            if any("@" in text for text in texts):
                raise place.error(shown(data), "parts without @, which separates them")
        name = "@".join(texts)
    if "+" in name:
        raise place.error(shown(data), "a name without +, which separates model and adapter")
    return name


def read_tokenizer(data: Any, place: Place) -> Tokenizer:
    """The long form of the vocabulary: `{source, tokens, pad_to_multiple_of}`.

    Raises:
        RecipeError: naming the key at fault.
    """
    keys = ("source", "tokens", "pad_to_multiple_of")
    parts = given(read_mapping(data, place, keys, "{source, tokens, pad_to_multiple_of}"))
    at = place.key("tokens")
    tokens = read_mapping(parts.get("tokens", {}), at, None, "a mapping of tokens to rules")
    pad = parts.get("pad_to_multiple_of")
    return Tokenizer(
        source=read_reference(parts.get("source", "union"), place.key("source")),
        tokens={token: _read_rule(rule, at.key(token)) for token, rule in tokens.items()},
        pad_to_multiple_of=(
            None if pad is None else read_whole(pad, place.key("pad_to_multiple_of"), 1, _ROWS)
        ),
    )


def _read_rule(data: Any, place: Place) -> TokenRule:
    rule = given(read_mapping(data, place, ("source", "force"), "{source: ..., force: ...}"))
    force = rule.get("force", False)
    if not isinstance(force, bool):
        raise place.key("force").error(shown(force), "true or false")
    source, at = rule.get("source"), place.key("source")
    if source is None:
        return TokenRule(force=force)
    if not isinstance(source, Mapping) or "kind" not in source:
        return TokenRule("model", read_reference(source, at), force=force)
    if source["kind"] == "zero":
        read_mapping(source, at, ("kind",), "{kind: zero}")
        return TokenRule("zero", force=force)
    if source["kind"] != "model_token":
        raise at.key("kind").error(shown(source["kind"]), "zero or model_token")
    donor = given(read_mapping(source, at, ("kind", "model", "token", "token_id"), "a mapping"))
    if ("token" in donor) == ("token_id" in donor):
        raise at.error(shown(source), "either token or token_id")
    return TokenRule(
        "model_token",
        read_reference(donor.get("model"), at.key("model")),
        read_text(donor["token"], at.key("token"), "a token") if "token" in donor else None,
        read_whole(donor["token_id"], at.key("token_id")) if "token_id" in donor else None,
        force,
    )


def plain_tokenizer(tokenizer: Tokenizer, names: Mapping[str, str]) -> dict[str, Any]:
    """The long form as plain data, models renamed by `names`."""
    source = tokenizer.source
    if source not in ("base", "union"):
        source = names.get(source, source)
    out: dict[str, Any] = {"source": source}
    if tokenizer.tokens:
        out["tokens"] = {token: _plain_rule(r, names) for token, r in tokenizer.tokens.items()}
    if tokenizer.pad_to_multiple_of is not None:
        out["pad_to_multiple_of"] = tokenizer.pad_to_multiple_of
    return out


def _plain_rule(rule: TokenRule, names: Mapping[str, str]) -> dict[str, Any]:
    model = None if rule.model is None else names.get(rule.model, rule.model)
    source: Any = None
    if rule.kind == "zero":
        source = {"kind": "zero"}
    elif rule.kind == "model":
        source = model
    elif rule.kind == "model_token":
        donor = {"model": model, "token": rule.token, "token_id": rule.token_id}
        source = {"kind": "model_token", **given(donor)}
    return given({"source": source, "force": rule.force or None})
