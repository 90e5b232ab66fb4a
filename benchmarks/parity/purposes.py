"""Where we differ from mergekit on purpose, and why."""

from __future__ import annotations

from compare import Row


def purpose(row: Row, method: str) -> str | None:
    """Why this recipe may differ; None if it should not."""
    return None
