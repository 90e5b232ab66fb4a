"""Charts of one run's Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from evomerge.report.figures import COLOURS
from evomerge.report.front import Front, Model, Point, Step
from evomerge.report.marks import Key, Spec, axis, axis_format, glyph, plot, titles, tooltip
from evomerge.report.numbers import whole
from evomerge.report.objectives import Constraint, Objective, losses
from evomerge.report.quality import Box

PAIRED = 4
"""The most objectives of which every pair gets a chart."""

CLOSE = 0.04
"""Names whose symbols are nearer than this share of the axes are written as one."""

WITH_INTERVALS = 30
"""The most points whose intervals are drawn; of more, only the chosen merge's."""

PICK = "#e0418f"
"""The colour of what the sliders pick."""

SHOWN: Spec = {"field": "shown", "type": "quantitative", "scale": None, "legend": None}
"""The opacity of what the sliders pick; 0 where they pick nothing, as scales need a point."""

KEYS = {
    "candidate": Key("candidate, on search items", "circle", COLOURS[2]),
    "front": Key("candidate on the front of the search items", "circle", COLOURS[2], filled=False),
    "infeasible": Key("candidate that breaks a constraint", "cross", COLOURS[3]),
    "held-out": Key("front, on held-out items", "circle", COLOURS[1]),
    "broken": Key("its points that break a constraint", "circle", COLOURS[3], filled=False),
    "chosen merge": Key("chosen merge, on held-out items", "diamond", COLOURS[0]),
    "source": Key("source, on held-out items", "square", COLOURS[2]),
    "control": Key("control, on held-out items", "triangle", COLOURS[4]),
}
RING = Key("what your preference picks", "circle", PICK, filled=False)
SIZES = {"candidate": 28, "front": 46, "infeasible": 40, "held-out": 95, "broken": 80}


def front_charts(front: Front, constraints: Sequence[Constraint]) -> dict[str, Spec]:
    """The charts by name: `front-I-J` of pairs of objectives, `front-parallel`, `hypervolume`."""
    charts: dict[str, Spec] = {}
    size = len(front.objectives)
    measured = any(point.test is not None for point in front.points)
    measured |= any(None not in model.test for model in front.models)
    if (front.dots or measured) and size <= PAIRED:
        for i, j in combinations(range(size), 2):
            charts[f"front-{i}-{j}"] = pair_chart(front, constraints, i, j)
    if size > 2 and measured:
        charts["front-parallel"] = parallel_chart(front)
    if len(front.steps) > 1:
        charts["hypervolume"] = hypervolume_chart(front)
    return charts


def keys(front: Front) -> list[Key]:
    """What the symbols of `front` mean, of those that occur."""
    return [*(KEYS[kind] for kind, rows in _rows(front).items() if rows), RING]


def pair_chart(front: Front, constraints: Sequence[Constraint], i: int, j: int) -> Spec:
    """Objective `i` to the right, `j` upwards: candidates, the held-out front, other models."""
    first, second = front.objectives[i], front.objectives[j]
    x, y = axis("x", axis_format(first)), axis("y", axis_format(second))
    layers = [
        layer
        for constraint in constraints
        for side, objective, position in (("x", first, x), ("y", second, y))
        if constraint.bounds(objective) and constraint.bound is not None
        for layer in _bound(constraint, side, position)
    ]
    if len(front.objectives) == 2:
        layers += _stair(front, x, y)
    layers += _intervals(front, i, j, x, y)
    for kind, rows in _rows(front).items():
        values = [
            row | {"x": row["all"][i], "y": row["all"][j]}
            for row in rows
            if row["all"][i] is not None and row["all"][j] is not None
        ]
        small = kind in ("candidate", "infeasible", "front")
        key = KEYS[kind]
        mark = glyph(
            key.shape, key.colour, SIZES.get(kind, 150 if kind == "chosen merge" else 90),
            key.filled, 0.8 if kind == "front" else 0.45 if small else 1.0,
        )  # fmt: skip
        tips = tooltip("name", "what", "values", *([] if small else ["95% interval"]))
        encoding = {"x": x, "y": y, "tooltip": tips}
        data = [{k: v for k, v in row.items() if k != "all"} for row in values]
        layers += [{"data": {"values": data}, "mark": mark, "encoding": encoding}] if data else []
    layers.append({
        "data": {"name": "pick", "values": [_hidden(front, {"x": i, "y": j})]},
        "mark": {"type": "point", "filled": False, "size": 420, "strokeWidth": 3, "color": PICK},
        "encoding": {"x": x, "y": y, "opacity": SHOWN},
    })  # fmt: skip
    layers += [*_names(front, i, j, x, y), *titles(first.title, second.title)]
    return plot(layers, 380 if len(front.objectives) == 2 else 260)


