"""docs/troubleshooting.md: its commands print what it says, its messages are in the program."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

import evomerge
from evomerge.cli import run

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"^```console\n\$ ([^\n]*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
MESSAGES = re.findall(r"^\| `([^`]+)` \|", TEXT, re.MULTILINE)


@pytest.fixture(scope="module")
def literals() -> str:
    """Every piece of text of the program, those that stand side by side joined, one a line."""
    found: list[str] = []
    for path in Path(evomerge.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=[c[19:60] for c, _ in SHOWN])
def test_a_mistake_is_answered_as_shown(
    command: str,
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(shlex.split(command)[3:]) == 2
    said = capsys.readouterr().err.strip().replace(str(tmp_path), "PLACE")
    parts = shown.strip().split("...")
    assert re.fullmatch(".*".join(map(re.escape, parts)), said, re.DOTALL), said


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_page_is_one_of_the_program(message: str, literals: str) -> None:
    assert [part for part in message.split(" ... ") if part.strip() not in literals] == []


def test_the_page_has_messages_of_both_kinds() -> None:
    assert len(SHOWN) > 12
    assert len(MESSAGES) > 12
