"""The engine on transformers against plain, slow, independent computations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_family import Family
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.engines.transformers import TransformersEngine
from evomerge.errors import (
    CandidateError,
    ConfigError,
    EngineError,
    NotFiniteError,
    RecipeError,
    TaskError,
)
from evomerge.recipe import Source
from evomerge.types import Sampling

GREEDY = Sampling(12)


@pytest.fixture(scope="module")
def engine(family: Family) -> Iterator[TransformersEngine]:
    engine = TransformersEngine(family.base, batch_tokens=200)
    yield engine
    engine.close()


def naive(model: Any, tokenizer: Any, prompt: str, limit: int) -> str:
    """Greedy answer to one prompt without cache, batch or padding."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + limit:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True))


def written(family: Family, recipe: Any, folder: Path, dtype: Any = torch.float32) -> Any:
    write_checkpoint(recipe, Merger(), folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def test_answers_are_those_of_the_written_checkpoint(
    engine: TransformersEngine, family: Family, tmp_path: Path
) -> None:
    recipe = family.recipe(0.7, 0.4)
    engine.load(recipe)
    got = [g.text for g in engine.generate(family.prompts, GREEDY)]
    model = written(family, recipe, tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert got == [naive(model, tokenizer, p, 12) for p in family.prompts]
    for prompt, text in list(zip(family.prompts, got, strict=True))[:5]:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        out = model.generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=0)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == text


def test_every_parameter_is_overwritten(engine: TransformersEngine, family: Family) -> None:
    for parameter in engine._model.parameters():
        parameter.fill_(float("nan"))
    engine.load(family.recipe(1.0))
    expected = load_file(family.tuned[0] / "model.safetensors")
    state = engine._model.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor.to(torch.float32), rtol=1e-2, atol=1e-2)
    assert all(bool(torch.isfinite(t).all()) for t in state.values())


def test_weights_are_rounded_to_the_dtype_that_would_be_written(
    engine: TransformersEngine, family: Family
) -> None:
    engine.load(family.recipe(0.37, 0.11))
    for parameter in engine._model.parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, parameter.to(torch.bfloat16).to(torch.float32))


def test_results_come_in_the_order_given(engine: TransformersEngine, family: Family) -> None:
    engine.load(family.recipe(0.5))
    forward = engine.generate(family.prompts, GREEDY)
    backward = engine.generate(family.prompts[::-1], GREEDY)
    assert forward == backward[::-1]
    assert engine.generate(family.prompts, GREEDY) == forward
    assert engine.generate([], GREEDY) == []


def test_batch_composition_does_not_change_answers(family: Family) -> None:
    answers = []
    for budget in (1, 300, 100_000):
        engine = TransformersEngine(family.base, batch_tokens=budget)
        answers.append(engine.generate(family.prompts, GREEDY))
    assert answers[0] == answers[1] == answers[2]


def test_stop_strings_are_cut_out_and_end_the_answer(
    engine: TransformersEngine, family: Family
) -> None:
    engine.load(family.recipe(0.5))
    whole = engine.generate(family.prompts, GREEDY)
    stop = tuple(whole[0].text.split()[3:5])
    cut = engine.generate(family.prompts, replace(GREEDY, stop=stop))
    for before, after in zip(whole, cut, strict=True):
        ends = [before.text.find(s) for s in stop if s in before.text]
        assert after.text == (before.text[: min(ends)] if ends else before.text)
        assert after.tokens <= before.tokens
    assert cut[0].tokens < whole[0].tokens


def test_end_token_ends_an_answer_and_is_counted(
    engine: TransformersEngine, family: Family
) -> None:
    engine.load(family.recipe(0.5))
    first = engine.generate(family.prompts[:1], GREEDY)[0].text.split()[2]
    token = engine._codec.tokenizer.convert_tokens_to_ids(first)
    eos = engine._decoder._eos
    engine._decoder._eos = torch.tensor([token])
    try:
        answer = engine.generate(family.prompts[:1], GREEDY)[0]
    finally:
        engine._decoder._eos = eos
    assert answer.text.split()[-1] == first
    assert answer.tokens == len(answer.text.split())


def test_sampling_depends_on_seed_and_place_alone(family: Family) -> None:
    hot = Sampling(10, temperature=1.5)
    runs = [
        TransformersEngine(family.base, seed=seed, batch_tokens=budget).generate(
            family.prompts, hot
        )
        for seed, budget in ((1, 64), (1, 10_000), (2, 64))
    ]
    same = sum(a == b for a, b in zip(runs[0], runs[1], strict=True))
    other = sum(a == b for a, b in zip(runs[0], runs[2], strict=True))
    assert same == len(family.prompts)
    assert other < len(family.prompts) // 2


def test_sampling_leaves_the_global_random_state_alone(
    engine: TransformersEngine, family: Family
) -> None:
    engine.load(family.recipe(0.5))
    before = torch.get_rng_state()
    engine.generate(family.prompts[:3], Sampling(4, temperature=1.0))
    assert torch.equal(before, torch.get_rng_state())


def test_loglikelihood_is_the_mean_over_the_continuation(
    engine: TransformersEngine, family: Family, tmp_path: Path
) -> None:
    recipe = family.recipe(0.2, 0.9)
    engine.load(recipe)
    pairs = list(zip(family.prompts, family.golds, strict=True))
    got = engine.loglikelihood(pairs)
    model = written(family, recipe, tmp_path / "merged", torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    for (context, gold), value in zip(pairs, got, strict=True):
        start = len(tokenizer(context)["input_ids"])
        ids = torch.tensor([tokenizer(context + gold)["input_ids"]])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(ids).logits[0], -1)
        naive = [float(logprobs[t - 1, ids[0, t]]) for t in range(start, ids.shape[1])]
        assert value == pytest.approx(np.mean(naive), abs=1e-4)


