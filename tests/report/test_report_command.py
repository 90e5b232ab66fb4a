"""`python -m evomerge report` with one run and with several."""

from __future__ import annotations

import json
from pathlib import Path

import front_runs as fronts
import pytest
import report_runs as runs

from evomerge.cli import run


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    made = [fronts.make(tmp_path / "runs" / f"seed{n}", seed=n) for n in range(2)]
    return [str(path) for path in made]


def test_one_run_has_no_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = runs.finished_run(tmp_path / "one")
    assert run(["report", str(made), str(made)]) == 0
    assert capsys.readouterr().out == f"{made / 'report.html'}\n"
    assert not (tmp_path / "comparison.html").exists()


def test_several_runs(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", *pair]) == 0
    parent = Path(pair[0]).parent
    assert (parent / "comparison.csv").read_text().count("\n") == 1 + 2 * 3
    assert all((Path(path) / "report.html").is_file() for path in pair)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"{path}/report.html" for path in pair] + [f"{parent}/comparison.html"]
    assert any("Hypervolume" in line for line in lines)


def test_out_reference_and_markdown(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--out", str(out), "--reference", "length=200", "--markdown"]
    assert run(["report", *pair, *options]) == 0
    assert "length 200.0 tokens" in (out / "comparison.html").read_text()
    text = capsys.readouterr().out
    assert "| Group | Candidates | Seeds | Hypervolume | IGD | IGD+ | Front size |" in text
    assert text.count("| Model | Role | accuracy (higher is better)") == 2


@pytest.mark.parametrize("given", ["length", "length=much", "size=3"])
def test_a_reference_that_cannot_be_read(
    pair: list[str], given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", *pair, "--reference", given]) == 2
    assert "- --reference: found" in capsys.readouterr().err


def test_a_damaged_run_does_not_stop_the_others(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "runs" / "damaged"
    damaged.mkdir()
    (damaged / "results.json").write_text(json.dumps({"models": 3}))
    assert run(["report", str(damaged), *pair]) == 0
    assert "runs/damaged cannot be read" in capsys.readouterr().out
    assert run(["report", str(damaged)]) == 2


def test_runs_of_which_none_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [fronts.make(tmp_path / str(n), seed=n, finished=False) for n in range(2)]
    assert run(["report", *map(str, made)]) == 2
    assert all((path / "report.html").is_file() for path in made)
    assert "is not finished" in capsys.readouterr().err
