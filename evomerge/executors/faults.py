"""Tells a candidate's own failure from that of the machine that it ran on."""

from __future__ import annotations

import re
from collections.abc import Iterator

from evomerge.errors import NotFiniteError, SourceError

ENGINE = "engine"
"""The engine may be damaged: it is made anew, and another worker gets the candidate."""

DOUBT = "doubt"
"""The candidate or the machine may be at fault: another worker is asked before it is believed."""

_BROKEN = re.compile(
    r"out of memory|cannot allocate memory|CUDA error|HIP error|device-side assert|"
    r"illegal memory access|uncorrectable ECC|(CUBLAS|CUDNN|NCCL)\w* ?(_STATUS|error)",
    re.IGNORECASE,
)


def fault_of(error: BaseException) -> str:
    """What an evaluation's error says of the machine: `ENGINE`, `DOUBT`, or nothing ("").

    Libraries wrap such errors in others, so causes are looked at, too. Weights or
    log-likelihoods that are not finite, and sources that cannot be read, come from a bad
    candidate as often as from a bad device or node.
    """
    chain = list(_chain(error))
    for one in chain:
        out_of_memory = isinstance(one, MemoryError) or type(one).__name__ == "OutOfMemoryError"
        if out_of_memory or (isinstance(one, Exception) and _BROKEN.search(str(one))):
            return ENGINE
    if any(isinstance(one, SourceError | NotFiniteError) for one in chain):
        return DOUBT
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
