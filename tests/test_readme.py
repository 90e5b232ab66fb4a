"""The README's YAML, run as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.zoo import zoo_path

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: the README's YAML, its models and its data."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    (tmp_path / "my/experiment").mkdir(parents=True)
    (tmp_path / "my/experiment/my_study.yaml").write_text(block.group(1), encoding="utf-8")
    (tmp_path / "models").mkdir()
    for name, zoo in (("base", "base"), ("coder", "math"), ("french", "japanese")):
        (tmp_path / "models" / name).symlink_to(zoo_path(f"models/{zoo}"))
    (tmp_path / "data").mkdir()
    rows = [json.loads(x) for x in zoo_path("data/en_math.jsonl").read_text().splitlines()]
    for split in ("search", "test"):
        lines = [
            json.dumps({"question": r["question"], "answer": r["answer"], "solution": r["gold"]})
            for r in rows
            if r["split"] == split
        ]
        (tmp_path / f"data/{split}.jsonl").write_text("\n".join(lines[:40]))
    return tmp_path


def evomerge(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evomerge", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_yaml_of_the_readme_runs(folder: Path) -> None:
    own = ("--config-dir", "my", "+experiment=my_study")
    checked = evomerge(folder, "check", *own)
    assert checked.returncode == 0, checked.stderr
    done = evomerge(
        folder, *own, "budget.candidates=4", "executor=serial", "executor.threads=1",
        "engine=transformers", "controls=none", "finalists=1", "task.sampling.max_new_tokens=4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "runs/my_study/seed0/results.json").read_text())
    assert results["splits"] == {"french_sums": {"search": 32, "validation": 8, "test": 40}}
    assert (folder / "runs/my_study/seed0/best/model/model.safetensors").is_file()
