"""Vega-Lite specifications of the charts, and the colours of the light and the dark page.

Text that came from a run stands in the data only, never in a title, a sort list or an expression.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evomerge.report.candidates import FAILED, CandidateRecord
from evomerge.report.coefficients import Grid, group_label
from evomerge.report.numbers import coefficient, interval, percent, whole
from evomerge.report.rows import ROLES, Row

Spec = dict[str, Any]

COLOURS = ("#2f7fd6", "#2a9d8f", "#7a8794", "#c9711a", "#a05fc4")
"""One a role; each has a contrast of 3:1 or more on both backgrounds."""

SHAPES = ("diamond", "diamond", "square", "circle", "triangle-up")
CELL_TEXT = 40
"""The least width of a heat map's cell, in pixels, that has room for its value."""

DIVERGING = {
    "light": ["#8f4306", "#c9711a", "#eab676", "#f6f6f4", "#92bde6", "#2f7fd6", "#134a86"],
    "dark": ["#f0954a", "#b8661c", "#6b4526", "#262d36", "#254a72", "#2b70bd", "#64abf5"],
}
RAMP = {
    "light": ["#f4f2f8", "#c5b8dd", "#8f76bd", "#4d2d86"],
    "dark": ["#262d36", "#4b3c6e", "#7a5cb8", "#b79bf0"],
}


def theme(mode: str) -> Spec:
    """The Vega-Lite config of the `light` or the `dark` page."""
    light = mode == "light"
    text, muted = ("#1c2733", "#566270") if light else ("#e6ebf1", "#a3afbd")
    grid = "#e2e7ed" if light else "#2c3540"
    return {
        "background": None,
        "font": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif",
        "aria": False,
        "view": {"stroke": None},
        "axis": {
            "labelColor": text,
            "titleColor": muted,
            "gridColor": grid,
            "domainColor": muted,
            "tickColor": grid,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "labelPadding": 6,
        },
        "legend": {
            "labelColor": text,
            "titleColor": muted,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
        },
        "rect": {"stroke": "#cfd6de" if light else "#3a4450", "strokeWidth": 1},
        "style": {
            "cell": {"color": text, "fontSize": 11},
            "cell-strong": {"color": "#ffffff" if light else "#10151b", "fontSize": 11},
            "axis-text": {"color": muted, "fontSize": 12},
            "axis-name": {"color": text, "fontSize": 12, "fontWeight": 600},
            "axis-line": {"color": muted, "strokeWidth": 1},
            "label": {"color": text, "fontSize": 11.5},
        },
        "range": {"diverging": DIVERGING[mode], "ramp": RAMP[mode]},
    }


def score_chart(rows: Sequence[Row], against: str) -> Spec:
    """Held-out score and interval of every model, its search score as a tick beside it.

    A dashed line stands at the held-out score of `against`, the model compared with.
    """
    shown = [row for row in rows if row.test.value is not None]
    roles = [role for role in ROLES if any(row.role == role for row in shown)]
    values = [
        {
            "name": row.name,
            "rank": rank,
            "role": row.role,
            "value": row.test.value,
            "low": row.test.low,
            "high": row.test.high,
            "search": row.search.value,
            "held-out": f"{percent(row.test.value)} {interval(row.test.low, row.test.high)}",
            "items": whole(row.test.items),
            "search score": percent(row.search.value),
        }
        for rank, row in enumerate(shown)
    ]
    line = [{"value": row.test.value} for row in shown if row.name == against]
    colour = {
        "field": "role",
        "type": "nominal",
        "scale": {"domain": roles, "range": [COLOURS[ROLES.index(r)] for r in roles]},
        "legend": {
            "title": None,
            "orient": "top",
            "columns": {"expr": "width < 420 ? 2 : 5"},
            "symbolSize": 110,
        },
    }
    shape = {
        **colour,
        "scale": {"domain": roles, "range": [SHAPES[ROLES.index(r)] for r in roles]},
    }
    x = {"type": "quantitative", "scale": {"zero": False, "nice": True, "padding": 12}}
    axis = {"title": "score", "format": "~%", "tickCount": 5, "labelOverlap": True}
    y = {
        "field": "name",
        "type": "nominal",
        "sort": {"field": "rank", "op": "min"},
        "axis": {"title": None, "domain": False, "ticks": False, "grid": False},
    }
    tooltip = _tooltip("name", "role", "held-out", "items", "search score")
    dashed = {
        "data": {"values": line},
        "mark": {"type": "rule", "strokeDash": [4, 4], "color": COLOURS[2]},
        "encoding": {"x": {"field": "value", **x, "axis": axis}},
    }
    ticks = {
        "transform": [{"filter": "isValid(datum.search)"}],
        "mark": {"type": "tick", "thickness": 2, "size": 15, "opacity": 0.8},
        "encoding": {"x": {"field": "search", **x, "axis": axis}, "y": y, "color": colour},
    }
    return {
        "width": "container",
        "height": 34 * max(1, len(shown)),
        "data": {"values": values},
        "layer": [
            *([dashed] if line else []),
            {
                "mark": {"type": "rule", "strokeWidth": 2.5, "strokeCap": "round"},
                "encoding": {
                    "x": {"field": "low", **x, "axis": axis},
                    "x2": {"field": "high"},
                    "y": y,
                    "color": colour,
                },
            },
            *([ticks] if any(row.search.value is not None for row in shown) else []),
            {
                "mark": {"type": "point", "filled": True, "size": 130, "opacity": 1},
                "encoding": {
                    "x": {"field": "value", **x, "axis": axis},
                    "y": y,
                    "color": colour,
                    "shape": shape,
                    "tooltip": tooltip,
                },
            },
        ],
    }


