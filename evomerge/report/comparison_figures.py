"""Charts of the comparison of several runs."""

from __future__ import annotations

from itertools import combinations

from evomerge.report.comparison import Comparison, Measure, Summary
from evomerge.report.comparison_text import cells
from evomerge.report.front_figures import PAIRED
from evomerge.report.marks import (
    Key,
    Spec,
    axis,
    axis_format,
    glyph,
    plot,
    series_colour,
    series_dash,
    series_glyph,
    titles,
    tooltip,
)
from evomerge.report.numbers import whole
from evomerge.report.objectives import losses
from evomerge.report.quality import nondominated

QUALITY = {"hypervolume": "hypervolume (higher is better)", "igd": "IGD (lower is better)",
           "igd_plus": "IGD+ (lower is better)"}  # fmt: skip

MOST_POINTS = 400
"""The most points of a group that a scatter draws."""


def comparison_charts(comparison: Comparison) -> dict[str, Spec]:
    """The charts by name."""
    charts: dict[str, Spec] = {}
    if any(len(band.rows) > 1 for band in comparison.bands):
        charts["bands"] = band_chart(comparison)
    if not comparison.several:
        return {"values": value_chart(comparison), **charts}
    for name in QUALITY:
        charts[f"quality-{name}"] = quality_chart(comparison, name)
    size = len(comparison.objectives)
    if size <= PAIRED:
        for i, j in combinations(range(size), 2):
            charts[f"fronts-{i}-{j}"] = fronts_chart(comparison, i, j)
    return charts


def group_keys(comparison: Comparison, shape: str = "") -> list[Key]:
    """One legend entry a group: its line, or its glyph."""
    return [
        Key(group.label, shape or series_glyph(n), series_colour(n), dash=series_dash(n))
        for n, group in enumerate(comparison.groups)
    ]


def band_chart(comparison: Comparison) -> Spec:
    """Median over seeds as a stair, from the lowest to the highest seed as a band."""
    objective = comparison.objectives[0]
    x = axis("candidates", ",d", 8)
    x["axis"] |= {"grid": False, "tickMinStep": 1}
    y = axis("median", "~%" if comparison.several else axis_format(objective))
    layers: list[Spec] = []
    lines: list[Spec] = []
    for band in comparison.bands:
        keys = ("candidates", "low", "median", "high")
        data = {"values": [dict(zip(keys, row, strict=True)) for row in band.rows]}
        if not data["values"]:
            continue
        colour, dash = series_colour(band.place), list(series_dash(band.place))
        area = {"type": "area", "interpolate": "step-after", "color": colour, "opacity": 0.16}
        edges = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
        layers.append({"data": data, "mark": area, "encoding": {"x": x, **edges}})
        line: Spec = {"type": "line", "interpolate": "step-after", "strokeWidth": 2.4}
        line |= {"color": colour} | ({"strokeDash": dash} if dash else {})
        lines.append({"data": data, "mark": line, "encoding": {"x": x, "y": y}})
    what = "hypervolume so far (share of the box)" if comparison.several else objective.title
    return plot([*layers, *lines, *titles("candidates", what)], 280)


