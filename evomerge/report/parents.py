"""How many parents a merge really has, and the route that a data-flow merge takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.recipe import Recipe
from evomerge.report.coefficients import Grid
from evomerge.report.marks import Key, Spec, glyph, series_colour, tooltip
from evomerge.report.numbers import coefficient

_GLYPHS = ("square", "circle", "triangle", "diamond")


@dataclass(frozen=True)
class Parents:
    """The share of each parent, and how many there would be of equal ones.

    Attributes:
        shares: by name, summing to 1, the largest first.
        effective: 1 / sum of squared shares (Simpson's index), averaged over the layer groups.
        how: what the shares are of, in words.
    """

    shares: tuple[tuple[str, float], ...]
    effective: float
    how: str


@dataclass(frozen=True)
class Stop:
    """One layer of a route: its place in the output, and whose block stands there."""

    place: int
    model: str
    layer: int | None
    scale: float


def parents_of(shares: Mapping[str, Sequence[float]], how: str) -> Parents | None:
    """Parents from a row of weights a name, one an equal part of the model; None if all are 0.

    Signs do not count. A part of which all weights are 0 has no parents and is left out.
    """
    if not shares:
        return None
    array = np.abs(np.array(list(shares.values()), dtype=np.float64))
    array = array[:, array.sum(axis=0) > 0]
    if not array.size:
        return None
    array = array / array.sum(axis=0)
    effective = float((1.0 / (array**2).sum(axis=0)).mean())
    means = dict(zip(shares, array.mean(axis=1).tolist(), strict=True))
    ordered = sorted(means.items(), key=lambda pair: -pair[1])
    return Parents(tuple(ordered), effective, how)


def parents_of_grids(grids: Sequence[Grid]) -> Parents | None:
    """Parents from the grid of weights; None if there is none with two or more sources.

    SLERP's `t` and other parameters that belong to no source say nothing.
    """
    grid = next((g for g in grids if g.parameter == "weight" and len(g.sources) > 1), None)
    if grid is None:
        return None
    rows = {s: [grid.values.get((s, g), 0.0) for g in grid.groups] for s in grid.sources}
    return parents_of(rows, "absolute weight in each layer group")


def route_of(recipe: Recipe | None, names: Mapping[str, str]) -> list[Stop]:
    """The layers of a data-flow merge or of stacked slices, from input to output.

    Args:
        recipe: of the merge.
        names: what the study calls the models, by reference.
    """
    if recipe is None:
        return []
    if recipe.route is not None:
        stops = []
        for place, slot in enumerate(recipe.route.slots):
            if slot.model is not None:
                stops.append(Stop(place, _name(slot.model, names), slot.layer, slot.scale))
        return stops
    stops = []
    for part in recipe.slices or ():
        source = part.sources[0]
        if len(part.sources) != 1 or source.layer_range is None:
            return []
        for layer in range(*source.layer_range):
            stops.append(Stop(len(stops), _name(source.model, names), layer, 1.0))
    return stops


def parents_of_route(stops: Sequence[Stop]) -> Parents | None:
    """Parents by their number of layers."""
    if not stops:
        return None
    layers: dict[str, int] = {}
    for stop in stops:
        layers[stop.model] = layers.get(stop.model, 0) + 1
    return parents_of({name: [n] for name, n in layers.items()}, "number of layers in the route")


def route_keys(stops: Sequence[Stop]) -> list[Key]:
    """What the symbols of the route mean: one each of its models, in their order."""
    models = dict.fromkeys(stop.model for stop in stops)
    return [
        Key(name, _GLYPHS[at % len(_GLYPHS)], series_colour(at)) for at, name in enumerate(models)
    ]


def route_chart(stops: Sequence[Stop]) -> Spec:
    """Place in the output to the right, the block's number upwards, one colour a model.

    The line is the way that an input takes.
    """
    keys = route_keys(stops)
    models = [key.label for key in keys]
    rows = [
        {"place": stop.place + 1, "layer": stop.layer, "model": models.index(stop.model),
         "name": stop.model, "block": str(stop.layer), "scale": coefficient(stop.scale)}
        for stop in stops
    ]  # fmt: skip
    most = max((stop.layer or 0) for stop in stops)
    x = {
        "field": "place", "type": "quantitative",
        "scale": {"nice": False, "zero": False, "padding": 24},
        "axis": {"title": "place in the merge, input to output", "format": "d", "grid": False,
                 "tickMinStep": 1, "tickCount": min(len(rows), 20)},
    }  # fmt: skip
    y = {
        "field": "layer", "type": "quantitative",
        "scale": {"nice": False, "domain": [-0.5, most + 0.5]},
        "axis": {"title": "block of the source", "format": "d", "tickMinStep": 1,
                 "tickCount": min(most + 1, 12)},
    }  # fmt: skip
    layers: list[Spec] = [{
        "mark": {"type": "line", "color": "#7a8794", "strokeWidth": 1.5, "opacity": 0.6},
        "encoding": {"x": x, "y": y, "order": {"field": "place", "type": "quantitative"}},
    }]  # fmt: skip
    for at, key in enumerate(keys):
        layers.append({
            "transform": [{"filter": f"datum.model === {at}"}],
            "mark": glyph(key.shape, key.colour, 260 if most < 40 else 90),
            "encoding": {"x": x, "y": y, "tooltip": tooltip("place", "name", "block", "scale")},
        })  # fmt: skip
    return {
        "width": "container",
        "height": max(120, min(420, 26 * (most + 1))),
        "data": {"values": rows},
        "layer": layers,
    }


def _name(model: str | Recipe | None, names: Mapping[str, str]) -> str:
    return names.get(model, model) if isinstance(model, str) else "a merge of its own"
