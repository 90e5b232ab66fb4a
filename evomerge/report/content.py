"""Everything that the page says, prepared from a run's files; no HTML here."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from evomerge.report import figures
from evomerge.report.candidates import (
    FAILED,
    PENDING,
    CandidateRecord,
    best_so_far,
    candidate_records,
    failure_counts,
    find_best,
    thin,
)
from evomerge.report.coefficients import Grid, read_genome
from evomerge.report.numbers import duration, percent, whole
from evomerge.report.reading import Json, RunFiles, count, mapping, number
from evomerge.report.rows import Row, task_names, task_rows
from evomerge.report.verdict import Verdict, progress, verdict

CHART_POINTS = 3000
"""The most candidates that the chart draws; more would only make the page heavy."""

STEP_ROWS = 100
"""The most improvements that the table under the chart lists, the latest ones."""


@dataclass(frozen=True)
class History:
    """The search: counts, improvements and failures of its candidates."""

    records: list[CandidateRecord]
    steps: list[tuple[int, float]]
    failures: list[tuple[str, int]]
    drawn: int

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
    skipped: int
    charts: dict[str, Any]


def prepare(run: RunFiles) -> Content:
    """Everything that the page of `run` says."""
    results = run.results or {}
    study, records = run.study, candidate_records(run.events)
    steps = best_so_far(records)
    drawn = thin(records, CHART_POINTS)
    history = History(records, steps, failure_counts(records), len(drawn))
    tables = [(task, task_rows(results, task)) for task in task_names(results)]
    grids, others, genome_of = _coefficients(results, study, records)
    against = str(mapping(results.get("paired_test")).get("against", ""))
    charts: dict[str, Any] = {
        f"scores-{place}": figures.score_chart(rows, against)
        for place, (_, rows) in enumerate(tables, 1)
        if any(row.test.value is not None for row in rows)
    }
    if history.scored or history.failed:
        charts["history"] = figures.history_chart(drawn, steps)
    charts |= {f"grid-{place}": figures.heat_map(grid) for place, grid in enumerate(grids, 1)}
    experiment = str(results.get("experiment") or study.get("experiment") or "study")
    seed = _seed(results, study)
    return Content(
        experiment=experiment,
        seed=seed,
        started=_moment(study.get("time")),
        verdict=verdict(results) if run.results else progress(records, run.ended),
        tables=tables,
        measures=[] if run.results else _measures(run.events),
        history=history,
        grids=grids,
        others=others,
        genome_of=genome_of,
        facts=_facts(results, study, tables),
        versions=_pairs(results.get("versions") or study.get("versions")),
        commands=commands(experiment, seed),
        recipe=run.recipe,
        config=run.config,
        skipped=run.skipped,
        charts=charts,
    )


def commands(experiment: str, seed: str) -> list[str]:
    """The command that runs a study again, quoted for a POSIX shell."""
    parts = ["evomerge", "run", f"+experiment={experiment}", *([f"seed={seed}"] if seed else [])]
    return [" ".join(shlex.quote(part) for part in parts)]


def _coefficients(
    results: Json, study: Json, records: list[CandidateRecord]
) -> tuple[list[Grid], list[tuple[str, str]], str]:
    best = mapping(mapping(results.get("models")).get(str(results.get("best"))))
    record = find_best(records, str(best.get("digest") or "-")) if results else None
    what = "the chosen merge"
    if record is None:
        record, what = find_best(records), "the candidate with the best search fitness so far"
    if record is None:
        return [], [], ""
    dimensions = mapping(study.get("space")).get("dimensions")
    grids, others = read_genome(dimensions if isinstance(dimensions, list) else [], record.genome)
    return grids, others, f"{what} (candidate {record.id})"


def _measures(events: list[Json]) -> list[tuple[str, str, str, str, str, str]]:
    rows = []
    for event in events:
        if event.get("event") != "measure":
            continue
        for task, score in mapping(event.get("scores")).items():
            parts = mapping(score)
            value, items = number(parts.get("score")), count(parts.get("items"))
            texts = [str(event.get(key, "")) for key in ("name", "role", "split")]
            rows.append((texts[0], texts[1], texts[2], task, percent(value), whole(items)))
    return rows


def _facts(
    results: Json, study: Json, tables: list[tuple[str, list[Row]]]
) -> list[tuple[str, str]]:
    cost = mapping(results.get("cost"))
    space = mapping(study.get("space"))
    dimensions = space.get("dimensions")
    overhead = number(cost.get("overhead_ms_per_candidate"))
    tests = [(task, row.test.items) for task, rows in tables for row in rows if row.chosen]
    searched = [(task, row.search.items) for task, rows in tables for row in rows if row.chosen]
    facts = [
        ("Candidates evaluated", whole(count(cost.get("candidates")))),
        ("of them failed", whole(count(cost.get("failed")))),
        ("Item evaluations", whole(count(cost.get("item_evaluations")))),
        ("Wall-clock time", duration(number(cost.get("seconds")))),
        ("Overhead a candidate", f"{overhead:.1f} ms" if overhead is not None else ""),
        ("Search space", str(space.get("name", ""))),
        ("Dimensions", whole(len(dimensions)) if isinstance(dimensions, list) else ""),
        ("Search split", _items(searched)),
        ("Held-out test split", _items(tests)),
    ]
    return [(name, value) for name, value in facts if value.strip() and value != whole(None)]


def _items(sizes: list[tuple[str, int | None]]) -> str:
    return "; ".join(f"{task}: {whole(n)} items" for task, n in sizes if n is not None)


def _pairs(value: object) -> list[tuple[str, str]]:
    return [(name, str(text)) for name, text in sorted(mapping(value).items())]


def _seed(results: Json, study: Json) -> str:
    seed = results.get("seed", study.get("seed"))
    return "" if seed is None else str(seed)


def _moment(value: object) -> str:
    seconds = number(value)
    if seconds is None:
        return str(value or "")
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return ""
