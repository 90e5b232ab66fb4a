"""Checks on plain data, with errors that name the place."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from evomerge.errors import RecipeError

LARGEST = 2**63
NESTING = 16
"""How deep merges may nest, the outermost included."""


@dataclass(frozen=True)
class Place:
    """Where a value stands.

    Attributes:
        file: the file, or a word for the data at hand.
        path: keys and positions below it, such as `slices[1].sources`.
        level: of how many merges, one in another, it is a part.
    """

    file: str
    path: str = ""
    level: int = 1

    def key(self, name: object) -> Place:
        """The place of a mapping's value."""
        return replace(self, path=f"{self.path}.{name}" if self.path else str(name))

    def item(self, index: int) -> Place:
        """The place of a list's value."""
        return replace(self, path=f"{self.path}[{index}]")

    def nested(self) -> Place:
        """The same place, seen as a merge of its own.

        Raises:
            RecipeError: beyond `NESTING` levels.
        """
        if self.level >= NESTING:
            raise self.error(
                f"a merge in more than {NESTING - 1} others", f"at most {NESTING} levels of merges",
                "Write an inner merge to a folder and name that.",
            )  # fmt: skip
        return replace(self, level=self.level + 1)

    def error(self, found: str, expected: str, remedy: str = "Correct the recipe.") -> RecipeError:
        """The error to raise for what stands here."""
        return RecipeError.of(str(self), found, expected, remedy)

    def __str__(self) -> str:
        return f"{self.file}: {self.path}" if self.path else self.file


def shown(value: object) -> str:
    """A value for a message: never long, never deep."""
    if value is None:
        return "nothing"
    try:
        return reprlib.repr(value)
    except ValueError:  # Python does not print integers of more than 4300 digits
        return "a huge integer"


def read_mapping(
    value: Any, place: Place, keys: Sequence[str] | None, expected: str
) -> dict[str, Any]:
    """A mapping with string keys, and no others than `keys` if these are given.

    Raises:
        RecipeError: naming the key at fault, with the closest one that exists.
    """
    if not isinstance(value, Mapping):
        raise place.error(shown(value), expected)
    for key in value:
        if not isinstance(key, str):
            raise place.key(shown(key)).error("a key that is not text", "text; use quotes")
        if keys is not None and key not in keys:
            close = get_close_matches(key, keys, n=1)
            hint = f"Did you mean {close[0]}?" if close else "Remove it."
            raise place.key(key).error("an unsupported key", f"one of {', '.join(keys)}", hint)
    return dict(value)


def given(data: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are not null; a null stands for an absent key."""
    return {key: value for key, value in data.items() if value is not None}


def read_list(value: Any, place: Place, of: str) -> list[Any]:
    """A list of at least one entry."""
    if not isinstance(value, list | tuple) or not value:
        raise place.error(shown(value), f"a list of at least one {of}")
    return list(value)


def read_text(value: Any, place: Place, expected: str) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value:
        raise place.error(shown(value), expected)
    return value


def read_whole(value: Any, place: Place, low: int = 0, high: int = LARGEST) -> int:
    """An integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        end = "on" if high == LARGEST else f"to {high}"
        raise place.error(shown(value), f"a whole number from {low} {end}")
    return value


def read_number(value: Any, place: Place) -> float:
    """A finite number, also one that YAML takes for text (`1e-5`)."""
    number = read_scalar(value, place, "a finite number")
    if isinstance(number, bool | str):
        raise place.error(shown(value), "a finite number")
    return float(number)


def read_scalar(value: Any, place: Place, expected: str) -> float | int | bool | str:
    """A number of ordinary size, a boolean or a word; text that reads as a number is one.

    YAML 1.1 takes `1e-5` for text, so a word cannot be told from a number by its type.
    """
    if isinstance(value, str):
        value = _number_in(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise place.error(shown(value), "a finite number")
    if not isinstance(value, bool | int | float | str):
        raise place.error(shown(value), expected)
    if isinstance(value, int) and abs(value) > LARGEST:
        raise place.error("an integer of more than 63 bits", "a number of ordinary size")
    return value


def _number_in(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
