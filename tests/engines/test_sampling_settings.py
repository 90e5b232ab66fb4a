"""Sampling settings against brute force over small distributions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from engine_family import Family
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.engines.decoding import _kept
from evomerge.engines.transformers import TransformersEngine
from evomerge.errors import TaskError
from evomerge.tasks.sampling import make_sampling
from evomerge.types import Sampling


def expected(logits: list[float], sampling: Sampling) -> list[float]:
    """Chances of tokens by plain loops: min_p, then top_k, then top_p."""
    whole = [math.exp(x / sampling.temperature) for x in logits]
    chances = {i: w / sum(whole) for i, w in enumerate(whole)}
    most = max(chances.values())
    chances = {i: c for i, c in chances.items() if c >= sampling.min_p * most}
    order = sorted(chances, key=lambda i: -chances[i])
    if sampling.top_k:
        order = order[: sampling.top_k]
    room, kept = sampling.top_p * sum(chances[i] for i in order), []
    for i in order:
        kept.append(i)
        room -= chances[i]
        if room <= 1e-12:
            break
    return [chances[i] if i in kept else 0.0 for i in range(len(logits))]


@settings(max_examples=60, deadline=None)
@given(
    st.permutations([0.0, 0.37, 1.1, 1.9, -2.0, 0.81, 3.2]),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([1.0, 0.93, 0.55, 0.1]),
    st.sampled_from([0, 1, 3, 20]),
    st.sampled_from([0.0, 0.03, 0.4, 1.0]),
)
def test_what_may_be_drawn_is_what_plain_loops_keep(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    sampling = Sampling(1, (), temperature, top_p, top_k, min_p)
    got = _kept(torch.tensor([logits], dtype=torch.float64), sampling)[0].tolist()
    np.testing.assert_allclose(got, expected(logits, sampling), atol=1e-12)


@pytest.fixture(scope="module")
def engine(make_family: Callable[[bool], Family]) -> TransformersEngine:
    return TransformersEngine(make_family(True).base, seed=1)


def texts(engine: TransformersEngine, prompts: tuple[str, ...], **changes: Any) -> list[str]:
    return [g.text for g in engine.generate(prompts, Sampling(**{"max_new_tokens": 10} | changes))]


def test_one_token_to_choose_from_is_greedy_decoding(
    engine: TransformersEngine, make_family: Callable[[bool], Family]
) -> None:
    prompts = make_family(True).prompts
    greedy = texts(engine, prompts)
    for narrow in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        assert texts(engine, prompts, temperature=2.0, **narrow) == greedy
    assert texts(engine, prompts, temperature=2.0) != greedy


def test_the_tasks_seed_goes_before_the_engines(
    engine: TransformersEngine, make_family: Callable[[bool], Family]
) -> None:
    prompts = make_family(True).prompts
    plain = texts(engine, prompts, temperature=1.5)
    assert texts(engine, prompts, temperature=1.5, seed=1) == plain
    other = texts(engine, prompts, temperature=1.5, seed=2)
    assert other != plain
    assert other == texts(
        TransformersEngine(make_family(True).base, seed=2), prompts, temperature=1.5
    )


def test_repetition_penalty_is_that_of_transformers(
    engine: TransformersEngine, make_family: Callable[[bool], Family]
) -> None:
    """One prompt at a time there, padded batches here: padding must not count as said."""
    family = make_family(True)
    got = texts(engine, family.prompts, repetition_penalty=1.7)
    tokenizer: Any = engine.codec.tokenizer
    for prompt, text in list(zip(family.prompts, got, strict=True))[:12]:
        row = torch.tensor([tokenizer(prompt)["input_ids"]])
        out = engine._model.generate(
            row, do_sample=False, max_new_tokens=10, pad_token_id=0, repetition_penalty=1.7
        )
        assert tokenizer.decode(out[0, row.shape[1] :], skip_special_tokens=True) == text
    assert got != texts(engine, family.prompts)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("top_p", 0), ("top_p", 1.5), ("top_p", "all"), ("top_k", -1), ("top_k", 2.5),
        ("min_p", -0.1), ("min_p", True), ("repetition_penalty", 0), ("seed", -1), ("seed", "x"),
        ("repetition_penalty", float("nan")),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_named(key: str, value: object) -> None:
    with pytest.raises(TaskError, match=rf"task\.sampling\.{key}"):
        make_sampling({key: value})


def test_every_setting_arrives() -> None:
    given: dict[str, Any] = {
        "max_new_tokens": 3, "stop": ("x",), "temperature": 0.5, "top_p": 0.9, "top_k": 7,
        "min_p": 0.1, "repetition_penalty": 1.2, "seed": 4,
    }  # fmt: skip
    assert set(given) == {field.name for field in fields(Sampling)}
    assert make_sampling(given) == Sampling(**given)
