"""Routes of any depth in one engine: shorter models, identities and written checkpoints agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.checkpoints.deepening import at_depth, blocks_of
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.engines.transformers import TransformersEngine
from evomerge.errors import CandidateError, RecipeError
from evomerge.recipe import Recipe, Route, Slot, Source
from evomerge.types import Sampling
from evomerge.zoo import zoo_path

DEPTH = 7
BASE, *MODELS = (str(zoo_path(f"models/{n}")) for n in ("base", "math", "japanese"))
MERGER = Merger(threads=1)
GREEDY = Sampling(8)


def problems(count: int) -> list[tuple[str, str]]:
    lines = zoo_path("data/jp_math.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    rows = [json.loads(line) for line in lines]
    return [(f"{row['question']}\n", row["gold"]) for row in rows]


PAIRS = problems(6)
PROMPTS = [prompt for prompt, _ in PAIRS]


def routes(count: int, seed: int = 0) -> list[Recipe]:
    """Random routes of 1 to `DEPTH` blocks with scales."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        slots = tuple(
            Slot(MODELS[rng.integers(2)], int(rng.integers(4)), float(rng.uniform(0.6, 1.4)))
            for _ in range(rng.integers(1, DEPTH + 1))
        )
        slots = (replace(slots[0], scale=1.0), *slots[1:])  # the embedding stays tied
        found.append(Recipe("passthrough", base=MODELS[0], route=Route(slots)))
    return found


def filled(recipe: Recipe) -> Recipe:
    assert recipe.route is not None
    return replace(recipe, route=replace(recipe.route, depth=DEPTH))


def averaged() -> Recipe:
    return Recipe("linear", tuple(Source(m, {"weight": 0.5}) for m in MODELS))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of `DEPTH` blocks."""
    folder = tmp_path_factory.mktemp("deep") / "template"
    slots = tuple(Slot(MODELS[0], layer) for layer in range(4))
    write_checkpoint(Recipe("passthrough", route=Route(slots, depth=DEPTH)), MERGER, folder)
    return folder


@pytest.fixture(scope="module")
def engine(template: Path) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(template)
    yield engine
    engine.close()


def said(engine: Any) -> list[str]:
    return [g.text for g in engine.generate(PROMPTS, GREEDY)]


def test_twenty_routes_score_the_same_with_and_without_identities(
    engine: TransformersEngine,
) -> None:
    different = set()
    for recipe in routes(20):
        engine.load(recipe)
        texts, logliks = said(engine), engine.loglikelihood(PAIRS)
        engine.load(filled(recipe))
        assert said(engine) == texts
        np.testing.assert_allclose(engine.loglikelihood(PAIRS), logliks, atol=1e-5)
        different.add(tuple(logliks))
    assert len(different) >= 18  # routes of one block may repeat


def test_a_short_route_answers_as_its_written_model(
    engine: TransformersEngine, tmp_path: Path
) -> None:
    for i, recipe in enumerate(routes(3, seed=1)):
        write_checkpoint(recipe, MERGER, tmp_path / str(i))
        alone = TransformersEngine(tmp_path / str(i))
        engine.load(recipe)
        assert np.array_equal(engine.loglikelihood(PAIRS), alone.loglikelihood(PAIRS))
        assert said(engine) == said(alone)


def test_a_merge_that_is_no_route_runs_in_a_deeper_engine(engine: TransformersEngine) -> None:
    plain = TransformersEngine(BASE)
    plain.load(averaged())
    wanted = plain.loglikelihood(PAIRS)
    engine.load(averaged())
    assert np.array_equal(engine.loglikelihood(PAIRS), wanted)
    engine.load(filled(routes(1)[0]))
    engine.update(MERGER.merge(at_depth(averaged(), MERGER, DEPTH)))
    np.testing.assert_allclose(engine.loglikelihood(PAIRS), wanted, atol=1e-5)


def test_a_merge_is_filled_up_without_a_change_of_its_values() -> None:
    plain = dict(MERGER.merge(averaged()))
    deep = at_depth(averaged(), MERGER, DEPTH)
    assert blocks_of(deep) == DEPTH
    for name, tensor in MERGER.merge(deep):
        if name in plain:
            assert np.array_equal(tensor.float().numpy(), plain.pop(name).float().numpy())
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            assert not tensor.any()
    assert not plain


def test_a_route_that_is_too_deep_fails_and_the_next_one_runs(engine: TransformersEngine) -> None:
    long = Recipe("passthrough", route=Route((Slot(MODELS[0], 0),) * (DEPTH + 1)))
    with pytest.raises(CandidateError, match=rf"{DEPTH + 1} blocks and the engine {DEPTH}"):
        engine.load(long)
    with pytest.raises(CandidateError, match=rf"{DEPTH + 1} blocks and the engine {DEPTH}"):
        at_depth(long, MERGER, DEPTH)
    engine.load(averaged())
    assert said(engine)


def test_a_head_of_its_own_is_refused_by_an_engine_that_ties_it(
    engine: TransformersEngine,
) -> None:
    route = Route((Slot(MODELS[0], 0, 1.25), Slot(MODELS[0], 1)))
    with pytest.raises(CandidateError, match=r"lm_head\.weight differs from .*embed_tokens"):
        engine.load(Recipe("passthrough", route=route))
    engine.load(averaged())


def test_a_route_without_blocks_is_refused_with_a_sentence(engine: TransformersEngine) -> None:
    with pytest.raises(RecipeError, match="keeps no block has nothing to run"):
        engine.load(Recipe("passthrough", base=MODELS[0], route=Route((), depth=DEPTH)))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_runs_routes_of_any_depth_up_to_its_own(
    engine: TransformersEngine, template: Path
) -> None:
    from evomerge.engines.vllm import VllmEngine

    served = VllmEngine(template, dtype="float32", kv_cache_gb=0.25)
    try:
        running = served._llm
        for recipe in (*routes(4, seed=2), filled(routes(1)[0]), averaged()):
            served.load(recipe)
            engine.load(recipe)
            np.testing.assert_allclose(
                served.loglikelihood(PAIRS), engine.loglikelihood(PAIRS), atol=2e-3
            )
            assert said(served) == said(engine)
        for route, message in [
            (Route((Slot(MODELS[0], 0, 1.25),)), "lm_head.weight differs"),
            (Route((Slot(MODELS[0], 0),) * (DEPTH + 1)), "blocks and the engine"),
        ]:
            with pytest.raises(CandidateError, match=message):
                served.load(Recipe("passthrough", route=route))
        with pytest.raises(RecipeError, match=r"route\.slots"):
            served.load(Recipe("passthrough", base=MODELS[0], route=Route((), depth=DEPTH)))
        served.load(averaged())
        assert said(served) and served._llm is running
    finally:
        served.close()
