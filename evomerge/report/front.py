"""The Pareto front of a run: its points on held-out items and the candidates behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.report.candidates import CandidateRecord
from evomerge.report.objectives import Objective, losses, read_values
from evomerge.report.quality import Box, knee, nondominated, share_steps
from evomerge.report.reading import Json, count, mapping, number
from evomerge.report.rows import ROLES
from evomerge.types import FloatArray

CLOUD_POINTS = 1200
"""The most candidates that the charts of a front draw."""

Step = tuple[int, float]


@dataclass(frozen=True)
class Point:
    """One merge of a front. Values are raw, one an objective, in the objectives' order.

    Attributes:
        name: what results.json calls it.
        candidate: its number in the study; None if it was no candidate.
        chosen: whether the study chose it.
        test: its values on the held-out items; None if not measured.
        search: its values on the search items; None if unknown.
        low: lower ends of the 95% intervals of `test`, None where unknown.
        high: upper ends.
        violation: sum of what it breaks the constraints by, as the study recorded it.
        best: whether no other point that keeps the constraints dominates it on held-out items.
        knee: whether it is the front's knee.
    """

    name: str
    candidate: int | None
    chosen: bool
    test: tuple[float, ...] | None
    search: tuple[float, ...] | None
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    violation: float = 0.0
    best: bool = False
    knee: bool = False


@dataclass(frozen=True)
class Model:
    """A model that a front is compared with: a source, a control or the chosen merge.

    `test` has a raw value an objective on the held-out items, None where it was not measured.
    """

    name: str
    role: str
    test: tuple[float | None, ...]

    @property
    def chosen(self) -> bool:
        """Whether this is the merge that the study chose."""
        return self.role == ROLES[0]


@dataclass(frozen=True)
class Budget:
    """What the search had after a number of candidates; shares of the page's box."""

    candidates: int
    points: int
    search: float
    test: float | None


@dataclass(frozen=True)
class Dot:
    """A candidate as the charts draw it, by its values on the search items."""

    id: int
    values: tuple[float, ...]
    feasible: bool
    best: bool


@dataclass(frozen=True)
class Front:
    """Everything that the page says of a front.

    Attributes:
        objectives: two or more.
        points: the front after the last candidate and the chosen merge; by the first objective.
        models: sources, controls and the chosen merge on the held-out items.
        dots: candidates on the search items, thinned.
        measured: how many candidates have values of all objectives.
        infeasible: how many of them break a constraint.
        budgets: the front after so many candidates.
        steps: hypervolume on the search items as a stair over candidates.
        controls: the same of the other searches.
        reference: the reference point of the hypervolume, raw.
        ideal: the best values, raw.
        total: how many candidates the search asked for.
    """

    objectives: tuple[Objective, ...]
    points: tuple[Point, ...]
    models: tuple[Model, ...]
    dots: tuple[Dot, ...]
    measured: int
    infeasible: int
    budgets: tuple[Budget, ...] = ()
    steps: tuple[Step, ...] = ()
    controls: tuple[tuple[Step, ...], ...] = ()
    reference: tuple[float, ...] = ()
    ideal: tuple[float, ...] = ()
    total: int = 0

    @property
    def knee(self) -> Point | None:
        """The knee of the front on the held-out items."""
        return next((point for point in self.points if point.knee), None)

    @property
    def dominated(self) -> int:
        """How many points keep the constraints but are dominated on the held-out items."""
        return sum(
            not p.best and p.violation == 0 and p.test is not None and not p.chosen
            for p in self.points
        )


def front_points(results: Json, objectives: Sequence[Objective]) -> list[Point]:
    """The points of `results.json`, marks not set; empty if it has no front."""
    listed = mapping(results.get("front")).get("points")
    points = []
    for entry in map(mapping, listed if isinstance(listed, list) else []):
        values, low, high = (mapping(entry.get(key)) for key in ("values", "low", "high"))
        points.append(
            Point(
                name=str(entry.get("name") or f"candidate {entry.get('candidate', '?')}"),
                candidate=count(entry.get("candidate")),
                chosen=entry.get("chosen") is True,
                test=read_values(objectives, mapping(values.get("test"))),
                search=read_values(objectives, mapping(values.get("search"))),
                low=tuple(number(low.get(o.name)) for o in objectives),
                high=tuple(number(high.get(o.name)) for o in objectives),
                violation=number(entry.get("violation")) or 0.0,
            )
        )
    return points


def front_budgets(results: Json) -> dict[int, set[int]]:
    """Numbers of the candidates on the front after so many candidates, by ascending budget."""
    budgets = {
        int(key): {n for value in ids if (n := count(value)) is not None}
        for key, ids in mapping(mapping(results.get("front")).get("budgets")).items()
        if key.isdecimal() and isinstance(ids, list)
    }
    return dict(sorted(budgets.items()))


def held_out(objectives: Sequence[Objective], points: Sequence[Point]) -> FloatArray:
    """Losses on the held-out items of the points that were measured and keep the constraints."""
    return losses(objectives, [p.test for p in points if p.test is not None and p.violation <= 0])


def search_losses(
    objectives: Sequence[Objective], records: Sequence[CandidateRecord]
) -> list[FloatArray | None]:
    """The losses of each candidate on the search items.

    None where it has none, breaks a constraint or was stopped early by a race.
    """
    out: list[FloatArray | None] = []
    for record in records:
        values = read_values(objectives, record.values)
        usable = values is not None and record.feasible and record.complete
        out.append(losses(objectives, [values])[0] if usable and values is not None else None)
    return out


