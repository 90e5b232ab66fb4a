"""Log-likelihood of continuations, one forward pass a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from evomerge.engines.batches import bucket, left_pad, positions_of

_LOGITS = 1 << 26
"""Most logits of a batch (256 MB in float32)."""


@torch.inference_mode()
def score_ends(
    model: Any, rows: Sequence[tuple[Sequence[int], int]], pad: int, budget: int
) -> list[tuple[float, bool]]:
    """Log-probability (nats) of each row's tokens from its start onwards, and whether all are
    the likeliest at their places.

    A row's last token is only scored, never read. The head runs only on the last positions, and
    log-softmax in float32 on one row at a time.

    Args:
        model: a causal language model.
        rows: token ids, and the index of the first token to score (at least 1).
        pad: id that fills a batch.
        budget: most tokens of a batch.
    """
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    scored = [len(ids) - start for ids, start in rows]
    out = [(0.0, True)] * len(rows)
    for batch in bucket([len(ids) - 1 for ids, _ in rows], [0] * len(rows), budget):
        widest = max(scored[i] for i in batch)
        most = max(1, _LOGITS // (widest * vocabulary))
        for first in range(0, len(batch), most):
            part = batch[first : first + most]
            for i, value in zip(part, _score(model, [rows[i] for i in part], pad), strict=True):
                out[i] = value
    return out


def _score(model: Any, rows: list[tuple[Sequence[int], int]], pad: int) -> list[tuple[float, bool]]:
    ids, mask = left_pad([ids[:-1] for ids, _ in rows], pad, model.device)
    keep = max(len(row) - start for row, start in rows)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions_of(mask),
        use_cache=False,
        logits_to_keep=keep,
    ).logits[:, -keep:]
    values = []
    for row, (joint, start) in enumerate(rows):
        targets = torch.tensor(joint[start:], dtype=torch.int64, device=ids.device)
        logprobs = torch.log_softmax(logits[row, start - len(joint) :].to(torch.float32), dim=-1)
        picked = logprobs.gather(1, targets[:, None]).to(torch.float64)
        values.append((float(picked.sum()), bool((logprobs.argmax(-1) == targets).all())))
    return values
