"""Annotations that describe an operator's keyword parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Parameter:
    """A real parameter of an operator.

    Attributes:
        low: smallest allowed value.
        high: largest allowed value.
        per_source: whether each source has its own.
        default: value where a recipe gives none; None if it must be given.
    """

    low: float
    high: float
    per_source: bool = False
    default: float | None = None


@dataclass(frozen=True)
class Choice:
    """A parameter that takes one of a few values."""

    values: tuple[str | bool, ...]


Weights = Annotated[Sequence[float], Parameter(-100.0, 100.0, per_source=True)]
Densities = Annotated[Sequence[float], Parameter(0.0, 1.0, per_source=True, default=1.0)]
Scale = Annotated[float, Parameter(-100.0, 100.0)]
Flag = Annotated[bool, Choice((True, False))]
RescaleNorm = Annotated[str, Choice(("l1", "density"))]
