"""The jp_math config, as it is and with its paths replaced by files that are at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.tasks.item_task import ItemTask
from evomerge.types import SPLITS

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"


def load(*overrides: str) -> ItemTask:
    """The task after command-line overrides, which OmegaConf reads as Hydra does."""
    from omegaconf import OmegaConf

    config = OmegaConf.create({"task": OmegaConf.load(ROOT / "conf" / "task" / "jp_math.yaml")})
    OmegaConf.set_struct(config, True)
    for override in overrides:
        key, value = override.split("=", 1)
        OmegaConf.update(config, key, yaml.safe_load(value))
    plain: Any = OmegaConf.to_container(config, resolve=True)
    assert plain["task"].pop("_target_") == "evomerge.tasks.item_task.ItemTask"
    return ItemTask(**plain["task"])


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    problems = load().validate()
    assert {problem.field for problem in problems} == {"task.search.path", "task.test.path"}
    assert "data/gsm8k_test_ja.jsonl" in problems[0].found


def test_gsm8k_and_mgsm_go_through_the_same_config() -> None:
    if not (DATA / "gsm8k_test.jsonl").is_file():
        pytest.skip("needs ../shared/data/gsm8k_test.jsonl and mgsm_ja.tsv")
    paths = (
        f"task.search.path={DATA}/gsm8k_test.jsonl",
        f"task.test.path={DATA}/mgsm_ja.tsv",
    )
    task = load(*paths)
    assert task.validate() == []
    assert [len(task.items(split)) for split in SPLITS] == [1187, 132, 250]
    exclude = f"{{path: {DATA}/mgsm_en.tsv, columns: [question, answer], key: question}}"
    task = load(*paths, f"task.search.exclude={exclude}")
    assert task.validate() == []
    assert [len(task.items(split)) for split in SPLITS] == [962, 107, 250]
    wanted = {}
    for line in (DATA / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        wanted[row["question"]] = row["answer"].rpartition("#### ")[2]
    for split in SPLITS[:2]:
        for item in task.items(split):
            assert item.target == wanted[item.fields["question"]]
            assert task.score(item, f"計算すると、答えは{item.target}です。") == 1.0
            assert item.fields["question"] in task.prompt(item)


def test_mgsm_in_english_is_found_in_gsm8k() -> None:
    if not (DATA / "gsm8k_test.jsonl").is_file():
        pytest.skip("needs ../shared/data/gsm8k_test.jsonl and mgsm_en.tsv")
    task = load(f"task.search.path={DATA}/gsm8k_test.jsonl", f"task.test.path={DATA}/mgsm_en.tsv")
    found = {problem.field: problem.found for problem in task.validate()}
    assert set(found) == {"task.search and task.test", "task.validation and task.test"}
    counts = [int(text.split()[0]) for text in found.values()]
    assert sum(counts) == 250
