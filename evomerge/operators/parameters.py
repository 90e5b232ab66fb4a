"""Annotations that describe an operator: what it takes, and its keyword parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from evomerge.kernels.view import View

TakesBase = Literal["required", "optional", "never"]


@dataclass(frozen=True)
class Takes:
    """What tensors an operator takes, in the annotation of its view.

    Attributes:
        base: `never`: every model is a source, a base among them is one like the others;
            `optional`: with a base the operator works on task vectors.
        least: fewest sources, the base not counted.
        most: most sources; None for any number.
        keys: whether it draws random masks.
    """

    base: TakesBase
    least: int = 1
    most: int | None = None
    keys: bool = False


@dataclass(frozen=True)
class Parameter:
    """A real parameter of an operator.

    Attributes:
        low: smallest allowed value.
        high: largest allowed value.
        per_source: whether each source has its own.
        default: of a per-source parameter, where a recipe gives none; None if it must be given.
        whole: whether only whole numbers are allowed.
        inert: whether it has no effect: accepted because recipes have it, not to be searched.
    """

    low: float
    high: float
    per_source: bool = False
    default: float | None = None
    whole: bool = False
    inert: bool = False


@dataclass(frozen=True)
class Choice:
    """A parameter that takes one of a few values.

    Attributes:
        values: the allowed ones.
        inert: whether it has no effect: accepted because recipes have it, not to be searched.
    """

    values: tuple[str | bool, ...]
    inert: bool = False


Deltas = Annotated[View, Takes("required")]
"""A base and any number of sources."""

RandomDeltas = Annotated[View, Takes("required", keys=True)]
"""The same for operators that draw random masks."""

Pair = Annotated[View, Takes("required", 1, 1)]
"""A base and one source."""

Models = Annotated[View, Takes("never")]
"""Any number of models, a base among them like the others."""

Weights = Annotated[Sequence[float], Parameter(-100.0, 100.0, per_source=True)]
Densities = Annotated[Sequence[float], Parameter(0.0, 1.0, per_source=True, default=1.0)]
UnusedDensities = Annotated[
    Sequence[float], Parameter(0.0, 1.0, per_source=True, default=1.0, inert=True)
]
Gammas = Annotated[Sequence[float], Parameter(0.0, 1.0, per_source=True, default=0.01)]
Epsilons = Annotated[Sequence[float], Parameter(0.0, 1.0, per_source=True, default=0.15)]
Scales = Annotated[Sequence[float], Parameter(-100.0, 100.0, per_source=True, default=1.0)]
Scale = Annotated[float, Parameter(-100.0, 100.0)]
Share = Annotated[float, Parameter(0.0, 1.0)]
Size = Annotated[float, Parameter(0.0, 100.0)]
Small = Annotated[float, Parameter(0.0, 1.0)]
Steps = Annotated[int, Parameter(0, 1000, whole=True)]
Flag = Annotated[bool, Choice((True, False))]
Unused = Annotated[bool, Choice((True, False), inert=True)]
RescaleNorm = Annotated[str, Choice(("l1", "density"))]
