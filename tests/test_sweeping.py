"""Sweeps: keys of swept groups, and studies as processes of submitit's local executor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from studies import quick_arguments

from evomerge import cli
from evomerge.errors import EvomergeError, UserError
from evomerge.sweeping import Notes, forced


def test_keys_of_a_swept_group_are_added_where_they_are_not() -> None:
    """Only those; what is no sweep, and what the user has marked, stays as it is."""
    given = ["-m", "+experiment=x", "estimator=posterior,gp_irt", "estimator.responses=runs/a",
             "estimator.items=20,50", "+estimator.new=1", "racing=halving", "racing.stderr=0.1",
             "optimizer.batch=2,4", "seed=0,1", "++space.depth=4", "space=a,b"]  # fmt: skip
    changed = {"estimator.responses=runs/a", "estimator.items=20,50"}
    assert forced(given) == [f"++{a}" if a in changed else a for a in given]
    assert forced(["estimator='a,b'", "estimator.items=1"])[1] == "estimator.items=1"
    assert forced(["estimator=choice(a,b)", "estimator.items=1"])[1] == "++estimator.items=1"


def test_notes_come_back_in_order_and_are_removed(tmp_path: Path) -> None:
    notes = Notes([f"hydra.sweep.dir={tmp_path}/sweep"])
    for job in (10, 2, 0):
        notes.write(job, f"runs/{job}", job % 3)
    assert notes.take() == [("runs/0", 0), ("runs/2", 2), ("runs/10", 1)]
    assert notes.take() == [] and not list((tmp_path / "sweep").iterdir())


@pytest.mark.parametrize(("kind", "code"), [(EvomergeError, 1), (UserError, 2)])
def test_what_a_studys_log_said_is_not_said_again(
    kind: type[EvomergeError], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    error = UserError.of("a", "b", "c", "d") if kind is UserError else EvomergeError("disk full")

    def fails(config: object) -> int:
        raise error

    for name in ("_register", "job_number", "_plain", "sweep_dir"):
        monkeypatch.setattr(cli, name, lambda *given: {} if given else 0)
    monkeypatch.setattr(cli, "_study", fails)
    notes = Notes([f"hydra.sweep.dir={tmp_path}/sweep"])
    assert cli._job(None, notes) == code
    assert ("disk full" if kind is EvomergeError else "a: ") in capsys.readouterr().err
    error.__dict__["shown"] = True
    assert cli._job(None, notes) == code
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_studies_run_as_submitit_jobs(tmp_path: Path) -> None:
    """One job fails, since its optimiser has no such key; the two others are compared."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    arguments = [a for a in quick_arguments(tmp_path) if not a.startswith("run_dir=")]
    done = subprocess.run(
        [sys.executable, "-m", "evomerge", "-m", *arguments, "optimizer=random,cma_es,sobol",
         "optimizer.batch=4", "budget.candidates=2", "finalists=1", "pool.check=false",
         "hydra/launcher=submitit_local"],
        cwd=tmp_path, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "cma_es" in done.stderr and "ended with exit code 2" in done.stderr
    logs = "".join(p.read_text() for p in tmp_path.glob("runs/multirun/.submitit/*/*.err"))
    assert "optimizer.batch" in logs
    root = tmp_path / "runs" / "jp_math_tiny"
    for name in ("random", "sobol"):
        [folder] = root.glob(f"{name}*/seed0")
        found = json.loads((folder / "results.json").read_text())
        assert (found["optimizer"], found["cost"]["candidates"]) == (name, 2)
    assert str(root / "comparison.html") in done.stdout
    assert len((root / "comparison.csv").read_text().splitlines()) == 1 + 2
    assert not list(tmp_path.glob("runs/multirun/.jobs-*"))