def history_chart(
    records: Sequence[CandidateRecord],
    steps: Sequence[tuple[int, float]],
    controls: Sequence[Sequence[tuple[int, float]]] = (),
) -> Spec:
    """Plain score of each candidate, the best so far as a stair, failures as crosses below.

    Args:
        records: the candidates to draw.
        steps: where the best score of the study's search rose.
        controls: the stairs of other searches, dashed, by place from 0.
    """
    failed = [
        {"id": r.id, "candidate": whole(r.id), "reason": r.reason}
        for r in records
        if r.status == FAILED
    ]
    points = [
        {
            "id": r.id,
            "score": r.score,
            "candidate": whole(r.id),
            "generation": whole(r.generation),
            "mean score": percent(r.score),
            "items": whole(r.items),
        }
        for r in records
        if r.score is not None
    ]
    stair = [{"id": key, "score": score} for key, score in steps]
    if stair and records:
        stair.append({"id": records[-1].id, "score": stair[-1]["score"]})
    x = {
        "field": "id",
        "type": "quantitative",
        "scale": {"nice": False, "zero": False, "padding": 10},
        "axis": {
            "title": "candidate",
            "format": ",d",
            "grid": False,
            "tickMinStep": 1,
            "tickCount": 8,
        },
    }
    y = {
        "field": "score",
        "type": "quantitative",
        "scale": {"zero": False, "padding": 14},
        "axis": {"title": "search score", "format": "~%", "tickCount": 6},
    }
    dots = {
        "data": {"values": points},
        "mark": {**_point(COLOURS[2], 36), "opacity": 0.6},
        "encoding": {
            "x": x,
            "y": y,
            "tooltip": _tooltip("candidate", "generation", "mean score", "items"),
        },
    }
    line = {"type": "line", "interpolate": "step-after", "strokeWidth": 2.5, "color": COLOURS[0]}
    crosses = {
        "data": {"values": failed},
        "mark": {**_point(COLOURS[3], 70), "shape": "cross", "angle": 45},
        "encoding": {
            "x": x,
            "y": {"value": {"expr": "height - 5"}},
            "tooltip": _tooltip("candidate", "reason"),
        },
    }
    layers = [dots, {"data": {"values": stair}, "mark": line, "encoding": {"x": x, "y": y}}]
    dashed = {**line, "strokeWidth": 2, "strokeDash": [6, 4], "color": COLOURS[4]}
    for control in controls:
        rows = [{"id": place, "score": score} for place, score in control]
        data = {"data": {"values": rows}, "mark": dashed, "encoding": {"x": x, "y": y}}
        layers += [data] if rows else []
    return {
        "width": "container",
        "height": 280,
        "layer": [*(layers if points else []), *([crosses] if failed else [])],
    }


def _point(colour: str, size: int) -> Spec:
    return {"type": "point", "filled": True, "size": size, "color": colour}


def heat_map(grid: Grid) -> Spec:
    """Source x layer group; colours diverge from 0 where values may be negative.

    The values stand in the cells while there is room for them.
    """
    top = grid.reach if grid.signed else grid.high
    values = [
        {
            "source": source,
            "row": row,
            "group": group,
            "column": column,
            "label": group_label(group),
            "value": (value := grid.values[source, group]),
            "text": f"{value:.2f}",
            "style": "strong" if abs(value) > 0.7 * top else "plain",
            "exact": coefficient(value),
        }
        for row, source in enumerate(grid.sources)
        for column, group in enumerate(grid.groups)
        if (source, group) in grid.values
    ]
    step = max(14, min(64, 760 // max(1, len(grid.groups))))
    scale: Spec = (
        {"domain": [-top, top], "range": "diverging", "domainMid": 0, "interpolate": "lab"}
        if grid.signed
        else {"domain": [min(0.0, grid.low), top], "range": "ramp", "interpolate": "lab"}
    )
    legend = {
        "title": "value",
        "orient": "top",
        "gradientLength": 180,
        "format": ".2f",
        "tickCount": 3,
    }
    colour = {"field": "value", "type": "quantitative", "scale": scale, "legend": legend}
    return {
        "width": {"step": step},
        "height": {"step": 36},
        "data": {"values": values},
        "encoding": {
            "x": _places("label", "column", "layer group", 0 if step >= 60 else -90, step < 16),
            "y": _places("source", "row", None, 0, False),
            "tooltip": _tooltip("source", "group", "exact"),
        },
        "layer": [
            {
                "mark": "rect",
                "encoding": {"color": colour},
            },
            *(_cell_texts() if step >= CELL_TEXT else []),
        ],
    }


def _places(field: str, rank: str, title: str | None, angle: int, overlap: bool) -> Spec:
    axis = {
        "title": title,
        "labelAngle": angle,
        "labelOverlap": overlap,
        "titleAnchor": "start",
        "ticks": False,
        "domain": False,
    }
    sort = {"field": rank, "op": "min"}
    return {"field": field, "type": "nominal", "sort": sort, "axis": axis}


def _cell_texts() -> list[Spec]:
    text = {"field": "text", "type": "nominal"}
    return [
        {
            "transform": [{"filter": f"datum.style === '{kind}'"}],
            "mark": {"type": "text", "style": style},
            "encoding": {"text": text},
        }
        for kind, style in (("plain", "cell"), ("strong", "cell-strong"))
    ]


def _tooltip(*fields: str) -> list[Spec]:
    return [{"field": field, "type": "nominal"} for field in fields]
