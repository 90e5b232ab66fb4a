"""Checks the sampling settings of a task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import NoReturn

from evomerge.errors import TaskError
from evomerge.types import Sampling


def make_sampling(spec: object, field: str = "task.sampling") -> Sampling:
    """The sampling settings from what config holds: None, a `Sampling`, or a mapping of its fields.

    Raises:
        TaskError: an unknown key, or a value of the wrong kind.
    """
    if spec is None:
        return Sampling()
    if isinstance(spec, Sampling):
        return spec
    known = [attribute.name for attribute in fields(Sampling)]
    if not isinstance(spec, Mapping):
        _fail(field, spec, f"a mapping of {', '.join(known)}")
    for key in spec:
        if key not in known:
            _fail(f"{field}.{key}", spec[key], "one of the keys " + ", ".join(known))
    values = {name: spec.get(name, getattr(Sampling(), name)) for name in known}
    longest, stop, temperature = values["max_new_tokens"], values["stop"], values["temperature"]
    if not isinstance(longest, int) or isinstance(longest, bool) or longest < 1:
        _fail(f"{field}.max_new_tokens", longest, "a whole number of at least 1")
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, Sequence) or not all(isinstance(one, str) and one for one in stop):
        _fail(f"{field}.stop", stop, "a list of texts, none of them empty")
    number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
    if not number or not math.isfinite(temperature) or temperature < 0:
        _fail(f"{field}.temperature", temperature, "a number of at least 0")
    top_k, seed = values["top_k"], values["seed"]
    if not _whole(top_k):
        _fail(f"{field}.top_k", top_k, "a whole number, 0 for all tokens")
    if seed is not None and not _whole(seed):
        _fail(f"{field}.seed", seed, "a whole number of at least 0, or null for the study's")
    for key, low, high, expected in _RANGES:
        value = values[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            _fail(f"{field}.{key}", value, expected)
        if not low <= value <= high or (value == 0 and key != "min_p"):
            _fail(f"{field}.{key}", value, expected)
    rest = {key: float(values[key]) for key, *_ in _RANGES}
    return Sampling(longest, tuple(stop), float(temperature), top_k=top_k, seed=seed, **rest)


_RANGES = (
    ("top_p", 0.0, 1.0, "a number above 0, at most 1"),
    ("min_p", 0.0, 1.0, "a number from 0 to 1"),
    ("repetition_penalty", 0.0, 100.0, "a number above 0, 1 for none"),
)
"""Keys, what they may be, and how that is said."""


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _fail(field: str, found: object, expected: str) -> NoReturn:
    raise TaskError.of(field, repr(found), expected, f"Correct {field}.")
