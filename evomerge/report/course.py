"""The search as a whole: its spread, what its score depends on, and where time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.report.candidates import OK, CandidateRecord
from evomerge.report.diversity import diversity, diversity_chart, matrix
from evomerge.report.importance import LEAST, SHOWN, Importance, importance, importance_chart
from evomerge.report.objectives import Objective, read_values
from evomerge.report.phases import (
    Phase,
    Use,
    phase_chart,
    phases,
    use_chart,
    use_of_workers,
)
from evomerge.report.provenance import gpu_hours, workers_of
from evomerge.report.reading import Json, RunFiles, mapping


@dataclass(frozen=True)
class Course:
    """What the page says of the search.

    Attributes:
        spread: the last spread of the genes, a share of that of random search; None if unknown.
        importances: by what is explained (an objective or the search score), the genes.
        used: how many candidates the importances are from.
        phases: where time, items and tokens went.
        use: how busy the workers were.
        gpu_hours: in words.
        tokens: generated in all; None if unknown.
        estimated: whether the tokens are partly an estimate.
        mated: whether candidates are matings, whose genes are numbers of their parents.
    """

    spread: float | None
    importances: dict[str, list[Importance]]
    used: int
    phases: list[Phase]
    use: Use
    gpu_hours: str
    tokens: float | None
    estimated: bool
    mated: bool = False

    @property
    def shown(self) -> dict[str, list[Importance]]:
        """The genes that are listed."""
        return {name: found[:SHOWN] for name, found in self.importances.items()}


def make_course(
    run: RunFiles,
    settings: Json,
    searches: Mapping[str, Sequence[CandidateRecord]],
    objectives: Sequence[Objective],
) -> tuple[Course, dict[str, Any]]:
    """The section and its charts."""
    dimensions = [mapping(d) for d in run.dimensions]
    names = [str(d.get("name", "")) for d in dimensions]
    mated = {"member", "first", "second"} <= set(names)
    parts, charts = phases(run), dict[str, Any]()
    spreads = {}
    own: tuple[Any, list[int]] | None = None
    for name, records in searches.items():
        genomes, places = matrix(records, dimensions)
        own = (genomes, places) if own is None else own
        if not mated and (spread := diversity(genomes)):
            spreads[name] = spread
    first = next(iter(searches), "")
    if spreads:
        charts["diversity"] = diversity_chart(spreads)
    importances: dict[str, list[Importance]] = {}
    used = 0
    if own is not None and not mated:
        importances, used = _importances(own, searches[first], dimensions, names, objectives)
    for at, found in enumerate(importances.values(), 1):
        if found:
            charts[f"importance-{at}"] = importance_chart(found)
    if any(phase.elapsed > 0 for phase in parts):
        charts["phases"] = phase_chart([p for p in parts if p.elapsed > 0])
    workers, gpus = workers_of(settings, run.study)
    use = use_of_workers(run, workers)
    if len(use.course) > 1 and use.busy > 0:
        charts["workers"] = use_chart(use)
    known = [phase.tokens for phase in parts if phase.tokens is not None]
    course = Course(
        spread=spreads[first][-1][1] if spreads.get(first) else None,
        importances=importances,
        used=used,
        phases=parts,
        use=use,
        gpu_hours=gpu_hours(use.busy, gpus),
        tokens=sum(known) if known else None,
        estimated=any(phase.estimated for phase in parts),
        mated=mated,
    )
    return course, charts


def _importances(
    own: tuple[Any, list[int]],
    records: Sequence[CandidateRecord],
    dimensions: Sequence[Json],
    names: Sequence[str],
    objectives: Sequence[Objective],
) -> tuple[dict[str, list[Importance]], int]:
    """By objective, or of the plain score where there is one objective."""
    genomes, places = own
    choices = [d.get("kind") == "choice" or bool(d.get("choices")) for d in dimensions]
    scored = [n for n, at in enumerate(places) if records[at].status == OK]
    kept = [n for n in scored if records[places[n]].complete]
    kept = scored if len(kept) < LEAST else kept  # a race stops most: their estimates say enough
    rows = [records[places[n]] for n in kept]
    found: dict[str, list[Importance]] = {}
    used = 0
    for objective in objectives if len(objectives) > 1 else (None,):
        label = "search score" if objective is None else objective.name
        values = [
            row.score if objective is None else (read_values([objective], row.values) or (None,))[0]
            for row in rows
        ]
        known = [at for at, value in enumerate(values) if value is not None]
        scores = np.array([values[at] for at in known], dtype=np.float64)
        used = max(used, len(known))
        if known:
            genes = genomes[[kept[at] for at in known]]
            found[label] = importance(names, genes, scores, choices)
    return found, used
