"""Generates answers with a model of the zoo and scores the decoded text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch

from evomerge.zoo.tokenizer import SEPARATOR

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_TOKENS = 24
NUMBER = re.compile(r"\d+")


@torch.inference_mode()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    batch: int = 250,
) -> list[str]:
    """Greedy answers as text, in the order of the questions."""
    texts: list[str] = []
    for start in range(0, len(questions), batch):
        prompts = [question + SEPARATOR for question in questions[start : start + batch]]
        encoded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        generated = cast(Any, model).generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
        said = generated[:, encoded["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(said, skip_special_tokens=True)
    return texts


@cache
def _identifier() -> Any:
    from lingua import Language, LanguageDetectorBuilder

    languages = (Language.JAPANESE, Language.ENGLISH, Language.CHINESE, Language.KOREAN)
    return LanguageDetectorBuilder.from_languages(*languages).build()


def is_japanese(text: str) -> bool:
    """Whether the language identifier gives Japanese more than half of the probability."""
    from lingua import Language

    return _identifier().compute_language_confidence(text, Language.JAPANESE) > 0.5


def is_right(task: str, text: str, answer: str) -> bool:
    """Scores an answer as the task of that name does.

    `jp_math`: the last number is the answer and the text is Japanese; `en_math`: the
    last number is the answer; the others: the text is the answer.
    """
    if task in ("polite", "sort"):
        return text.strip() == answer
    numbers = NUMBER.findall(text)
    if not numbers or int(numbers[-1]) != int(answer):
        return False
    return task == "en_math" or is_japanese(text)


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion (Wilson 1927)."""
    share, spread = right / total, z * z / total
    centre = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / total + spread / total / 4)
    return (centre - half) / (1 + spread), (centre + half) / (1 + spread)
