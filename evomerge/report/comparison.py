"""Compares several runs: quality of their fronts, or the score of what they chose, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evomerge.errors import UserError
from evomerge.report.front import Step, held_out, search_losses
from evomerge.report.objectives import Objective, losses, read_values
from evomerge.report.quality import Box, igd, igd_plus, nondominated, share_steps
from evomerge.report.repetitions import Group, Repetition, make_groups, read_repetitions
from evomerge.report.statistics import Mean, Tests, mean_over_seeds, rank_tests
from evomerge.types import FloatArray

BAND_POINTS = 120
"""The most places at which a band is drawn."""


@dataclass(frozen=True)
class Measure:
    """A run after a number of candidates, on held-out items.

    Attributes:
        group: label of its group.
        run: the run.
        budget: the number of candidates; None if the run does not say how many there were.
        hypervolume: share of the common box; None with one objective.
        igd, igd_plus: distance to the union's front; None where the front is empty, too.
        front: how many non-dominated points that keep the constraints it has.
    """

    group: str
    run: Repetition
    budget: int | None
    hypervolume: float | None = None
    igd: float | None = None
    igd_plus: float | None = None
    front: int | None = None


@dataclass(frozen=True)
class Summary:
    """A group after a number of candidates: means over seeds."""

    group: str
    place: int
    budget: int | None
    seeds: int
    main: Mean
    igd: Mean
    igd_plus: Mean
    front: Mean
    seconds: Mean


@dataclass(frozen=True)
class Band:
    """A group's course of the search: (candidates, lowest, median, highest) over its seeds."""

    place: int
    rows: tuple[tuple[int, float, float, float], ...]


