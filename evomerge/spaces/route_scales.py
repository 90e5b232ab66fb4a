"""Where a route's scales come from: a gene a slot, a gene a transition, or a small network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from evomerge.domain import Dimension
from evomerge.errors import ConfigError
from evomerge.spaces.searched import Searched, is_number, read_searched
from evomerge.types import FloatArray

KINDS = ("slot", "transition", "network")

_REACH = 3.0
"""Bound of a network's weights; tanh hardly changes beyond."""

_STEP = 0.25
"""Standard deviation of their first samples: with 8 hidden units the scales then vary by about a
sixth of their range, as single genes do."""


@dataclass(frozen=True)
class Places:
    """The layout of a route space, for the names of its genes.

    Attributes:
        slots: each slot's name, such as `math@2/block.3`.
        layers: (source, block) of each layer, such as ("math", 3); the layout repeats them.
    """

    slots: tuple[str, ...]
    layers: tuple[tuple[str, int], ...]

    def layer(self, slot: int) -> int:
        """Which of the layers a slot holds."""
        return slot % len(self.layers)


class Scales(Protocol):
    """Maps genes to the scales of the slots that a route keeps, and back.

    Attributes:
        dimensions: of the genes.
    """

    dimensions: tuple[Dimension, ...]

    def of(self, genes: FloatArray, kept: Sequence[int]) -> list[float]:
        """Scale of every kept slot, from the input to the output."""

    def genes(self, kept: Sequence[int], scales: Sequence[float]) -> FloatArray:
        """Genes that give the kept slots these scales; all others stand at their start.

        Raises:
            ValueError: if there are none.
        """

    def neutral(self) -> FloatArray:
        """Genes of scales as near to 1 as they can be."""


class SlotScales:
    """A scale for each slot of the layout."""

    def __init__(self, searched: Searched, places: Places, first: bool) -> None:
        """Takes the range of the scales; `first` says whether the first kept slot's counts."""
        self.dimensions = tuple(searched.dimension(f"scale/{name}") for name in places.slots)
        self._neutral = searched.nearest(1.0)
        self._first = first

    def of(self, genes: FloatArray, kept: Sequence[int]) -> list[float]:
        """Genes of the kept slots."""
        return _uncounted([float(genes[t]) for t in kept], self._first)

    def genes(self, kept: Sequence[int], scales: Sequence[float]) -> FloatArray:
        """The scales at their slots."""
        found = np.array([d.start for d in self.dimensions])
        for i, (t, scale) in enumerate(zip(kept, scales, strict=True)):
            if i or self._first:
                found[t] = scale
        return found

    def neutral(self) -> FloatArray:
        """The same gene everywhere."""
        return np.full(len(self.dimensions), self._neutral)


class TransitionScales:
    """A scale for each pair of layers: the matrix W[i, j] of layer j after layer i.

    M layers have M * M genes, and one more, for what enters the first block, where that counts.
    """

    def __init__(self, searched: Searched, places: Places, first: bool) -> None:
        """Takes the range of the scales; `first` says whether the first kept slot's counts."""
        layers = places.layers
        names = [
            f"scale/{before}.{i}>{source}/block.{j}"
            for before, i in layers
            for source, j in layers
        ]  # fmt: skip
        names += ["scale/start/all"] if first else []
        self.dimensions = tuple(searched.dimension(name) for name in names)
        self._places = places
        self._neutral = searched.nearest(1.0)
        self._first = first

    def of(self, genes: FloatArray, kept: Sequence[int]) -> list[float]:
        """Genes of the transitions of the route."""
        return [1.0 if g is None else float(genes[g]) for g in self._genes(kept)]

    def genes(self, kept: Sequence[int], scales: Sequence[float]) -> FloatArray:
        """The scales at their transitions.

        Raises:
            ValueError: if one transition has two scales.
        """
        found = np.array([d.start for d in self.dimensions])
        told: dict[int, float] = {}
        for gene, scale in zip(self._genes(kept), scales, strict=True):
            if gene is None:
                continue
            if told.setdefault(gene, scale) != scale:
                raise ValueError(
                    f"{self.dimensions[gene].name}: scales {told[gene]:g} and {scale:g} for one "
                    "transition"
                )
            found[gene] = scale
        return found

    def neutral(self) -> FloatArray:
        """The same gene everywhere."""
        return np.full(len(self.dimensions), self._neutral)

    def _genes(self, kept: Sequence[int]) -> list[int | None]:
        """The gene of each kept slot's scale; None for a first one that does not count."""
        layers, count = [self._places.layer(t) for t in kept], len(self._places.layers)
        start = count * count if self._first else None
        return [
            start if i == 0 else layers[i - 1] * count + layer for i, layer in enumerate(layers)
        ]


