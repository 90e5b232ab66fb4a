"""The vLLM engine, started twice in one process, on a model with a head of its own."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from engine_family import Family

from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.engines.vllm import VllmEngine
from evomerge.errors import ConfigError
from evomerge.types import Generation, Sampling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]


def answers(engine: VllmEngine, family: Family) -> list[Generation]:
    return engine.generate(family.prompts, Sampling(16))


def test_updated_engine_answers_as_a_fresh_one(
    make_family: Callable[[bool], Family], tmp_path: Path
) -> None:
    """Also where llvmlite's library is loaded, which vLLM could not read."""
    from llvmlite.binding import ffi

    library = ffi.lib
    assert not hasattr(library.__dict__, "get")
    family = make_family(False)
    recipe = family.recipe(0.4, 0.6)
    engine = VllmEngine(family.base, kv_cache_gb=0.25)
    try:
        base = answers(engine, family)
        engine.load(recipe)
        in_place = answers(engine, family)
        assert ffi.lib is library
    finally:
        engine.close()
    write_checkpoint(recipe, Merger(), tmp_path / "merged")
    engine = VllmEngine(tmp_path / "merged", kv_cache_gb=0.25)
    try:
        assert answers(engine, family) == in_place != base
    finally:
        engine.close()


def test_argument_that_vllm_does_not_know_is_refused(
    make_family: Callable[[bool], Family],
) -> None:
    with pytest.raises(ConfigError, match="speed"):
        VllmEngine(make_family(False).base, speed=1)
