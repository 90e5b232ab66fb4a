"""Random masks from a counter-based generator.

Element i of a mask depends on (seed, source, tensor name, i) alone: not on the order of
merging, the number of workers, the device or any global state.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

_M1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9 as a signed 64-bit integer
_M2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15
_WORD = 0xFFFFFFFF
BITS = 24
"""Random bits of a draw; densities are told apart down to 2**-24."""


@dataclass(frozen=True)
class MaskKey:
    """What a mask is drawn from: study seed, the source's content, the tensor's name."""

    seed: int
    source: str
    tensor: str

    def state(self) -> int:
        """A signed 64-bit integer derived from the three parts."""
        text = f"{self.seed}\0{self.source}\0{self.tensor}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "little", signed=True)


def draws(key: MaskKey, start: int, stop: int, device: torch.device | str = "cpu") -> Tensor:
    """Draws of elements [start, stop): integers in [0, 2**24), int64.

    Source: splitmix64 (Steele, Lea, Flood 2014) at key + (i // 2 + 1) * golden ratio, whose
    lower half serves even and whose upper half odd elements, without the lowest 8 bits of
    each; integer multiplication wraps the same way on every device.
    """
    first = start // 2
    pairs = torch.arange(first, (stop + 1) // 2, dtype=torch.int64, device=device)
    both = torch.stack(_halves(key.state(), pairs), dim=1).flatten()
    return both[start - 2 * first : stop - 2 * first]


def draws_at(state: Tensor, positions: Tensor) -> Tensor:
    """The same draws at any positions (int64), for the state of a key as a tensor."""
    low, high = _halves(state, positions >> 1)
    return torch.where((positions & 1) == 0, low, high)


def indexed_draws(start: int, stop: int, device: torch.device | str = "cpu") -> Tensor:
    """Draws of 24 bits that depend on an element's position alone, int64."""
    return indexed_draws_at(torch.arange(start, stop, dtype=torch.int64, device=device))


def indexed_draws_at(positions: Tensor) -> Tensor:
    """The same draws at any positions (int64).

    Source: lowbias32 of C. Wellons' hash-prospector, without the lowest 8 bits.
    """
    x = ((positions & _WORD) ^ ((positions >> 32) * 0x9E3779B1)) & _WORD
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return (x ^ (x >> 16)) >> 8


def _halves(state: int | Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Draws of the even and of the odd element of each pair."""
    z = (pairs + 1) * _GOLDEN + state
    z = (z ^ _shift(z, 30)) * _M1
    z = (z ^ _shift(z, 27)) * _M2
    z = z ^ _shift(z, 31)
    return _shift(z, 8) & (2**BITS - 1), _shift(z, 40)


def uniform(key: MaskKey, count: int, device: torch.device | str = "cpu") -> Tensor:
    """`count` numbers in [0, 1), float32 with 24 random bits each."""
    return draws(key, 0, count, device).to(torch.float32) * 2.0**-BITS


def limit(density: float) -> int:
    """Draws below it are kept: as many as the density asks for, of 2**24."""
    return min(2**BITS, max(0, math.ceil(density * 2**BITS)))


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch shifts arithmetically)."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
