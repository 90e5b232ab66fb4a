"""The part of `merge_speed.py` for a GPU: shares of the bandwidths of copies."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from evomerge.checkpoints.resident import Resident

Tensors = dict[str, torch.Tensor]

SHARES = {"linear": 0.7, "ties": 0.5}
"""Of the bandwidth of a copy on the device, to be reached with resident sources."""


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def bandwidth(source: torch.Tensor, target: torch.Tensor, repeats: int) -> float:
    """Bytes copied a second from one tensor to another of its size."""

    def wait() -> None:
        if target.device.type == "cuda":
            torch.cuda.synchronize()

    def copy() -> None:
        for _ in range(4):
            target.copy_(source, non_blocking=True)
        wait()

    copy()
    took = statistics.median(timed(copy) for _ in range(repeats))
    return 4 * target.numel() * target.element_size() / took


def shares(
    model: Any, names: list[str], repeats: int, resident: Resident | None, reach: float
) -> list[dict[str, object]]:
    """Times operators against a bandwidth, in bytes a second.

    Args:
        model: what to merge.
        names: of operators.
        repeats: the median of so many.
        resident: brings the sources to the device; None if they are there.
        reach: of a copy: read and written bytes on the device, else those that are brought.
    """
    rows: list[dict[str, object]] = []
    for name in names:
        run, models = model.merge(name, resident)
        first = timed(run)  # gathers statistics, compiles
        run()
        took = statistics.median(timed(run) for _ in range(repeats))
        moved = 2 * model.parameters * (models + (resident is None))
        target = SHARES.get(name) if resident is None else None
        share = moved / took / reach
        rows.append(
            {"operator": name, "seconds": took, "first": first, "share": share, "target": target}
        )
        print(
            f"{name:17} {took:8.4f} s  first {first:7.3f} s  {moved / took / 1e9:7.1f} GB/s"
            f"  {share:4.0%} of a copy" + (f"  target {target:.0%}" if target else "")
            + ("  MISSED" if target and share < target else ""),
            flush=True,
        )  # fmt: skip
    return rows


def on_a_device(
    open_model: Callable[[list[Tensors], torch.device], Any],
    sources: list[Tensors],
    names: list[str],
    repeats: int,
    streaming: bool,
    device: torch.device,
) -> dict[str, object]:
    """Shares of the bandwidths with resident and with streamed sources."""
    model = open_model(sources, device)
    size = min(1 << 30, max(t.numel() for t in model.out.values()) * 2)
    here, there = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    reach = 2 * bandwidth(here, there, repeats)
    print(f"resident; a copy on the device reads and writes {reach / 1e9:.1f} GB/s")
    out: dict[str, object] = {"copy": reach, "resident": shares(model, names, repeats, None, reach)}
    if streaming:
        away = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        reach = bandwidth(away, there, repeats)
        print(f"streaming; a copy from the host moves {reach / 1e9:.1f} GB/s")
        model.sources = [{n: t.cpu() for n, t in one.items()} for one in sources]
        everything = 4 * len(sources) * model.parameters
        rows = shares(model, names, repeats, Resident(device, 0, everything), reach)
        out |= {"bus": reach, "streaming": rows}
    return out