def mark(objectives: Sequence[Objective], points: Sequence[Point]) -> list[Point]:
    """Says of each point whether it is non-dominated on the held-out items, and which is the knee.

    Points that break a constraint, or were not measured, are neither and dominate none.
    """
    usable = [p.test is not None and p.violation <= 0 for p in points]
    array = held_out(objectives, points)
    best = nondominated(array)
    places = np.flatnonzero(np.array(usable, dtype=bool))[best]
    middle = knee(array[best])
    return [
        replace(point, best=place in places, knee=middle is not None and place == places[middle])
        for place, point in enumerate(points)
    ]


def make_front(
    objectives: tuple[Objective, ...],
    results: Json,
    searches: Sequence[Sequence[CandidateRecord]],
) -> Front | None:
    """The front of a run with two or more objectives; None for other runs.

    Args:
        objectives: of the run.
        results: `results.json`; empty while the study runs, and nothing is then held-out.
        searches: the candidates of the study's own search, then of each control.
    """
    if len(objectives) < 2:
        return None
    records, *controls = searches
    every, budgets = front_points(results, objectives), front_budgets(results)
    last = budgets[max(budgets)] if budgets else {p.candidate for p in every}
    points = mark(objectives, [p for p in every if p.chosen or p.candidate in last])
    paths = [search_losses(objectives, search) for search in searches]
    dots, measured, infeasible = _dots(objectives, records)
    front = Front(
        objectives=objectives,
        points=tuple(sorted(points, key=lambda p: _order(objectives, p))),
        models=tuple(models_of(results, objectives)),
        dots=dots,
        measured=measured,
        infeasible=infeasible,
        total=len(records),
    )
    known = [loss for path in paths for loss in path if loss is not None]
    measured_points = held_out(objectives, every)
    cloud = np.vstack([*known, measured_points]) if known or len(measured_points) else None
    if cloud is None:
        return front
    box = Box.around(cloud, _reference(objectives, results))
    signs = np.array([1.0 if o.minimised else -1.0 for o in objectives])
    return replace(
        front,
        budgets=tuple(
            _budget(objectives, box, size, [p for p in every if p.candidate in ids])
            for size, ids in budgets.items()
        ),
        steps=tuple(_stair(paths[0], box)),
        controls=tuple(tuple(_stair(path, box)) for path in paths[1 : 1 + len(controls)]),
        reference=tuple(float(v) for v in signs * box.reference),
        ideal=tuple(float(v) for v in signs * box.ideal),
    )


def _stair(path: Sequence[FloatArray | None], box: Box) -> list[Step]:
    """(candidates so far, share), up to the last candidate."""
    steps = [(place + 1, share) for place, share in share_steps(path, box)]
    return [*steps, (len(path), steps[-1][1])] if steps else []


def _budget(objectives: Sequence[Objective], box: Box, size: int, points: list[Point]) -> Budget:
    searched = losses(objectives, [p.search for p in points if p.search is not None])
    measured = any(p.test is not None for p in points)
    return Budget(
        candidates=size,
        points=len(points),
        search=box.share(searched),
        test=box.share(held_out(objectives, points)) if measured else None,
    )


def _reference(objectives: Sequence[Objective], results: Json) -> FloatArray | None:
    values = read_values(objectives, mapping(mapping(results.get("front")).get("reference")))
    return None if values is None else losses(objectives, [values])[0]


def models_of(results: Json, objectives: Sequence[Objective]) -> list[Model]:
    """The models of which a value of an objective is known, by role.

    What the results do not say of the chosen merge is taken from its point of the front.
    """
    models = []
    point = next((p for p in front_points(results, objectives) if p.chosen and p.test), None)
    for name, entry in mapping(results.get("models")).items():
        model = mapping(entry)
        known = mapping(mapping(model.get("objectives")).get("test"))
        test = tuple(number(known.get(o.name)) for o in objectives)
        role = str(model.get("role", ""))
        role = ROLES[0] if name == results.get("best") else role
        if point is not None and point.test is not None and role == ROLES[0]:
            pairs = zip(test, point.test, strict=True)
            test = tuple(own if value is None else value for value, own in pairs)
        if any(value is not None for value in test):
            models.append(Model(name, role if role in ROLES else ROLES[-1], test))
    return sorted(models, key=lambda model: ROLES.index(model.role))


def _order(objectives: Sequence[Objective], point: Point) -> tuple[bool, float]:
    """Best value of the first objective first, what was not measured last."""
    if point.test is None:
        return True, 0.0
    return False, point.test[0] if objectives[0].minimised else -point.test[0]


def _dots(
    objectives: Sequence[Objective], records: Sequence[CandidateRecord]
) -> tuple[tuple[Dot, ...], int, int]:
    """The candidates to draw, how many there are, and how many of them are infeasible."""
    known = [
        (record, values)
        for record in records
        if (values := read_values(objectives, record.values)) is not None
    ]
    feasible = [(record, values) for record, values in known if record.feasible]
    front = nondominated(losses(objectives, [values for _, values in feasible]))
    best = {record.id for (record, _), mark in zip(feasible, front, strict=True) if mark}
    dots = [Dot(r.id, values, r.feasible, r.id in best) for r, values in known]
    step = -(-len(dots) // CLOUD_POINTS) if dots else 1
    drawn: list[Dot] = [d for d in dots if d.best]
    for group in (True, False):
        drawn += [d for d in dots if not d.best and d.feasible is group][::step]
    drawn.sort(key=lambda dot: dot.id)
    return tuple(drawn), len(known), len(known) - len(feasible)