def quality_chart(comparison: Comparison, name: str) -> Spec:
    """Mean over seeds and 95% t interval of an indicator after each budget, group beside group."""
    rows: dict[int, list[Spec]] = {}
    for summary in comparison.summaries:
        mean = {"hypervolume": summary.main, "igd": summary.igd}.get(name, summary.igd_plus)
        if mean.value is None:
            continue
        shown = cells(comparison, summary)[{"hypervolume": 3, "igd": 4}.get(name, 5)]
        budget = "last" if summary.budget is None else whole(summary.budget)
        rows.setdefault(summary.place, []).append(
            {"budget": budget, "rank": comparison.budgets.index(summary.budget),
             "group": summary.group, "place": summary.place, "value": mean.value,
             "low": mean.low, "high": mean.high, "mean": shown, "seeds": whole(summary.seeds)}
        )  # fmt: skip
    x = {"field": "budget", "type": "ordinal", "sort": {"field": "rank", "op": "min"},
         "axis": {"title": None, "labelAngle": 0, "ticks": False},
         "scale": {"paddingInner": 0.25}}  # fmt: skip
    places = [n for n in range(len(comparison.groups))]
    offset = {"field": "place", "type": "nominal", "scale": {"domain": places}}
    y = axis("value", "~g", 5)
    layers: list[Spec] = []
    for place, data in rows.items():
        colour = series_colour(place)
        base = {"x": x, "xOffset": offset}
        layers += [
            {
                "data": {"values": [row for row in data if row["low"] is not None]},
                "mark": {"type": "rule", "color": colour, "strokeWidth": 2, "opacity": 0.75},
                "encoding": {**base, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "data": {"values": data},
                "mark": glyph(series_glyph(place), colour, 75),
                "encoding": {**base, "y": y, "tooltip": tooltip("group", "mean", "seeds")},
            },
        ]
    layers = [layer for layer in layers if layer["data"]["values"]]
    return plot([*layers, *titles("candidates", QUALITY[name])], 220)


def fronts_chart(comparison: Comparison, i: int, j: int) -> Spec:
    """The held-out fronts of all runs at the last budget, objective `i` to the right."""
    first, second = comparison.objectives[i], comparison.objectives[j]
    x, y = axis("x", axis_format(first)), axis("y", axis_format(second))
    layers = []
    for place, group in enumerate(comparison.groups):
        own = [
            m for m in comparison.measures if (m.group, m.budget) == (group.label, comparison.last)
        ]
        data = [row for measure in own for row in _points(comparison, measure, i, j)]
        data = data[:: -(-len(data) // MOST_POINTS) or 1]
        mark = glyph(series_glyph(place), series_colour(place), 62, opacity=0.75)
        tips = tooltip("group", "run", "point", "values")
        layers += [{"data": {"values": data}, "mark": mark,
                    "encoding": {"x": x, "y": y, "tooltip": tips}}] if data else []  # fmt: skip
    height = 380 if len(comparison.objectives) == 2 else 260
    return plot([*layers, *titles(first.title, second.title)], height)


def value_chart(comparison: Comparison) -> Spec:
    """Held-out value of each run's chosen merge, and the mean of each group with its interval."""
    objective = comparison.objectives[0]
    y = {"field": "group", "type": "nominal", "sort": {"field": "place", "op": "min"},
         "axis": {"title": None, "domain": False, "ticks": False, "grid": False}}  # fmt: skip
    x = axis("value", axis_format(objective))
    layers: list[Spec] = []
    for summary in comparison.summaries:
        colour, base = series_colour(summary.place), _named(comparison, summary)
        runs = comparison.groups[summary.place].runs
        dots = [
            base | {"value": run.chosen[0], "run": f"{run.name}, seed {run.seed}",
                    "held-out": objective.show(run.chosen[0])}
            for run in runs if run.chosen
        ]  # fmt: skip
        mean = base | {"value": summary.main.value, "low": summary.main.low,
                       "high": summary.main.high}  # fmt: skip
        tips = tooltip("group", "run", "held-out")
        layers.append({"data": {"values": dots}, "mark": glyph("circle", colour, 45, False, 0.8),
                       "encoding": {"x": x, "y": y, "tooltip": tips}})  # fmt: skip
        if summary.main.low is not None:
            layers.append({"data": {"values": [mean]},
                           "mark": {"type": "rule", "color": colour, "strokeWidth": 2.5},
                           "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"},
                                        "y": y}})  # fmt: skip
        encoding = {"x": x, "y": y, "tooltip": tooltip("group", "mean")}
        layers.append({"data": {"values": [mean]}, "mark": glyph("diamond", colour, 150),
                       "encoding": encoding})  # fmt: skip
    below = titles(objective.title, "")[:1]
    return plot([*layers, *below], 40 * max(1, len(comparison.groups)))


def _named(comparison: Comparison, summary: Summary) -> Spec:
    shown = cells(comparison, summary)[2]
    return {"group": summary.group, "place": summary.place, "mean": shown}


def _points(comparison: Comparison, measure: Measure, i: int, j: int) -> list[Spec]:
    """The non-dominated held-out points of a run that keep the constraints."""
    objectives = comparison.objectives
    points = [p for p in measure.run.front_at(measure.budget) if p.violation <= 0]
    known = [(p.name, p.test) for p in points if p.test is not None]
    best = nondominated(losses(objectives, [values for _, values in known]))
    return [
        {
            "x": values[i],
            "y": values[j],
            "group": measure.group,
            "run": f"{measure.run.name}, seed {measure.run.seed}",
            "point": name,
            "values": "; ".join(
                f"{o.name} {o.show(v)}" for o, v in zip(objectives, values, strict=True)
            ),
        }
        for (name, values), kept in zip(known, best, strict=True)
        if kept
    ]
