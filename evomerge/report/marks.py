"""Pieces that the charts of fronts and comparisons share.

Titles of axes are drawn as text marks, because names of objectives come from the run and text that
came from a run stands in the data of a specification only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.report.objectives import Objective

Spec = dict[str, Any]

SERIES = ("#2f7fd6", "#c9711a", "#2a9d8f", "#a05fc4", "#c2476b", "#7d8a1f", "#7a8794", "#8a6a52")
"""One a group of runs; each has a contrast of 3:1 or more on both backgrounds."""

DASHES: tuple[tuple[int, ...], ...] = ((), (7, 3), (2, 3), (9, 3, 2, 3))
"""Dashes of the groups' lines, so that they differ without colours, too."""

GLYPHS = ("circle", "square", "triangle", "diamond")
PADDING = {"top": 6, "left": 5, "right": 12, "bottom": 6}


@dataclass(frozen=True)
class Key:
    """An entry of a legend beside a chart: `shape` is a glyph, a cross or a line."""

    label: str
    shape: str
    colour: str
    filled: bool = True
    dash: tuple[int, ...] = ()


def series_colour(place: int) -> str:
    """The colour of the group at `place`; repeats after eight."""
    return SERIES[place % len(SERIES)]


def series_dash(place: int) -> tuple[int, ...]:
    """The dash of the group at `place`."""
    return DASHES[(place + place // len(SERIES)) % len(DASHES)]


def series_glyph(place: int) -> str:
    """The glyph of the group at `place`."""
    return GLYPHS[(place + place // len(SERIES)) % len(GLYPHS)]


def glyph(shape: str, colour: str, size: int, filled: bool = True, opacity: float = 1.0) -> Spec:
    """A point mark; the cross stands on its corners."""
    mark: Spec = {"type": "point", "filled": filled, "size": size, "opacity": opacity}
    mark |= {"shape": {"triangle": "triangle-up"}.get(shape, shape), "color": colour}
    return mark | ({"angle": 45} if shape == "cross" else {}) | ({} if filled else _HOLLOW)


_HOLLOW = {"strokeWidth": 1.8}


def axis(field: str, format_: str, ticks: int = 6) -> Spec:
    """A quantitative position without a title; it need not begin at 0."""
    return {
        "field": field,
        "type": "quantitative",
        "scale": {"zero": False, "nice": False, "padding": 14},
        "axis": {"title": None, "format": format_, "tickCount": ticks, "labelOverlap": True},
    }


def axis_format(objective: Objective) -> str:
    """The number format of an axis."""
    return "~%" if objective.metric in ("score", "sparsity") else ",.3~f"


def titles(x: str, y: str) -> list[Spec]:
    """The titles of both axes: below on the right, and above on the left."""
    style = {"type": "text", "style": "axis-text", "clip": False}
    return [
        {
            "data": {"values": [{"text": x}]},
            "mark": {**style, "align": "right", "baseline": "top", "limit": {"expr": "width"}},
            "encoding": {
                "text": {"field": "text", "type": "nominal"},
                "x": {"value": "width"},
                "y": {"value": {"expr": "height + 26"}},
            },
        },
        {
            "data": {"values": [{"text": y}]},
            "mark": {
                **style, "align": "left", "baseline": "bottom", "dx": -28,
                "limit": {"expr": "width + 28"},
            },
            "encoding": {
                "text": {"field": "text", "type": "nominal"},
                "x": {"value": 0},
                "y": {"value": -10},
            },
        },
    ]  # fmt: skip


def plot(layers: Sequence[Spec], height: int) -> Spec:
    """A chart as wide as its box, with room for the titles."""
    return {
        "width": "container",
        "height": height,
        "padding": PADDING,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": list(layers),
    }


def tooltip(*fields: str) -> list[Spec]:
    """The named fields, as text."""
    return [{"field": field, "type": "nominal"} for field in fields]
