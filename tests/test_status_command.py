"""`status` against studies that ran, were stopped, are at work, or never were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies import quick_arguments

from evomerge.cli import run
from evomerge.journal import JOURNAL, Journal, locked, read_events

SMALL = ("budget.candidates=3", "optimizer=random", "pool.check=false", "finalists=1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a study of three candidates that came to its end."""
    folder = tmp_path_factory.mktemp("status") / "run"
    assert run(quick_arguments(folder, *SMALL)) == 0
    return folder


def told(
    capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, list[dict[str, object]]]:
    capsys.readouterr()
    code = run(["status", *arguments, "--json"])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def cut(finished: Path, folder: Path, events: int) -> Path:
    """A run directory whose journal stops after some events of a finished one."""
    folder.mkdir()
    lines = (finished / JOURNAL).read_text().splitlines(keepends=True)
    (folder / JOURNAL).write_text("".join(lines[:events]))
    (folder / "config.yaml").write_text((finished / "config.yaml").read_text())
    return folder


def test_a_finished_study(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, (found,) = told(capsys, str(finished))
    results = [e for e in read_events(finished) if e["event"] == "result"]
    assert code == 0
    assert (found["state"], found["event"]) == ("finished", "end")
    assert (found["candidates"], found["budget"], found["failed"]) == (3, 3, 0)
    best = max(results, key=lambda e: e["fitness"][0])
    assert found["best"] == pytest.approx(next(iter(best["values"].values())))


def test_the_studys_own_arguments_name_it(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not finished where it ended with another budget than the one asked about."""
    arguments = quick_arguments(finished, *SMALL)
    assert told(capsys, *arguments)[0] == 0
    assert told(capsys, *arguments, "executor=ray", "executor.workers=7")[0] == 0
    code, (found,) = told(capsys, *arguments, "budget.candidates=4")
    assert (code, found["state"], found["changed"]) == (1, "unfinished", ["budget"])
    code, (found,) = told(capsys, *arguments, f"run_dir={finished}/nothing")
    assert (code, found["state"]) == (2, "absent")


def test_every_cut_journal_is_unfinished(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = len(read_events(finished))
    for events in range(count):
        folder = cut(finished, tmp_path / str(events), events)
        code, (found,) = told(capsys, str(folder))
        assert (code, found["state"]) == (1, "unfinished")
    with (folder / JOURNAL).open("a") as file:
        file.write('{"event": "end", "best"')  # a write that was cut off
    assert told(capsys, str(folder))[0] == 1


def test_a_study_at_work(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cut(finished, tmp_path / "run", 2)
    with locked(folder):
        Journal(folder).append("end", best="")
        code, (found,) = told(capsys, str(folder))
        assert (code, found["state"]) == (1, "running")
    assert told(capsys, str(folder))[0] == 0


def test_several_studies_are_finished_together(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = cut(finished, tmp_path / "stopped", 3)
    assert told(capsys, str(finished), str(finished))[0] == 0
    assert told(capsys, str(finished), str(stopped))[0] == 1
    code, found = told(capsys, str(finished), str(stopped), str(tmp_path / "nowhere"))
    assert code == 2
    assert [f["state"] for f in found] == ["finished", "unfinished", "absent"]


def test_in_words(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["status", str(finished), str(tmp_path / "no")]) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{finished}: finished, 3 of 3 candidates, best ")
    assert second == f"{tmp_path / 'no'}: absent, no {JOURNAL} there"


def test_a_mistake_in_the_arguments_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "+experiment=jp_math_tiny", "buget.candidates=3"]) == 2
    assert "Did you mean budget?" in capsys.readouterr().err
