"""Routes through the blocks of the sources: data-flow space (arXiv 2403.13187, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge.domain import Dimension
from evomerge.errors import ConfigError
from evomerge.recipe import READINGS, Recipe, Route, Slot
from evomerge.spaces.grid import Groups
from evomerge.spaces.landmarks import distinct
from evomerge.spaces.merge_space import check_genome
from evomerge.spaces.searched import Searched, is_number, read_searched
from evomerge.types import FloatArray

_BLOCK = "block."


class RouteSpace:
    """Keeps or drops each block of the sources, laid out in order, several times over.

    The layout has T = repeats * sources * blocks slots: all blocks of the first source, those of
    the second, and so on, then all of it again. A genome has an indicator for each slot (0
    drops it, 1 keeps it) and, if scales are searched, a scale for each slot. Embedding, final
    norm and head are the first source's.

    The written model always has `depth` blocks, so that one running engine can hold every
    route: identities fill a shorter route up at its end; of a longer one only the first
    `depth` kept slots are used, the genes of the others have no effect. A genome that keeps
    nothing is a model of identities: the embedding goes straight to the final norm. It is
    scored like any other, and scores badly.
    """

    def __init__(
        self,
        base: str | None,
        sources: Mapping[str, str],
        groups: Groups,
        repeats: int = 1,
        scale: Mapping[str, Any] | None = None,
        reading: str = "block_output",
        scale_embedding: bool = False,
        depth: int | None = None,
        step: float | None = None,
        dtype: str = "bfloat16",
        seed: int = 0,
    ) -> None:
        """Lays out the dimensions: the indicators first, then the scales.

        Args:
            base: model reference of the base; not used, a route has none.
            sources: name to model reference, all of the base's architecture and size.
            groups: layer groups of the base, `block.0` and so on; their number is that of the
                blocks of each source.
            repeats: how often the sources' blocks are laid out.
            scale: `low`, `high` and optionally `start` (default: 1) and `step` of the scales;
                None for none.
            reading: what a scale multiplies, see `evomerge.recipe.Route.scale`.
            scale_embedding: with `block_output`, whether the first kept slot's scale counts: it
                multiplies the embedding. A head that is tied to the embedding becomes a tensor
                of its own then, for which an engine that holds a tied model has no room.
            depth: number of blocks of the written model; default: the sources' own.
            step: standard deviation of the indicators' first samples; default: 1/3, of which
                about one in 15 differs from the start under CMA-ES.
            dtype: of the written tensors.
            seed: not used; nothing is drawn.

        Raises:
            ConfigError: naming the key at fault.
        """
        blocks = sum(1 for group in groups if group.startswith(_BLOCK))
        self.depth = _whole("depth", blocks if depth is None else depth)
        self.repeats = _whole("repeats", repeats)
        if step is not None and (not is_number(step) or step <= 0):
            raise ConfigError.of("space.step", repr(step), "a positive number", "Correct it.")
        if reading not in READINGS:
            raise ConfigError.of(
                "space.reading", repr(reading), " or ".join(READINGS), "Correct it."
            )
        self.reading = reading
        self.sources = dict(sources)
        self.dtype = dtype
        self._home = next(iter(self.sources.values()))
        self._first_scale = scale_embedding or reading != "block_output"
        self._scale = None if scale is None else _read_scale(scale, reading)
        names = [
            (f"{name}@{turn}" if turn > 1 else name, ref, layer)
            for turn in range(1, self.repeats + 1)
            for name, ref in self.sources.items()
            for layer in range(blocks)
        ]
        self.slots: tuple[tuple[str, int], ...] = tuple((ref, layer) for _, ref, layer in names)
        places = [f"{name}/{_BLOCK}{layer}" for name, _, layer in names]
        step = 1 / 3 if step is None else float(step)
        indicators = [
            Dimension(f"keep/{place}", 0.0, 1.0, float(t < blocks), step, "integer")
            for t, place in enumerate(places)
        ]
        scales = [] if self._scale is None else [
            self._scale.dimension(f"scale/{place}") for place in places
        ]  # fmt: skip
        self.dimensions: tuple[Dimension, ...] = (*indicators, *scales)

    def decode(self, genome: FloatArray) -> Recipe:
        """Recipe of a genome: a route of `depth` blocks.

        Raises:
            ValueError: if it has another length or holds NaN or infinity.
        """
        check_genome(genome, len(self.dimensions))
        slots: list[Slot] = []
        for t in self._kept(genome):
            model, layer = self.slots[t]
            counts = self._scale is not None and (bool(slots) or self._first_scale)
            slots.append(Slot(model, layer, float(genome[len(self.slots) + t]) if counts else 1.0))
        route = Route(tuple(slots) or (Slot(None),), self.reading, self.depth)
        return Recipe("passthrough", base=self._home, dtype=self.dtype, route=route)

    def encode(self, recipe: Recipe) -> FloatArray:
        """Genome of a recipe that this space made; slots that are dropped have the start's scale.

        Of equal slots the first one after the slot before counts.

        Raises:
            ValueError: if the layout does not have the recipe's blocks in their order.
        """
        genome = np.array([d.start for d in self.dimensions])
        genome[: len(self.slots)] = 0.0
        t = -1
        for i, slot in enumerate(recipe.route.slots if recipe.route else ()):
            if slot.model is None:
                continue
            try:
                t = self.slots.index((str(slot.model), slot.layer), t + 1)
            except ValueError:
                raise ValueError(f"slot {i}: no such block in the layout after slot {t}") from None
            genome[t] = 1.0
            if self._scale is not None and (i or self._first_scale):
                genome[len(self.slots) + t] = slot.scale
        return genome

    def anchors(self) -> tuple[FloatArray, ...]:
        """Each source's own blocks in their order, unscaled; the first is the start."""
        blocks = len(self.slots) // (self.repeats * len(self.sources))
        found = []
        for number in range(len(self.sources)):
            genome = np.array([d.start for d in self.dimensions])
            genome[: len(self.slots)] = 0.0
            genome[number * blocks : (number + 1) * blocks] = 1.0
            if self._scale is not None:
                genome[len(self.slots) :] = self._scale.nearest(1.0)
            found.append(genome)
        return distinct([*found, np.array([d.start for d in self.dimensions])])

    def sparsity(self, genome: FloatArray) -> float:
        """Share in [0, 1] of the slots that a genome's route leaves out."""
        check_genome(genome, len(self.dimensions))
        return 1.0 - len(self._kept(genome)) / len(self.slots)

    def _kept(self, genome: FloatArray) -> list[int]:
        """The slots that the route has, in order."""
        return [t for t in range(len(self.slots)) if genome[t] >= 0.5][: self.depth]


def _read_scale(spec: Any, reading: str) -> Searched:
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


def _whole(key: str, value: Any) -> int:
    if not is_number(value) or value != math.floor(value) or value < 1:
        raise ConfigError.of(
            f"space.{key}", repr(value), "a whole number of at least 1", "Correct it."
        )
    return int(value)
