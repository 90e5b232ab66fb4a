"""Routes of ours, said as slices for mergekit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.routing import to_slices
from evomerge.recipe import Recipe, Route, Slot

_PATH = (("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 1), ("c", 3))
_SCALES = (1.0, 0.8, -0.5, 1.3, 1.0, 0.7)


def route_recipes(folder: Path) -> Iterator[tuple[str, Recipe, Recipe]]:
    """Yields (name, route, the same as slices) for the models of a folder.

    Those that slices cannot say are left out.
    """
    for scale in ("plain", "block_output", "stream"):
        factors = [1.0] * len(_PATH) if scale == "plain" else list(_SCALES)
        slots = [Slot(str(folder / m), n, f) for (m, n), f in zip(_PATH, factors, strict=True)]
        if scale == "stream":
            slots.insert(3, Slot(None))
        route = Route(tuple(slots), "stream" if scale == "stream" else "block_output")
        recipe = Recipe("passthrough", base=str(folder / "base"), route=route, dtype="float32")
        merger = Merger(threads=1)
        models = {i: merger.model(s.model) for i, s in enumerate(slots) if s.model is not None}
        slices = to_slices(recipe, models, merger.model(str(folder / "base")))
        if slices is not None:
            yield f"route, {scale}", recipe, slices