@dataclass(frozen=True)
class Comparison:
    """Everything that the page of several runs says.

    Attributes:
        objectives: what all runs optimised.
        groups: the runs by settings, seeds as repetitions.
        left_out: a sentence on each run that is not compared.
        notes: what else the reader has to know.
        measures: one a run and budget.
        summaries: one a group and budget.
        tests: rank tests at the last budget, on hypervolume or on the held-out value.
        bands: the course of the searches, on search items.
        ideal, reference: of the box of the hypervolume, raw; empty with one objective.
        union: how many points the non-dominated front of all runs has.
        given: names of the objectives whose reference value the user gave.
    """

    objectives: tuple[Objective, ...]
    groups: tuple[Group, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    measures: tuple[Measure, ...]
    summaries: tuple[Summary, ...]
    tests: Tests
    bands: tuple[Band, ...]
    ideal: tuple[float, ...] = ()
    reference: tuple[float, ...] = ()
    union: int = 0
    given: tuple[str, ...] = ()

    @property
    def several(self) -> bool:
        """Whether there are several objectives."""
        return len(self.objectives) > 1

    @property
    def budgets(self) -> list[int | None]:
        """The budgets, ascending."""
        return list(dict.fromkeys(summary.budget for summary in self.summaries))

    @property
    def last(self) -> int | None:
        """The last budget, at which the groups are tested."""
        return self.budgets[-1]


def compare(runs: Sequence[Path], reference: Mapping[str, float] | None = None) -> Comparison:
    """Compares the runs in these directories.

    Args:
        runs: run directories; what cannot be compared is left out with a sentence.
        reference: raw values of the reference point by objective; what it does not name is the
            worst value of all points of all runs.

    Raises:
        UserError: no run can be compared, or the reference is not usable.
    """
    found, left_out = read_repetitions(runs)
    groups, repeated = make_groups(found)
    kept = [run for group in groups for run in group.runs]
    objectives = kept[0].objectives
    _check_reference(objectives, reference or {})
    courses = _courses(objectives, groups, reference)
    bands = [Band(at, _band(rows)) for at, rows in enumerate(courses)]
    left = (*left_out, *repeated)
    if len(objectives) == 1:
        measures = [Measure(g.label, run, run.candidates) for g in groups for run in g.runs]
        values = {
            g.label: {run.seed: run.chosen[0] for run in g.runs if run.chosen} for g in groups
        }
        return Comparison(
            objectives, tuple(groups), notes=_sizes(kept), measures=tuple(measures),
            summaries=tuple(_single(at, group) for at, group in enumerate(groups)),
            tests=rank_tests(values), bands=tuple(bands), left_out=left,
        )  # fmt: skip
    cloud = np.vstack([held_out(objectives, run.points) for run in kept])
    if not len(cloud):
        raise UserError.of(
            "report", "no point that was measured on held-out items and keeps the constraints",
            "at least one in one of the runs", "Loosen the constraints, or search for longer.",
        )  # fmt: skip
    box = _box(objectives, cloud, reference or {})
    union = cloud[nondominated(cloud)]
    budgets, notes = _budgets(kept)
    if alone := sum(run.alone for run in kept):
        notes.append(
            f"{alone} of {len(kept)} runs have no front: their chosen merge stands for one."
        )
    measures = [
        _measure(objectives, group.label, run, budget, box, union)
        for budget in budgets
        for group in groups
        for run in group.runs
    ]
    last: dict[str, dict[str, float]] = {group.label: {} for group in groups}
    for measure in measures:
        if measure.budget == budgets[-1] and measure.hypervolume is not None:
            last[measure.group][measure.run.seed] = measure.hypervolume
    return Comparison(
        objectives, tuple(groups), notes=(*notes, *_empty(measures)), measures=tuple(measures),
        summaries=tuple(
            _summary(at, group.label, budget, measures)
            for budget in budgets
            for at, group in enumerate(groups)
        ),
        tests=rank_tests(last), bands=tuple(bands), union=len(np.unique(union, axis=0)),
        ideal=_raw(objectives, box.ideal), reference=_raw(objectives, box.reference),
        given=tuple(reference or ()), left_out=left,
    )  # fmt: skip


# -- with several objectives ------------------------------------------------------------------


def _measure(
    objectives: Sequence[Objective],
    label: str,
    run: Repetition,
    budget: int | None,
    box: Box,
    union: FloatArray,
) -> Measure:
    points = held_out(objectives, run.front_at(budget))
    unit, front = box.unit(points), box.unit(union)
    best = nondominated(points)
    return Measure(
        group=label,
        run=run,
        budget=budget,
        hypervolume=box.share(points),
        igd=igd(unit, front),
        igd_plus=igd_plus(unit, front),
        front=int(best.sum()),
    )


def _summary(place: int, label: str, budget: int | None, measures: Sequence[Measure]) -> Summary:
    own = [m for m in measures if m.group == label and m.budget == budget]
    return Summary(
        group=label,
        place=place,
        budget=budget,
        seeds=len(own),
        main=mean_over_seeds([m.hypervolume for m in own]),
        igd=mean_over_seeds([m.igd for m in own]),
        igd_plus=mean_over_seeds([m.igd_plus for m in own]),
        front=mean_over_seeds([m.front for m in own]),
        seconds=mean_over_seeds([m.run.seconds for m in own]),
    )


def _budgets(runs: Sequence[Repetition]) -> tuple[list[int | None], list[str]]:
    """The budgets that all runs have; None stands for each run's own last one."""
    common = set.intersection(*(set(run.budgets) for run in runs))
    if common:
        rest = sorted(set().union(*(set(run.budgets) for run in runs)) - common)
        some = ", ".join(map(str, rest))
        text = f"Budgets that not all runs have are left out: {some}."
        return [*sorted(common)], [text] if rest else []
    return [None], ["The runs have no budget in common: each is measured at its own last one."]


def _empty(measures: Sequence[Measure]) -> list[str]:
    none = sum(m.igd is None for m in measures)
    if not none:
        return []
    return [
        f"{none} of {len(measures)} fronts have no measured point that keeps the constraints: "
        "their hypervolume is 0, and IGD and IGD+ are means over the other seeds."
    ]


def _box(objectives: Sequence[Objective], cloud: FloatArray, given: Mapping[str, float]) -> Box:
    box = Box.around(cloud)
    worst = _raw(objectives, box.nadir)
    values = [given.get(o.name, value) for o, value in zip(objectives, worst, strict=True)]
    reference = losses(objectives, [values])[0]
    for place, objective in enumerate(objectives):
        if objective.name in given and reference[place] <= box.ideal[place]:
            best = objective.show(_raw(objectives, box.ideal)[place])
            raise UserError.of(
                f"--reference {objective.name}", objective.show(values[place]),
                f"a value that is worse than {best}, the best of all points",
                "Give a worse one, or leave it out to take the worst of all points.",
            )  # fmt: skip
    return Box(box.ideal, box.nadir, reference)


def _check_reference(objectives: Sequence[Objective], given: Mapping[str, float]) -> None:
    names = [o.name for o in objectives]
    if given and len(names) == 1:
        raise UserError.of(
            "--reference", ", ".join(given), "runs with several objectives",
            "Leave it out: one objective has no hypervolume.",
        )  # fmt: skip
    for name, value in given.items():
        if name not in names or not np.isfinite(value):
            raise UserError.of(
                "--reference", f"{name}={value:g}", f"a finite value of {', '.join(names)}",
                "Give NAME=VALUE with the name of an objective, in its own unit.",
            )  # fmt: skip


def _raw(objectives: Sequence[Objective], point: FloatArray) -> tuple[float, ...]:
    return tuple(float(v) for v in losses(objectives, [point.tolist()])[0])


# -- with one objective -----------------------------------------------------------------------


def _single(place: int, group: Group) -> Summary:
    none = Mean(None, None, None, 0)
    return Summary(
        group=group.label,
        place=place,
        budget=None,
        seeds=len(group.runs),
        main=mean_over_seeds([run.chosen[0] if run.chosen else None for run in group.runs]),
        igd=none,
        igd_plus=none,
        front=none,
        seconds=mean_over_seeds([run.seconds for run in group.runs]),
    )


def _sizes(runs: Sequence[Repetition]) -> tuple[str, ...]:
    sizes = sorted({run.candidates for run in runs if run.candidates is not None})
    if len(sizes) < 2:
        return ()
    return (
        f"The runs evaluated different numbers of candidates, {sizes[0]:,} to {sizes[-1]:,}: "
        "a longer search has an advantage.",
    )


# -- the course of the search -----------------------------------------------------------------


def _courses(
    objectives: Sequence[Objective],
    groups: Sequence[Group],
    reference: Mapping[str, float] | None,
) -> list[list[tuple[list[Step], int]]]:
    """For each run of each group: its stair (candidates so far, value) and its length."""
    if len(objectives) == 1:
        return [[(_best(objectives[0], run), len(run.records)) for run in g.runs] for g in groups]
    paths = [[search_losses(objectives, run.records) for run in g.runs] for g in groups]
    known = [loss for group in paths for path in group for loss in path if loss is not None]
    if not known:
        return [[] for _ in groups]
    box = Box.around(np.vstack(known))
    if reference:
        worst = dict(zip((o.name for o in objectives), _raw(objectives, box.nadir), strict=True))
        values = [(worst | dict(reference))[o.name] for o in objectives]
        box = Box(box.ideal, box.nadir, losses(objectives, [values])[0])
    return [
        [([(n + 1, share) for n, share in share_steps(path, box)], len(path)) for path in group]
        for group in paths
    ]


def _best(objective: Objective, run: Repetition) -> list[Step]:
    """The best value so far on the search items, among those that keep the constraints."""
    steps: list[Step] = []
    for place, record in enumerate(run.records):
        values = read_values([objective], record.values)
        value = values[0] if values else record.score if objective.metric == "score" else None
        if value is None or not record.feasible:
            continue
        if not steps or objective.better(value, steps[-1][1]):
            steps.append((place + 1, value))
    return steps


def _band(
    courses: Sequence[tuple[list[Step], int]],
) -> tuple[tuple[int, float, float, float], ...]:
    """Lowest, median and highest value over the runs, from where all have one to the shortest."""
    stairs = [(steps, length) for steps, length in courses if steps]
    if not stairs:
        return ()
    first = max(steps[0][0] for steps, _ in stairs)
    last = min(length for _, length in stairs)
    if last < first:
        return ()
    grid = np.unique(np.linspace(first, last, min(BAND_POINTS, last - first + 1)).round())
    rows = []
    for at in grid.astype(int):
        values = [[v for place, v in steps if place <= at][-1] for steps, _ in stairs]
        rows.append((int(at), min(values), float(np.median(values)), max(values)))
    return tuple(rows)
