"""The engine on transformers: any model that it knows, on CPU or GPU, one process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.deepening import blocks_of, is_tied
from evomerge.checkpoints.merger import Merger, Pending
from evomerge.engines.batches import bucket
from evomerge.engines.decoding import Decoder
from evomerge.engines.depth import Depth
from evomerge.engines.likelihoods import check_logliks, mean_logliks
from evomerge.engines.scoring import score_ends
from evomerge.engines.tokens import Codec, cut, seed_of
from evomerge.engines.weights import WeightWriter
from evomerge.errors import CandidateError, ConfigError, EngineError, SourceError, UserError
from evomerge.recipe import Recipe
from evomerge.types import FloatArray, Generation, Prompt, Sampling

_DTYPES = ("auto", "float32", "bfloat16", "float16")


class TransformersEngine:
    """Builds the model once and overwrites its weights for every recipe.

    A recipe may have fewer blocks than the model: the last ones are taken out of it then.

    What is evaluated are the weights as they would be written: the merger rounds them to the
    recipe's dtype, and `dtype` says only in which precision the model computes. `auto` means
    the checkpoint's own dtype on a GPU and float32 on a CPU, which every CPU computes well
    (bfloat16 is faster on those with instructions for it).

    Prompts are sorted by length and batched by a token budget. The batches are a pure function
    of prompts and sampling, so the same call on the same weights gives the same answers bit
    for bit; among other prompts an answer can differ where two logits nearly tie.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "auto",
        threads: int = 1,
        seed: int = 0,
        max_model_len: int | None = None,
        batch_tokens: int = 8192,
        device: str = "auto",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Loads a checkpoint.

        Args:
            model: directory that gives architecture, tokenizer and first weights.
            dtype: `auto`, `float32`, `bfloat16` or `float16`.
            threads: torch threads of this process, on a CPU.
            seed: of the sampling at a temperature above 0.
            max_model_len: most tokens of prompt and answer; None takes the model's limit.
            batch_tokens: most tokens of a batch, padding and room for answers included.
            device: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, ...
            attn_implementation: passed to transformers.
            trust_remote_code: run code that comes with the checkpoint.

        Raises:
            ConfigError: if an argument has a value that cannot be.
            SourceError: if the checkpoint cannot be read.
        """
        if dtype not in _DTYPES:
            raise ConfigError.of(
                "engine.dtype", repr(dtype), f"one of {', '.join(_DTYPES)}", "Correct it."
            )
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(threads)
        self._codec = Codec(model, max_model_len, trust_remote_code)
        self._seed = seed
        self._budget = batch_tokens
        self._merger = Merger(threads, device=device)
        self._model: Any = _build(
            str(model), _dtype(dtype, device), device, attn_implementation, trust_remote_code
        )
        self._depth = Depth(self._model)
        self._writer = WeightWriter(self._model)
        self._decoder = Decoder(self._model, self._codec)
        self._failed = False

    def load(self, recipe: Recipe) -> None:
        """Merges a recipe into the running model.

        Of a merge with fewer blocks than the model only those are run.

        Raises:
            CandidateError: if a weight is not finite, the merge has more blocks than the model,
                blocks of another kind at their places, or a head of its own where that of the
                model is tied, or the update fails. The engine answers nothing until a later load
                has succeeded, which overwrites everything.
            UserError: if the recipe or its sources are at fault.
        """
        self._open()
        assembly = self._merger.assemble(recipe)
        self._depth.places.check(assembly)
        self._keep(blocks_of(assembly))
        self._write(self._merger.stream(assembly), is_tied(assembly.config))

    def update(self, weights: Iterable[tuple[str, Tensor] | Pending]) -> None:
        """Overwrites every weight from a stream of checkpoint names and tensors.

        Raises:
            CandidateError: as `load`.
        """
        self._open()
        self._keep(self._depth.most)
        self._write(weights)

    def _keep(self, blocks: int) -> None:
        self._failed = True
        if self._depth.keep(blocks):
            self._writer = WeightWriter(self._model)

    def _write(self, weights: Iterable[tuple[str, Tensor] | Pending], copies: bool = False) -> None:
        self._failed = True
        try:
            self._writer.write(weights, copies)
        except (CandidateError, UserError):
            raise
        except Exception as error:
            raise CandidateError(f"the weights could not be merged: {error}") from error
        self._failed = False

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """Answers every prompt, a text or token ids, in the order given.

        Raises:
            ConfigError: if a prompt leaves no room for an answer.
            EngineError: if the engine is closed or its last load failed.
        """
        self._ready()
        ids = self._codec.prompts(prompts)
        rooms = [self._codec.room(len(p), sampling.max_new_tokens) for p in ids]
        answers: list[list[int]] = [[] for _ in ids]
        seed = self._seed if sampling.seed is None else sampling.seed
        for batch in bucket([len(p) for p in ids], rooms, self._budget):
            found = self._decoder.run(
                [ids[i] for i in batch],
                [rooms[i] for i in batch],
                sampling,
                [seed_of(seed, i) for i in batch],
            )
            for i, answer in zip(batch, found, strict=True):
                answers[i] = answer
        texts = self._codec.decode_all(answers) if answers else []
        return [
            Generation(cut(text, sampling.stop), len(answer))
            for text, answer in zip(texts, answers, strict=True)
        ]

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> FloatArray:
        """Mean log-likelihood a token (nats) of each continuation given its context.

        Context and continuation are tokenised together; see `Codec.pair`.

        Returns:
            a `len(pairs)` array.

        Raises:
            NotFiniteError: if a value is not finite.
            TaskError: if a continuation has no token.
            EngineError: if the engine is closed or its last load failed.
        """
        return mean_logliks(pairs, self._codec, self.score_tokens)

    def score_tokens(self, rows: Sequence[tuple[Sequence[int], int]]) -> list[tuple[float, bool]]:
        """Log-likelihood (nats) of the ends of rows of tokens, and whether each is the greedy one.

        Args:
            rows: token ids, at most `score_length`, and the index of the first one to score, at
                least 1.

        Raises:
            NotFiniteError: if a value is not finite.
            EngineError: if the engine is closed or its last load failed.
        """
        self._ready()
        values = score_ends(self._model, rows, self._codec.pad_id, self._budget)
        check_logliks(values)
        return values

    @property
    def codec(self) -> Codec:
        """Text to token ids and back."""
        return self._codec

    @property
    def score_length(self) -> int | None:
        """Most tokens of a row to score: the last one is not read. None without a limit."""
        return None if self._codec.max_len is None else self._codec.max_len + 1

    def close(self) -> None:
        """Frees the model; the engine cannot be used afterwards. A second call does nothing."""
        self._model = self._decoder = self._writer = None  # type: ignore[assignment]

    def _open(self) -> None:
        if self._model is None:
            raise EngineError("the engine is closed; make a new one")

    def _ready(self) -> None:
        self._open()
        if self._failed:
            raise EngineError("the engine holds no model, since its last load failed; load another")


def _dtype(name: str, device: str) -> Any:
    if name != "auto":
        return getattr(torch, name)
    return torch.float32 if device == "cpu" else "auto"


def _build(path: str, dtype: Any, device: str, attention: str | None, trusted: bool) -> Any:
    from transformers import AutoModelForCausalLM

    extra = {"attn_implementation": attention} if attention else {}
    try:
        with _quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, trust_remote_code=trusted, use_safetensors=True, **extra
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SourceError.of(
            path, f"a checkpoint that does not load ({first})",
            "safetensors weights of an architecture that transformers knows",
            "Check the files; code that comes with a checkpoint is run only if you allow it.",
        ) from error  # fmt: skip
    model.requires_grad_(False)
    return model.eval().to(device)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
