"""Text to token ids and back, the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import ConfigError, SourceError, TaskError
from evomerge.types import Chat, Prompt


class Codec:
    """Encodes prompts and pairs, decodes answers, and knows what ends an answer.

    Attributes:
        tokenizer: the checkpoint's tokenizer.
        eos_ids: ids that end an answer, from tokenizer, config and generation config.
        pad_id: id that fills a batch; never attended to.
        max_len: most tokens of prompt and answer together; None if the model names no limit.
    """

    def __init__(
        self, model: str | Path, max_len: int | None = None, trust_remote_code: bool = False
    ) -> None:
        """Reads tokenizer and config of a checkpoint directory.

        Raises:
            SourceError: if they cannot be read.
        """
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        where = str(model)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                where, trust_remote_code=trust_remote_code
            )
            self.config: Any = AutoConfig.from_pretrained(
                where, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, KeyError) as error:
            raise SourceError.of(
                where, f"no usable tokenizer or config ({_first_line(error)})",
                "a checkpoint directory in the Hugging Face layout",
                "Check the path and that tokenizer and config lie beside the weights.",
            ) from error  # fmt: skip
        generation: Any = None
        if (Path(where) / "generation_config.json").is_file():
            generation = GenerationConfig.from_pretrained(where)
        holders = (self.tokenizer, self.config, generation)
        self.eos_ids = tuple(sorted({i for h in holders for i in _ids(h, "eos_token_id")}))
        pads = [i for h in holders for i in _ids(h, "pad_token_id")]
        self.pad_id = (pads or list(self.eos_ids) or [0])[0]
        limit = getattr(self.config, "max_position_embeddings", None)
        self.max_len: int | None = max_len or limit

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens that the tokenizer adds.

        Those of a `Chat` are the template's own, so that none is there twice.

        Raises:
            ConfigError: if the tokenizer has no chat template, or its template refuses the chat.
        """
        return self.joint(text, "")

    def render(self, chat: Chat) -> str:
        """The text that the tokenizer's chat template makes of a chat, up to the answer.

        Raises:
            ConfigError: as `encode`.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise ConfigError.of(
                "task.chat_template", "true, and the tokenizer of models.base has no template",
                "a tokenizer with a chat template",
                "Use a chat model as models.base, or write the turns into the prompt.",
            )  # fmt: skip
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                chat.turns(), tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise ConfigError.of(
                "task.chat_template", f"a chat that the template refuses ({_first_line(error)})",
                "turns that the model's template knows", "Leave task.system out.",
            ) from error  # fmt: skip
        return str(text)

    def joint(self, text: str, behind: str) -> list[int]:
        """Token ids of a prompt and what stands behind it, tokenised together.

        Raises:
            ConfigError: as `encode`.
        """
        chat = isinstance(text, Chat)
        whole = (self.render(text) if isinstance(text, Chat) else text) + behind
        found = self.tokenizer(whole, verbose=False, add_special_tokens=not chat)
        return [int(i) for i in found["input_ids"]]

    def prompts(self, texts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of prompts; those that are token ids already stay as they are.

        Raises:
            ConfigError: if one leaves no room for an answer, or has no tokens at all.
        """
        encoded = [self.encode(t) if isinstance(t, str) else list(t) for t in texts]
        for i, ids in enumerate(encoded):
            self._check_length(f"prompt {i}", len(ids), room=1)
        return encoded

    def room(self, prompt_tokens: int, wanted: int) -> int:
        """How many of the `wanted` answer tokens fit behind a prompt."""
        return wanted if self.max_len is None else min(wanted, self.max_len - prompt_tokens)

    def pair(self, context: str, continuation: str, index: int = 0) -> tuple[list[int], int]:
        """Joint token ids of context and continuation, and where the continuation starts.

        The two are tokenised together. Where the context's own tokens are no prefix of that
        (a token straddles the border, or the tokenizer ends texts with a token of its own),
        the continuation starts behind their longest common prefix, so that a straddling token
        counts as continuation. The very first token is never scored: it has no context.

        Raises:
            TaskError: if nothing is left to score.
            ConfigError: if the pair is longer than the model allows.
        """
        own, joint = self.encode(context), self.joint(context, continuation)
        start = 0
        while start < min(len(own), len(joint)) and own[start] == joint[start]:
            start += 1
        start = max(start, 1)
        if not continuation or start >= len(joint):
            raise TaskError.of(
                f"gold answer {index}", repr(continuation), "at least one token behind its context",
                "Give the item a gold answer or turn the log-likelihood off.",
            )  # fmt: skip
        self._check_length(f"prompt and gold answer {index}", len(joint), room=1)
        return joint, start

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def decode_all(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of several answers, special tokens left out."""
        return list(self.tokenizer.batch_decode([list(r) for r in rows], skip_special_tokens=True))

    def _check_length(self, what: str, tokens: int, room: int) -> None:
        if tokens == 0:
            raise ConfigError.of(
                what, "no tokens", "at least one token", "Give the prompt template some text."
            )
        if self.max_len is not None and tokens + room > self.max_len:
            raise ConfigError.of(
                "engine.max_model_len", f"{what} with {tokens} tokens",
                f"at most {self.max_len - room}", "Shorten the prompt or raise the limit.",
            )  # fmt: skip


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string."""
    ends = [at for at in (text.find(s) for s in stop if s) if at >= 0]
    return text[: min(ends)] if ends else text


def seed_of(seed: int, index: int) -> int:
    """Seed of one prompt's random numbers, from the engine's seed and the prompt's place."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def _ids(holder: Any, name: str) -> list[int]:
    value = getattr(holder, name, None)
    if value is None:
        return []
    return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
