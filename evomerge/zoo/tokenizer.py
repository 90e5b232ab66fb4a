"""Builds the tokenizer that all models of the zoo share.

One token a digit, a word or a Japanese piece; English pieces own their spaces (written
`▁`), so the text of a list of tokens is their concatenation and decoding gives back
exactly what was encoded, wherever an answer is cut out of a longer text.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from evomerge.zoo.language import pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
PAD, BOS, EOS, UNK = range(4)
SEPARATOR = "\n"
"""Stands between a question and its answer."""
MAX_LENGTH = 128
"""Longest text, in tokens, that the models are configured for."""
SPACE = "▁"


@cache
def vocabulary() -> dict[str, int]:
    """Token to id, special tokens first."""
    words = [*SPECIAL, *(piece.replace(" ", SPACE) for piece in pieces())]
    return {word: index for index, word in enumerate(words)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer in its Hugging Face form; `<s>` is put before every text."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = vocabulary()
    longest_first = sorted((w for w in words if w not in SPECIAL), key=len, reverse=True)
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=SPECIAL[UNK]))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = Split(Regex("|".join(map(re.escape, longest_first))), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse()])
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        unk_token=SPECIAL[UNK],
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


@cache
def _pattern() -> re.Pattern[str]:
    known = sorted((w.replace(SPACE, " ") for w in vocabulary()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, known)))


def encode(text: str) -> list[int]:
    """Ids of a text of the zoo, without `<s>`; the quick way for training.

    Raises:
        KeyError: the text holds something that is not in the vocabulary.
    """
    words = vocabulary()
    found = _pattern().findall(text)
    if sum(map(len, found)) != len(text):
        raise KeyError(f"not all of {text!r} is in the vocabulary")
    return [words[word.replace(" ", SPACE)] for word in found]
