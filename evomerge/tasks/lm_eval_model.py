"""An engine as one of the lm-eval harness's models. Imports the harness: import it when needed.

Tokens, truncation and stop strings follow the harness's own `hf` model, so that scores are its.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from lm_eval import utils
from lm_eval.api.model import LM, TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)

from evomerge.errors import ConfigError, Problem, TaskError
from evomerge.tasks.sampling import make_sampling
from evomerge.types import Sampling

MAX_GEN_TOKS = 256
"""Longest answer, in tokens, of a task that says nothing; the harness's own."""

_MAX_LENGTH = 2048  # of a model that names none; the harness's own
_READ = ("until", "do_sample", "temperature", "max_gen_toks", "repetition_penalty")
_DRAWING = ("top_p", "top_k", "min_p")
_NEUTRAL = {
    "typical_p": 1.0, "num_beams": 1, "num_return_sequences": 1, "length_penalty": 1.0,
    "no_repeat_ngram_size": 0, "frequency_penalty": 0.0, "presence_penalty": 0.0,
}  # fmt: skip


class EngineLM(TemplateLM):
    """Answers and scores the harness's requests with an engine.

    Attributes:
        lengths: tokens that were generated or scored, by the identity of a request.
        sums: log-likelihood (nats) of what was scored, likewise.
    """

    def __init__(
        self,
        engine: Any,
        chat_arguments: Mapping[str, Any] | None = None,
        think_end: str | None = None,
    ) -> None:
        """Takes an engine that has weights.

        Args:
            engine: one of ours.
            chat_arguments: given to the tokenizer's chat template.
            think_end: what ends a reasoning model's thoughts, which do not count as answer.
        """
        super().__init__()
        self._engine = engine
        self._codec = engine.codec
        self.tokenizer = self._codec.tokenizer
        self._chat_arguments = dict(chat_arguments or {})
        self._think_end = think_end
        self._counts: list[int] = []
        self.lengths: dict[int, int] = {}
        self.sums: dict[int, float] = {}

    @property
    def eot_token_id(self) -> int:
        """Id of the token that ends a text."""
        own: int | None = self.tokenizer.eos_token_id
        return own if own is not None else (*self._codec.eos_ids, self._codec.pad_id)[0]

    @property
    def prefix_token_id(self) -> int:
        """Id of the token that stands for an empty context."""
        own: int | None = self.tokenizer.bos_token_id
        return own if own is not None else self.eot_token_id

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt and its answer."""
        return int(self._codec.max_len or _MAX_LENGTH)

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer; nothing is cached under it."""
        return ""

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; a text that begins with the prefix token gets no other."""
        prefix = self.tokenizer.decode(self.prefix_token_id)
        if add_special_tokens is None and has_bos_prefix(string, prefix):
            add_special_tokens = False
        extra = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return [int(i) for i in self.tokenizer.encode(string, **extra)]

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Log-likelihood (nats) of each continuation, and whether greedy decoding says it."""
        found = super().loglikelihood(requests, disable_tqdm=True)
        for request, (value, _), count in zip(requests, found, self._counts, strict=True):
            self.sums[id(request)], self.lengths[id(request)] = value, count
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood (nats) of whole texts, in windows as long as the model takes."""
        windows, owners = [], []
        for owner, request in enumerate(requests):
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._score_length() - 1,
                context_len=1,
            )
            for window in rolling:
                windows.append((("", ""), *utils.make_disjoint_window(window)))
                owners.append(owner)
        found = self._loglikelihood_tokens(windows)
        totals, counts = [0.0] * len(requests), [0] * len(requests)
        for owner, (value, _), count in zip(owners, found, self._counts, strict=True):
            totals[owner] += value
            counts[owner] += count
        for request, total, count in zip(requests, totals, counts, strict=True):
            self.sums[id(request)], self.lengths[id(request)] = total, count
        return totals

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        most = self._score_length()
        rows = []
        for (_, text), context, continuation in requests:
            ids = [*context, *continuation][-most:]
            if not 0 < len(continuation) < len(ids):
                raise TaskError.of(
                    "engine.max_model_len", f"{len(continuation)} tokens to score in {text[:40]!r}",
                    f"from 1 to {most - 1}", "Raise the limit, or leave the item out.",
                )  # fmt: skip
            rows.append((ids, len(ids) - len(continuation)))
        self._counts = [len(ids) - start for ids, start in rows]
        return list(self._engine.score_tokens(rows))

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Answers, each cut before its first stop string."""
        eos = self.tokenizer.decode(self.eot_token_id)
        groups: dict[Sampling, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(sampling_of(request.args[1], eos), []).append(place)
        texts = [""] * len(requests)
        for sampling, places in groups.items():
            prompts = [self._prompt(requests[i].args[0], sampling) for i in places]
            found = self._engine.generate(prompts, sampling)
            for i, answer in zip(places, found, strict=True):
                texts[i] = postprocess_generated_text(
                    answer.text, list(sampling.stop), self._think_end
                )
                own = id(requests[i])
                self.lengths[own] = self.lengths.get(own, 0) + answer.tokens
        return texts

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A prompt from messages, by the tokenizer's template; without a system role it knows."""
        if not self.tokenizer.chat_template:
            raise TaskError.of(
                "apply_chat_template", "a tokenizer without a chat template",
                "one with a template", "Set apply_chat_template=false for this task.",
            )  # fmt: skip
        settings = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
            **self._chat_arguments,
        }
        try:
            return str(self.tokenizer.apply_chat_template(chat_history, **settings))
        except jinja2.exceptions.TemplateError:
            rest = [one for one in chat_history if one["role"] != "system"]
            return str(self.tokenizer.apply_chat_template(rest, **settings))

    def _prompt(self, text: str, sampling: Sampling) -> list[int]:
        """Token ids of a prompt that leaves room for the answer; too long ones lose their begin."""
        room = self.max_length - sampling.max_new_tokens
        if room < 1:
            raise ConfigError([room_problem(sampling.max_new_tokens, self.max_length, "the task")])
        bare = has_bos_prefix(text, self.tokenizer.bos_token)
        extra = {"add_special_tokens": False} if bare else {}
        return [int(i) for i in self.tokenizer(text, verbose=False, **extra)["input_ids"]][-room:]

    def _score_length(self) -> int:
        found: int | None = self._engine.score_length
        return _MAX_LENGTH + 1 if found is None else found


