"""The probability of Japanese, on texts whose language is not in doubt."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.tasks.language import LANGUAGES, _detector, japanese_probability


@pytest.mark.parametrize(
    "text",
    [
        "けんはりんごを23こもっています。",
        "答えは18です。",
        "18ドル",
        "合計金額は18",
        "x = 16 - 3 - 4 = 9\n9 * 2 = 18\n答えは18ドルです。",
        "答えは\\boxed{18}です",
    ],
)
def test_japanese_texts(text: str) -> None:
    assert japanese_probability(text) > 0.5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "18",
        "9 * 2 = 18.",
        "😀 18!",
        "The answer is 18.",
        "Ken has 23 apples, and then he goes on to buy five more りんご",
        "他每天赚18美元。",
        "答案是18。",
        "정답은 18입니다.",
        "Ответ: 18.",
        "sono kotae wa 18 desu",
    ],
)
def test_other_texts(text: str) -> None:
    assert japanese_probability(text) < 0.5


def test_lone_surrogates_are_no_error() -> None:
    assert japanese_probability("答えは\ud800です") > 0.5


@settings(max_examples=30, deadline=None)
@given(
    st.text(
        alphabet=st.one_of(
            st.characters(max_codepoint=0x2FF),
            st.characters(min_codepoint=0x370, max_codepoint=0x6FF),
            st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3),
        ),
        max_size=60,
    )
)
def test_the_short_cut_agrees_with_the_detector(text: str) -> None:
    """A text without kana and kanji is answered without lingua; lingua must say the same."""
    from lingua import Language

    assert japanese_probability(text) == 0.0
    assert _detector().compute_language_confidence(text, Language.JAPANESE) < 0.5


def test_the_detector_is_built_once_and_lazily() -> None:
    assert _detector() is _detector()
    assert set(LANGUAGES) >= {"JAPANESE", "CHINESE", "KOREAN", "ENGLISH"}
    import evomerge.tasks.language as module

    assert "lingua" not in vars(module)
    assert "lingua" in sys.modules
