"""All randomness of a study comes from (study seed, number, purpose)."""

from __future__ import annotations

import hashlib


def derive(seed: int, purpose: str, number: int = 0) -> int:
    """A seed of 63 bits for one purpose, independent of every other purpose's."""
    digest = hashlib.sha256(f"{seed}\0{purpose}\0{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
