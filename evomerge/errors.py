"""Named exceptions. A user's mistake exits with code 2, anything else with 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Problem:
    """One thing wrong with what the user gave, in the four parts every message has.

    Attributes:
        field: the config key or file at fault, as the user would type it.
        found: what is there.
        expected: what should be there.
        remedy: what to do about it.
    """

    field: str
    found: str
    expected: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.field}: found {self.found}; expected {self.expected}. {self.remedy}"


class EvomergeError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class UserError(EvomergeError):
    """Reports one or more mistakes in config, sources or data, all at once."""

    exit_code = 2

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[Problem, ...]]]:
        """Keeps the problems whole when the error crosses from one process to another."""
        return type(self), (self.problems,)

    @classmethod
    def of(cls, field: str, found: str, expected: str, remedy: str) -> Self:
        """Builds the error from the four parts of a single problem."""
        return cls(Problem(field, found, expected, remedy))


class ConfigError(UserError):
    """The configuration names or holds something that cannot be."""


class SourceError(UserError):
    """A source model is missing, damaged, unsafe or does not fit the others."""


class TaskError(UserError):
    """A task's items, splits or scorer are not usable."""


class RecipeError(UserError):
    """A recipe is malformed or asks for something that no operator does."""


class JournalError(UserError):
    """A run directory cannot be continued: changed config, other program, damage."""


class CandidateError(EvomergeError):
    """One candidate could not be evaluated; recorded as failed, the search goes on."""


class NotFiniteError(CandidateError):
    """A weight, log-likelihood or score is not finite, which a bad device can bring about, too."""


class EngineError(EvomergeError):
    """An engine could not start or broke and could not be rebuilt."""
