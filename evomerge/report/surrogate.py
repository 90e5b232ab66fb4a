"""What a study's surrogates predicted, against what was measured then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.markdown import markdown_text
from evomerge.report.marks import (
    Key,
    Spec,
    axis,
    glyph,
    plot,
    series_colour,
    series_glyph,
    titles,
    tooltip,
)
from evomerge.report.numbers import NONE, percent
from evomerge.report.objectives import Objective
from evomerge.report.reading import Json, count, mapping, number

KINDS = {"quadratic": "quadratic", "gp": "Gaussian process", "constant": "constant"}


@dataclass(frozen=True)
class Pair:
    """A prediction of one objective, made before the candidate was measured; raw values."""

    candidate: int
    predicted: float
    stderr: float | None
    measured: float


@dataclass(frozen=True)
class Surrogate:
    """The surrogate of one objective.

    Attributes:
        objective: which one.
        kind: of the surrogate in words.
        r2: leave-one-out R2 with all results; None where the objective never changed.
        pairs: what was predicted before it was measured.
        unit: of predictions and measurements where it is not the objective's own.
    """

    objective: Objective
    kind: str
    r2: float | None
    pairs: tuple[Pair, ...]
    unit: str = ""

    @property
    def title(self) -> str:
        """The objective's name, and the unit where it is another one."""
        return f"{self.objective.name} ({self.unit})" if self.unit else self.objective.name

    @property
    def error(self) -> float | None:
        """Mean absolute difference of prediction and measurement."""
        return _mean([abs(p.predicted - p.measured) for p in self.pairs])

    @property
    def bias(self) -> float | None:
        """Mean of prediction minus measurement."""
        return _mean([p.predicted - p.measured for p in self.pairs])

    def show(self, value: float | None) -> str:
        """A value or a difference in the objective's unit."""
        return self.objective.show(value, unit=False)

    @property
    def quality(self) -> str:
        """The leave-one-out R2 with two decimals."""
        return r2_text(self.r2)

    def of(self, candidate: int) -> Pair | None:
        """The prediction of a candidate."""
        return next((p for p in self.pairs if p.candidate == candidate), None)


@dataclass(frozen=True)
class TreeNode:
    """A node of nested MAP's tree.

    Attributes:
        members: the sources that it is made of.
        parts: of a merge, each coefficient with the members that it belongs to.
        values: by objective, what was predicted and what was measured, shown.
        r2: the least leave-one-out R2 of its surrogates.
    """

    members: str
    parts: str
    values: tuple[tuple[str, str], ...]
    r2: float | None

    @property
    def quality(self) -> str:
        """The leave-one-out R2 with two decimals."""
        return r2_text(self.r2)


