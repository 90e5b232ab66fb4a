"""Templates over the columns of a row: `{column}` and nothing else."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass


class TemplateError(ValueError):
    """A template is malformed, or names a column that a row does not have."""


@dataclass(frozen=True)
class Template:
    """Fills `{column}` places of a text with the columns of a row.

    A place holds the literal name of a column. Attribute and index access, conversions and format
    specs do not exist here: `{x.__class__}` is the column called "x.__class__". Braces are written
    `{{` and `}}`. What a column holds is never interpreted.

    Attributes:
        text: the template as the user wrote it.
        parts: pairs of literal text and the column after it, or None at the end.
    """

    text: str
    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Reads a template.

        Raises:
            TemplateError: unbalanced braces, an empty place, a conversion or a format spec.
        """
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise TemplateError(f"{error} (write a brace itself as '{{{{' or '}}}}')") from None
        for _, column, spec, conversion in parsed:
            if column is not None and not column.strip():
                raise TemplateError("an empty place '{}'")
            if conversion or spec:
                raise TemplateError(f"a format after the column {column!r}")
        return cls(text, tuple((literal, column) for literal, column, _, _ in parsed))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the template names, each once, in order."""
        return tuple(dict.fromkeys(column for _, column in self.parts if column is not None))

    def render(self, fields: Mapping[str, str]) -> str:
        """The text with its places filled.

        Raises:
            TemplateError: `fields` lacks a column.
        """
        filled: list[str] = []
        for literal, column in self.parts:
            filled.append(literal)
            if column is None:
                continue
            if column not in fields:
                raise TemplateError(f"the column {column!r}; there are {', '.join(fields)}")
            filled.append(fields[column])
        return "".join(filled)
