"""The tokenizer gives back exactly the text that it was given."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.zoo.language import PEOPLE, REGISTERS, THINGS, VERBS, Say, join, pieces
from evomerge.zoo.problems import KINDS
from evomerge.zoo.tokenizer import (
    BOS,
    EOS,
    MAX_LENGTH,
    PAD,
    SEPARATOR,
    UNK,
    build_tokenizer,
    encode,
    vocabulary,
)

TOKENIZER = build_tokenizer()


def decode(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True)


@given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_round_trip_of_every_kind(kind: str, seed: int) -> None:
    problem = KINDS[kind](random.Random(seed))
    text = problem.question + SEPARATOR + problem.gold
    ids = TOKENIZER(text)["input_ids"]
    assert ids == [BOS, *encode(text)]
    assert UNK not in ids
    assert decode(ids) == text
    assert len(ids) < MAX_LENGTH


@given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 2**32), cut=st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_text_of_two_parts_is_the_two_texts_joined(kind: str, seed: int, cut: int) -> None:
    problem = KINDS[kind](random.Random(seed))
    ids = encode(problem.question + SEPARATOR + problem.gold)
    assert decode(ids[:cut]) + decode(ids[cut:]) == decode(ids)


@given(st.text(max_size=40))
@settings(deadline=None)
def test_unknown_text_does_not_crash(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert ids[0] == BOS
    decode(ids)


def test_sentences_as_people_write_them() -> None:
    english, plain, polite = map(Say, REGISTERS)
    assert join(
        ("english", english.owns(0, 23, 0)), ("english", english.asks(0)), ("plain", plain.asks(0))
    ) == ("Ken has 23 apples. How many does Ken have?けんはなんこもっている？")
    assert (
        plain.owns(0, 23, 0) + plain.acts(1, 5, 5)
        == "けんはりんごを23こもっている。えみは5こつかった。"
    )
    assert polite.owns(0, 23, 0) == "けんはりんごを23こもっています。"
    assert polite.asks(0) == "けんはなんこもっていますか。"


def test_registers_have_the_same_words() -> None:
    for words in (PEOPLE, THINGS, VERBS):
        assert {len(words[register]) for register in REGISTERS} == {6}


def test_pieces_are_distinct_and_all_in_the_vocabulary() -> None:
    listed = list(pieces())
    assert len(set(listed)) == len(listed)
    assert len(vocabulary()) == len(listed) + 4


def test_special_tokens() -> None:
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id) == (PAD, BOS)
    assert (TOKENIZER.eos_token_id, TOKENIZER.unk_token_id) == (EOS, UNK)
    assert TOKENIZER("Zürich 7")["input_ids"].count(UNK) >= 1


def test_encode_refuses_what_it_does_not_know() -> None:
    with pytest.raises(KeyError, match="vocabulary"):
        encode("Ken has 3 pears.")
