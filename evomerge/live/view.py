"""The interface of all views."""

from __future__ import annotations

from typing import Protocol

from evomerge.live.state import Failure, State

LOGS = ("auto", "plain", "json", "quiet")
"""Values of `log`: a live view on a terminal and lines elsewhere, lines, JSON lines, nothing."""


class View(Protocol):
    """Shows a study; told of everything in the order in which it happens."""

    def message(self, text: str) -> None:
        """Shows a sentence that stays."""

    def begin(self, state: State) -> None:
        """A phase begins."""

    def update(self, state: State) -> None:
        """The phase went on."""

    def end(self, state: State) -> None:
        """The phase ended, or was cut off."""

    def failure(self, failure: Failure) -> None:
        """A candidate or model failed."""

    def close(self, error: BaseException | None) -> bool:
        """The study ended, with an error or without; returns whether the error was shown."""
