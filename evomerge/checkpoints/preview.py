"""What a merge would do and what it would cost, without doing it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from evomerge.checkpoints.assembly import Assembly, Part
from evomerge.checkpoints.layout import EMBEDDING, layout_of
from evomerge.checkpoints.merged import MergedModel
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.model import Model
from evomerge.checkpoints.tensor_file import Entry, shards
from evomerge.kernels.plans import Combination

_SAMPLE = 4 << 20
"""Elements that are merged to estimate the time."""

_BUFFERS = 24 << 20
"""Bytes of runs that are converted at a time, whatever the number of sources."""


_NOTHING = Combination((0.0,))
"""What makes an output projection of an identity."""


@dataclass(frozen=True)
class Cost:
    """What a merge takes.

    Attributes:
        tensors: number of output tensors.
        parameters: number of their elements.
        read: bytes of the models' files.
        models: number of models that are read.
        written: bytes of the output's tensors.
        files: number of weight files.
        memory: bytes beyond the page cache.
        seconds: of computation; None where there is nothing to measure.
    """

    tensors: int
    parameters: int
    read: int
    models: int
    written: int
    files: int
    memory: int
    seconds: float | None


def cost(assembly: Assembly, merger: Merger, shard_bytes: int) -> Cost:
    """Adds sizes up and measures the speed on one tensor of ordinary size."""
    entries = [Entry(p.name, p.shape, p.dtype) for p in assembly.parts]
    models = read_models(assembly)
    parameters = sum(math.prod(e.shape) for e in entries)
    return Cost(
        tensors=len(entries),
        parameters=parameters,
        read=sum(m.bytes() for m in models.values()),
        models=len(models),
        written=sum(e.bytes for e in entries),
        files=len(shards(entries, shard_bytes)),
        memory=max((e.bytes for e in entries), default=0) + _BUFFERS,
        seconds=_seconds(assembly, merger, parameters),
    )


def read_models(assembly: Assembly) -> dict[str, Model]:
    """The models whose weights are read, by fingerprint; nested merges are looked into."""
    out: dict[str, Model] = {}
    for part in assembly.parts:
        for one in part.inputs:
            if isinstance(one.model, MergedModel):
                out |= read_models(one.model.assembly)
            else:
                out[one.model.fingerprint] = one.model
    return out


def _seconds(assembly: Assembly, merger: Merger, parameters: int) -> float | None:
    """Time of the whole from the time of the largest tensor that is not too large."""
    sizes = [(math.prod(p.shape), i) for i, p in enumerate(assembly.parts)]
    fitting = [s for s in sizes if 0 < s[0] <= _SAMPLE] or sizes[:1]
    if not fitting:
        return None
    size, index = max(fitting)
    sample = Assembly(
        (assembly.parts[index],), assembly.config, assembly.donor, assembly.vocabulary
    )
    taken = math.inf
    for _ in range(2):  # the first run may compile the loops and gather statistics
        begin = time.perf_counter()
        for pending in merger.stream(sample):
            pending.tensor()
        taken = min(taken, time.perf_counter() - begin)
    return taken * parameters / size


def plan_lines(assembly: Assembly) -> Iterator[str]:
    """One line for every group of output tensors: what it is made of."""
    layout = layout_of([p.name for p in assembly.parts])
    groups: dict[str, list[Part]] = {}
    for part in assembly.parts:
        groups.setdefault(layout.group_of(part.name), []).append(part)
    order = {group: i for i, group in enumerate(layout.groups())}
    for group in sorted(groups, key=lambda g: order.get(g, len(order))):
        parts = groups[group]
        count = f"{len(parts)} tensor{'s' if len(parts) != 1 else ''}"
        yield f"{group.replace('.', ' '):12} {count:12} <- {_origin(parts, group)}"


def _origin(parts: list[Part], group: str) -> str:
    """Models and blocks that a group's tensors come from, the base first."""
    if any(p.plan == _NOTHING for p in parts) and group.startswith("block."):
        return "identity"
    found: dict[str, None] = {}
    for part in parts:
        for one in part.inputs:
            where = one.model.layout.group_of(one.name)
            place = "" if where == group or not where.startswith("block.") else f" {where}"
            if where.startswith("block.") and group == EMBEDDING:
                place = f" {where}"
            found[f"{one.key}{place.replace('.', ' ')}"] = None
    return ", ".join(found)