class SaidLM(LM):
    """Gives one answer, whatever it is asked."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The answer to every request."""
        return [self._text] * len(requests)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Cannot be known."""
        raise TypeError("a text says nothing about log-likelihoods")

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Cannot be known."""
        raise TypeError("a text says nothing about log-likelihoods")


def sampling_of(settings: Mapping[str, Any], eos: str | None = None) -> Sampling:
    """How an engine generates by a task's `generation_kwargs`.

    Args:
        settings: the harness's.
        eos: text of the token that ends an answer.

    Raises:
        ValueError: naming what an engine cannot do.
    """
    found: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), MAX_GEN_TOKS))
    temperature = float(found.get("temperature") or 0.0)
    if found.get("do_sample") and temperature == 0.0:
        raise ValueError("do_sample with a temperature of 0")
    spec: dict[str, Any] = {"max_new_tokens": found["max_gen_toks"], "temperature": temperature}
    for name, value in found.items():
        if value is None or name in ("early_stopping", "use_cache"):
            continue
        if name in _DRAWING and temperature > 0:
            spec[name] = max(value, 0) if name == "top_k" else value  # -1 keeps all, too
        elif name == "repetition_penalty":
            spec[name] = value
        elif name not in (*_READ, *_DRAWING) and value != _NEUTRAL.get(name, math.nan):
            raise ValueError(f"{name}: {value!r}")
    stop: Sequence[str] = handle_stop_sequences(list(found["until"]), eos=eos)
    try:
        return make_sampling({**spec, "stop": [s for s in stop if s]}, "generation_kwargs")
    except TaskError as error:
        problem = error.problems[0]
        raise ValueError(f"{problem.field.split('.')[-1]}: {problem.found}") from error


def room_problem(wanted: int, limit: int, what: str) -> Problem:
    """The problem of answers that are as long as the model's context."""
    return Problem(
        "engine.max_model_len", f"{limit}, and answers of up to {wanted} tokens in {what}",
        "room for a prompt and the longest answer",
        "Raise it (up to the model's own limit), or set the task's generation_kwargs.max_gen_toks.",
    )  # fmt: skip
