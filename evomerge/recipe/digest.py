"""A name for what a recipe means."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from evomerge.recipe.data import Recipe
from evomerge.recipe.writing import plain_recipe


def digest(recipe: Recipe, identities: Mapping[str, str]) -> str:
    """sha256, 64 hex digits, of a recipe whose models are named by `identities`."""
    data = _canonical(plain_recipe(recipe, identities))
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # A path that is not UTF-8 reaches us with lone surrogates.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _canonical(value: Any) -> Any:
    """Plain data with every whole float as an integer, so that 1.0 and 1 print the same."""
    if isinstance(value, dict):
        return {k: _canonical(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_canonical(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