def parallel_chart(front: Front) -> Spec:
    """One upright axis an objective, best value on top; one line a model, on held-out items."""
    drawn = [
        (kind, row)
        for kind, rows in _rows(front).items()
        for row in rows
        if "line" in row and None not in row["all"]
    ]
    values = [row["all"] for _, row in drawn]
    box = Box.around(losses(front.objectives, values))
    heights = 1.0 - box.unit(losses(front.objectives, values))
    axes = []
    for place, objective in enumerate(front.objectives):
        column = [row[place] for row in values]
        best, worst = (min, max) if objective.minimised else (max, min)
        axes.append({"place": place, "low": 0, "high": 1, "name": objective.name,
                     "best": objective.show(best(column)),
                     "worst": objective.show(worst(column))})  # fmt: skip
    x = {"field": "place", "type": "quantitative", "axis": None,
         "scale": {"nice": False, "zero": False, "padding": 64}}  # fmt: skip
    y = {"field": "height", "type": "quantitative", "axis": None,
         "scale": {"domain": [0, 1], "nice": False}}  # fmt: skip
    low, high = {**y, "field": "low"}, {"field": "high"}
    layers: list[Spec] = [
        {"data": {"values": axes}, "mark": {"type": "rule", "style": "axis-line"},
         "encoding": {"x": x, "y": low, "y2": high}}
    ]  # fmt: skip
    for kind, key in KEYS.items():
        lines = [
            {"line": n, "place": place, "height": float(heights[n][place]), "name": row["name"],
             "what": row["what"], "values": row["values"]}
            for n, (other, row) in enumerate(drawn)
            if other == kind
            for place in range(len(front.objectives))
        ]  # fmt: skip
        if not lines:
            continue
        chosen = kind == "chosen merge"
        stroke = {"strokeWidth": 3.5 if chosen else 1.8, "opacity": 1.0 if chosen else 0.75}
        dash = {"strokeDash": [6, 4]} if kind in ("source", "control") else {}
        encoding = {"x": x, "y": y, "tooltip": tooltip("name", "what", "values")}
        layers.append({
            "data": {"values": lines},
            "layer": [
                {"mark": {"type": "line", "color": key.colour, **stroke, **dash},
                 "encoding": {"x": x, "y": y, "detail": {"field": "line", "type": "nominal"}}},
                {"mark": glyph(key.shape, key.colour, 110 if chosen else 55, key.filled),
                 "encoding": encoding},
            ],
        })  # fmt: skip
    layers.append({
        "data": {"name": "pick", "values": [{"place": 0, "height": 0, "line": 0, "shown": 0}]},
        "mark": {"type": "line", "color": PICK, "strokeWidth": 5},
        "encoding": {"x": x, "y": y, "opacity": SHOWN,
                     "detail": {"field": "line", "type": "nominal"}},
    })  # fmt: skip
    text = {"type": "text", "style": "axis-text", "limit": {"expr": f"width / {len(axes)} - 4"}}
    for field, at, baseline in (
        ("name", -24, "bottom"), ("best", -8, "bottom"), ("worst", {"expr": "height + 8"}, "top"),
    ):  # fmt: skip
        style = "axis-name" if field == "name" else "axis-text"
        layers.append({
            "data": {"values": axes},
            "mark": {**text, "style": style, "baseline": baseline},
            "encoding": {"x": x, "y": {"value": at}, "text": {"field": field, "type": "nominal"}},
        })  # fmt: skip
    return plot(layers, 260)


