"""Log-likelihoods of answers from those of token rows, the same for every engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from evomerge.engines.tokens import Codec
from evomerge.errors import NotFiniteError
from evomerge.types import FloatArray

Row = tuple[Sequence[int], int]
"""Token ids, and the index of the first one to score."""

Scored = list[tuple[float, bool]]
"""Log-likelihood (nats) of the end of each row, and whether it is the greedy one."""


def mean_logliks(
    pairs: Sequence[tuple[str, str]], codec: Codec, score: Callable[[Sequence[Row]], Scored]
) -> FloatArray:
    """Mean log-likelihood a token (nats) of each continuation given its context.

    Args:
        pairs: context and continuation, tokenised together; see `Codec.pair`.
        codec: of the engine.
        score: scores rows with it.

    Returns:
        a `len(pairs)` array.

    Raises:
        TaskError: if a continuation has no token.
    """
    rows = [codec.pair(context, text, i) for i, (context, text) in enumerate(pairs)]
    found = zip(score(rows), rows, strict=True)
    return np.array([value / (len(ids) - start) for (value, _), (ids, start) in found])


def check_logliks(found: Scored) -> None:
    """Checks that what an engine found is finite.

    Raises:
        NotFiniteError: naming the first row that is not.
    """
    for i, (value, _) in enumerate(found):
        if not math.isfinite(value):
            raise NotFiniteError(f"the log-likelihood of pair {i} is {value}")
