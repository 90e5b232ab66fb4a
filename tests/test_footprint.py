"""Memory and disk that a study asks for, against the sizes of written models."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from studies import quick_config

from evomerge import footprint, resources, scaling
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.errors import Problem
from evomerge.recipe import Recipe, Source
from evomerge.workers import template_recipe
from evomerge.zoo import zoo_path

BASE, MATH, JAPANESE = (str(zoo_path(f"models/{n}")) for n in ("base", "math", "japanese"))
HYBRID = "+experiment=jp_math_hybrid_tiny"


def size(folder: Path) -> int:
    """Bytes of the tensors in a written model."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
        total += sum(t.numel() * t.element_size() for t in tensors)
    return total


def merge(folder: Path, *sources: str) -> tuple[str, int]:
    """A recipe file, and the size of what it writes."""
    folder.mkdir()
    recipe = Recipe("linear", tuple(Source(ref, {"weight": 0.5}) for ref in sources))
    path = folder / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    write_checkpoint(recipe, Merger(threads=1), folder / "model")
    return str(path), size(folder / "model")


def problems(config: dict[str, Any]) -> list[Problem]:
    return list(resources.check_resources(config, Merger(threads=1), lambda text: None))


def test_each_merged_source_is_held_once(tmp_path: Path) -> None:
    """Also one that only another merge reads."""
    inner, inner_size = merge(tmp_path / "inner", MATH, JAPANESE)
    outer, outer_size = merge(tmp_path / "outer", inner, BASE)
    sources = (f"models.sources.merge={outer}", f"models.sources.math={inner}")
    config = quick_config(tmp_path / "run", HYBRID, *sources)
    assert footprint.held(config, Merger()) == inner_size + outer_size
    config = quick_config(tmp_path / "run", HYBRID, sources[0])
    assert footprint.held(config, Merger()) == inner_size + outer_size
    assert footprint.held(quick_config(tmp_path / "run"), Merger()) == 0


def test_what_cannot_be_opened_is_left_out(tmp_path: Path) -> None:
    path, found = merge(tmp_path / "merge", MATH, JAPANESE)
    config = quick_config(tmp_path / "run", HYBRID, f"models.sources.merge={path}")
    config["models"]["sources"]["math"] = str(tmp_path / "nowhere")
    assert footprint.held(config, Merger()) == found
    config["models"]["base"] = None
    assert footprint.template(config, Merger()) == 0


def test_memory_counts_merged_sources_for_each_worker_and_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, merged = merge(tmp_path / "merge", MATH, JAPANESE)
    config = quick_config(
        tmp_path / "run", HYBRID, f"models.sources.merge={path}", "models.sources.math=" + MATH,
        "space.depth=4", "executor=ray", "executor.workers=3", "executor.threads=1",
    )  # fmt: skip
    assert config["models"]["base"] == BASE
    base = size(Path(BASE))
    with safe_open(next(Path(BASE).glob("*.safetensors")), "pt") as file:
        largest = max(math.prod(file.get_slice(n).get_shape()) for n in file.keys())  # noqa: SIM118
    needed = 3 * (scaling.PROCESS + 2 * base + 16 * largest + merged) + merged
    monkeypatch.setattr(resources, "_page_cache", lambda: 0)
    monkeypatch.setattr(resources, "available", lambda: range(8))

    def found(free: int) -> list[Problem]:
        sizes = {"SC_AVPHYS_PAGES": free, "SC_PAGE_SIZE": 1}
        monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
        return [p for p in problems(config) if p.field == "executor.workers"]

    slack = base // 50  # files have a head beside their tensors
    assert not found(needed + slack)
    (problem,) = found(needed - slack)
    assert "sources that are merges" in problem.found and "write the merges" in problem.remedy


def test_the_disk_holds_the_template_and_a_result_of_its_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick_config(tmp_path / "run", "+experiment=jp_math_dfs_tiny", "space.depth=6")
    recipe = template_recipe(config, Merger(threads=1))
    assert recipe is not None
    write_checkpoint(recipe, Merger(threads=1), tmp_path / "template")
    template = size(tmp_path / "template")
    assert footprint.template(config, Merger()) == template > size(Path(BASE))
    rest = config["budget"]["candidates"] * 100 * 2048 + (200 << 20)

    def found(free: int) -> list[Problem]:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, free))
        return [p for p in problems(config) if p.field == "run_dir"]

    assert not found(2 * template + rest)
    (problem,) = found(2 * template + rest - 1)
    assert "the one that engines start on" in problem.expected
