"""The engine on vLLM: updates in place against fresh engines and against transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_family import Family

from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.engines.transformers import TransformersEngine
from evomerge.engines.vllm import VllmEngine
from evomerge.errors import CandidateError, ConfigError, EngineError, NotFiniteError, RecipeError
from evomerge.recipe import Recipe, Source
from evomerge.types import Chat, Sampling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]

GREEDY = Sampling(16)
SETTINGS: dict[str, Any] = {"block_size": 32, "kv_cache_gb": 0.25, "max_num_seqs": 64}
"""Blocks of 32 tokens let short prompts fill the prefix cache."""

FRESH = """
import json, sys
from evomerge.engines.vllm import VllmEngine
from evomerge.types import Chat, Sampling
given = json.load(sys.stdin)
answers = []
for folder in given["folders"]:
    engine = VllmEngine(folder, **given["settings"])
    answers.append([g.text for g in engine.generate(given["prompts"], Sampling(given["limit"]))])
    engine.close()
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def engine(trained: Family) -> Iterator[VllmEngine]:
    engine = VllmEngine(trained.base, **SETTINGS)
    yield engine
    engine.close()


def fresh(recipes: list[Recipe], prompts: tuple[str, ...], folder: Path) -> list[list[str]]:
    """Answers of one new engine a recipe, each started on the written checkpoint."""
    folders = [folder / str(i) for i in range(len(recipes))]
    merger = Merger()
    for recipe, path in zip(recipes, folders, strict=True):
        write_checkpoint(recipe, merger, path)
    given = {
        "folders": [str(f) for f in folders], "prompts": prompts,
        "limit": GREEDY.max_new_tokens, "settings": SETTINGS,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", FRESH],
        input=json.dumps(given), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def texts(engine: Any, prompts: Sequence[str]) -> list[str]:
    return [g.text for g in engine.generate(prompts, GREEDY)]


def test_twenty_updates_in_a_row_answer_as_written_checkpoints(
    engine: VllmEngine, trained: Family, tmp_path: Path
) -> None:
    """Each against transformers; the first, the tenth and the last against a fresh engine, too."""
    recipes = trained.recipes(20)
    plain = TransformersEngine(trained.base)
    in_place, parted = [], 0
    for recipe in recipes:
        engine.load(recipe)
        in_place.append(texts(engine, trained.prompts))
        plain.load(recipe)
        parted += len(differences(plain, trained.prompts, in_place[-1]))
    assert len({tuple(answers) for answers in in_place}) == len(recipes)
    assert parted <= 0.02 * len(recipes) * len(trained.prompts)
    some = [0, 9, 19]
    chosen = fresh([recipes[i] for i in some], trained.prompts, tmp_path)
    assert [in_place[i] for i in some] == chosen


def long_prompts(family: Family) -> tuple[str, ...]:
    """Prompts that share a beginning of more than two cache blocks."""
    count = 2 if "\n" in family.prompts[0] else 4
    start = " ".join(f"{p}{g}" for p, g in zip(family.prompts[:count], family.golds, strict=False))
    return tuple(f"{start} {p}" for p in family.prompts[5:15])


def test_prefix_cache_of_the_weights_before_is_not_used(
    engine: VllmEngine, trained: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = trained.recipe(1.0, 0.0), trained.recipe(0.0, 1.0)
    prompts = long_prompts(trained)
    engine.load(old)
    texts(engine, prompts)
    engine.load(new)
    got = texts(engine, prompts)
    engine._llm.reset_prefix_cache()
    assert got == texts(engine, prompts)
    engine.load(old)
    texts(engine, prompts)
    with monkeypatch.context() as patch:
        patch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
        engine.load(new)
    stale = texts(engine, prompts)
    assert stale != got, "these prompts do not reach the cache: the test proves nothing"


@pytest.mark.parametrize("weights", [(0.9, 0.8), (0.8, 0.9, 0.1), (0.3, 1.0)])
def test_answers_agree_with_transformers_but_for_near_ties(
    engine: VllmEngine, trained: Family, weights: tuple[float, ...]
) -> None:
    recipe = trained.recipe(*weights)
    plain = TransformersEngine(trained.base)
    plain.load(recipe)
    engine.load(recipe)
    gaps = differences(plain, trained.prompts, texts(engine, trained.prompts))
    assert len(gaps) <= 0.05 * len(trained.prompts)
    pairs = list(zip(trained.prompts, trained.golds, strict=True))
    np.testing.assert_allclose(
        engine.loglikelihood(pairs), plain.loglikelihood(pairs), rtol=0, atol=1e-3
    )


def differences(plain: TransformersEngine, prompts: Sequence[str], told: list[str]) -> list[float]:
    """How far apart the two best logits are where an answer is not that of transformers.

    Checks that all are near-ties: both engines compute in float32, so logits of about 10 come out
    the same but for some 1e-5.
    """
    ours = texts(plain, prompts)
    gaps = {p: gap(plain, p, a, b) for p, a, b in zip(prompts, ours, told, strict=True) if a != b}
    assert all(0 <= g < 1e-3 for g in gaps.values()), gaps
    return list(gaps.values())


def gap(engine: TransformersEngine, prompt: str, a: str, b: str) -> float:
    """How far apart the logits are where two answers part."""
    encode = engine._codec.tokenizer
    first, second = (
        [*encode(t, add_special_tokens=False)["input_ids"], *engine._codec.eos_ids] for t in (a, b)
    )
    same = next(i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y)
    with torch.no_grad():
        ids = torch.tensor([encode(prompt)["input_ids"] + first[:same]])
        logits = engine._model(ids).logits[0, -1]
    return float(logits[first[same]] - logits[second[same]])


def test_loglikelihood_agrees_with_transformers(engine: VllmEngine, trained: Family) -> None:
    recipe = trained.recipe(0.4, 0.7)
    plain = TransformersEngine(trained.base)
    plain.load(recipe)
    engine.load(recipe)
    pairs = list(zip(trained.prompts, trained.golds, strict=True))
    got, expected = engine.loglikelihood(pairs), plain.loglikelihood(pairs)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(engine.loglikelihood(pairs), got)
    assert len(engine.loglikelihood([])) == 0
    rows = [engine.codec.pair(c, text) for c, text in pairs]
    scored, known = engine.score_tokens(rows), plain.score_tokens(rows)
    sums = [value * (len(ids) - start) for value, (ids, start) in zip(got, rows, strict=True)]
    np.testing.assert_allclose([value for value, _ in scored], sums, atol=1e-6)
    agree = [a == b for (_, a), (_, b) in zip(scored, known, strict=True)]
    assert np.mean(agree) > 0.9
    answers = texts(engine, trained.prompts)
    said = [engine.codec.pair(p, text) for p, text in zip(trained.prompts, answers, strict=True)]
    assert np.mean([greedy for _, greedy in engine.score_tokens(said)]) > 0.9


def test_tokens_and_stop_strings_are_those_of_transformers(
    engine: VllmEngine, trained: Family
) -> None:
    recipe = trained.recipe(0.2)
    plain = TransformersEngine(trained.base)
    plain.load(recipe)
    engine.load(recipe)
    whole = plain.generate(trained.prompts, GREEDY)
    stop = (whole[0].text[2:4],)
    sampling = replace(GREEDY, stop=stop)
    ours, theirs = (
        plain.generate(trained.prompts, sampling),
        engine.generate(trained.prompts, sampling),
    )
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    assert same >= 0.9 * len(ours)
    assert all(stop[0] not in answer.text for answer in theirs)
    assert ours[0].tokens < whole[0].tokens and theirs[0] == ours[0]


def test_settings_of_sampling_mean_the_same_in_both(engine: VllmEngine, trained: Family) -> None:
    recipe = trained.recipe(0.5)
    plain = TransformersEngine(trained.base)
    plain.load(recipe)
    engine.load(recipe)

    def say(which: Any, **changes: Any) -> list[str]:
        found = which.generate(trained.prompts, replace(GREEDY, **changes))
        return [g.text for g in found]

    greedy = say(engine)
    for narrow in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        assert say(engine, temperature=2.0, **narrow) == greedy
    penalised = say(engine, repetition_penalty=1.5)
    same = sum(a == b for a, b in zip(penalised, say(plain, repetition_penalty=1.5), strict=True))
    assert penalised != greedy and same >= 0.95 * len(penalised)
    assert say(engine, temperature=1.5, seed=5) != say(engine, temperature=1.5)
    assert say(engine, temperature=1.5, seed=0) == say(engine, temperature=1.5)


def test_a_chat_is_answered_as_by_transformers(engine: VllmEngine, trained: Family) -> None:
    recipe = trained.recipe(0.5)
    plain = TransformersEngine(trained.base)
    plain.load(recipe)
    engine.load(recipe)
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}\n"
    for each in (plain, engine):
        each.codec.tokenizer.chat_template = template
    chats = [Chat(p.strip(), "12 ") for p in trained.prompts[:20]]
    told = [g.text for g in engine.generate(chats, GREEDY)]
    assert told == [g.text for g in plain.generate(chats, GREEDY)]
    assert told != texts(engine, trained.prompts[:20])
    pairs = list(zip(chats, trained.golds, strict=False))
    np.testing.assert_allclose(engine.loglikelihood(pairs), plain.loglikelihood(pairs), atol=1e-3)
    for each in (plain, engine):
        each.codec.tokenizer.chat_template = None


def test_arguments_arrive_in_vllm(engine: VllmEngine) -> None:
    config = engine._llm.llm_engine.vllm_config
    assert config.cache_config.block_size == SETTINGS["block_size"]
    assert config.scheduler_config.max_num_seqs == SETTINGS["max_num_seqs"]
    assert config.cache_config.kv_cache_memory_bytes == 2**28
    assert config.model_config.dtype == torch.float32  # auto, on a CPU


def test_sampling_depends_on_the_seed(engine: VllmEngine, trained: Family) -> None:
    engine.load(trained.recipe(0.5))
    hot = Sampling(8, temperature=1.5)
    first = engine.generate(trained.prompts, hot)
    engine.load(trained.recipe(0.5))
    assert engine.generate(trained.prompts, hot) == first
    assert first != engine.generate(trained.prompts, Sampling(8))
    assert engine.generate([], hot) == []


def test_not_finite_weights_fail_and_the_next_load_works(
    engine: VllmEngine, trained: Family, poisoned: Callable[[Path], Path]
) -> None:
    good = trained.recipe(0.3, 0.3)
    engine.load(good)
    answers = texts(engine, trained.prompts)
    running = engine._llm
    bad = replace(good, sources=(Source(str(poisoned(trained.tuned[0])), {"weight": 0.5}),))
    with pytest.raises(NotFiniteError, match=r"model\.norm\.weight"):
        engine.load(bad)
    with pytest.raises(EngineError, match="last load failed"):
        texts(engine, trained.prompts)
    engine.load(good)
    assert texts(engine, trained.prompts) == answers
    assert engine._llm is running


def test_recipe_at_fault_keeps_its_kind(engine: VllmEngine, trained: Family) -> None:
    good = trained.recipe(0.3, 0.3)
    running = engine._llm
    with pytest.raises(RecipeError, match=r"parameters\.nonsense"):
        engine.load(replace(good, parameters={"nonsense": 1.0}))
    engine.load(good)
    assert engine._llm is running


@pytest.mark.parametrize("broken", ["stream", "shape", "name", "missing"])
def test_update_that_breaks_half_way_is_made_good(
    engine: VllmEngine, trained: Family, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    good = trained.recipe(0.6, 0.2)
    engine.load(good)
    answers = texts(engine, trained.prompts)
    running = engine._llm
    merge = Merger.merge

    def damaged(self: Merger, recipe: Recipe) -> Iterator[tuple[str, torch.Tensor]]:
        for i, (name, tensor) in enumerate(merge(self, recipe)):
            if i == 7 and broken == "stream":
                raise OSError("disk gone")
            if i == 7 and broken == "missing":
                continue
            if i == 7 and broken == "shape":
                tensor = tensor[:-1]
            yield f"other.{name}" if i == 7 and broken == "name" else name, tensor

    with monkeypatch.context() as patch:
        patch.setattr(Merger, "merge", damaged)
        with pytest.raises(CandidateError):
            engine.load(trained.recipe(0.1, 0.9))
    with pytest.raises(EngineError, match="last load failed"):
        texts(engine, trained.prompts)
    engine.load(good)
    assert texts(engine, trained.prompts) == answers
    rebuilt = engine._llm is not running
    assert rebuilt == (broken in ("stream", "shape", "name"))


def test_prompt_without_room_names_the_limit(engine: VllmEngine, trained: Family) -> None:
    engine.load(trained.recipe(0.5))
    with pytest.raises(ConfigError, match="max_model_len"):
        engine.generate([trained.prompts[0] * 100], GREEDY)
    assert len(texts(engine, trained.prompts)) == len(trained.prompts)


def test_threads_and_random_state_stay_the_processes_own(engine: VllmEngine) -> None:
    assert torch.get_num_threads() == 1
    assert torch.set_num_threads.__module__ != "vllm.v1.worker.cpu_worker"


def test_second_engine_in_one_process_is_refused(engine: VllmEngine, trained: Family) -> None:
    with pytest.raises(EngineError, match="close that one first"):
        VllmEngine(trained.base)


def test_arguments_of_ours_and_unknown_ones_are_refused(trained: Family) -> None:
    with pytest.raises(ConfigError, match=r"engine\.args\.worker_extension_cls"):
        VllmEngine(trained.base, worker_extension_cls="x")
    with pytest.raises(ConfigError, match="cores"):
        VllmEngine(trained.base, threads=2, cores=[0])


def test_closed_engine_says_so(trained: Family, engine: VllmEngine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.load(trained.recipe(0.1))
    with pytest.raises(EngineError, match="closed"):
        texts(engine, trained.prompts)
