"""Trains one stage of a small model, the same way every time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from evomerge.zoo.curriculum import Stage
from evomerge.zoo.items import reserved_questions
from evomerge.zoo.problems import KINDS, Problem
from evomerge.zoo.tokenizer import BOS, EOS, MAX_LENGTH, PAD, SEPARATOR, encode, vocabulary

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

IGNORED = -100

Progress = Callable[[int, float], None]


def new_model(seed: int) -> LlamaForCausalLM:
    """An untrained model whose weights depend on nothing but the seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        initializer_range=0.05,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, config.initializer_range, generator=generator)
    return model


def draw_batch(stage: Stage, rng: random.Random) -> list[Problem]:
    """Problems of a stage's mix; never one of the committed items."""
    return draw_problems(KINDS, stage.mix, stage.batch, rng)


def draw_problems(
    kinds: Mapping[str, Callable[[random.Random], Problem]],
    mix: Mapping[str, float],
    count: int,
    rng: random.Random,
) -> list[Problem]:
    """`count` problems of kinds drawn in proportion to `mix`; never one of the committed items."""
    reserved = reserved_questions()
    problems = []
    for kind in rng.choices(list(mix), list(mix.values()), k=count):
        problem = kinds[kind](rng)
        while problem.question in reserved:
            problem = kinds[kind](rng)
        problems.append(problem)
    return problems


def to_tensors(pairs: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels of (question, answer) pairs, two `n x length` tensors.

    Labels are set on the answer and its `</s>` only.
    """
    rows, labels = [], []
    for question, answer in pairs:
        prompt = [BOS, *encode(question + SEPARATOR)]
        said = [*encode(answer), EOS]
        rows.append(prompt + said)
        labels.append([IGNORED] * len(prompt) + said)
    length = max(map(len, rows))
    return (
        torch.tensor([row + [PAD] * (length - len(row)) for row in rows]),
        torch.tensor([row + [IGNORED] * (length - len(row)) for row in labels]),
    )


def train_stage(
    model: LlamaForCausalLM, stage: Stage, seed: int, progress: Progress | None = None
) -> None:
    """Trains a model in place; AdamW, linear warm-up, then a cosine down to 2%.

    Args:
        progress: called after every step with the number of steps done and a running loss.
    """
    rng = random.Random(f"{seed} {stage.name}")
    embedding = model.get_input_embeddings().weight
    others = [weight for weight in model.parameters() if weight is not embedding]
    optimizer = torch.optim.AdamW(
        [
            {"params": others, "factor": 1.0},
            {"params": [embedding], "factor": stage.embedding_factor},
        ],
        lr=stage.rate,
        betas=(0.9, 0.98),
        weight_decay=0.05,
    )
    running = math.nan
    model.train()
    for step in range(stage.steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / stage.steps))
        rate = stage.rate * min(1.0, (step + 1) / stage.warmup) * (0.02 + 0.98 * cosine)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        batch = draw_batch(stage, rng)
        ids, labels = to_tensors([(p.question, p.gold) for p in batch])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        taught = labels[:, 1:] != IGNORED
        loss = F.cross_entropy(model.lm_head(hidden[taught]), labels[:, 1:][taught])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if progress is not None:
            progress(step + 1, running)
    model.eval()