def hypervolume_chart(front: Front) -> Spec:
    """Hypervolume over candidates: the search as a stair, its budgets as points."""
    x = axis("candidates", ",d", 8)
    x["axis"] |= {"grid": False, "tickMinStep": 1}
    y = axis("share", "~%")
    layers: list[Spec] = []
    line = {"type": "line", "interpolate": "step-after", "strokeWidth": 2.5}
    dashed = {"strokeDash": [6, 4], "strokeWidth": 2, "color": COLOURS[4]}
    stairs: list[tuple[Sequence[Step], Spec]] = [
        *((c, dashed) for c in front.controls),
        (front.steps, {"color": COLOURS[0]}),
    ]
    for steps, look in stairs:
        data = [{"candidates": place, "share": share} for place, share in steps]
        layers += [_layer(data, {**line, **look}, x, y)] if data else []
    tested = [
        {
            "candidates": budget.candidates,
            "share": budget.test,
            "after": f"{whole(budget.candidates)} candidates",
            "held-out": f"{budget.test:.4f}",
        }
        for budget in front.budgets
        if budget.test is not None
    ]
    if tested:
        mark = glyph("circle", COLOURS[1], 110)
        layers.append(_layer(tested, mark, x, y, tooltip("after", "held-out")))
    return plot([*layers, *titles("candidates", "hypervolume (share of the box)")], 240)


def _layer(data: list[Any], mark: Spec, x: Spec, y: Spec, tips: list[Spec] | None = None) -> Spec:
    encoding: Spec = {"x": x, "y": y} | ({"tooltip": tips} if tips else {})
    return {"data": {"values": data}, "mark": mark, "encoding": encoding}


def _rows(front: Front) -> dict[str, list[Spec]]:
    """The rows of every kind of symbol, from the back to the front."""
    rows: dict[str, list[Spec]] = {kind: [] for kind in KEYS}
    for dot in front.dots:
        kind = "infeasible" if not dot.feasible else "front" if dot.best else "candidate"
        row = _row(f"candidate {whole(dot.id)}", dot.values, front.objectives, kind)
        rows[kind].append(row | {"candidate": dot.id})
    for point in front.points:
        if point.test is not None:
            kind = "chosen merge" if point.chosen else "broken" if point.violation else "held-out"
            row = _row(point.name, point.test, front.objectives, kind, point)
            rows[kind].append(row | {"candidate": point.candidate})
    listed = any(point.chosen and point.test is not None for point in front.points)
    for model in front.models:
        kind = model.role if model.role in KEYS else "control"
        if not (model.chosen and listed):
            rows[kind].append(_row(model.name, model.test, front.objectives, kind, model))
    return rows


def _row(
    name: str,
    values: Sequence[float | None],
    objectives: Sequence[Objective],
    kind: str,
    of: Point | Model | None = None,
) -> Spec:
    shown = [f"{o.name} {o.show(v)}" for o, v in zip(objectives, values, strict=True)]
    row: Spec = {"name": name, "what": KEYS[kind].label, "values": "; ".join(shown)}
    row["all"] = list(values)
    if of is not None:
        row["line"] = name
        row["95% interval"] = "; ".join(
            f"{o.name} {o.show_interval(low, high)}"
            for o, low, high in zip(objectives, of.low, of.high, strict=True)
        ) if isinstance(of, Point) else "-"  # fmt: skip
    return row


def _hidden(front: Front, places: dict[str, int]) -> Spec:
    """A row of the chart that is not to be seen, at a point that is drawn anyway."""
    known = [d.values for d in front.dots] + [p.test for p in front.points if p.test is not None]
    known += [m.test for m in front.models if None not in m.test]  # type: ignore[misc]
    return {"shown": 0, **{side: known[0][at] for side, at in places.items()}} if known else {}


