"""Item curves: how likely models of some ability answer an item, by a study's item model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evomerge.errors import UserError
from evomerge.irt.ability import abilities
from evomerge.irt.figures import span, typical
from evomerge.irt.fit import fit_items
from evomerge.irt.model import ItemModel
from evomerge.irt.responses import read_responses
from evomerge.report.answers import RIGHT, Subject, TaskAnswers
from evomerge.report.figures import COLOURS
from evomerge.report.marks import Key, Spec, glyph, plot, titles, tooltip
from evomerge.report.numbers import percent
from evomerge.report.reading import Json, mapping
from evomerge.report.rows import ROLES
from evomerge.types import FloatArray

MOST = 2_000_000
"""The most answers that the report fits a model to."""

SHOWN = 6
_POINTS = 61
_GLYPHS = {ROLES[0]: "diamond", "source": "square", "control": "triangle"}
_COLOUR = {ROLES[0]: COLOURS[0], "source": COLOURS[2], "control": COLOURS[4]}


@dataclass(frozen=True)
class Curve:
    """One item: its curve on a grid of abilities, and what the models answered.

    Attributes:
        item: its id.
        discrimination: how steep the curve is.
        difficulty: where it stands, beta.
        x, y: the curve.
        points: (model, ability, score) of each model that answered.
    """

    item: str
    discrimination: float
    difficulty: float
    x: tuple[float, ...]
    y: tuple[float, ...]
    points: tuple[tuple[Subject, float, float], ...]


@dataclass(frozen=True)
class Curves:
    """The curves of a task, the models' abilities, and where the item model comes from.

    Attributes:
        task: its name.
        origin: of the item model, in words.
        dimensions: of the item model.
        curves: of a few items.
        abilities: name, role and ability of each model.
        fitted: the item model, if it was fitted just now; None if it was read.
    """

    task: str
    origin: str
    dimensions: int
    curves: tuple[Curve, ...]
    abilities: tuple[tuple[str, str, float], ...]
    fitted: ItemModel | None = None


def make_curves(
    settings: Json, answers: Sequence[TaskAnswers], folder: Path | None
) -> tuple[list[Curves], list[str]]:
    """Curves of the tasks of which the study has an item model, and notes on what is missing.

    Args:
        settings: the study's config.
        answers: of the models to the search items, which is what an item model is about.
        folder: where models that an earlier report fitted are kept; None if there is none.
    """
    estimator = mapping(settings.get("estimator"))
    found, notes = [], []
    for task in answers:
        try:
            read = _model(estimator, task, folder)
        except (UserError, OSError) as error:
            notes.append(f"No item curves of {task.task}: {error}")
            continue
        if read is not None:
            curves = _curves(task, *read)
            found += [curves] if curves else []
    return found, notes


def fitted_name(task: str) -> str:
    """Name of the file of a task's item model that a report fitted, in the report's folder."""
    safe = re.sub(r"[^\w-]", "_", task)
    return f"items-{safe}.npz"


def _model(
    estimator: Json, task: TaskAnswers, folder: Path | None
) -> tuple[ItemModel, str, bool] | None:
    """An item model, where it comes from, and whether it was fitted just now."""
    file = _for_task(estimator.get("model"), task.task)
    if isinstance(file, str):
        return ItemModel.load(Path(file)), "the study's own item model", False
    given = _for_task(estimator.get("responses"), task.task)
    if not isinstance(given, (str, list)):
        return None
    origin = "fitted for this report to the earlier answers that the study used"
    kept = folder / fitted_name(task.task) if folder is not None else None
    if kept is not None and kept.is_file():
        model = ItemModel.load(kept)
        if set(task.ids) <= set(model.items):
            return model, origin, False
    paths = [given] if isinstance(given, str) else [str(path) for path in given]
    read = read_responses([Path(path) for path in paths], task=task.task)
    if np.asarray(read.scores).size > MOST:
        return None
    return fit_items(read).model, origin, True


def _for_task(given: object, task: str) -> object:
    return given.get(task) if isinstance(given, dict) else given


def _curves(task: TaskAnswers, whole: ItemModel, origin: str, fitted: bool) -> Curves | None:
    known = set(whole.items)
    places = [at for at, item in enumerate(task.ids) if item in known]
    if not places:
        return None
    model = whole.at(whole.index([task.ids[at] for at in places]))
    scores = task.scores[:, places]
    found = [one.mean for one in abilities(model, np.asarray(scores, dtype=np.float64))]
    theta = np.array([value[0] for value in found])
    low, high = span(model)
    low, high = min(low, float(theta.min()) - 0.3), max(high, float(theta.max()) + 0.3)
    grid = np.zeros((_POINTS, model.dimensions))
    grid[:, 0] = np.linspace(low, high, _POINTS)
    shown = typical(model, SHOWN)
    lines = model.at(shown).probability(grid)
    return Curves(
        task.task, origin, model.dimensions,
        tuple(
            _curve(model, int(at), grid[:, 0], lines[:, n], task.subjects, theta, scores[:, at])
            for n, at in enumerate(shown)
        ),
        tuple(
            (one.name, one.role, float(t)) for one, t in zip(task.subjects, theta, strict=True)
        ),
        whole if fitted else None,
    )  # fmt: skip


def _curve(
    model: ItemModel,
    at: int,
    x: FloatArray,
    y: FloatArray,
    subjects: Sequence[Subject],
    theta: FloatArray,
    scores: FloatArray,
) -> Curve:
    rows = zip(subjects, theta.tolist(), scores.tolist(), strict=True)
    return Curve(
        model.items[at], float(model.discrimination[at, 0]), float(model.difficulty[at]),
        tuple(np.round(x, 3).tolist()), tuple(np.round(y, 4).tolist()), tuple(rows),
    )  # fmt: skip


def curve_chart(curve: Curve) -> Spec:
    """One item: the probability of a right answer over ability, and the models' answers."""
    x: Spec = {"field": "ability", "type": "quantitative",
               "scale": {"nice": False, "zero": False, "padding": 4},
               "axis": {"title": None, "tickCount": 5, "grid": False}}  # fmt: skip
    y: Spec = {"field": "right", "type": "quantitative",
               "scale": {"domain": [0, 1], "padding": 8},
               "axis": {"title": None, "format": "~%", "values": [0, 0.5, 1]}}  # fmt: skip
    line = [{"ability": a, "right": p} for a, p in zip(curve.x, curve.y, strict=True)]
    layers: list[Spec] = [
        {"data": {"values": line}, "encoding": {"x": x, "y": y},
         "mark": {"type": "line", "strokeWidth": 2, "color": COLOURS[1], "clip": False}},
    ]  # fmt: skip
    for role in reversed(list(_GLYPHS)):
        rows = [
            {"ability": round(theta, 3), "right": score, "name": one.name, "role": one.role,
             "answer": "right" if score >= RIGHT else "wrong", "score": percent(score)}
            for one, theta, score in curve.points
            if one.role == role
        ]  # fmt: skip
        if rows:
            mark = glyph(_GLYPHS[role], _COLOUR[role], 120 if role == ROLES[0] else 60)
            tips = tooltip("name", "role", "answer", "score", "ability")
            layers.append({"data": {"values": rows}, "mark": mark,
                           "encoding": {"x": x, "y": y, "tooltip": tips}})  # fmt: skip
    return plot([*layers, *titles("ability", f"item {_short(curve.item)}")], 130)


def curve_keys(found: Sequence[Curves]) -> list[Key]:
    """What the symbols mean, of those that occur."""
    roles = {role for curves in found for _, role, _ in curves.abilities}
    keys = [Key("probability of a right answer", "line", COLOURS[1])]
    return keys + [Key(r, g, _COLOUR[r]) for r, g in _GLYPHS.items() if r in roles]


def _short(text: str, longest: int = 30) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
