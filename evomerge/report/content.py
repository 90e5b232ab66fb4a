"""Everything that the page says, prepared from a run's files; no HTML here."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Any

from evomerge.errors import RecipeError
from evomerge.recipe import Recipe
from evomerge.report import figures
from evomerge.report.answers import Answers, read_answers
from evomerge.report.candidates import (
    FAILED,
    OK,
    PENDING,
    CandidateRecord,
    best_so_far,
    best_stair,
    by_search,
    candidate_records,
    failure_counts,
    find_best,
    thin,
)
from evomerge.report.coefficients import Grid, genome_of, read_genome
from evomerge.report.course import Course, make_course
from evomerge.report.curves import Curves, curve_chart, curve_keys, make_curves
from evomerge.report.facts import facts_of, moment, pairs_of, seed_of
from evomerge.report.front import Front, make_front
from evomerge.report.front_figures import front_charts, keys
from evomerge.report.items import Items, make_items
from evomerge.report.marks import Key
from evomerge.report.numbers import percent, whole
from evomerge.report.objectives import Constraint, Objective, read_constraints, read_objectives
from evomerge.report.pairs import Against, against_all, controls_sentence
from evomerge.report.parents import (
    Parents,
    Stop,
    parents_of_grids,
    parents_of_route,
    route_chart,
    route_keys,
    route_of,
)
from evomerge.report.pedigree import Pedigree, read_pedigree
from evomerge.report.preference import Preferences, make_preferences
from evomerge.report.provenance import Origin, flags, model_names, origins
from evomerge.report.reading import Json, RunFiles, count, mapping, number
from evomerge.report.rows import Row, task_names, task_rows
from evomerge.report.surrogate import (
    Predictions,
    prediction_charts,
    prediction_keys,
    read_predictions,
)
from evomerge.report.verdict import Verdict, progress, verdict

CHART_POINTS = 3000
"""The most candidates that the chart draws; more would only make the page heavy."""

FOLDER = "report"
"""Where figures and tables go, in the run directory."""

STEP_ROWS = 100
"""The most improvements that the table under the chart lists, the latest ones."""


@dataclass(frozen=True)
class History:
    """The study's own search: counts, improvements and failures of its candidates.

    `controls` names the searches whose best so far is drawn for comparison.
    """

    records: list[CandidateRecord]
    steps: list[tuple[int, float]]
    failures: list[tuple[str, int]]
    drawn: int
    controls: list[str] = field(default_factory=list)

    @property
    def scored(self) -> int:
        """How many candidates have a score."""
        return sum(r.score is not None for r in self.records)

    @property
    def failed(self) -> int:
        """How many candidates failed."""
        return sum(r.status == FAILED for r in self.records)

    @property
    def pending(self) -> int:
        """How many candidates were asked for and have no result."""
        return sum(r.status == PENDING for r in self.records)

    @property
    def latest_steps(self) -> list[tuple[int, float]]:
        """The improvements that the table lists."""
        return self.steps[-STEP_ROWS:]


@dataclass(frozen=True)
class Content:
    """What the page's template is given."""

    experiment: str
    seed: str
    started: str
    place: str
    verdict: Verdict
    tables: list[tuple[str, list[Row]]]
    measures: list[tuple[str, str, str, str, str, str]]
    history: History
    grids: list[Grid]
    others: list[tuple[str, str]]
    genome_of: str
    facts: list[tuple[str, str]]
    versions: list[tuple[str, str]]
    commands: list[str]
    recipe: str
    config: str
    not_measured: list[str]
    charts: dict[str, Any]
    front: Front | None = None
    front_keys: list[Key] = field(default_factory=list)
    constraints: tuple[Constraint, ...] = ()
    predictions: Predictions | None = None
    prediction_keys: list[Key] = field(default_factory=list)
    against: dict[str, list[Against]] = field(default_factory=dict)
    preferences: Preferences | None = None
    parents: Parents | None = None
    route: list[Stop] = field(default_factory=list)
    pedigree: Pedigree | None = None
    course: Course | None = None
    items: Items | None = None
    curves: list[Curves] = field(default_factory=list)
    curve_keys: list[Key] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    export: str = ""
    objectives: tuple[Objective, ...] = ()
    genes: list[str] = field(default_factory=list)
    tasks: Answers = field(default_factory=Answers)
    records: dict[str, list[CandidateRecord]] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, Any]:
        """What the page's scripts are given."""
        return {
            "charts": self.charts,
            "pick": self.preferences.data if self.preferences else None,
            "items": self.items.data if self.items else None,
        }

    @property
    def on_controls(self) -> list[str]:
        """A sentence a task on how the merge stands against the controls, for the verdict."""
        return [text for rows in self.against.values() if (text := controls_sentence(rows))]

    @property
    def route_keys(self) -> list[Key]:
        """What the symbols of the route mean: one each of its models."""
        return route_keys(self.route)

    @property
    def pair_charts(self) -> list[str]:
        """The ids of the charts of two objectives each."""
        return [name for name in self.charts if re.fullmatch(r"front-\d+-\d+", name)]


