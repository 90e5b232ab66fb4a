"""Log-likelihood of continuations, one forward pass a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from evomerge.engines.batches import bucket, left_pad, positions_of

_LOGITS = 1 << 26
"""Most logits of a batch (256 MB in float32)."""


@torch.inference_mode()
def mean_logprobs(
    model: Any, pairs: Sequence[tuple[list[int], int]], pad: int, budget: int
) -> list[float]:
    """Mean log-probability a token (nats) of each pair's tokens from its start onwards.

    The head runs only on the last positions, and log-softmax in float32 on one row at a time.

    Args:
        model: a causal language model.
        pairs: joint token ids, and the index of the first token to score (at least 1).
        pad: id that fills a batch.
        budget: most tokens of a batch.
    """
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    scored = [len(ids) - start for ids, start in pairs]
    out = [0.0] * len(pairs)
    for batch in bucket([len(ids) for ids, _ in pairs], [0] * len(pairs), budget):
        widest = max(scored[i] for i in batch) + 1
        rows = max(1, _LOGITS // (widest * vocabulary))
        for first in range(0, len(batch), rows):
            part = batch[first : first + rows]
            for i, value in zip(part, _score(model, [pairs[i] for i in part], pad), strict=True):
                out[i] = value
    return out


def _score(model: Any, pairs: list[tuple[list[int], int]], pad: int) -> list[float]:
    ids, mask = left_pad([ids for ids, _ in pairs], pad, model.device)
    keep = max(len(row) - start for row, start in pairs) + 1
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions_of(mask),
        use_cache=False,
        logits_to_keep=keep,
    ).logits[:, -keep:]
    values = []
    for row, (joint, start) in enumerate(pairs):
        count = len(joint) - start
        targets = ids[row, -count:]
        logprobs = torch.log_softmax(logits[row, -count - 1 : -1].to(torch.float32), dim=-1)
        picked = logprobs.gather(1, targets[:, None]).to(torch.float64)
        values.append(float(picked.mean()))
    return values
