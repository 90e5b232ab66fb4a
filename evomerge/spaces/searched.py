"""One searched parameter: its range or its choices, from plain config, and its values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.domain import Dimension
from evomerge.errors import ConfigError
from evomerge.operators import Operator
from evomerge.operators.parameters import Choice, Parameter
from evomerge.recipe import Scalar

_RANGE = ("low", "high", "start", "step", "kind", "simplex")
_CHOICES = ("choices", "start", "step")


@dataclass(frozen=True)
class Searched:
    """A parameter that varies.

    Attributes:
        name: of the parameter.
        low: least gene.
        high: greatest gene.
        start: the gene at which a search begins.
        step: standard deviation of a search's first samples, in genes.
        kind: real, integer or choice.
        choices: what the genes 0, 1, ... of a choice stand for.
        simplex: whether the sources' values are divided by their sum.
    """

    name: str
    low: float
    high: float
    start: float
    step: float
    kind: str = "real"
    choices: tuple[Scalar, ...] = ()
    simplex: bool = False

    def dimension(self, name: str) -> Dimension:
        """The dimension of a genome that this parameter has at one place."""
        labels = tuple(map(shown, self.choices))
        return Dimension(name, self.low, self.high, self.start, self.step, self.kind, labels)

    def value(self, gene: float) -> Scalar:
        """What a gene stands for; that of a whole dimension is rounded to one of its genes."""
        if self.kind == "real":
            return float(gene)
        whole = int(min(max(math.floor(gene + 0.5), self.low), self.high))
        return self.choices[whole] if self.choices else whole

    def gene(self, value: Scalar) -> float:
        """The gene that stands for a value.

        Raises:
            ValueError: if the value is none of the choices.
        """
        if not self.choices:
            return float(value)
        for i, choice in enumerate(self.choices):
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return float(i)
        raise ValueError(f"{self.name}: {value!r} is none of {', '.join(map(shown, self.choices))}")

    def nearest(self, value: float) -> float:
        """The gene whose value is nearest to a number; the start where choices are no numbers."""
        if not self.choices:
            gene = min(max(value, self.low), self.high)
            return gene if self.kind == "real" else math.floor(gene + 0.5)
        if not all(map(is_number, self.choices)):
            return self.start
        genes = range(len(self.choices))
        return float(min(genes, key=lambda i: abs(float(self.choices[i]) - value)))

    def reach(self) -> float:
        """The greatest magnitude of a value; 0 where choices are no numbers."""
        values = self.choices or (self.low, self.high)
        return max((abs(float(v)) for v in values if is_number(v)), default=0.0)


def read_searched(field: str, name: str, spec: Any) -> Searched:
    """A searched parameter from plain config.

    Args:
        field: where it stands, such as `space.parameters.weight`.
        name: of the parameter.
        spec: a mapping with low and high, or with choices.

    Raises:
        ConfigError: naming the key at fault.
    """
    if not isinstance(spec, Mapping):
        raise ConfigError.of(
            field, repr(spec), "a mapping with low and high, or with choices",
            f"For example {field}={{low: 0, high: 1}}.",
        )  # fmt: skip
    chosen = spec.get("choices") is not None
    named = (*_RANGE, "choices")
    known = _CHOICES if chosen else named
    unknown = [k for k in spec if k not in known and (k not in named or spec[k] is not None)]
    if unknown:
        words = ", ".join(known[:-1])
        found = "a key beside choices" if unknown[0] in _RANGE else "an unknown key"
        raise ConfigError.of(
            f"{field}.{unknown[0]}", found, f"{words} or {known[-1]}", "Correct it."
        )
    return _choices(field, name, spec) if chosen else _range(field, name, spec)


def check_searchable(searched: Searched, operator: Operator, field: str) -> None:
    """Checks that an operator has a parameter and takes what is searched.

    Raises:
        ConfigError: naming the key at fault.
    """
    parameter = operator.parameters.get(searched.name)
    if parameter is None or parameter.inert:
        known = [key for key, p in operator.parameters.items() if not p.inert]
        what = "the operator does not have" if parameter is None else "has no effect"
        raise ConfigError.of(
            field, f"a parameter that {what}", f"one of {', '.join(known) or 'none'} for "
            f"{operator.name}", "Correct the name, or set it below space.fixed.",
        )  # fmt: skip
    if isinstance(parameter, Choice) and not searched.choices:
        values = ", ".join(map(shown, parameter.values))
        raise ConfigError.of(
            field, "a range for a parameter that does not take any number",
            f"choices among {values}", f"Write {field}={{choices: [{values}]}}.",
        )  # fmt: skip
    if isinstance(parameter, Parameter) and parameter.whole and searched.kind == "real":
        raise ConfigError.of(
            f"{field}.kind", "real", "integer, as the parameter takes whole numbers only",
            "Add kind: integer.",
        )  # fmt: skip
    for choice in searched.choices:
        if not _takes(parameter, choice):
            raise ConfigError.of(
                f"{field}.choices", shown(choice), f"{_expected(parameter)} for {operator.name}",
                "Remove it.",
            )  # fmt: skip
    if searched.simplex and not (isinstance(parameter, Parameter) and parameter.per_source):
        raise ConfigError.of(
            f"{field}.simplex", "true for a parameter that all sources share",
            "a parameter that each source has its own of", "Remove it.",
        )  # fmt: skip


def is_number(value: Any) -> bool:
    """Whether a value is a finite number and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def shown(value: Scalar) -> str:
    """A value as a YAML file has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _range(field: str, name: str, spec: Mapping[str, Any]) -> Searched:
    kind, simplex = spec.get("kind") or "real", spec.get("simplex") or False
    if kind not in ("real", "integer"):
        raise ConfigError.of(f"{field}.kind", repr(kind), "real or integer", "Correct it.")
    if not isinstance(simplex, bool):
        raise ConfigError.of(f"{field}.simplex", repr(simplex), "true or false", "Correct it.")
    for key in ("low", "high", "start", "step"):
        value = spec.get(key)
        if value is None:
            continue
        if not is_number(value):
            raise ConfigError.of(f"{field}.{key}", repr(value), "a finite number", "Correct it.")
        if kind == "integer" and key != "step" and value != int(value):
            raise ConfigError.of(f"{field}.{key}", repr(value), "a whole number", "Correct it.")
    low, high = spec.get("low"), spec.get("high")
    if low is None or high is None or not low < high:
        raise ConfigError.of(
            field, f"low={low}, high={high}", "two numbers, low < high", "Correct the bounds."
        )
    if simplex and (low != 0 or kind != "real"):
        raise ConfigError.of(
            f"{field}.simplex", f"true beside low={low}, kind={kind}", "low: 0 and kind: real",
            "Correct them: what counts are the shares of the sum.",
        )  # fmt: skip
    whole = kind == "integer"
    middle = (low + high) // 2 if whole else (low + high) / 2
    return _searched(field, name, spec, (low, high), middle, kind, simplex=simplex)


def _choices(field: str, name: str, spec: Mapping[str, Any]) -> Searched:
    choices = spec["choices"]
    listed = isinstance(choices, Sequence) and not isinstance(choices, str)
    if not listed or len(choices) < 2:
        raise ConfigError.of(
            f"{field}.choices", repr(choices), "a list of at least two values", "Correct it."
        )
    for choice in choices:
        if not (isinstance(choice, bool | str) or is_number(choice)):
            raise ConfigError.of(
                f"{field}.choices", repr(choice), "words, booleans or finite numbers",
                "Correct it.",
            )  # fmt: skip
    labels = [shown(c) for c in choices]
    if len(set(labels)) < len(labels):
        raise ConfigError.of(
            f"{field}.choices", ", ".join(labels), "values that differ", "Remove the second."
        )
    found = Searched(name, 0.0, len(choices) - 1.0, 0.0, 1.0, "choice", tuple(choices))
    start = spec.get("start")
    try:
        first = 0.0 if start is None else found.gene(start)
    except ValueError as error:
        raise ConfigError.of(
            f"{field}.start", str(start), f"one of {', '.join(labels)}", "Correct it."
        ) from error
    step = spec.get("step")
    if step is not None and not is_number(step):
        raise ConfigError.of(f"{field}.step", repr(step), "a finite number", "Correct it.")
    genes = {"start": first, "step": step}
    return _searched(field, name, genes, (found.low, found.high), 0.0, "choice", found.choices)


def _searched(
    field: str,
    name: str,
    spec: Mapping[str, Any],
    bounds: tuple[float, float],
    middle: float,
    kind: str,
    choices: tuple[Scalar, ...] = (),
    simplex: bool = False,
) -> Searched:
    """Fills start and step in; a step is a sixth of the range, a whole value's share included."""
    low, high = bounds
    start, step = spec.get("start"), spec.get("step")
    start = middle if start is None else start
    step = (high - low + (kind != "real")) / 6 if step is None else step
    if not low <= start <= high or not step > 0:
        raise ConfigError.of(
            field, f"start={start}, step={step}",
            f"a start in [{low}, {high}] and a positive step", "Correct them.",
        )  # fmt: skip
    return Searched(
        name, float(low), float(high), float(start), float(step), kind, choices, simplex
    )


def _takes(parameter: Parameter | Choice, value: Scalar) -> bool:
    if isinstance(parameter, Choice):
        return any(value == v and isinstance(value, bool) == isinstance(v, bool)
                   for v in parameter.values)  # fmt: skip
    if not is_number(value) or not parameter.low <= float(value) <= parameter.high:
        return False
    return not parameter.whole or float(value) == int(value)


def _expected(parameter: Parameter | Choice) -> str:
    if isinstance(parameter, Choice):
        return f"one of {', '.join(map(shown, parameter.values))}"
    kind = "whole numbers" if parameter.whole else "numbers"
    return f"{kind} in [{parameter.low:g}, {parameter.high:g}]"
