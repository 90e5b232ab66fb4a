"""Log-likelihood of continuations, one forward pass a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge.engines.batches import bucket, left_pad, positions_of

_LOGITS = 1 << 26
"""Most logits of a batch (256 MB in float32)."""


@torch.inference_mode()
def score_ends(
    model: Any, rows: Sequence[tuple[Sequence[int], int]], pad: int, budget: int
) -> list[tuple[float, bool]]:
    """Log-probability (nats) of each row's tokens from its start onwards, and whether all are
    the likeliest at their places.

    A row's last token is only scored, never read; rows that differ in it alone are read once, such
    as choices of one token behind one question. The head runs only on the last positions, and
    log-softmax in float32 on one row at a time.

    Args:
        model: a causal language model.
        rows: token ids, and the index of the first token to score (at least 1).
        pad: id that fills a batch.
        budget: most tokens of a batch.
    """
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    owners: dict[tuple[int, ...], list[int]] = {}
    for i, (ids, _) in enumerate(rows):
        owners.setdefault(tuple(ids[:-1]), []).append(i)
    read = list(owners)
    scored = [max(len(rows[i][0]) - rows[i][1] for i in owners[ids]) for ids in read]
    out = [(0.0, True)] * len(rows)
    for batch in bucket([len(ids) for ids in read], [0] * len(read), budget):
        most = max(1, _LOGITS // (max(scored[b] for b in batch) * vocabulary))
        for first in range(0, len(batch), most):
            part = batch[first : first + most]
            keep = max(scored[b] for b in part)
            found = _last_logits(model, [read[b] for b in part], pad, keep)
            for b, logits in zip(part, found, strict=True):
                for i in owners[read[b]]:
                    out[i] = _score(logits, *rows[i])
    return out


def _last_logits(model: Any, rows: Sequence[Sequence[int]], pad: int, keep: int) -> Tensor:
    """Logits behind the last `keep` tokens of each row, a `rows x keep x vocabulary` tensor."""
    ids, mask = left_pad(rows, pad, model.device)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions_of(mask),
        use_cache=False,
        logits_to_keep=keep,
    )
    found: Tensor = output.logits[:, -keep:]
    return found


def _score(logits: Tensor, ids: Sequence[int], start: int) -> tuple[float, bool]:
    targets = torch.tensor(ids[start:], dtype=torch.int64, device=logits.device)
    logprobs = torch.log_softmax(logits[start - len(ids) :].to(torch.float32), dim=-1)
    picked = logprobs.gather(1, targets[:, None]).to(torch.float64)
    return float(picked.sum()), bool((logprobs.argmax(-1) == targets).all())