def _names(front: Front, i: int, j: int, x: Spec, y: Spec) -> list[Spec]:
    """The names of sources, the chosen merge and the knee beside their symbols."""
    named: list[tuple[str, Sequence[float | None]]] = [
        (m.name, m.test) for m in front.models if m.role == "source"
    ]
    for point in front.points:
        if point.test is not None and (point.chosen or point.knee):
            label = ["chosen"] if point.chosen else []
            named.append((" and ".join([*label, *(["knee"] if point.knee else [])]), point.test))
    drawn = [row for rows in _rows(front).values() for row in (r["all"] for r in rows)]
    spans = [_span([row[place] for row in drawn if row[place] is not None]) for place in (i, j)]
    data: list[Spec] = []
    for name, values in named:
        x_at, y_at = values[i], values[j]
        if x_at is None or y_at is None:
            continue
        near = (
            row for row in data
            if abs(row["x"] - x_at) <= CLOSE * spans[0] and abs(row["y"] - y_at) <= CLOSE * spans[1]
        )  # fmt: skip
        if (row := next(near, None)) is not None:
            row["text"] += f", {name}"
        else:
            data.append({"text": name, "x": x_at, "y": y_at})
    mark = {"type": "text", "style": "label", "align": "left", "baseline": "bottom", "dx": 8,
            "dy": -4, "limit": 130}  # fmt: skip
    layer = _layer(data, mark, x, y)
    layer["encoding"]["text"] = {"field": "text", "type": "nominal"}
    return [layer] if data else []


def _span(values: Sequence[float]) -> float:
    return max(values) - min(values) if values else 0.0


def _stair(front: Front, x: Spec, y: Spec) -> list[Spec]:
    """The edge of what the held-out front dominates, by ascending loss in the first objective."""
    best = [p.test for p in front.points if p.best and p.test is not None]
    order = losses(front.objectives, best)[:, 0].argsort()
    data = [{"x": best[at][0], "y": best[at][1], "rank": n} for n, at in enumerate(order)]
    if len(data) < 2:
        return []
    mark = {"type": "line", "interpolate": "step-after", "color": COLOURS[1], "strokeWidth": 1.5,
            "opacity": 0.7}  # fmt: skip
    layer = _layer(data, mark, x, y)
    layer["encoding"]["order"] = {"field": "rank", "type": "quantitative"}
    return [layer]


def _intervals(front: Front, i: int, j: int, x: Spec, y: Spec) -> list[Spec]:
    every = len(front.points) <= WITH_INTERVALS
    rows: dict[str, list[Spec]] = {"x": [], "y": []}
    for point in front.points:
        if point.test is None or not (every or point.chosen):
            continue
        for side, place in (("x", i), ("y", j)):
            low, high = point.low[place], point.high[place]
            if low is not None and high is not None:
                at = {"x": point.test[i], "y": point.test[j]}
                colour = COLOURS[0] if point.chosen else COLOURS[1]
                rows[side].append({**at, side: low, f"{side}2": high, "colour": colour})
    layers = []
    for side, data in rows.items():
        layer = _layer(data, {"type": "rule", "strokeWidth": 1.2, "opacity": 0.4}, x, y)
        layer["encoding"] |= {
            f"{side}2": {"field": f"{side}2"},
            "color": {"field": "colour", "type": "nominal", "scale": None},
        }
        layers += [layer] if data else []
    return layers


def _bound(constraint: Constraint, side: str, position: Spec) -> list[Spec]:
    """The values that a constraint forbids, and a line at its bound."""
    far = {"x": (0, "width"), "y": ("height", 0)}[side][0 if constraint.at_least else 1]
    at = {**position, "field": "bound"}
    data = {"values": [{"bound": constraint.bound}]}
    area = {"type": "rect", "color": COLOURS[3], "opacity": 0.1, "stroke": None}
    rule = {"type": "rule", "color": COLOURS[3], "strokeDash": [5, 4], "strokeWidth": 1.5}
    return [
        {"data": data, "mark": area, "encoding": {side: at, f"{side}2": {"value": far}}},
        {"data": data, "mark": rule, "encoding": {side: at}},
    ]
