"""Scorers: frozen callables `(item, text) -> float` in [0, 1], and the factories that make them.

Config names a factory: `scorer: {_target_: evomerge.tasks.scorers.japanese_number}`. A scorer may
have a method `check(item) -> str | None` that says why no answer to an item could ever be right;
`ItemTask.validate` reports it before anything is evaluated.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from evomerge.errors import TaskError
from evomerge.tasks.language import japanese_probability
from evomerge.tasks.numbers import last_number
from evomerge.types import Item


class Scorer(Protocol):
    """Plain score of an answer; pure, so that one answer always has one score."""

    def __call__(self, item: Item, text: str) -> float:
        """Score in [0, 1] of the answer `text` to `item`."""


@dataclass(frozen=True)
class Number:
    """Scores 1 if the last number of the answer equals the last number of the target."""

    def __call__(self, item: Item, text: str) -> float:
        target = last_number(item.target)
        return float(target is not None and last_number(text) == target)

    def check(self, item: Item) -> str | None:
        """Says that a target holds no number; None if it does."""
        if last_number(item.target) is None:
            return f"the target {item.target!r}, which holds no number"
        return None


@dataclass(frozen=True)
class JapaneseNumber(Number):
    """Scores 1 if the last number is right and the answer is Japanese.

    Source: arXiv 2403.13187, section 4.1, which identifies the language with fastText; here it is
    lingua (see `evomerge.tasks.language` for its limits).

    Attributes:
        threshold: the probability of Japanese must exceed this; in [0, 1).
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        threshold = self.threshold
        number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
        if not number or math.isnan(threshold) or not 0.0 <= threshold < 1.0:
            raise TaskError.of(
                "scorer.threshold",
                repr(threshold),
                "a probability in [0, 1)",
                "Use 0.5, the value of the paper.",
            )

    def __call__(self, item: Item, text: str) -> float:
        if super().__call__(item, text) == 0.0:
            return 0.0
        return float(japanese_probability(text) > self.threshold)


@dataclass(frozen=True)
class Exact:
    """Scores 1 if answer and target are the same text after NFKC and stripping."""

    def __call__(self, item: Item, text: str) -> float:
        return float(_normalised(text) == _normalised(item.target))

    def check(self, item: Item) -> str | None:
        """Says that a target is empty; None if it is not."""
        return None if _normalised(item.target) else "an empty target"


def _normalised(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()


def japanese_number(threshold: float = 0.5) -> JapaneseNumber:
    """The scorer of jp_math: right last number, in Japanese with P(ja) > `threshold`."""
    return JapaneseNumber(threshold)


def number() -> Number:
    """The scorer that compares last numbers, in whatever language."""
    return Number()


def exact() -> Exact:
    """The scorer that compares whole texts, NFKC-normalised and stripped."""
    return Exact()


SCORERS: Mapping[str, Callable[..., Scorer]] = {
    "exact": exact,
    "japanese_number": japanese_number,
    "number": number,
}


def make_scorer(spec: object, field: str = "task.scorer") -> Scorer:
    """A scorer from what config holds: a callable, a name, or a name with keyword arguments.

    Args:
        spec: a callable; a key of `SCORERS`; or a mapping whose `_target_` is such a key, alone or
            after `evomerge.tasks.scorers.`, its other keys being keyword arguments.
        field: the config key to blame.

    Raises:
        TaskError: the name or its arguments are unknown.
    """
    if callable(spec):
        return cast(Scorer, spec)
    arguments: dict[str, Any] = {}
    name: object = spec
    if isinstance(spec, Mapping):
        arguments = {str(key): value for key, value in spec.items()}
        name = arguments.pop("_target_", None)
    short = str(name).removeprefix(f"{__name__}.")
    if short not in SCORERS:
        raise TaskError.of(
            field,
            repr(name),
            "one of " + ", ".join(SCORERS),
            f"Write for example {{_target_: {__name__}.number}}, or pass a callable.",
        )
    try:
        return SCORERS[short](**arguments)
    except TypeError as error:
        raise TaskError.of(
            field, f"arguments {sorted(arguments)}", f"those of {short} ({error})", "Correct them."
        ) from None
