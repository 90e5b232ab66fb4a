"""Held-out scores of the chosen merges against the items that their searches asked.

    python experiments/merge3_tiny/table.py FULL RUN [RUN ...] [--figure FOLDER]

FULL and RUN are folders that hold one run directory a seed. FULL is the search over all items;
every other one is compared with it seed by seed. Intervals are 95% t intervals over the seeds. The
last line is one JSON object with the same figures.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import t


@dataclass(frozen=True)
class Group:
    """The runs of one configuration, by seed."""

    name: str
    held_out: dict[int, float]
    asked: dict[int, int]
    seconds: dict[int, float]


def read(folder: Path) -> Group:
    """Reads the runs below a folder."""
    held_out, asked, seconds, name = {}, {}, {}, ""
    for path in sorted(folder.glob("seed*/results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        name = label(yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8")))
        seed, task = results["seed"], results["objective"]
        held_out[seed] = results["models"][results["best"]]["scores"][task]["test"]["value"]
        asked[seed] = results["cost"]["item_evaluations"]
        seconds[seed] = results["cost"]["seconds"]
    if not held_out:
        raise SystemExit(f"{folder}: no seed*/results.json in it; give folders of finished runs")
    return Group(name, held_out, asked, seconds)


def label(config: dict[str, Any]) -> str:
    """What a configuration is called in the table."""
    estimator, race = config["estimator"], config["racing"]["_target_"].split(".")[-1]
    name = estimator.get("estimate", "mean")
    chosen = estimator.get("choose", "random")
    name += "" if chosen == "random" else f" ({chosen})"
    items = estimator["items"]
    name += ", all items" if items is None else f", {items} items"
    if race != "NoRace":
        name += ", hyperband" if config["racing"].get("brackets", 1) > 1 else f", {race.lower()}"
    every = config["recheck"]["every"]
    return name if every is None else f"{name}, recheck every {every}"


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95% t interval."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, -math.inf, math.inf
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return mean, mean - half, mean + half


def row(group: Group, full: Group) -> dict[str, Any]:
    """One line of the table, in points and shares."""
    seeds = sorted(set(group.held_out) & set(full.held_out))
    losses = [100 * (full.held_out[s] - group.held_out[s]) for s in seeds]
    held_out = interval([100 * v for v in group.held_out.values()])
    share = float(np.mean([group.asked[s] / full.asked[s] for s in seeds]))
    return {
        "name": group.name,
        "seeds": len(group.held_out),
        "held_out": held_out,
        "asked": float(np.mean(list(group.asked.values()))),
        "fewer": 1 / share,
        "seconds": float(np.mean(list(group.seconds.values()))),
        "loss": interval(losses) if group is not full else None,
    }


def chart(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Held-out score with its interval, a line a configuration, as Vega-Lite."""
    data = [
        {"name": f"{r['name']}: {r['asked']:,.0f} asked", "value": r["held_out"][0],
         "low": r["held_out"][1], "high": r["held_out"][2]}
        for r in rows
    ]  # fmt: skip
    y = {"field": "name", "type": "nominal", "sort": None, "title": None,
         "axis": {"labelLimit": 400, "labelFontSize": 12}}  # fmt: skip
    x = {"type": "quantitative", "title": "held-out score of the chosen merge, %, and 95% interval",
         "scale": {"zero": False}}  # fmt: skip
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": 420,
        "height": {"step": 26},
        "background": "white",
        "data": {"values": data},
        "layer": [
            {"mark": {"type": "rule", "color": "#9aa4ae", "strokeWidth": 2},
             "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}}},
            {"mark": {"type": "circle", "size": 70, "color": "#2f7fd6", "opacity": 1},
             "encoding": {"y": y, "x": {**x, "field": "value"}}},
        ],
    }  # fmt: skip


def draw(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Writes items.png and items.svg."""
    import vl_convert

    spec = chart(rows)
    (folder / "items.svg").write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
    (folder / "items.png").write_bytes(vl_convert.vegalite_to_png(spec, scale=2.0))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("full", type=Path, help="folder of the search over all items")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of other searches")
    parser.add_argument("--figure", type=Path, metavar="FOLDER", help="where to draw the figure")
    options = parser.parse_args()
    full = read(options.full)
    groups = [full, *(read(folder) for folder in options.runs)]
    rows = sorted((row(group, full) for group in groups), key=lambda r: -r["asked"])
    print("| search | seeds | held-out, % | loss, points | items asked | fewer | seconds |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for r in rows:
        value, low, high = r["held_out"]
        loss = "" if r["loss"] is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*r["loss"])
        print(
            f"| {r['name']} | {r['seeds']} | {value:.1f} [{low:.1f}, {high:.1f}] | {loss} "
            f"| {r['asked']:,.0f} | 1/{r['fewer']:.0f} | {r['seconds']:.0f} |"
        )
    if options.figure is not None:
        draw(rows, options.figure)
    print(json.dumps({"rows": rows}, allow_nan=True))


if __name__ == "__main__":
    main()
