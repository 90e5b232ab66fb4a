"""Untrusted text as a terminal may show it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evomerge.live import text
from evomerge.live.state import Rates, Searching, State


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("a\x1b[2J\x1b[Hb", "ab"),
        ("\x1b]0;owned\x07title", "title"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b31mred", "red"),
        ("one\r\ntwo\tthree", "one two three"),
        ("bell\x07 null\x00 back\x08", "bell null back"),
        ("abc\u202egnp.exe", "abcgnp.exe"),
        ("日本語 [red]x[/red]", "日本語 [red]x[/red]"),
    ],
)
def test_what_a_terminal_would_obey_is_removed(dirty: str, clean: str) -> None:
    assert text.clean(dirty) == clean


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=60))
@example("\x1b\x1b[[31m")
def test_nothing_that_a_terminal_obeys_is_left(dirty: str) -> None:
    clean = text.clean(dirty)
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") for c in clean)


@given(st.text(max_size=40), st.integers(1, 20))
def test_a_limit_is_kept(dirty: str, limit: int) -> None:
    assert len(text.clean(dirty, limit)) <= limit


def test_a_line_says_what_counts() -> None:
    search = Searching({"a": 0.5, "b": 2.0}, True, 3, failed=1, infeasible=2)
    state = State("search", 10, 40, elapsed=75.0, left=30.0, search=search, rates=Rates(0.5))
    assert text.progress(state) == (
        "search: 10/40 (best a 0.500, b 2.000, front 3, 30 candidates/min, 0:30 left, "
        "1 failed, 2 infeasible)"
    )
    assert "in 1:15" in text.progress(state, ended=True)
    assert "left" not in text.progress(state, ended=True)


def test_times() -> None:
    assert [text.clock(s) for s in (0, 59.6, 61, 3600, 90061)] == [
        "0:00", "1:00", "1:01", "1:00:00", "25:01:01"
    ]  # fmt: skip
