"""The sliders: which merge a preference picks, by the rule of the verb `pick`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.report.candidates import CandidateRecord
from evomerge.report.front import Front, front_points
from evomerge.report.objectives import Objective, losses, read_values
from evomerge.report.quality import Box, nondominated
from evomerge.report.reading import Json

MOST = 1500
"""The most merges to choose from; of more, those that another one dominates are left out."""


@dataclass(frozen=True)
class Preferences:
    """What there is to choose from, as `pick` has it.

    Attributes:
        objectives: two or more.
        weights: with which the sliders begin.
        split: the items that the merges were measured on.
        data: what the page's script is given.
        total: how many merges there are.
        names: of those that the page holds.
    """

    objectives: tuple[Objective, ...]
    weights: tuple[float, ...]
    split: str
    data: dict[str, Any]
    total: int
    names: tuple[tuple[int, str], ...]


def make_preferences(
    front: Front | None, results: Json, records: Sequence[CandidateRecord], run: Path | None
) -> Preferences | None:
    """What the sliders choose from: the front on held-out items, or all candidates without it.

    Scales run from the worst to the best value of all of them, also where some are left out.
    """
    if front is None:
        return None
    objectives = front.objectives
    found: list[tuple[str, int, tuple[float, ...]]] = [
        (p.name, p.candidate, p.test)
        for p in front_points(results, objectives)
        if p.test and not p.violation and p.candidate is not None
    ]
    split = "held-out test"
    if not found:
        split = "search"
        found = [
            (f"candidate {r.id}", r.id, values)
            for r in records
            if r.feasible and r.complete and (values := read_values(objectives, r.values))
        ]
    if not found:
        return None
    loss = losses(objectives, [values for _, _, values in found])
    worst, best = (
        [float(v) for v in losses(objectives, [edge.tolist()])[0]]
        for edge in (loss.max(axis=0), loss.min(axis=0))
    )
    kept = np.flatnonzero(nondominated(loss)) if len(found) > MOST else range(len(found))
    drawn = [p.test for p in front.points if p.test is not None]
    drawn += [m.test for m in front.models if None not in m.test]  # type: ignore[misc]
    box = Box.around(losses(objectives, drawn)) if drawn else Box.around(loss)
    weights = [o.weight for o in objectives]
    given = [w for w in weights if w is not None]
    top = max(given, default=0.0)
    start = tuple(
        round(100 * (w or 0.0) / top) if len(given) == len(weights) and top > 0 else 50
        for w in weights
    )
    data = {
        "names": [found[at][0] for at in kept],
        "ids": [found[at][1] for at in kept],
        "raw": [list(found[at][2]) for at in kept],
        "worst": worst,
        "best": best,
        "objectives": [
            {"name": o.name, "minimised": o.minimised, "percent": not o.unit, "unit": o.unit}
            for o in objectives
        ],
        "ideal": [float(v) for v in losses(objectives, [box.ideal.tolist()])[0]],
        "nadir": [float(v) for v in losses(objectives, [box.nadir.tolist()])[0]],
        "heldOut": split != "search",
        "run": shlex.quote(str(run)) if run is not None else "RUN",
        "sayable": not any("," in o.name or o.name != o.name.strip() for o in objectives),
    }
    names = tuple((found[at][1], found[at][0]) for at in kept)
    return Preferences(objectives, start, split, data, len(found), names)
