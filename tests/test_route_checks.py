"""Routes that no running engine can hold are refused before it starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from studies import quick_config

from evomerge.check import check
from evomerge.errors import ConfigError
from evomerge.setup import make_setup
from evomerge.zoo import zoo_path

MODELS = ("base", "math", "japanese")
LOCAL, WHOLE = "sliding_attention", "full_attention"


def config_of(tmp_path: Path, folders: dict[str, Path], *overrides: str) -> dict[str, Any]:
    return quick_config(
        tmp_path / "run", "+experiment=jp_math_dfs_tiny", "pool.check=false",
        *(f"models.{'' if n == 'base' else 'sources.'}{n}={p}" for n, p in folders.items()),
        *overrides,
    )  # fmt: skip


def copies(tmp_path: Path, **changes: Any) -> dict[str, Path]:
    """The zoo's models with other configs."""
    folders = {name: tmp_path / name for name in MODELS}
    for name, folder in folders.items():
        shutil.copytree(zoo_path(f"models/{name}"), folder)
        stored = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**stored, **changes}))
    return folders


def refused(config: dict[str, Any]) -> str:
    """What `check` and the start of a study both say."""
    with pytest.raises(ConfigError) as raised:
        make_setup(config)
    (problem,) = raised.value.problems
    assert check(config) == [problem]
    return str(problem)


def test_blocks_of_different_kinds_are_refused(tmp_path: Path) -> None:
    folders = copies(tmp_path, layer_types=[LOCAL, WHOLE] * 2)
    said = refused(config_of(tmp_path, folders))
    assert said.startswith("space: found routes through blocks of different kinds: layer_types")
    assert f"{LOCAL} in block 0" in said and f"{WHOLE} in block 1" in said


def test_sources_of_another_kind_than_the_base_are_refused(tmp_path: Path) -> None:
    folders = copies(tmp_path, layer_types=[LOCAL] * 4)
    folders["base"] = zoo_path("models/base")
    plain = json.loads((folders["math"] / "config.json").read_text())
    plain["layer_types"] = [WHOLE] * 4
    (folders["math"] / "config.json").write_text(json.dumps(plain))
    assert "different kinds" in refused(config_of(tmp_path, folders))


def test_blocks_of_one_kind_pass(tmp_path: Path) -> None:
    folders = copies(tmp_path, layer_types=[WHOLE] * 4)
    assert check(config_of(tmp_path, folders)) == []


SCALED = ("space.scale_embedding=true", "space.scale={low: 0.5, high: 1.5}")


@pytest.mark.parametrize("depth", ["null", "6"])
@pytest.mark.parametrize("start", ["null", "0.7"])
def test_a_scaled_embedding_is_refused_where_the_head_is_tied(
    tmp_path: Path, depth: str, start: str
) -> None:
    scale = f"space.scale={{low: 0.5, high: 1.5, start: {start}}}"
    config = config_of(tmp_path, {}, SCALED[0], scale, f"space.depth={depth}")
    said = refused(config)
    assert said.startswith("space.scale_embedding: found true, and a head that is tied")


def test_a_scaled_embedding_passes_where_no_head_is_tied(tmp_path: Path) -> None:
    folders = copies(tmp_path, tie_word_embeddings=False)
    for folder in folders.values():
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert check(config_of(tmp_path, folders, *SCALED)) == []
    assert check(config_of(tmp_path, {}, *SCALED[1:])) == []
