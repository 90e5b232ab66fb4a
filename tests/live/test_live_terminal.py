"""The live view: what stands on the screen, what stays, and that it fits."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from screen import Screen

from evomerge.live.state import Budget, Failure, Rates, Searching, State, Work
from evomerge.live.terminal import TerminalView, panel

HOSTILE = "the [bold red]worker[/] died\x1b[2J\x1b]0;owned\x07 日本語"


def full(**changes: object) -> State:
    facts: dict = {
        "phase": "search", "done": 124, "total": 300, "elapsed": 72.0, "left": 100.0,
        "search": Searching(
            {"jp_math": 0.6167, "safety": 0.98}, True, 7, True, 2, 3, 10,
            (Budget("candidates", 124, 300), Budget("items", 18600, 45000),
             Budget("hours", 0.3, 1.5)),
        ),
        "rates": Rates(0.7, 105.0, 4100.0), "workers": 3, "work": (Work(124, 83.0), Work(126, 2.0)),
        "usual": (0.05, 1.4), "failures": (Failure("candidate 5", HOSTILE),),
    } | changes  # fmt: skip
    return State(**facts)


def test_everything_is_on_80_by_24() -> None:
    lines = [line.plain for line in panel(full(), 80)]
    assert len(lines) <= 12
    shown = "\n".join(lines)
    for part in (
        "search", "124/300", "1:12", "1:40 left", "jp_math 0.617", "safety 0.980", "front 7",
        "2 failed", "3 infeasible", "10 stopped early", "42 candidates/min", "105 items/s",
        "4,100 tokens/s", "176 candidates left", "26,400 items left", "candidate 124 for 1:23",
        "candidate 126 for 0:02", "1 of 3 idle", "0.05 s merging, 1.4 s answering",
        "candidate 5: the [bold red]worker[/] died",
    ):  # fmt: skip
        assert part in shown, part
    assert "\x1b" not in shown


def test_measured_models_are_named() -> None:
    state = full(search=None, workers=2, work=(Work(0, 8.0, "DARE-TIES"), Work(1, 2.0, HOSTILE)))
    (line,) = [row.plain for row in panel(state, 200) if row.plain.startswith("workers")]
    assert "DARE-TIES for 0:08, " in line
    assert "\x1b" not in line


@given(st.integers(20, 200), st.text(max_size=300), st.integers(0, 200))
def test_no_line_is_wider_than_the_terminal(width: int, reason: str, jobs: int) -> None:
    state = full(
        phase=reason or "x", workers=jobs, failures=(Failure(reason, reason),) * 5,
        work=tuple(Work(i, 1000.0 * i) for i in range(jobs)),
    )  # fmt: skip
    lines = list(panel(state, width))
    assert all(cell_len(line.plain) <= width and "\n" not in line.plain for line in lines)
    assert len(lines) <= 12


def test_many_workers_are_counted() -> None:
    work = tuple(Work(i, 100.0 - i) for i in range(60))
    said = "\n".join(line.plain for line in panel(full(workers=64, work=work), 80))
    assert "candidate 0 for 1:40" in said and "more at work" in said
    assert "candidate 59" not in said


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (6, 30), (50, 200)])
def test_phases_leave_one_line_and_nothing_else(rows: int, columns: int) -> None:
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, width=columns, height=rows, color_system="truecolor",
        highlight=False, legacy_windows=False,
    )  # fmt: skip
    shown = full()
    view = TerminalView(lambda: shown, console)
    view.message(f"checking {HOSTILE}")
    view.begin(shown)
    view.update(shown)
    view._live.refresh()
    during = Screen(rows, columns).feed(out.getvalue().replace("\n", "\r\n"))
    assert any(line.startswith("search") for line in during.text)
    view.end(full(done=300))
    view.close(None)
    screen = Screen(rows, columns).feed(out.getvalue().replace("\n", "\r\n"))
    assert not screen.unknown
    left = "".join(line.ljust(columns) for line in screen.text if line)
    assert left.startswith("checking the [bold red]worker[/] died")
    assert left.count("search") == 1 and "search: 300/300 (best jp_math 0.617" in left
    assert "owned" not in left and "\x1b]" not in out.getvalue()


PROGRAM = """
import time
from evomerge.live.state import Budget, Searching
from evomerge.progress import Progress
with Progress() as progress:
    progress.say("hello")
    progress.employ(2)
    progress.start("search", 0, 3)
    for i in range(3):
        progress.began(i)
        progress.show(Searching({"score": i / 4}), i + 1, 3)
        time.sleep(0.4)
    progress.hear({"event": "result", "status": "failed", "id": 2, "reason": "boom"})
    time.sleep(0.4)
    progress.stop()
"""


def test_in_a_real_terminal(tmp_path: Path) -> None:
    """The same program writes escape sequences to a terminal and lines to a pipe."""
    control, terminal = pty.openpty()
    environment = dict(os.environ, TERM="xterm-256color", COLUMNS="80", LINES="24")
    command = [sys.executable, "-c", PROGRAM]
    process = subprocess.Popen(command, stderr=terminal, stdout=subprocess.PIPE, env=environment)
    os.close(terminal)
    received = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            part = os.read(control, 65536)
        except OSError:  # the terminal is closed
            break
        received += part
    assert process.wait(10) == 0
    raw = received.decode()
    screen = Screen(24, 80).feed(raw)
    lines = [line for line in screen.text if line]
    assert lines[0] == "hello" and lines[1].startswith("search: 3/3 (best 0.500")
    assert len(lines) == 2
    assert "candidate 2: boom" in raw and "candidate 0 for 0:0" in raw

    piped = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert "\x1b" not in piped.stderr
    assert piped.stderr.splitlines()[0] == "hello"
    assert any(line.startswith("search: 3/3 (best 0.500") for line in piped.stderr.splitlines())
    assert "candidate 2 failed: boom" in piped.stderr