def prepare(run: RunFiles) -> Content:
    """Everything that the page of `run` says."""
    results = run.results or {}
    study, searches = run.study, by_search(candidate_records(run.events))
    records, *controls = searches.values()
    steps = best_so_far(records)
    drawn = thin(records, CHART_POINTS)
    history = History(records, steps, failure_counts(records), len(drawn), list(searches)[1:])
    tables = [(task, task_rows(results, task)) for task in task_names(results)]
    grids, others, genome_of = _coefficients(run, records)
    charts: dict[str, Any] = {
        f"scores-{place}": figures.score_chart(rows, _compared_with(results, task))
        for place, (task, rows) in enumerate(tables, 1)
        if any(row.test.value is not None for row in rows)
    }
    if history.scored or history.failed:
        charts["history"] = figures.history_chart(drawn, steps, [best_stair(r) for r in controls])
    charts |= {f"grid-{place}": figures.heat_map(grid) for place, grid in enumerate(grids, 1)}
    objectives = read_objectives(results, study)
    told = [r.constraints for r in records if r.status == OK]
    constraints = read_constraints(results, study, told)
    front = make_front(objectives, results, [records, *controls])
    charts |= front_charts(front, constraints) if front else {}
    on_front = [p.candidate for p in front.points] if front else []
    predictions = read_predictions(results, objectives, on_front)
    charts |= prediction_charts(predictions) if predictions else {}
    settings, answers = run.settings, read_answers(run)
    course, more = make_course(run, settings, searches, objectives)
    charts |= more
    recipe = _recipe(run.recipe)
    route = route_of(recipe, model_names(settings))
    charts |= {"route": route_chart(route)} if route else {}
    curves, missing = _item_curves(run, settings)
    charts |= {
        f"curve-{at}-{n}": curve_chart(curve)
        for at, found in enumerate(curves, 1)
        for n, curve in enumerate(found.curves, 1)
    }
    pedigree = read_pedigree(run)
    experiment = str(results.get("experiment") or study.get("experiment") or "study")
    seed = seed_of(results, study)
    return Content(
        experiment=experiment,
        seed=seed,
        started=moment(study.get("time")),
        place=str(run.folder or ""),
        verdict=verdict(results) if run.results else progress(records, run.ended),
        tables=tables,
        measures=[] if run.results else _measures(run.events),
        history=history,
        grids=grids,
        others=others,
        genome_of=genome_of,
        facts=facts_of(results, study, tables, course),
        versions=pairs_of(results.get("versions") or study.get("versions")),
        commands=commands(experiment, seed),
        recipe=run.recipe,
        config=run.config,
        not_measured=[str(name) for name in results.get("not_measured") or []],
        charts=charts,
        front=front,
        front_keys=keys(front) if front else [],
        constraints=constraints,
        predictions=predictions,
        prediction_keys=prediction_keys(predictions) if predictions else [],
        against=against_all(answers),
        preferences=make_preferences(front, results, records, run.folder),
        parents=(
            parents_of_route(route)
            or (pedigree.parents if pedigree else None)
            or parents_of_grids(grids)
        ),
        route=route,
        pedigree=pedigree,
        course=course,
        items=make_items(answers),
        curves=curves,
        curve_keys=curve_keys(curves),
        origins=origins(run, settings),
        flags=flags(results),
        notes=[*answers.notes, *missing],
        export=_export(run, results, records),
        objectives=objectives,
        genes=[str(mapping(d).get("name", "")) for d in run.dimensions],
        tasks=answers,
        records=searches,
    )


