"""Routes through the blocks of the sources: data-flow space (arXiv 2403.13187, section 3.2)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from evomerge.domain import Dimension
from evomerge.errors import ConfigError
from evomerge.recipe import READINGS, Recipe, Route, Slot
from evomerge.spaces.grid import Groups
from evomerge.spaces.landmarks import distinct
from evomerge.spaces.merge_space import check_genome
from evomerge.spaces.route_scales import Places, read_scales
from evomerge.spaces.searched import is_number
from evomerge.types import FloatArray

_BLOCK = "block."
INDICATORS = {"integer": (0.0, 1.0, 0.5), "real": (-1.0, 1.0, 0.0)}
"""Low and high of an indicator, and what it has to exceed for its slot to be kept."""


class RouteSpace:
    """Keeps or drops each block of the sources, laid out in order, several times over.

    The layout has T = repeats * sources * blocks slots: all blocks of the first source, those of
    the second, and so on, then all of it again. A genome has an indicator for each slot and,
    if scales are searched, what they are made of (`evomerge.spaces.route_scales`). Embedding,
    final norm and head are the first source's.

    Of the slots that a genome keeps, those of a block that was used `max_uses` times already
    are left out, and those behind the first `max_blocks`; their genes have no effect. A genome
    with fewer than `min_blocks` left has no route: its recipe has no slots, which nothing
    merges, and its candidate fails.

    With `identities` the written model always has `depth` blocks, so that one running engine
    can hold every route: identities fill a shorter one up at its end. Without, it has as many
    blocks as the route; engines that hold a deeper model run it as well.
    """

    def __init__(
        self,
        base: str | None,
        sources: Mapping[str, str],
        groups: Groups,
        repeats: int = 1,
        scale: Mapping[str, Any] | None = None,
        scales: str = "slot",
        hidden: int = 8,
        reading: str = "block_output",
        scale_embedding: bool = False,
        depth: int | None = None,
        identities: bool = True,
        min_blocks: int = 1,
        max_blocks: int | None = None,
        max_uses: int | None = None,
        indicators: str = "integer",
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
            scales: slot (a scale for each slot), transition (one for each pair of blocks) or
                network (a small network that says them).
            hidden: hidden units of the network.
            reading: what a scale multiplies, see `evomerge.recipe.Route.scale`.
            scale_embedding: with `block_output`, whether the first kept slot's scale counts: it
                multiplies the embedding. A head that is tied to the embedding becomes a tensor
                of its own then, for which an engine that holds a tied model has no room.
            depth: most blocks of the written model; default: the sources' own number.
            identities: whether identities fill the written model up to `depth`.
            min_blocks: fewest blocks of a route.
            max_blocks: most blocks of a route; default: `depth`.
            max_uses: how often a route may have one block; default: as often as it is laid out.
            indicators: integer (0 drops, 1 keeps), or real (in [-1, 1], kept above 0).
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
        if indicators not in INDICATORS:
            raise ConfigError.of(
                "space.indicators", repr(indicators), " or ".join(INDICATORS), "Correct it."
            )
        self.reading = reading
        if not isinstance(identities, bool):
            raise ConfigError.of(
                "space.identities", repr(identities), "true or false", "Correct it."
            )
        self.identities = identities
        self.sources = dict(sources)
        self.dtype = dtype
        self._home = next(iter(self.sources.values()))
        self._blocks = blocks
        names = [
            (f"{name}@{turn}" if turn > 1 else name, ref, layer)
            for turn in range(1, self.repeats + 1)
            for name, ref in self.sources.items()
            for layer in range(blocks)
        ]
        self.slots: tuple[tuple[str, int], ...] = tuple((ref, layer) for _, ref, layer in names)
        self._limit(min_blocks, max_blocks, max_uses)
        places = tuple(f"{name}/{_BLOCK}{layer}" for name, _, layer in names)
        layers = tuple((name, layer) for name in self.sources for layer in range(blocks))
        first = bool(scale_embedding) or reading != "block_output"
        layout = Places(places, layers)
        self._scales = read_scales(scale, scales, hidden, reading, layout, first)
        low, high, self._border = INDICATORS[indicators]
        self._off, self._on = (low + self._border) / 2, (self._border + high) / 2
        if indicators == "integer":
            self._off, self._on = low, high
        step = 1 / 3 if step is None else float(step)
        kind = "integer" if indicators == "integer" else "real"
        self.dimensions: tuple[Dimension, ...] = (
            *(
                Dimension(f"keep/{place}", low, high, start, step, kind)
                for place, start in zip(places, self._own(0).tolist(), strict=True)
            ),
            *(self._scales.dimensions if self._scales else ()),
        )

    def decode(self, genome: FloatArray) -> Recipe:
        """Recipe of a genome; one without slots, which nothing merges, if it has no route.

        Raises:
            ValueError: if it has another length or holds NaN or infinity.
        """
        check_genome(genome, len(self.dimensions))
        kept = self._kept(genome)
        genes = np.asarray(genome[len(self.slots) :], dtype=np.float64)
        scales = self._scales.of(genes, kept) if self._scales else [1.0] * len(kept)
        slots = tuple(Slot(*self.slots[t], s) for t, s in zip(kept, scales, strict=True))
        depth = self.depth if self.identities else None
        route = Route(slots if len(slots) >= self.min_blocks else (), self.reading, depth)
        return Recipe("passthrough", base=self._home, dtype=self.dtype, route=route)

    def encode(self, recipe: Recipe) -> FloatArray:
        """Genome of a recipe that this space made; slots that are dropped have the start's scale.

        Of equal slots the first one after the slot before counts.

        Raises:
            ValueError: if the layout does not have the recipe's blocks in their order, or
                scales of a network are not all at their start.
        """
        kept: list[int] = []
        scales: list[float] = []
        for i, slot in enumerate(recipe.route.slots if recipe.route else ()):
            if slot.model is None:
                continue
            after = kept[-1] if kept else -1
            try:
                kept.append(self.slots.index((str(slot.model), slot.layer), after + 1))
            except ValueError:
                raise ValueError(
                    f"slot {i}: no such block in the layout after slot {after}"
                ) from None
            scales.append(slot.scale)
        indicators = self._indicators(kept)
        if self._scales is None:
            return indicators
        return np.append(indicators, self._scales.genes(kept, scales))

    def anchors(self) -> tuple[FloatArray, ...]:
        """Each source's own blocks in their order, unscaled; the first is the start.

        Where a route has to have more, what follows in the layout comes after. Then the blocks of
        all sources in order, if a route may have so many.
        """
        neutral = self._scales.neutral() if self._scales else np.empty(0)
        layers = len(self.sources) * self._blocks
        routes = [self._own(number) for number in range(len(self.sources))]
        routes += [self._indicators(range(layers))] if self.max_blocks >= layers else []
        found = [np.append(indicators, neutral) for indicators in routes]
        return distinct([*found, np.array([d.start for d in self.dimensions])])

    def extremes(self) -> tuple[FloatArray, ...]:
        """Genomes that together have every block and the bounds of all scales."""
        count = len(self.slots)
        found = []
        for genome in self.anchors()[: len(self.sources)]:
            for bound in ("low", "high"):
                ends = [getattr(d, bound) for d in self.dimensions[count:]]
                found.append(np.append(genome[:count], ends))
        return tuple(found)

    def sparsity(self, genome: FloatArray) -> float:
        """Share in [0, 1] of the slots that a genome's route leaves out."""
        check_genome(genome, len(self.dimensions))
        return 1.0 - len(self._kept(genome)) / len(self.slots)

    def blocks(self, genome: FloatArray) -> int:
        """Number of blocks of a genome's route, identities not counted."""
        check_genome(genome, len(self.dimensions))
        return len(self._kept(genome))

    def _kept(self, genome: FloatArray) -> list[int]:
        """The slots that the route has, in order."""
        uses: Counter[tuple[str, int]] = Counter()
        kept = []
        for t, block in enumerate(self.slots):
            if genome[t] > self._border and uses[block] < self.max_uses:
                uses[block] += 1
                kept.append(t)
        return kept[: self.max_blocks]

    def _own(self, source: int) -> FloatArray:
        """Indicators of a source's own blocks, and of what follows up to `min_blocks`."""
        own = range(source * self._blocks, (source + 1) * self._blocks)
        genes = self._indicators(own)
        for t in (*range(own.stop, len(self.slots)), *range(own.start)):
            if len(self._kept(genes)) >= self.min_blocks:
                break
            genes[t] = self._on
        return genes

    def _indicators(self, kept: Iterable[int]) -> FloatArray:
        genes = np.full(len(self.slots), self._off)
        genes[list(kept)] = self._on
        return genes

    def _limit(self, least: int, most: int | None, uses: int | None) -> None:
        """Reads the limits of a route.

        Raises:
            ConfigError: naming the key at fault.
        """
        copies = Counter(self.slots)
        self.max_uses = max(copies.values()) if uses is None else _whole("max_uses", uses)
        self.max_blocks = self.depth if most is None else _whole("max_blocks", most)
        if self.max_blocks > self.depth:
            raise ConfigError.of(
                "space.max_blocks", str(self.max_blocks), f"at most space.depth, {self.depth}",
                "Lower it, or raise the depth.",
            )  # fmt: skip
        self.min_blocks = _whole("min_blocks", least)
        reach = min(self.max_blocks, sum(min(n, self.max_uses) for n in copies.values()))
        if self.min_blocks > reach:
            raise ConfigError.of(
                "space.min_blocks", str(self.min_blocks),
                f"at most {reach}, the most blocks that a route can have",
                "Lower it, or raise space.max_blocks, space.max_uses or space.repeats.",
            )  # fmt: skip


def _whole(key: str, value: Any) -> int:
    if not is_number(value) or value != math.floor(value) or value < 1:
        raise ConfigError.of(
            f"space.{key}", repr(value), "a whole number of at least 1", "Correct it."
        )
    return int(value)
