"""Weighted sums of adapters as one adapter, against the merge of the whole models."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.checkpoints.merger import Merger
from evomerge.engines.stacking import rank_of, stacked
from evomerge.recipe import Recipe, Route, Slot, Source
from evomerge.types import Sampling
from evomerge.zoo import zoo_path

BASE = zoo_path("models/base")
POOL = [f"{BASE}+{zoo_path(f'adapters/{n}')}" for n in ("carry_sums", "polite_sums", "sort_up")]
MERGER = Merger(threads=1)


def recipe(method: str, *weights: Any, **extra: Any) -> Recipe:
    sources = tuple(Source(m, {"weight": w}) for m, w in zip(POOL, weights, strict=True))
    base = str(BASE) if method != "linear" else None
    return Recipe(method, sources, base, dtype="float32", **extra)


@pytest.mark.parametrize(
    "merge",
    [
        recipe("task_arithmetic", 0.7, -0.3, 1.4),
        recipe("task_arithmetic", 0.7, 0.2, 0.0, parameters={"lambda": 0.5, "normalize": True}),
        recipe("linear", 0.7, 0.2, 0.4),
        recipe("linear", 0.7, -0.2, 0.5, parameters={"normalize": False}),
    ],
    ids=["sum", "scaled", "mean", "weights that sum to 1"],
)
def test_base_and_factors_are_the_merge(merge: Recipe) -> None:
    stack = stacked(merge, MERGER.checkpoint, BASE)
    assert stack is not None
    plain = MERGER.checkpoint(str(BASE))
    changed = 0
    for name, tensor in MERGER.merge(merge):
        wanted = plain.tensor(name).float()
        pair = stack.get(name.removesuffix(".weight"))
        if pair is not None:
            wanted = wanted + pair[1] @ pair[0]
            changed += 1
        np.testing.assert_allclose(tensor.numpy(), wanted.numpy(), atol=2e-6)
    assert changed == len(stack) > 0


def test_ranks_add_up_and_zeros_are_left_out() -> None:
    def rank(*weights: float) -> int:
        found = stacked(recipe("task_arithmetic", *weights), MERGER.checkpoint, BASE)
        assert found is not None
        return rank_of(found)

    assert rank(1.0, 0.0, 0.5) == rank(1.0, 0.0, 0.0) + rank(0.0, 0.0, 1.0)
    assert rank(0.0, 0.0, 0.0) == 0


@pytest.mark.parametrize(
    ("merge", "base"),
    [
        (recipe("ties", 0.5, 0.5, 0.5), BASE),
        (recipe("linear", 0.7, 0.2, 0.4, parameters={"normalize": False}), BASE),
        (recipe("task_arithmetic", 0.7, 0.2, 0.4), zoo_path("models/math")),
        (Recipe("task_arithmetic", (Source(str(zoo_path("models/math")), {"weight": 1.0}),),
                str(BASE)), BASE),
        (Recipe("passthrough", base=str(BASE), route=Route((Slot(str(BASE), 0),))), BASE),
    ],
    ids=["ties", "weights sum to 1.3", "another base", "a whole model", "route"],
)  # fmt: skip
def test_other_recipes_are_no_adapter(merge: Recipe, base: Path) -> None:
    assert stacked(merge, MERGER.checkpoint, base) is None


def test_the_base_itself_needs_no_adapter() -> None:
    alone = Recipe("linear", (Source(str(BASE), {"weight": 1.0}),))
    assert stacked(alone, MERGER.checkpoint, BASE) == {}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_swaps_adapters_and_weights_in_any_order() -> None:
    """With an adapter the answers are those of the merged weights but for rounding."""
    from evomerge.engines.transformers import TransformersEngine
    from evomerge.engines.vllm import VllmEngine

    prompts = [f"{a} + {b} = \n" for a in range(3, 7) for b in range(11, 14)]
    pairs = [(prompt, "14") for prompt in prompts]
    plain = TransformersEngine(BASE)
    engine = VllmEngine(BASE, kv_cache_gb=0.1, lora=True, max_lora_rank=16)
    whole = Recipe(
        "linear",
        tuple(Source(str(zoo_path(f"models/{n}")), {"weight": 0.5}) for n in ("math", "sorter")),
    )
    alone = Recipe("linear", (Source(str(BASE), {"weight": 1.0}),))
    orders = [
        (recipe("task_arithmetic", 0.7, -0.3, 0.0), True),
        (recipe("task_arithmetic", 0.1, 1.1, 0.0), True),
        (alone, False),
        (whole, False),
        (recipe("task_arithmetic", 0.7, 0.0, -0.3), True),
        (recipe("task_arithmetic", 0.3, 0.3, 0.3), False),  # of rank 20
        (alone, False),
    ]  # fmt: skip
    try:
        running = engine._llm
        for merge, adapted in orders:
            engine.load(merge)
            plain.load(merge)
            assert engine._adapter == adapted
            np.testing.assert_allclose(
                engine.loglikelihood(pairs), plain.loglikelihood(pairs), rtol=0, atol=1e-3
            )
            told = [[g.text for g in e.generate(prompts, Sampling(8))] for e in (engine, plain)]
            assert sum(a == b for a, b in zip(*told, strict=True)) >= len(prompts) - 1
        assert engine._llm is running
    finally:
        engine.close()
