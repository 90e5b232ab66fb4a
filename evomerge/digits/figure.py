"""Accuracy against evaluations, one colour a method: mean over seeds, band of all seeds."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.digits.methods import METHODS
from evomerge.digits.records import CHECKPOINTS, Plan, Record, read
from evomerge.errors import ConfigError

COLOURS = {
    "m2n2": "#2f7fd6",
    "no_attraction": "#2a9d8f",
    "no_split": "#a05fc4",
    "alpha0": "#c9711a",
    "ga": "#7a8794",
    "ga_split": "#3d4752",
    "map_elites": "#c23b54",
    "sep_cma_es": "#8a7a1f",
}
STARTS = {"scratch": "from scratch", "pretrained": "from two pre-trained networks"}
SCALE = 2.0


def collect(folder: Path) -> list[tuple[Plan, list[Record]]]:
    """All results of a folder.

    Raises:
        ConfigError: if there is no result, or results of unlike experiments.
        JournalError: for a CSV file that is something else.
    """
    results = [read(path) for path in sorted(folder.glob("*.csv"))]
    if not results:
        raise ConfigError.of(
            "--plot", f"no CSV file in {folder}", "a folder of results", "Run a search first."
        )
    kinds = {(plan.pixels, plan.initial, plan.angle) for plan, _ in results}
    if len(kinds) > 1:
        raise ConfigError.of(
            "--plot", f"results in {folder} with {len(kinds)} kinds of pixels, initial and angle",
            "one kind, so that methods are compared alike", "Move the others to another folder.",
        )  # fmt: skip
    return results


def plot(
    results: Sequence[tuple[Plan, Sequence[Record]]], folder: Path, name: str = "accuracy"
) -> list[Path]:
    """Draws results, one panel a start.

    Returns:
        the files written, a PNG and an SVG.
    """
    import vl_convert

    spec = chart(results)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    _write(png, bytes(vl_convert.vegalite_to_png(spec, scale=SCALE)))
    _write(svg, str(vl_convert.vegalite_to_svg(spec)).encode())
    return [png, svg]


def chart(results: Sequence[tuple[Plan, Sequence[Record]]]) -> dict[str, Any]:
    """The Vega-Lite specification.

    A curve has the points that all seeds of its method have: where some searches are shorter, it
    would jump with the seeds that are left. `summary` has the others.
    """
    rows = of_all_seeds(summary(results))
    starts = [start for start in STARTS if any(row["start"] == start for row in rows)]
    present = [method for method in METHODS if any(row["method"] == method for row in rows)]
    seeds = max(row["seeds"] for row in rows)
    colour = {
        "field": "method",
        "type": "nominal",
        "scale": {"domain": present, "range": [COLOURS[m] for m in present]},
        "legend": {"title": None, "symbolType": "circle", "symbolOpacity": 1},
    }
    x = {
        "field": "evaluations",
        "type": "quantitative",
        "scale": {"type": "log", "nice": False},
        "axis": {"title": "evaluations", "format": "~s", "values": list(CHECKPOINTS)},
    }
    axis = {"title": "accuracy on the test images, %", "tickCount": 6}
    y = {"type": "quantitative", "scale": {"zero": False}, "axis": axis}
    layer = [
        {
            "mark": {"type": "area", "opacity": 0.16},
            "encoding": {
                "x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}, "color": colour
            },
        },
        {
            "mark": {"type": "line", "point": {"size": 28}, "strokeWidth": 2},
            "encoding": {"x": x, "y": {"field": "mean", **y}, "color": colour},
        },
    ]  # fmt: skip
    panels = [
        {
            "title": {"text": STARTS[start], "fontWeight": "normal", "anchor": "start"},
            "width": 360,
            "height": 300,
            "data": {"values": [row for row in rows if row["start"] == start]},
            "layer": layer,
        }
        for start in starts
    ]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": {
            "text": "Digits: mean over seeds and band from the lowest to the highest",
            "subtitle": f"up to {seeds} seeds a method",
            "anchor": "start",
        },
        "hconcat": panels,
        "resolve": {"scale": {"y": "independent"}},
        "config": {
            "background": "white",
            "view": {"stroke": None},
            "axis": {"gridColor": "#e2e7ed", "titleFontWeight": "normal"},
        },
    }


def summary(results: Sequence[tuple[Plan, Sequence[Record]]]) -> list[dict[str, Any]]:
    """Mean, lowest and highest test accuracy in % for each start, method and evaluations."""
    seen: dict[tuple[str, str, int], dict[int, float]] = defaultdict(dict)
    for plan, records in results:
        for record in records:  # a longer search of the same seed has the same beginning
            seen[plan.start, plan.method, record.evaluations][plan.seed] = 100 * record.test
    tests = {key: list(values.values()) for key, values in seen.items()}
    return [
        {
            "start": start, "method": method, "evaluations": evaluations, "seeds": len(values),
            "mean": sum(values) / len(values), "low": min(values), "high": max(values),
        }
        for (start, method, evaluations), values in tests.items()
    ]  # fmt: skip


def of_all_seeds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with as many seeds as any row of their start and method."""
    most: dict[tuple[str, str], int] = defaultdict(int)
    for row in rows:
        key = row["start"], row["method"]
        most[key] = max(most[key], row["seeds"])
    return [row for row in rows if row["seeds"] == most[row["start"], row["method"]]]


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)
