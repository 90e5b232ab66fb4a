"""Pictures of fitted items: curves beside what was observed, and information against ability.

Text that came from a file stands in the data only, never in a title or an expression.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.irt.files import write_whole
from evomerge.irt.model import ItemModel
from evomerge.types import FloatArray

Spec = dict[str, Any]

SHOWN = 9
"""Items drawn where none are named."""

BEST = (20, 100)
"""Of so many items, the most informative at each ability, the information is drawn beside that of
all."""

_BLUE, _ORANGE, _GREEN, _GREY = "#2f7fd6", "#c9711a", "#2a9d8f", "#7a8794"
_POINTS, _BINS, _SCALE = 121, 10, 2.0
_Z = 1.96


def write_figures(
    model: ItemModel,
    folder: Path,
    items: Sequence[int] | NDArray[np.int64] | None = None,
    observed: tuple[FloatArray, NDArray[np.float32]] | None = None,
) -> list[Path]:
    """Draws `item_curves` and `information`, each as SVG and PNG.

    Args:
        model: the items.
        folder: where to; it is made.
        items: places of those whose curves to draw; None takes some, from easy to hard.
        observed: abilities `M x D` and scores `M x N` of the models, drawn beside the curves.
    """
    import vl_convert

    folder.mkdir(parents=True, exist_ok=True)
    chosen = typical(model) if items is None else np.asarray(items, dtype=np.int64)
    written = []
    for name, spec in (
        ("item_curves", curves(model, chosen, observed)),
        ("information", information(model)),
    ):
        png, svg = folder / f"{name}.png", folder / f"{name}.svg"
        write_whole(svg, str(vl_convert.vegalite_to_svg(spec)).encode())
        write_whole(png, bytes(vl_convert.vegalite_to_png(spec, scale=_SCALE)))
        written += [svg, png]
    return written


def typical(model: ItemModel, count: int = SHOWN) -> NDArray[np.int64]:
    """Items spread evenly from easy to hard, those that tell nothing left out."""
    useful = np.flatnonzero(np.abs(model.discrimination[:, 0]) > 1e-6)
    useful = useful if len(useful) else np.arange(len(model))
    order = useful[np.argsort(model.difficulty[useful], kind="stable")]
    return order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64)]


def curves(
    model: ItemModel,
    items: NDArray[np.int64],
    observed: tuple[FloatArray, NDArray[np.float32]] | None = None,
) -> Spec:
    """Probability of a right answer against ability, one panel an item.

    Of several dimensions the first is drawn, the others at 0. Dots are mean scores of groups of
    models of like ability (of equal size), with 95% intervals; where there are several dimensions
    their ability is where the item itself sees them.
    """
    low, high = span(model)
    grid = np.zeros((_POINTS, model.dimensions))
    grid[:, 0] = np.linspace(low, high, _POINTS)
    chosen = model.at(items)
    lines = chosen.probability(grid)
    rows: list[Spec] = []
    for place, item in enumerate(chosen.items):
        panel = {"item": _short(item), "rank": place}
        rows += [
            {**panel, "kind": "curve", "ability": round(x, 4), "probability": round(p, 4)}
            for x, p in zip(grid[:, 0].tolist(), lines[:, place].tolist(), strict=True)
        ]
        note = (
            f"α {chosen.discrimination[place, 0]:.2f} ± {chosen.discrimination_error[place, 0]:.2f}"
            f", β {chosen.difficulty[place]:.2f} ± {chosen.difficulty_error[place]:.2f}"
        ).replace("-", "−")
        rows.append({**panel, "kind": "note", "note": note})
        if observed is not None:
            seen = _seen(chosen, place, observed[0], observed[1][:, items[place]])
            rows += [{**panel, "kind": "seen", **one} for one in seen if low <= one["mid"] <= high]
    x = {"type": "quantitative", "scale": {"domain": [low, high], "nice": False}}
    y = {"type": "quantitative", "scale": {"domain": [0, 1]}}
    across = {**x, "axis": {"title": _ability(model), "tickCount": 5, "grid": False}}
    up = {**y, "axis": {"title": "right answers", "format": "~%", "values": [0, 0.5, 1]}}
    layer: list[Spec] = [
        {
            "transform": [{"filter": "datum.kind === 'curve'"}],
            "mark": {"type": "line", "color": _BLUE, "strokeWidth": 2.2},
            "encoding": {"x": {"field": "ability", **across},
                         "y": {"field": "probability", **up}},
        },
        {
            "transform": [{"filter": "datum.kind === 'note'"}],
            "mark": {"type": "text", "align": "left", "baseline": "bottom", "color": "#566270",
                     "fontSize": 10.5},
            "encoding": {"text": {"field": "note"}, "x": {"value": 0}, "y": {"value": -3}},
        },
    ]  # fmt: skip
    if observed is not None:
        layer[1:1] = [
            {
                "transform": [{"filter": "datum.kind === 'seen'"}],
                "mark": {"type": "rule", "color": _GREY, "strokeWidth": 1.2},
                "encoding": {"x": {"field": "mid", **across},
                             "y": {"field": "bottom", **up}, "y2": {"field": "top"}},
            },
            {
                "transform": [{"filter": "datum.kind === 'seen'"}],
                "mark": {"type": "point", "filled": True, "color": "#3d4752", "size": 26,
                         "opacity": 1},
                "encoding": {"x": {"field": "mid", **across}, "y": {"field": "mean", **up}},
            },
        ]  # fmt: skip
    about = "probability of a right answer by the fit"
    if observed is not None:
        about = (
            "a line is the fit; a dot the mean score of models of like ability, with 95% interval"
        )
    rising = len(items) > 1 and bool((np.diff(chosen.difficulty) >= 0).all())
    return {
        **_frame("Items from easy to hard" if rising else "Items", about),
        "data": {"values": rows},
        "facet": {
            "field": "item", "type": "nominal", "sort": {"field": "rank", "op": "min"},
            "header": {"title": None, "labelFontSize": 12, "labelFontWeight": 600,
                       "labelAnchor": "start", "labelPadding": 2, "labelColor": "#1c2733"},
        },
        "columns": 3 if len(items) != 4 else 2,
        "spacing": {"row": 22, "column": 26},
        "spec": {"width": 210, "height": 140, "layer": layer},
    }  # fmt: skip


def information(model: ItemModel) -> Spec:
    """Fisher information against ability, of all items and of the best, above where items lie.

    Of several dimensions: about the first, with the others at 0 and known.
    """
    low, high = span(model)
    grid = np.zeros((_POINTS, model.dimensions))
    grid[:, 0] = np.linspace(low, high, _POINTS)
    p = model.probability(grid)
    each = np.sort(p * (1 - p) * model.discrimination[:, 0] ** 2, axis=1)[:, ::-1]
    sizes = [n for n in BEST if n < len(model)] + [len(model)]
    names = [f"the best {n} at that ability" for n in sizes[:-1]] + [f"all {sizes[-1]} items"]
    rows = [
        {"ability": round(x, 4), "information": float(f"{value:.5g}"), "items": name}
        for n, name in zip(sizes, names, strict=True)
        for x, value in zip(grid[:, 0].tolist(), each[:, :n].sum(axis=1).tolist(), strict=True)
        if value > 0
    ]
    known = _abilities(model)
    places, beyond = _locations(model, low, high)
    bins = {"bin": {"extent": [low, high], "step": (high - low) / 40}}
    across = {"type": "quantitative", "scale": {"domain": [low, high], "nice": False}}
    below: list[tuple[str, str, FloatArray]] = [("items, where P = 1/2", _BLUE, places)]
    if known is not None:
        below.append(("models", _GREY, known))
    whole = np.arange(np.ceil(low), high + 1e-9).tolist()
    colours = [_ORANGE, _GREEN, _BLUE][-len(sizes) :]
    upper = {
        "width": 560,
        "height": 250,
        "data": {"values": rows},
        "mark": {"type": "line", "strokeWidth": 2.2},
        "encoding": {
            "x": {"field": "ability", **across, "axis": {"title": None, "labels": False,
                                                        "ticks": False, "values": whole}},
            "y": {
                "field": "information", "type": "quantitative",
                "scale": {"type": "log", "nice": False},
                "axis": {
                    "title": "Fisher information (standard error of ability)",
                    "values": _ticks([row["information"] for row in rows]),
                    "labelExpr": "format(datum.value, '~g') + '  (±' + "
                                 "format(1 / sqrt(datum.value), '.2~g') + ')'",
                },
            },
            "color": {
                "field": "items", "type": "nominal", "sort": None,
                "scale": {"domain": names[::-1], "range": colours[::-1]},
                "legend": {"title": None, "orient": "top", "symbolType": "stroke",
                           "symbolStrokeWidth": 3, "labelLimit": 300},
            },
        },
    }  # fmt: skip
    panels = [upper]
    for i, (title, colour, values) in enumerate(below):
        last = i == len(below) - 1
        inside = values[(values >= low) & (values <= high)]
        panels.append({
            "width": 560,
            "height": 64,
            "data": {"values": [{"ability": round(v, 4)} for v in inside.tolist()]},
            "mark": {"type": "bar", "color": colour, "opacity": 0.8, "binSpacing": 1},
            "encoding": {
                "x": {"field": "ability", **across, **bins,
                      "axis": {"title": _ability(model) if last else None, "labels": last,
                               "ticks": last, "format": "~g", "grid": True,
                               "values": whole}},
                "y": {"aggregate": "count", "type": "quantitative",
                      "axis": {"title": title, "tickCount": 3, "titleAngle": 0,
                               "titleAlign": "left", "titleAnchor": "end", "titleX": 4,
                               "titleY": -6, "titleBaseline": "bottom"}},
            },
        })  # fmt: skip
    about = "how well items tell abilities apart"
    if beyond:
        about += f"; {beyond} items with P = 1/2 outside the range or nowhere are not in the bars"
    return {
        **_frame("Information", about),
        "vconcat": panels,
        "spacing": 26,
    }


def span(model: ItemModel) -> tuple[float, float]:
    """The range of abilities to draw: of the models that were fitted, 3 to each side at least."""
    known = _abilities(model)
    reach = 3.0 if known is None else max(3.0, float(np.abs(known).max()) * 1.05)
    return -min(reach, 6.0), min(reach, 6.0)


def _ticks(values: Sequence[float]) -> list[float]:
    """1, 2, 5, 10, ... in the range of positive values; powers of ten alone if those are many."""
    low, high = np.log10(min(values)), np.log10(max(values))
    powers = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    steps = (1, 2, 5) if high - low < 3 else (1,)
    every = [float(f"{step}e{power}") for power in powers for step in steps]
    return [v for v in every if low - 1e-9 <= np.log10(v) <= high + 1e-9]


def _abilities(model: ItemModel) -> FloatArray | None:
    """Of the models that were fitted, the first dimension."""
    found = model.settings.get("abilities")
    if not isinstance(found, dict) or not found:
        return None
    return np.array([values[0] for values in found.values()], dtype=np.float64)


def _locations(model: ItemModel, low: float, high: float) -> tuple[FloatArray, int]:
    """Abilities at which P is 1/2, and how many items have none in the range."""
    alpha = model.discrimination[:, 0]
    known = np.abs(alpha) > 1e-6
    places = model.difficulty[known] / alpha[known]
    inside = (places >= low) & (places <= high)
    return places[inside], len(model) - int(inside.sum())


def _seen(
    model: ItemModel, place: int, theta: FloatArray, scores: NDArray[np.float32]
) -> list[dict[str, float]]:
    """Mean scores, with intervals, of models sorted by ability into groups of equal size."""
    known = ~np.isnan(scores)
    alpha = model.discrimination[place]
    ability = theta[known, 0]
    if model.dimensions > 1 and abs(alpha[0]) > 0.05:
        ability = theta[known] @ alpha / alpha[0]
    y = scores[known].astype(np.float64)
    order = np.argsort(ability, kind="stable")
    out = []
    for group in np.array_split(order, max(1, min(_BINS, len(order) // 8))):
        n, mean = len(group), float(y[group].mean())
        middle = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)  # Wilson's interval
        half = _Z / (1 + _Z**2 / n) * np.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n * n))
        out.append({
            "mid": round(float(ability[group].mean()), 4), "mean": round(mean, 4),
            "bottom": round(max(0.0, middle - half), 4), "top": round(min(1.0, middle + half), 4),
        })  # fmt: skip
    return out


def _ability(model: ItemModel) -> str:
    return "ability" if model.dimensions == 1 else "ability, first dimension (the others at 0)"


def _short(text: str, longest: int = 34) -> str:
    line = json.dumps(text, ensure_ascii=False)[1:-1]  # no control characters
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _frame(title: str, subtitle: str) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": {"text": title, "subtitle": subtitle, "anchor": "start", "offset": 14,
                  "subtitleColor": "#566270"},
        "config": {
            "background": "white",
            "font": "system-ui, Segoe UI, Roboto, sans-serif",
            "view": {"stroke": None},
            "axis": {"gridColor": "#e2e7ed", "titleFontWeight": "normal",
                     "titleColor": "#566270", "labelColor": "#1c2733",
                     "domainColor": "#7a8794", "tickColor": "#cfd6de"},
        },
    }  # fmt: skip
