"""What a study tells is what a state says; lines and JSON of it."""

from __future__ import annotations

import json
import logging
import warnings
from typing import Any

import pytest

from evomerge.errors import ConfigError, EngineError
from evomerge.live.state import Budget, Searching
from evomerge.progress import Progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def run(progress: Progress, clock: Clock) -> None:
    """Ten candidates of five items and 40 tokens in 20 seconds by two workers; the third fails."""
    progress.employ(2)
    progress.start("search", 0, 40, search=Searching(budgets=(Budget("candidates", 0, 40),)))
    progress.began(0)
    for i in range(10):
        if i < 9:
            progress.began(i + 1)
        clock.now += 2
        failed = i == 3
        progress.ended(i, 0 if failed else 5, 0 if failed else 40, None if failed else (0.5, 1.5))
        if failed:
            progress.hear({"event": "result", "id": i, "status": "failed", "reason": "no memory"})
        progress.show(Searching({"score": i / 10}, failed=int(i >= 3)), i + 1, 40)


def test_rates_and_times() -> None:
    clock = Clock()
    progress = Progress(quiet=True, clock=clock)
    run(progress, clock)
    progress.began(10)
    clock.now += 7
    state = progress.state()
    assert state.rates.candidates == pytest.approx(0.5)
    assert state.rates.items == pytest.approx(9 * 5 / 20)
    assert state.rates.tokens == pytest.approx(9 * 40 / 20)
    assert state.left == pytest.approx(30 / 0.5)
    assert [(w.id, w.seconds) for w in state.work] == [(10, 7.0)]
    assert state.usual == (0.5, 1.5)
    assert [(f.what, f.reason) for f in state.failures] == [("candidate 3", "no memory")]
    assert (state.phase, state.elapsed, state.workers) == ("search", 27.0, 2)


def test_jobs_of_a_phase_with_names_have_them() -> None:
    clock = Clock()
    progress = Progress(quiet=True, clock=clock)
    progress.start("proof", 0, 2, "models", names=["best merge", "TIES"])
    progress.began(1)
    assert [w.name for w in progress.state().work] == ["TIES"]
    progress.ended(1, 5, 40, (0.5, 1.5))
    run(progress, clock)  # a search, whose jobs are candidates
    progress.began(0)
    assert [w.name for w in progress.state().work] == [None]


def test_a_budget_in_hours_bounds_the_time_left() -> None:
    clock = Clock()
    progress = Progress(quiet=True, clock=clock)
    run(progress, clock)
    progress.show(Searching(budgets=(Budget("hours", 0.99, 1.0),)), 10, 40)
    assert progress.state().left == pytest.approx(36.0)


def test_what_was_there_before_a_resumption_is_no_speed() -> None:
    clock = Clock()
    progress = Progress(quiet=True, clock=clock)
    progress.start("search", 1000, 1010)
    clock.now += 10
    progress.show(Searching(), 1001, 1010)
    assert progress.state().rates.candidates == pytest.approx(0.1)


def test_controls_are_called_so() -> None:
    progress = Progress(quiet=True)
    progress.start("random search", 0, 10)
    assert progress.state().phase == "control: random search"
    progress.stop()
    progress.start("proof on held-out items", 0, 3, "models")
    assert progress.state().phase == "proof on held-out items"


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_every_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(log="json", clock=clock) as progress:
        progress.say("hello \x1b[31m")
        run(progress, clock)
        logging.getLogger("evomerge.somewhere").warning("a %s", "warning")
        warnings.warn("mind this", stacklevel=1)
        progress.stop()
    found = lines(capsys)
    kinds = [line["event"] for line in found]
    assert kinds[:3] == ["message", "phase", "progress"] and kinds[-2:] == ["phase_end", "end"]
    assert {"failure", "log"} <= set(kinds)
    end = found[-2]
    assert (end["phase"], end["done"], end["total"], end["failed"]) == ("search", 10, 40, 1)
    assert end["best"] == {"score": 0.9}
    assert end["rate"]["candidates_per_minute"] == pytest.approx(30)
    logged = [line["text"] for line in found if line["event"] == "log"]
    assert logged[0] == "a warning" and "mind this" in logged[1]
    assert found[kinds.index("failure")]["reason"] == "no memory"
    logging.getLogger("evomerge.somewhere").warning("plain again")
    assert "event" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (ConfigError.of("a", "b", "c", "d"), "error"),
        (EngineError("it broke"), "error"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_an_error_is_said_once(
    error: BaseException, event: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)) as caught, Progress(log="json") as progress:
        progress.say("hello")
        raise error
    found = lines(capsys)
    assert found[-1]["event"] == event
    assert hasattr(caught.value, "shown")


def test_the_command_line_leaves_it_to_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from evomerge import check, cli

    def broken(*arguments: object) -> None:
        raise EngineError("it broke")

    monkeypatch.setattr(check, "check", broken)
    assert cli.run(["+experiment=jp_math_tiny", "log=json"]) == 1
    assert [line["event"] for line in lines(capsys)][-1] == "error"
    assert cli.run(["+experiment=jp_math_tiny", "log=plain"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: it broke"


def test_a_reason_is_printed_once_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(log="plain")
    for i in range(50):
        event = {"event": "result", "id": i, "status": "failed", "reason": f"no\n{i % 2}"}
        progress.hear(event)
    assert capsys.readouterr().err.splitlines() == [
        "candidate 0 failed: no 0", "candidate 1 failed: no 1"
    ]  # fmt: skip


def test_another_log_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"log: found 'loud'; expected one of auto, plain"):
        Progress(log="loud")


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(log="quiet", clock=clock) as progress:
        progress.say("hello")
        run(progress, clock)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
