"""Checks of an optimiser's settings; a mistake names the key as the user types it."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from evomerge.errors import ConfigError


def whole(key: str, value: Any, least: int) -> int:
    """An integer of at least `least`.

    Raises:
        ConfigError: naming `optimizer.KEY`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _wrong(key, value, f"an integer of at least {least}")
    return value


def positive(key: str, value: Any) -> float:
    """A finite number above 0.

    Raises:
        ConfigError: naming `optimizer.KEY`.
    """
    if not _is_number(value) or not value > 0:
        raise _wrong(key, value, "a positive number")
    return float(value)


def within(key: str, value: Any, low: float, high: float) -> float:
    """A number in [low, high].

    Raises:
        ConfigError: naming `optimizer.KEY`.
    """
    if not _is_number(value) or not low <= value <= high:
        raise _wrong(key, value, f"a number in [{low:g}, {high:g}]")
    return float(value)


def flag(key: str, value: Any) -> bool:
    """True or false.

    Raises:
        ConfigError: naming `optimizer.KEY`.
    """
    if not isinstance(value, bool):
        raise _wrong(key, value, "true or false")
    return value


def one_of(key: str, value: Any, known: Sequence[str]) -> str:
    """One of the names that are known.

    Raises:
        ConfigError: naming `optimizer.KEY`.
    """
    if not isinstance(value, str) or value not in known:
        raise _wrong(key, value, f"one of {', '.join(known)}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _wrong(key: str, value: Any, expected: str) -> ConfigError:
    return ConfigError.of(f"optimizer.{key}", repr(value), expected, "Correct it.")