def _item_curves(run: RunFiles, settings: Json) -> tuple[list[Curves], list[str]]:
    """Item curves on the search items, if the study's estimator knows of an item model."""
    estimator = mapping(settings.get("estimator"))
    if not estimator.get("model") and not estimator.get("responses"):
        return [], []
    folder = run.folder / FOLDER if run.folder is not None else None
    return make_curves(settings, read_answers(run, "search").tasks, folder)


def commands(experiment: str, seed: str) -> list[str]:
    """The command that runs a study again, quoted for a POSIX shell."""
    parts = ["python", "-m", "evomerge", f"+experiment={experiment}"]
    parts += [f"seed={seed}"] if seed else []
    return [" ".join(shlex.quote(part) for part in parts)]


def _compared_with(results: Json, task: str) -> str:
    """The model that the chosen merge was compared with on a task."""
    own = mapping(mapping(results.get("paired_tests")).get(task))
    if not own and task in (results.get("objective"), None):
        own = mapping(results.get("paired_test"))
    return str(own.get("against", ""))


def _export(run: RunFiles, results: Json, records: list[CandidateRecord]) -> str:
    """The command that writes the chosen merge as a checkpoint; empty while none is chosen."""
    best = mapping(mapping(results.get("models")).get(str(results.get("best"))))
    record = find_best(records, str(best.get("digest") or "")) if results else None
    if not results or run.folder is None:
        return ""
    which = "best" if record is None else str(record.id)
    return f"python -m evomerge export {shlex.quote(str(run.folder))} {which} OUT"


def _coefficients(
    run: RunFiles, records: list[CandidateRecord]
) -> tuple[list[Grid], list[tuple[str, str]], str]:
    """The grids of the chosen merge, or of the best candidate while none is chosen."""
    results = run.results or {}
    best = mapping(mapping(results.get("models")).get(str(results.get("best"))))
    space = run.dimensions
    if results:
        record = find_best(records, str(best.get("digest") or "unknown"))
        if record is not None:
            what = f"the chosen merge (candidate {record.id})"
            return *read_genome(space, record.genome), what
        recipe = _recipe(run.recipe)
        what = "the chosen merge"
        if _is_mean(run.events, best.get("digest")):
            what += " (no candidate: the optimiser's mean at the end of the search)"
        return *read_genome(space, genome_of(space, recipe) if recipe else ()), what
    record = find_best(records)
    if record is None:
        return [], [], ""
    what = f"the candidate with the best search fitness so far (candidate {record.id})"
    return *read_genome(space, record.genome), what


def _is_mean(events: list[Json], digest: object) -> bool:
    """Whether a finalist with this digest was the mean of an optimiser's distribution."""
    return any(
        e.get("role") == "finalist"
        and e.get("digest") == digest
        and str(e.get("name")).endswith(" mean")
        for e in events
    )


def _recipe(text: str) -> Recipe | None:
    """The recipe of a YAML text; None if it is not one that this package wrote."""
    import yaml

    try:
        return Recipe.from_dict(yaml.safe_load(text))
    except (yaml.YAMLError, RecipeError):
        return None


def _measures(events: list[Json]) -> list[tuple[str, str, str, str, str, str]]:
    """Name, role, task, split, score and items of every measurement that succeeded."""
    rows = []
    for event in events:
        if event.get("event") != "measure":
            continue
        name, role = str(event.get("name", "")), str(event.get("role", ""))
        for task, splits in mapping(event.get("scores")).items():
            for split, score in mapping(splits).items():
                parts = mapping(score)
                value, items = number(parts.get("score")), count(parts.get("items"))
                rows.append((name, role, task, split, percent(value), whole(items)))
    return rows
