"""Judges whether a text is Japanese, with the language models that ship in lingua's wheel.

Only the languages of `LANGUAGES` are told apart: Japanese, the languages whose script it could be
taken for, and one or more languages for each other major script, so that a text which mixes
scripts is not called Japanese for lack of an alternative. What decides is the script of each word;
lingua's models (in its low-accuracy mode, for memory) only arbitrate between the others.

Limits:

- A text in kanji alone ("18円", "合計18個") reads as Chinese, so its probability is 0.
- In a mixture the script of the majority of words decides, and a Japanese sentence, written
  without spaces, can outweigh several English words: "Janet sells 9 eggs. 答えは18です。" counts as
  Japanese.
- A text without any letter (digits, punctuation, emoji) has the probability 0.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lingua import LanguageDetector

LANGUAGES = (
    "ARABIC",
    "CHINESE",
    "ENGLISH",
    "FRENCH",
    "GERMAN",
    "GREEK",
    "HEBREW",
    "HINDI",
    "INDONESIAN",
    "ITALIAN",
    "JAPANESE",
    "KOREAN",
    "PORTUGUESE",
    "RUSSIAN",
    "SPANISH",
    "THAI",
    "TURKISH",
    "VIETNAMESE",
)
"""What the detector tells apart, by lingua's names."""

_JAPANESE_SCRIPT = re.compile(
    r"[\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f]"
    r"|[\U00020000-\U0003ffff]"
)


@lru_cache(maxsize=1)
def _detector() -> LanguageDetector:
    """Builds the detector, once in a process; its models load when first needed."""
    from lingua import Language, LanguageDetectorBuilder

    languages = [getattr(Language, name) for name in LANGUAGES]
    return LanguageDetectorBuilder.from_languages(*languages).with_low_accuracy_mode().build()


@lru_cache(maxsize=4096)
def japanese_probability(text: str) -> float:
    """The probability in [0, 1] that a text is Japanese, among `LANGUAGES`.

    A text without a single kana or kanji is not Japanese, and is answered without the detector.

    Args:
        text: any text; the answer is remembered for the process.
    """
    if _JAPANESE_SCRIPT.search(text) is None:
        return 0.0
    from lingua import Language

    valid = text.encode("utf-8", "replace").decode("utf-8")  # lingua refuses lone surrogates
    confidence = _detector().compute_language_confidence(valid, Language.JAPANESE)
    return min(1.0, max(0.0, float(confidence)))
