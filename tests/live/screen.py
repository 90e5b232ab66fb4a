"""A small terminal: what a stream of bytes looks like on a screen, and what it scrolls away."""

from __future__ import annotations

import re

_PARTS = re.compile(
    r"\x1b\[([?\d;]*)([A-Za-z])|\x1b\][^\x07]*\x07|(\x1b.)|([\r\n\b])|([^\x1b\r\n\b]+)"
)


class Screen:
    """Understands what rich writes: movements, erasing, colours (left out) and wrapping."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.lines: list[list[str]] = [[]]
        self.row = self.column = 0
        self.unknown: list[str] = []

    @property
    def text(self) -> list[str]:
        return ["".join(line).rstrip() for line in self.lines]

    def feed(self, data: str) -> Screen:
        for part in _PARTS.finditer(data):
            given, command, other, control, said = part.groups()
            if command:
                self._command(given, command)
            elif other:
                self.unknown.append(other)
            elif control == "\r":
                self.column = 0
            elif control == "\n":
                self._down()
            elif control == "\b":
                self.column = max(0, self.column - 1)
            elif said:
                self._write(said)
        return self

    def _command(self, given: str, command: str) -> None:
        count = int(given) if given.isdigit() else 1
        if command == "A":
            self.row = max(len(self.lines) - self.rows, 0, self.row - count)
        elif command == "K":
            line = self.lines[self.row]
            del line[0 if given == "2" else self.column :]
        elif command not in "mhl":
            self.unknown.append(f"{given}{command}")

    def _write(self, said: str) -> None:
        for character in said:
            if self.column >= self.columns:
                self._down()
                self.column = 0
            line = self.lines[self.row]
            line.extend(" " * (self.column + 1 - len(line)))
            line[self.column] = character
            self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append([])
