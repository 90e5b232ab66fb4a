"""What a merge is: operator, sources and parameters, as data.

`Recipe.from_yaml` reads mergekit's files as they are. `to_yaml` writes them, with keys of our
own (nested merges, several methods, `scope`, `route`, `pieces`) only where a recipe uses them.
"""

from evomerge.recipe.data import (
    DTYPES,
    READINGS,
    Case,
    Module,
    Pieces,
    Recipe,
    Route,
    Scalar,
    Scope,
    Setting,
    Settings,
    Slice,
    Slot,
    Source,
    Tokenizer,
    TokenRule,
    Value,
)
from evomerge.recipe.settings import cases, method_of, methods_of, resolve, values

__all__ = [
    "DTYPES",
    "READINGS",
    "Case",
    "Module",
    "Pieces",
    "Recipe",
    "Route",
    "Scalar",
    "Scope",
    "Setting",
    "Settings",
    "Slice",
    "Slot",
    "Source",
    "TokenRule",
    "Tokenizer",
    "Value",
    "cases",
    "method_of",
    "methods_of",
    "resolve",
    "values",
]
