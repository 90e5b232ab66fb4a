"""Sources on a GPU: kept there as far as there is room, else brought there as they are wanted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evomerge.kernels.weight import Stored, Weight, whole

_SLAB = 1 << 28
"""Bytes that are pinned at once; torch pins powers of two, and a tensor's size seldom is one."""

_ALIGNED = 512
"""Tensors begin at multiples of so many bytes."""


@dataclass(frozen=True)
class Wanted:
    """A weight that is needed on the device.

    Attributes:
        weight: where it is read from.
        key: what it is kept under; empty for weights that come and go.
    """

    weight: Weight
    key: str = ""


@dataclass
class _Sent:
    """A tensor on the device, there once the event has happened; None if it is known to be."""

    key: str
    tensor: Tensor
    kept: bool
    event: torch.cuda.Event | None


class Resident:
    """Brings weights to a device, once where they can stay.

    The first weights that are asked for stay on the device up to a number of bytes, later ones
    in pinned memory of the host, again up to a number; the rest is read from its file each
    time. What does not stay is copied on a stream of its own while the tensor before is
    computed; two tensors' sources are there at a time at most.

    Attributes:
        device_left: bytes that may still be kept on the device.
        host_left: bytes that may still be kept in the host's pinned memory.
    """

    def __init__(
        self,
        device: torch.device | str,
        device_bytes: int | None = None,
        host_bytes: int | None = None,
    ) -> None:
        """Takes a device; on `cpu` copies are plain and nothing is pinned.

        Args:
            device: such as `cuda:0`.
            device_bytes: to be kept there at most; None for half of what is free on a GPU
                now (an engine's caches and the merge itself need the rest), 0 on a CPU.
            host_bytes: to be kept pinned at most; None for half of what the host has
                available now, 0 on a CPU.
        """
        self.device = torch.device(device)
        cuda = self.device.type == "cuda"
        if cuda and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.device_left = _share(_free(self.device) if cuda else 0, device_bytes)
        self.host_left = _share(_available() if cuda else 0, host_bytes)
        self._kept: dict[str, _Sent] = {}
        self._hosted: dict[str, Tensor] = {}
        self._slab = torch.empty(0, dtype=torch.uint8)
        self._stream = torch.cuda.Stream(self.device) if cuda else None

    def load(self, groups: Iterable[Sequence[Wanted]]) -> Iterator[list[Wanted]]:
        """Yields the weights of every group on the device, in order.

        A group is asked for when the group before is about to be yielded, and its copies run
        while that one is used. Work on a group has to be on the current stream; it may still
        be under way when the next group is taken.
        """
        ahead: list[_Sent] | None = None
        for group in groups:
            coming = [self._send(wanted) for wanted in group]
            if ahead is not None:
                yield self._arrived(ahead)
                self._finish(ahead)
            ahead = coming
            del coming
        if ahead is not None:
            yield self._arrived(ahead)

    def _send(self, wanted: Wanted) -> _Sent:
        if wanted.key in self._kept:
            return self._kept[wanted.key]
        size = _bytes(wanted.weight)
        keep = bool(wanted.key) and size <= self.device_left
        host = whole(wanted.weight) if keep else self._host(wanted, size)
        sent = self._copy(wanted.key, host, keep)
        if keep:
            self._kept[wanted.key] = sent
            self.device_left -= size
        return sent

    def _host(self, wanted: Wanted, size: int) -> Tensor:
        """The weight in the host's memory, pinned on a GPU's host."""
        if wanted.key in self._hosted:
            return self._hosted[wanted.key]
        tensor = whole(wanted.weight)
        if not wanted.key or size > self.host_left:
            return tensor if self._stream is None else tensor.pin_memory()
        tensor = self._room(size).view(tensor.dtype).view(tensor.shape).copy_(tensor)
        self._hosted[wanted.key] = tensor
        self.host_left -= size
        return tensor

    def _room(self, size: int) -> Tensor:
        """Bytes of the slab; those that are left of the last one are given up."""
        if size > len(self._slab):
            pin = self._stream is not None
            self._slab = torch.empty(max(size, _SLAB), dtype=torch.uint8, pin_memory=pin)
        taken = self._slab[:size]
        self._slab = self._slab[-(-size // _ALIGNED) * _ALIGNED :]
        return taken

    def _copy(self, key: str, host: Tensor, keep: bool) -> _Sent:
        if self._stream is None:
            return _Sent(key, host.clone(), keep, None)
        with torch.cuda.stream(self._stream):
            tensor = torch.empty(host.shape, dtype=host.dtype, device=self.device)
            tensor.copy_(host, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        return _Sent(key, tensor, keep, event)

    def _arrived(self, group: Sequence[_Sent]) -> list[Wanted]:
        """Makes the current stream wait for the copies."""
        for sent in group:
            if sent.event is not None:
                current = torch.cuda.current_stream(self.device)
                current.wait_event(sent.event)
                # the allocator has to know that another stream uses it than the one it is of
                sent.tensor.record_stream(current)
                sent.event = None
        return [Wanted(Stored(sent.tensor), sent.key) for sent in group]

    def _finish(self, group: Sequence[_Sent]) -> None:
        """Waits for the work on what is given up, or copies would be queued without end."""
        if self._stream is not None and not all(sent.kept for sent in group):
            torch.cuda.current_stream(self.device).synchronize()


def _bytes(weight: Weight) -> int:
    return math.prod(weight.shape) * weight.dtype.itemsize


def _share(free: int, wanted: int | None) -> int:
    return free // 2 if wanted is None else wanted


def _free(device: torch.device) -> int:
    """Bytes of a GPU that can be had, torch's own unused ones included."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def _available() -> int:
    """Bytes of the host's memory that can be had without swapping; 0 where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else 0