@dataclass(frozen=True)
class Predictions:
    """All surrogates of a run.

    Attributes:
        surrogates: one an objective.
        results: how many they are fitted to in the end.
        unknowns: of a quadratic.
        front: candidates of the front that were predicted, by number.
        notes: what a reader should know of the surrogates, sentences.
        tree: of nested MAP, children first, with the names of its objectives.
        columns: titles of the objectives whose values the tree has.
    """

    surrogates: tuple[Surrogate, ...]
    results: int
    unknowns: int
    front: tuple[int, ...]
    notes: tuple[str, ...] = ()
    tree: tuple[TreeNode, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def verified(self) -> int:
        """How many candidates were predicted before they were measured."""
        return max((len(s.pairs) for s in self.surrogates), default=0)


def read_predictions(
    results: Json, objectives: Sequence[Objective], front: Sequence[int | None]
) -> Predictions | None:
    """The surrogates that `results.json` tells of; None if it tells of none.

    Args:
        results: of the run.
        objectives: of the run.
        front: numbers of the candidates on the front.
    """
    told = mapping(results.get("surrogate"))
    named = {o.name: o for o in objectives}
    candidates = told.get("candidates")
    ids = [count(c) for c in candidates] if isinstance(candidates, list) else []
    found = []
    for name, entry in mapping(told.get("objectives")).items():
        one = mapping(entry)
        columns = [one.get(key) for key in ("predicted", "stderr", "measured")]
        rows = zip(ids, *(c if isinstance(c, list) else [] for c in columns), strict=False)
        pairs = [
            Pair(number_, p, number(e), m)
            for number_, predicted, e, measured in rows
            if number_ is not None
            and (p := number(predicted)) is not None
            and (m := number(measured)) is not None
        ]
        kind, unit = str(one.get("kind")), str(one.get("unit") or "")
        objective = _shown_as(named.get(name), name, unit)
        r2 = number(one.get("r2"))
        found.append(Surrogate(objective, KINDS.get(kind, kind), r2, tuple(pairs), unit))
    tree, heads = _read_tree(told, named)
    if not found and not tree:
        return None
    notes = told.get("notes")
    known = {p.candidate for s in found for p in s.pairs}
    return Predictions(
        tuple(found), count(told.get("results")) or 0, count(told.get("unknowns")) or 0,
        tuple(sorted({n for n in front if n is not None and n in known})),
        tuple(map(str, notes)) if isinstance(notes, list) else (), tree, heads,
    )  # fmt: skip


def _shown_as(objective: Objective | None, name: str, unit: str) -> Objective:
    """An objective whose values are plain numbers where they have a unit of their own."""
    if objective is None:
        return Objective(name, metric="loglik")
    return replace(objective, metric="loglik") if unit else objective


def _read_tree(
    told: Json, named: Mapping[str, Objective]
) -> tuple[tuple[TreeNode, ...], tuple[str, ...]]:
    """The nodes of nested MAP's tree, and the titles of its objectives."""
    listed = told.get("tree")
    nodes = [mapping(node) for node in listed] if isinstance(listed, list) else []
    units = {name: str(unit) for name, unit in mapping(told.get("units")).items()}
    names = list(dict.fromkeys(n for node in nodes for n in mapping(node.get("measured"))))
    kinds = [_shown_as(named.get(n), n, units.get(n, "")) for n in names]
    members = [" + ".join(map(str, _list(node.get("members")))) for node in nodes]
    rows = []
    for node, own in zip(nodes, members, strict=True):
        children = [count(child) for child in _list(node.get("children"))]
        parts = [
            f"{factor:.2f} x ({members[child]})"
            for child, c in zip(children, _list(node.get("coefficients")), strict=False)
            if child is not None and child < len(members) and (factor := number(c)) is not None
        ]
        told_of = [mapping(node.get(key)) for key in ("predicted", "measured")]
        values = [
            (
                kind.show(number(told_of[0].get(n)), False),
                kind.show(number(told_of[1].get(n)), False),
            )
            for n, kind in zip(names, kinds, strict=True)
        ]
        r2 = [v for v in map(number, mapping(node.get("r2")).values()) if v is not None]
        rows.append(TreeNode(own, ", ".join(parts), tuple(values), min(r2, default=None)))
    titles_ = [f"{n} ({units[n]})" if n in units else n for n in names]
    return tuple(rows), tuple(titles_)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def prediction_charts(predictions: Predictions) -> dict[str, Spec]:
    """One chart of all shares: predicted to the right, measured upwards; none without pairs."""
    shares = [
        (place, s)
        for place, s in enumerate(predictions.surrogates)
        if s.pairs and s.objective.metric == "score"
    ]
    if not shares:
        return {}
    x, y = axis("predicted", "~%"), axis("measured", "~%")
    diagonal = [{"predicted": 0.0, "measured": 0.0}, {"predicted": 1.0, "measured": 1.0}]
    line = {"type": "line", "strokeDash": [5, 4], "strokeWidth": 1.2, "opacity": 0.6}
    layers: list[Spec] = [
        {"data": {"values": diagonal}, "mark": line, "encoding": {"x": x, "y": y}}
    ]
    for place, one in shares:
        rows = [
            {
                "predicted": p.predicted,
                "measured": p.measured,
                "name": f"candidate {p.candidate}",
                "what": f"{one.objective.name}: {percent(p.predicted)} predicted, "
                f"{percent(p.measured)} measured",
            }
            for p in one.pairs
        ]
        mark = glyph(series_glyph(place), series_colour(place), 44, opacity=0.7)
        encoding = {"x": x, "y": y, "tooltip": tooltip("name", "what")}
        layers.append({"data": {"values": rows}, "mark": mark, "encoding": encoding})
    return {"surrogate": plot([*layers, *titles("predicted", "measured on search items")], 300)}


def prediction_keys(predictions: Predictions) -> list[Key]:
    """What the symbols of the chart mean."""
    return [
        Key(s.objective.name, series_glyph(place), series_colour(place))
        for place, s in enumerate(predictions.surrogates)
        if s.pairs and s.objective.metric == "score"
    ]


def predictions_markdown(results: Json, objectives: Sequence[Objective]) -> str:
    """A table of the surrogates, empty for runs without."""
    found = read_predictions(results, objectives, ())
    if found is None or not found.surrogates:
        return ""
    lines = [
        f"Surrogates after {found.results} results, and what they predicted of "
        f"{found.verified} candidates before these were measured:\n",
        "| Objective | Surrogate | Leave-one-out R2 | Mean error | Bias |",
        "|---|---|---:|---:|---:|",
    ]
    for s in found.surrogates:
        name = markdown_text(s.title)
        cells = [name, s.kind, r2_text(s.r2), s.show(s.error), s.show(s.bias)]
        lines.append(f"| {' | '.join(cells)} |")
    if found.notes:
        lines += ["", *(f"- {markdown_text(note)}" for note in found.notes)]
    return "\n".join(lines) + "\n"


def r2_text(value: float | None) -> str:
    """An R2 with two decimals."""
    return NONE if value is None else f"{value:.2f}"


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