def test_scored_tokens_say_whether_greedy_decoding_gives_them(
    engine: TransformersEngine, family: Family, tmp_path: Path
) -> None:
    recipe = family.recipe(0.2, 0.9)
    engine.load(recipe)
    model = written(family, recipe, tmp_path / "merged", torch.float64)
    rows, wanted = [], []
    for prompt in family.prompts[:4]:
        ids = engine.codec.encode(prompt)
        start = len(ids)
        with torch.no_grad():
            for _ in range(3):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            other = [*ids[:-1], (ids[-1] + 1) % 60]
            for row in (ids, other):
                logprobs = torch.log_softmax(model(torch.tensor([row])).logits[0], -1)
                rows.append((row, start))
                wanted.append(sum(float(logprobs[t - 1, row[t]]) for t in (-3, -2, -1)))
    got = engine.score_tokens(rows)
    assert [greedy for _, greedy in got] == [True, False] * 4
    np.testing.assert_allclose([value for value, _ in got], wanted, atol=3e-4)


def test_rows_that_differ_in_the_last_token_are_read_once(
    engine: TransformersEngine, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.load(family.recipe(0.5))
    ids = engine.codec.encode(family.prompts[0])
    rows = [([*ids, last], len(ids) - back) for last in (3, 4) for back in (0, 2)]
    alone = [engine.score_tokens([row])[0] for row in rows]
    seen = []
    run = engine._model.forward
    monkeypatch.setattr(
        engine._model, "forward", lambda **k: seen.append(len(k["input_ids"])) or run(**k)
    )
    together = engine.score_tokens(rows)
    assert seen == [1]
    np.testing.assert_allclose([v for v, _ in together], [v for v, _ in alone], atol=1e-5)


def test_prompts_may_be_token_ids(engine: TransformersEngine, family: Family) -> None:
    engine.load(family.recipe(0.5))
    ids = [engine.codec.encode(prompt) for prompt in family.prompts[:5]]
    assert engine.generate(ids, GREEDY) == engine.generate(family.prompts[:5], GREEDY)


def test_loglikelihood_in_small_pieces_is_the_same(
    engine: TransformersEngine, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = list(zip(family.prompts, family.golds, strict=True))
    engine.load(family.recipe(0.5))
    whole = engine.loglikelihood(pairs)
    monkeypatch.setattr("evomerge.engines.scoring._LOGITS", 1)
    np.testing.assert_allclose(engine.loglikelihood(pairs), whole, atol=1e-5)


def test_continuation_without_tokens_is_a_task_error(engine: TransformersEngine) -> None:
    engine._failed = False
    with pytest.raises(TaskError, match="gold answer 1"):
        engine.loglikelihood([("w1", " w2"), ("w1", "")])


def test_prompt_without_room_names_the_limit(engine: TransformersEngine) -> None:
    engine._failed = False
    with pytest.raises(ConfigError, match=r"max_model_len.*at most 127"):
        engine.generate([" ".join(["w1"] * 200)], GREEDY)


def test_answer_ends_at_the_models_limit(family: Family) -> None:
    engine = TransformersEngine(family.base, max_model_len=16)
    answers = engine.generate(["w1 w2 w3"], Sampling(50))
    assert answers[0].tokens <= 12


def test_not_finite_weights_fail_and_the_next_load_works(
    engine: TransformersEngine, family: Family, poisoned: Callable[[Path], Path]
) -> None:
    good = family.recipe(0.3, 0.3)
    engine.load(good)
    answers = engine.generate(family.prompts, GREEDY)
    bad = replace(good, sources=(Source(str(poisoned(family.tuned[0])), {"weight": 0.5}),))
    with pytest.raises(NotFiniteError, match=r"model\.norm\.weight"):
        engine.load(bad)
    with pytest.raises(EngineError, match="last load failed"):
        engine.generate(family.prompts, GREEDY)
    engine.load(good)
    assert engine.generate(family.prompts, GREEDY) == answers


def test_stream_that_breaks_fails_and_the_next_load_works(
    engine: TransformersEngine, family: Family
) -> None:
    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield next(Merger().merge(family.recipe(0.1)))
        raise OSError("disk gone")

    good = family.recipe(0.3, 0.3)
    engine.load(good)
    answers = engine.generate(family.prompts, GREEDY)
    with pytest.raises(CandidateError, match="disk gone"):
        engine.update(broken())
    with pytest.raises(RecipeError):
        engine.load(replace(good, parameters={"nonsense": 1.0}))
    engine.load(good)
    assert engine.generate(family.prompts, GREEDY) == answers


def test_closed_engine_says_so(family: Family) -> None:
    engine = TransformersEngine(family.base)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.generate(["w1"], GREEDY)
    with pytest.raises(EngineError, match="closed"):
        engine.load(family.recipe(0.1))


def test_bfloat16_computes_in_bfloat16(family: Family) -> None:
    engine = TransformersEngine(family.base, dtype="bfloat16")
    engine.load(family.recipe(0.5))
    assert engine._model.dtype == torch.bfloat16
    assert len(engine.generate(family.prompts, GREEDY)) == len(family.prompts)
    with pytest.raises(ConfigError, match=r"engine\.dtype"):
        TransformersEngine(family.base, dtype="int7")