class NetworkScales:
    """A small network that says the scale of layer j after layer i in slot t.

    One hidden layer: h = tanh(A x + b), o = c h + d, with x the numbers of i, j and t, each
    scaled to [-1, 1] (the start counts as layer -1). The scale is the middle of the range plus
    half the range times tanh(o + o_0); o_0 is such that all-zero weights give the range's start.
    The genes are the weights, `5 * hidden + 1` of them, in [-3, 3] and 0 at the start.

    After the network pi(i, j, t) of arXiv 2403.13187, section 3.2, whose size is not published.
    """

    def __init__(self, searched: Searched, places: Places, first: bool, hidden: int) -> None:
        """Takes the range of the scales, and the number of hidden units."""
        columns = ("previous", "layer", "slot", "bias", "out")
        names = [f"network/hidden.{k}/{column}" for k in range(hidden) for column in columns]
        self.dimensions = tuple(
            Dimension(name, -_REACH, _REACH, 0.0, _STEP) for name in (*names, "network/out/bias")
        )
        self._places = places
        self._first = first
        self._middle = (searched.low + searched.high) / 2
        self._half = (searched.high - searched.low) / 2
        self._start = searched.start
        self._offset = math.atanh((searched.start - self._middle) / self._half)

    def of(self, genes: FloatArray, kept: Sequence[int]) -> list[float]:
        """What the network says at every kept slot."""
        if not kept:
            return []
        weights = np.asarray(genes[:-1], dtype=np.float64).reshape(-1, 5)
        layers = [self._places.layer(t) for t in kept]
        count, slots = len(self._places.layers), len(self._places.slots)
        inputs = np.stack([
            _scaled([-1, *layers[:-1]], count), _scaled(layers, count), _scaled(kept, slots),
        ])  # fmt: skip
        hidden = np.tanh(weights[:, :3] @ inputs + weights[:, 3:4])
        out = weights[:, 4] @ hidden + genes[-1]
        scales = self._middle + self._half * np.tanh(out + self._offset)
        scales[out == 0] = self._start  # to the last bit
        return _uncounted(scales.tolist(), self._first)

    def genes(self, kept: Sequence[int], scales: Sequence[float]) -> FloatArray:
        """Zeros, if all scales that count are the start's.

        Raises:
            ValueError: otherwise; the weights cannot be read off the scales.
        """
        zeros = np.zeros(len(self.dimensions))
        if self.of(zeros, kept) != list(scales):
            raise ValueError("scales of a network, whose weights they do not tell")
        return zeros

    def neutral(self) -> FloatArray:
        """A network whose scales all are 1, or as near to it as they can be."""
        zeros = np.zeros(len(self.dimensions))
        if self._start != 1:
            ratio = min(max((1 - self._middle) / self._half, -0.999), 0.999)
            zeros[-1] = float(np.clip(math.atanh(ratio) - self._offset, -_REACH, _REACH))
        return zeros


def read_scales(
    spec: Mapping[str, Any] | None,
    kind: str,
    hidden: int,
    reading: str,
    places: Places,
    first: bool,
) -> Scales | None:
    """The scales that a space's config asks for.

    Args:
        spec: `low`, `high` and optionally `start` (default: 1) and `step`; None for no scales.
        kind: one of `KINDS`.
        hidden: hidden units of a network.
        reading: what a scale multiplies, see `evomerge.recipe.Route.scale`.
        places: the layout.
        first: whether the first kept slot's scale counts.

    Raises:
        ConfigError: naming the key at fault.
    """
    if kind not in KINDS:
        raise ConfigError.of(
            "space.scales", repr(kind), f"one of {', '.join(KINDS)}", "Correct it."
        )
    if not is_number(hidden) or hidden != math.floor(hidden) or hidden < 1:
        raise ConfigError.of(
            "space.hidden", repr(hidden), "a whole number of at least 1", "Correct it."
        )
    if spec is None:
        return None
    searched = _read_range(spec, reading)
    if kind == "slot":
        return SlotScales(searched, places, first)
    if kind == "transition":
        return TransitionScales(searched, places, first)
    if not searched.low < searched.start < searched.high or spec.get("step") is not None:
        raise ConfigError.of(
            "space.scale", repr(dict(spec)),
            "a start between low and high, and no step, for the scales of a network",
            "Correct it; the network's weights have steps of their own.",
        )  # fmt: skip
    return NetworkScales(searched, places, first, int(hidden))


def _read_range(spec: Any, reading: str) -> Searched:
    """The range of the scales; it starts at 1 unless it says otherwise."""
    found = read_searched("space.scale", "scale", spec)
    if found.kind != "real" or found.simplex:
        raise ConfigError.of(
            "space.scale", repr(dict(spec)), "low and high of real numbers", "Correct it."
        )
    if spec.get("start") is None:
        found = read_searched("space.scale", "scale", {**spec, "start": found.nearest(1.0)})
    if reading == "stream" and found.low <= 0 <= found.high:
        raise ConfigError.of(
            "space.scale", f"low={found.low:g}, high={found.high:g}",
            "a range without 0, which would erase the stream", "Correct the bounds.",
        )  # fmt: skip
    return found


def _uncounted(scales: list[float], first: bool) -> list[float]:
    """The scales with 1 in the first place, unless that counts."""
    return scales if first or not scales else [1.0, *scales[1:]]


def _scaled(numbers: Sequence[int], count: int) -> FloatArray:
    """Numbers from 0 to count - 1 as numbers in [-1, 1]."""
    return 2.0 * np.asarray(numbers, dtype=np.float64) / max(1, count - 1) - 1.0
