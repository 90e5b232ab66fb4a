"""The candidates of a journal: their scores, the best so far, and why some failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.report.reading import Json, count, mapping, number

OK, FAILED, PENDING = "ok", "failed", "pending"


@dataclass(frozen=True)
class CandidateRecord:
    """One candidate as the journal knows it.

    Attributes:
        id: its number in the study.
        search: the search that asked for it: the study's own, or that of a control.
        generation: the generation that it was asked in.
        status: `ok`, `failed`, or `pending` while there is no result.
        score: mean over the tasks of its plain score; None unless `ok`.
        items: number of items it was scored on, over all tasks.
        fitness: what the optimiser was told, one value an objective.
        reason: why it failed.
        digest: the digest of its recipe.
        genome: its genome, as journalled.
        values: what it has of each objective, in the objective's own unit.
        constraints: one value a constraint, satisfied at 0 or below.
        complete: whether it answered all items that a candidate may be asked.
    """

    id: int
    search: str = ""
    generation: int | None = None
    status: str = PENDING
    score: float | None = None
    items: int | None = None
    fitness: tuple[float, ...] = ()
    reason: str = ""
    digest: str = ""
    genome: tuple[Any, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    constraints: tuple[float, ...] = ()
    complete: bool = True

    @property
    def violation(self) -> float:
        """Sum of what the constraints exceed 0 by."""
        return sum(max(0.0, value) for value in self.constraints)

    @property
    def feasible(self) -> bool:
        """Whether it breaks no constraint."""
        return self.violation == 0.0


def candidate_records(events: Sequence[Json]) -> list[CandidateRecord]:
    """One record a candidate that was asked for or has a result, by id."""
    asked: dict[int, tuple[str, int | None, Json]] = {}
    results: dict[int, Json] = {}
    for event in events:
        if event.get("event") == "ask":
            for candidate in _objects(event.get("candidates")):
                if (key := count(candidate.get("id"))) is not None:
                    asked[key] = (
                        str(event.get("search", "")),
                        count(event.get("generation")),
                        candidate,
                    )
        elif event.get("event") == "result" and (key := count(event.get("id"))) is not None:
            results[key] = event
    return [
        _record(key, *asked.get(key, ("", None, {})), results.get(key, {}))
        for key in sorted(asked.keys() | results.keys())
    ]


def by_search(records: Sequence[CandidateRecord]) -> dict[str, list[CandidateRecord]]:
    """The records of each search; the study's own, which starts first, stands first.

    There is always a first one, empty if nothing was asked for yet.
    """
    searches: dict[str, list[CandidateRecord]] = {}
    for record in records:
        searches.setdefault(record.search, []).append(record)
    return searches or {"": []}


def best_so_far(records: Sequence[CandidateRecord]) -> list[tuple[int, float]]:
    """The steps of the best plain score: (id, score) of each candidate that raised it.

    Candidates that break a constraint or that a race stopped early raise nothing.
    """
    steps: list[tuple[int, float]] = []
    for record in records:
        if record.score is None or not record.feasible or not record.complete:
            continue
        if not steps or record.score > steps[-1][1]:
            steps.append((record.id, record.score))
    return steps


def best_stair(records: Sequence[CandidateRecord]) -> list[tuple[int, float]]:
    """The best plain score so far as a stair over the places 0, 1, ... in `records`.

    It ends at the last record, whatever that scored; empty if nothing has a score.
    """
    places = {record.id: place for place, record in enumerate(records)}
    stair = [(places[key], score) for key, score in best_so_far(records)]
    return [*stair, (len(records) - 1, stair[-1][1])] if stair else []


def failure_counts(records: Sequence[CandidateRecord], most: int = 20) -> list[tuple[str, int]]:
    """How many candidates failed for each reason, most frequent first.

    Reasons beyond the `most` most frequent are counted together, so the sum is kept.
    """
    reasons = Counter(record.reason for record in records if record.status == FAILED)
    ranked = reasons.most_common()
    if len(ranked) <= most:
        return ranked
    rest = ranked[most - 1 :]
    return [
        *ranked[: most - 1],
        (f"{len(rest)} rarer reasons", sum(number for _, number in rest)),
    ]


def thin(records: Sequence[CandidateRecord], most: int) -> list[CandidateRecord]:
    """About `most` records for a chart: every improvement, of the others an even choice.

    Scored and failed candidates are thinned apart, so that a rhythm in the failures cannot
    make them vanish.
    """
    if len(records) <= most:
        return list(records)
    kept = {key for key, _ in best_so_far(records)}
    step = -(-len(records) // most)
    for status in (OK, FAILED):
        kept |= {r.id for r in [r for r in records if r.status == status][::step]}
    return [r for r in records if r.id in kept]


def find_best(records: Sequence[CandidateRecord], digest: str = "") -> CandidateRecord | None:
    """The candidate with the recipe `digest`; without one, the best by fitness so far.

    With several objectives, which have no single best, the plain score decides. A candidate
    that keeps the constraints goes before all that break one.
    """
    if digest:
        return next((r for r in records if r.digest == digest and r.genome), None)
    scored = [r for r in records if r.status == OK and r.score is not None]
    return max(scored, key=_merit, default=None)


def _merit(record: CandidateRecord) -> tuple[float, bool, float]:
    value = record.fitness[0] if len(record.fitness) == 1 else record.score or 0.0
    return -record.violation, record.complete, value


def _objects(value: object) -> list[Json]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _record(
    key: int, search: str, generation: int | None, asked: Json, result: Json
) -> CandidateRecord:
    scores = [mapping(v) for v in mapping(result.get("scores")).values()]
    values = [v for s in scores if (v := number(s.get("score"))) is not None]
    items = [v for s in scores if (v := count(s.get("items"))) is not None]
    status = str(result.get("status", PENDING))
    genome, told = asked.get("genome"), result.get("fitness")
    fitness, constraints = _numbers(told), _numbers(result.get("constraints"))
    return CandidateRecord(
        id=key,
        search=str(result.get("search", search)),
        generation=generation,
        status=status,
        score=sum(values) / len(values) if values and status == OK else None,
        items=sum(items) if items else None,
        fitness=fitness,
        reason=" ".join(str(result.get("reason") or "no reason given").split())[:300]
        if status == FAILED
        else "",
        digest=str(asked.get("digest", "")),
        genome=tuple(genome) if isinstance(genome, list) else (),
        values=mapping(result.get("values")),
        constraints=constraints,
        complete=result.get("complete") is not False,
    )


def _numbers(value: object) -> tuple[float, ...]:
    found = map(number, value) if isinstance(value, list) else ()
    return tuple(one for one in found if one is not None)
