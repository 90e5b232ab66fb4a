"""Small checkpoints for the engine tests: a random Llama and models near it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evomerge.recipe import Recipe, Source

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(60))]


@dataclass(frozen=True)
class Family:
    """A base, models fine-tuned from it, prompts, and right answers to them."""

    base: Path
    tuned: tuple[Path, ...]
    prompts: tuple[str, ...]
    golds: tuple[str, ...]

    def recipe(self, *weights: float) -> Recipe:
        """base + sum of weighted task vectors; missing weights are 0."""
        padded = (*weights, *([0.0] * len(self.tuned)))[: len(self.tuned)]
        sources = tuple(
            Source(str(p), {"weight": float(w)}) for p, w in zip(self.tuned, padded, strict=True)
        )
        return Recipe("task_arithmetic", sources, str(self.base))

    def recipes(self, count: int) -> list[Recipe]:
        """Recipes with random weights."""
        rng = np.random.default_rng(7)
        return [self.recipe(*rng.uniform(0.0, 1.0, len(self.tuned))) for _ in range(count)]


def save_llama(path: Path, tied: bool, seed: int, like: Path | None = None) -> None:
    """Writes a random bfloat16 Llama; with `like`, a small step away from that one."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
        tie_word_embeddings=tied, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        initializer_range=0.3,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    model: Any = LlamaForCausalLM(config)
    if like is not None:
        model = AutoModelForCausalLM.from_pretrained(like, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if like is None else 0.15
            noise = torch.randn(parameter.shape, generator=generator) * scale
            kept = like is not None or parameter.dim() == 1
            parameter.copy_(parameter + noise if kept else noise)
    model.to(torch.bfloat16).save_pretrained(path)
    tokenizer().save_pretrained(path)


def tokenizer() -> Any:
    """One token a word; `<s>` before every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip


def words(rng: np.random.Generator, low: int, high: int) -> str:
    """Some words of the small vocabulary."""
    return " ".join(f"w{i}" for i in rng.integers(0, 60, rng.integers(low, high)))
