"""Fixtures of the engine tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine_family import Family, save_llama, words
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2] / "evomerge" / "zoo"


@pytest.fixture(scope="session")
def make_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Family]:
    """Builds the random family, with tied or untied embeddings, once each."""
    built: dict[bool, Family] = {}

    def make(tied: bool) -> Family:
        if tied not in built:
            folder = tmp_path_factory.mktemp("tied" if tied else "untied")
            paths = [folder / name for name in ("base", "one", "two")]
            for seed, path in enumerate(paths):
                save_llama(path, tied, seed, None if seed == 0 else paths[0])
            rng = np.random.default_rng(0)
            prompts = tuple(words(rng, 3, 20) for _ in range(30))
            golds = tuple(" " + words(rng, 1, 8) for _ in prompts)
            built[tied] = Family(paths[0], tuple(paths[1:]), prompts, golds)
        return built[tied]

    return make


@pytest.fixture(scope="session", params=[True, False], ids=["tied", "untied"])
def family(request: pytest.FixtureRequest, make_family: Callable[[bool], Family]) -> Family:
    """The random family, both ways."""
    return make_family(request.param)


@pytest.fixture(scope="session")
def trained(make_family: Callable[[bool], Family]) -> Family:
    """The zoo's trained models where they are, else the random family."""
    paths = [ROOT / "models" / name for name in ("base", "math", "japanese", "sorter")]
    data = ROOT / "data" / "jp_math.jsonl"
    if not (all((p / "model.safetensors").is_file() for p in paths) and data.is_file()):
        return make_family(True)
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()[:60]]
    return Family(
        paths[0], tuple(paths[1:]),
        tuple(f"{r['question']}\n" for r in rows), tuple(r["gold"] for r in rows),
    )  # fmt: skip


@pytest.fixture
def poisoned(make_family: Callable[[bool], Family], tmp_path: Path) -> Callable[[Path], Path]:
    """Makes a copy of a checkpoint with a NaN in its last norm."""

    def poison(source: Path) -> Path:
        target = tmp_path / "poisoned"
        shutil.copytree(source, target)
        tensors = load_file(target / "model.safetensors")
        tensors["model.norm.weight"][3] = float("nan")
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        return target

    return poison
