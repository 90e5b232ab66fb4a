"""Sharing a machine's cores between worker processes."""

from __future__ import annotations

import os


def share(worker: int, workers: int) -> tuple[int, ...]:
    """The cores of one of several workers on this machine.

    Two processes that each use all cores were measured 10 times slower than one core each,
    so shares never overlap unless there are more workers than cores.
    """
    cores = available()
    size = max(1, len(cores) // workers)
    begin = (worker * size) % len(cores)
    return tuple(cores[begin : begin + size])


def available() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
