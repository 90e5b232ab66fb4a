"""Batched generation with a key-value cache, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge.engines.batches import left_pad, positions_of
from evomerge.engines.tokens import Codec
from evomerge.types import Sampling


class Decoder:
    """Generates answers for one batch at a time; rows that have ended leave the batch.

    The same batch gives the same answers bit for bit. Another batch around a prompt can turn
    an answer only where two tokens' logits differ by no more than rounding.
    """

    def __init__(self, model: Any, codec: Codec) -> None:
        self._model = model
        self._codec = codec
        self._eos = torch.tensor(codec.eos_ids, dtype=torch.int64, device=model.device)

    @torch.inference_mode()
    def run(
        self,
        prompts: Sequence[Sequence[int]],
        rooms: Sequence[int],
        sampling: Sampling | None = None,
        seeds: Sequence[int] = (),
    ) -> list[list[int]]:
        """Token ids of the answers, the token that ended each included.

        Args:
            prompts: token ids of each prompt.
            rooms: most new tokens of each, whatever `sampling` says.
            sampling: what ends an answer and how tokens are chosen; None is greedy.
            seeds: one a prompt, for a temperature above 0.
        """
        from transformers import DynamicCache

        device = self._model.device
        ids, mask = left_pad(prompts, self._codec.pad_id, device)
        positions = positions_of(mask)
        cache: Any = DynamicCache(config=self._model.config)
        answers: list[list[int]] = [[] for _ in prompts]
        alive = list(range(len(prompts)))
        sampling = sampling or Sampling()
        noise = _uniforms(seeds, max(rooms), device) if sampling.temperature > 0 else None
        penalty = sampling.repetition_penalty
        said: Tensor | None = None
        for step in range(max(rooms)):
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = output.logits[:, -1]
            if penalty != 1:
                said = _seen(ids, mask, logits.shape[-1]) if said is None else said
                logits = _penalised(logits, said, penalty)
            if noise is None:
                token = logits.argmax(-1)
            else:
                token = _draw(_kept(logits, sampling), noise[alive, step])
            if said is not None:
                said.scatter_(1, token[:, None], True)
            ended = torch.isin(token, self._eos).tolist()
            for row, new in zip(alive, token.tolist(), strict=True):
                answers[row].append(new)
            halted = self._stopped([answers[row] for row in alive], sampling.stop)
            keep = [
                place
                for place, row in enumerate(alive)
                if not (ended[place] or halted[place] or len(answers[row]) >= rooms[row])
            ]
            if not keep:
                break
            ids, positions = token[:, None], positions[:, -1:] + 1
            mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
            if len(keep) < len(alive):
                rest = torch.tensor(keep, device=device)
                ids, positions, mask = ids[rest], positions[rest], mask[rest]
                cache.batch_select_indices(rest)
                said = None if said is None else said[rest]
                alive = [alive[place] for place in keep]
        return answers

    def _stopped(self, rows: list[list[int]], stop: Sequence[str]) -> list[bool]:
        if not stop:
            return [False] * len(rows)
        window = max(map(len, stop)) + 8
        halted = []
        for row, tail in zip(
            rows, self._codec.decode_all([r[-window:] for r in rows]), strict=True
        ):
            hit = any(s in tail for s in stop)
            if hit and len(row) > window:
                hit = any(s in self._codec.decode(row) for s in stop)
            halted.append(hit)
        return halted


def _uniforms(seeds: Sequence[int], count: int, device: torch.device) -> Tensor:
    """One row of `count` uniform numbers a seed, a `seeds x count` float64 tensor."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.rand(count, generator=generator, dtype=torch.float64))
    return torch.stack(rows).to(device)


def _seen(ids: Tensor, mask: Tensor, vocabulary: int) -> Tensor:
    """Which tokens stand in each row of a left-padded batch, a `rows x vocabulary` mask."""
    found = torch.zeros(len(ids), vocabulary, dtype=torch.int64, device=ids.device)
    return found.scatter_add_(1, ids, mask).bool()


def _penalised(logits: Tensor, said: Tensor, penalty: float) -> Tensor:
    """Logits made smaller where a token was said (Keskar et al. 2019, section 4.1)."""
    return torch.where(said, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _kept(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities of the tokens that may be drawn, not normed; `rows x vocabulary` float64.

    `min_p` comes first and the others look at what it leaves, in vLLM's order.
    """
    chances = torch.softmax(logits.to(torch.float64) / sampling.temperature, dim=-1)
    if sampling.min_p:
        least = sampling.min_p * chances.amax(-1, keepdim=True)
        chances = torch.where(chances >= least, chances, 0)
    if 0 < sampling.top_k < chances.shape[-1]:
        least = chances.topk(sampling.top_k, dim=-1).values[:, -1:]
        chances = torch.where(chances >= least, chances, 0)
    if sampling.top_p < 1:
        falling, order = chances.sort(dim=-1, descending=True)
        before = falling.cumsum(-1) - falling
        spare = before >= sampling.top_p * chances.sum(-1, keepdim=True)
        spare[:, 0] = False  # the likeliest stays, however rounding falls
        chances = chances.masked_fill(torch.zeros_like(spare).scatter_(1, order, spare), 0)
    return chances


def _draw(chances: Tensor, uniform: Tensor) -> Tensor:
    """Draws one token a row of `rows x vocabulary` chances by inverting the distribution."""
    total = chances.cumsum(-1)
    place = torch.searchsorted(total, (uniform * total[:, -1])[:, None], right=True)[:, 0]
    return place.clamp_max(chances.shape[-1] - 1)
