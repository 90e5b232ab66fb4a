"""`irt compare`: a matrix of one's own says which estimator to take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from evomerge.cli import compose_config, run
from evomerge.fidelity import make_evaluation


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    theta, beta = rng.normal(0, 1.5, (40, 1)), rng.normal(0, 1, 80)
    correct = (rng.random((40, 80)) < 1 / (1 + np.exp(beta - theta))).astype(float)
    path = tmp_path / "answers.npz"
    np.savez(path, correct=correct)
    return path


def test_the_table_and_settings_that_a_study_takes(
    matrix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["irt", "compare", str(matrix), "--items", "10,20"]) == 0
    out = capsys.readouterr().out
    rows = {m[1].strip(): (float(m[2]), float(m[3])) for m in re.finditer(
        r"^(.+?)\s{2,}([\d.]+) \(\d+%\)\s+([\d.]+) \(\d+%\)$", out, re.MULTILINE
    )}  # fmt: skip
    assert len(rows) == 11
    for few, more in rows.values():
        assert 0 < few < 25 and more < few + 1
    told = [line.strip() for line in out.splitlines() if line.startswith("  estimator=")]
    assert len(told) == 2 and "racing=adaptive" in told[0] and "estimator.choose=" in told[1]
    for line in told:
        config = compose_config(["+experiment=merge3_tiny", *shlex.split(line)])
        assert config["estimator"]["items"] == 10
        assert config["estimator"]["responses"] == str(matrix)
        make_evaluation(config, [], _goals(config))


def _goals(config):  # type: ignore[no-untyped-def]
    from evomerge.setup import make_goals

    return make_goals(config)


@pytest.mark.parametrize("items", ["1", "81", "ten", "10,"])
def test_items_that_cannot_be_are_named(
    items: str, matrix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["irt", "compare", str(matrix), "--items", items]) == 2
    assert "--items" in capsys.readouterr().err


def test_too_few_complete_models_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    correct = np.tile([0.0, 1.0, 1.0, 0.0], (20, 5))
    correct[5:, 0] = np.nan
    np.savez(tmp_path / "few.npz", correct=correct)
    assert run(["irt", "compare", str(tmp_path / "few.npz"), "--items", "5"]) == 2
    assert "5 of 20 models" in capsys.readouterr().err
