"""The committed models: layout, size, and that no source can do the target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer

from evomerge.cli import compose_config
from evomerge.engines.transformers import TransformersEngine
from evomerge.setup import make_task
from evomerge.zoo import SOURCES, zoo_path
from evomerge.zoo.items import read_items
from evomerge.zoo.tokenizer import vocabulary

MODELS = ("base", *SOURCES)
EXPECTED_FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def folder(name: str) -> Path:
    return zoo_path(f"models/{name}")


def share(name: str, task_name: str, items: int) -> float:
    """Accuracy on the first test items, by real generation."""
    config = compose_config(["+experiment=jp_math_tiny", f"task={task_name}_tiny"])
    task = make_task(config["task"], "task")
    rows = task.items("test")[:items]
    engine = TransformersEngine(folder(name), max_model_len=128)
    answers = engine.generate([task.prompt(row) for row in rows], task.sampling)
    engine.close()
    return sum(task.score(row, a.text) for row, a in zip(rows, answers, strict=True)) / items


@pytest.mark.parametrize("name", MODELS)
def test_files_are_ordinary(name: str) -> None:
    assert {path.name for path in folder(name).iterdir()} == EXPECTED_FILES
    config = json.loads((folder(name) / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] == len(vocabulary())
    for path in folder(name).glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert not any(mark in text for mark in ("name_or_path", "/home", "/work", "/tmp", "/root"))


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_finite_bf16(name: str) -> None:
    parameters = 0
    with safe_open(folder(name) / "model.safetensors", framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118
            tensor = tensors.get_tensor(key)
            assert tensor.dtype == torch.bfloat16
            assert bool(tensor.isfinite().all())
            parameters += tensor.numel()
    assert 400_000 <= parameters <= 1_500_000


def test_all_files_together_are_small() -> None:
    files = [path for part in ("models", "data") for path in zoo_path(part).rglob("*")]
    assert sum(path.stat().st_size for path in files if path.is_file()) <= 8_000_000


def test_models_share_one_tokenizer() -> None:
    assert len({(folder(name) / "tokenizer.json").read_bytes() for name in MODELS}) == 1


def test_tokenizer_of_the_files_round_trips() -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder("base"))
    for task in ("jp_math", "en_math", "polite", "sort"):
        for row in read_items(task, "validation")[:50]:
            text = f"{row['question']}\n{row['gold']}"
            ids = tokenizer(text)["input_ids"]
            assert ids[0] == tokenizer.bos_token_id
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("name", MODELS)
def test_no_source_can_do_the_target(name: str) -> None:
    assert share(name, "jp_math", 200) <= 0.25


@pytest.mark.parametrize(
    ("name", "task"), [("math", "en_math"), ("japanese", "polite"), ("sorter", "sort")]
)
def test_every_specialist_can_do_its_own_task(name: str, task: str) -> None:
    assert share(name, task, 100) >= 0.8
