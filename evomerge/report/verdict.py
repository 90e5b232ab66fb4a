"""What a study found, in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.report.candidates import FAILED, OK, CandidateRecord, best_so_far
from evomerge.report.front_verdict import constraint_sentences, front_verdict
from evomerge.report.numbers import interval, p_value, percent, points, points_interval, whole
from evomerge.report.objectives import read_constraints, read_objectives
from evomerge.report.reading import Json, mapping, number
from evomerge.report.rows import Row, task_names, task_rows
from evomerge.report.words import listed

SIGNIFICANCE = 0.05
"""The p-value from which on a difference is called not significant."""


@dataclass(frozen=True)
class Verdict:
    """The top of a report.

    Attributes:
        kind: `better`, `unclear`, `worse`, `untested` or `running`; picks the badge.
        badge: the same in a few words.
        headline: one sentence with the main figure.
        sentences: what qualifies it.
    """

    kind: str
    badge: str
    headline: str
    sentences: tuple[str, ...] = ()


def verdict(results: Json) -> Verdict:
    """Judges a finished study from its `results.json`."""
    objectives = read_objectives(results, {})
    if len(objectives) > 1 or any(o.metric != "score" or o.minimised for o in objectives):
        return Verdict(*front_verdict(results, objectives))
    name = str(results.get("best", ""))
    tables = {task: task_rows(results, task) for task in task_names(results)}
    objective = next(iter(tables.values()), [])
    chosen = [row for rows in tables.values() for row in rows if row.chosen]
    measured = [row for row in chosen if row.test.value is not None]
    kind, badge, comparison = _comparison(results, objective)
    if measured:
        headline = f"The chosen merge, “{name}”, scores {_held_out(measured[0])}."
    else:
        headline = f"The chosen merge, “{name}”, has no held-out score."
    sentences = [comparison, *(_optimism(row) for row in measured if row.optimism is not None)]
    if (sentence := _beaten(objective)) is not None:
        sentences.append(sentence)
    sentences += constraint_sentences(read_constraints(results, {}))
    if measured[1:]:
        others = listed([f"{percent(row.test.value)} on {row.task}" for row in measured[1:]])
        sentences.append(f"On tasks that the search did not use, it scores {others}.")
    return Verdict(kind, badge, headline, tuple(sentences))


def progress(records: Sequence[CandidateRecord], ended: bool) -> Verdict:
    """Says how far a study without results is; claims nothing about the merge."""
    done = sum(r.status in (OK, FAILED) for r in records)
    failed = sum(r.status == FAILED for r in records)
    steps = best_so_far(records)
    best = f" The best search score so far is {percent(steps[-1][1])}." if steps else ""
    return Verdict(
        "running",
        "No held-out result" if ended else "Search not finished",
        f"{whole(done)} of {whole(len(records))} proposed candidates have been evaluated, "
        f"{whole(failed)} of them failed.{best}",
        (
            "There is no results.json yet, so nothing has been measured for the result table: "
            "this page shows only what the journal holds. Search scores choose a merge; they "
            "do not prove it, because the merge was picked for scoring well on those items.",
        ),
    )


def _held_out(row: Row) -> str:
    score = row.test
    return (
        f"{percent(score.value)} {interval(score.low, score.high)} (95% interval) on "
        f"the held-out test split of {row.task} ({whole(score.items)} items)"
    )


def _comparison(results: Json, rows: Sequence[Row]) -> tuple[str, str, str]:
    paired = mapping(results.get("paired_test"))
    difference, p = number(paired.get("difference")), number(paired.get("p"))
    low, high = number(paired.get("low")), number(paired.get("high"))
    if difference is None:
        missing = "It was not compared with another model on the same items: no claim is made."
        return "untested", "Not compared", missing
    other = _described(str(paired.get("against", "another model")), rows)
    figures = f"{points_interval(low, high)}, {p_value(p)}"
    if low is None or high is None or p is None:
        clear = False
    else:
        clear = p < SIGNIFICANCE and (low > 0 or high < 0)
    if not clear:
        return (
            "unclear",
            "No significant difference",
            f"Its difference to {other} is {points(difference)} {figures}. That is not "
            "significant: this study does not show that the merge is better or worse.",
        )
    if difference > 0:
        text = f"That is {points(difference, sign=False)} above {other} ({figures})."
        return "better", "Better, significantly", text
    text = f"That is {points(difference, sign=False)} below {other} ({figures}): merging did harm."
    return "worse", "Worse, significantly", text


def _described(name: str, rows: Sequence[Row]) -> str:
    role = next((row.role for row in rows if row.name == name), "model")
    leads = next((row.name for row in rows if row.role == "source"), None) == name
    return f"the {'best ' if leads else ''}{role} “{name}”"


def _optimism(row: Row) -> str:
    gap = row.optimism or 0.0
    where = f"Its search score on {row.task} was {percent(row.search.value)}"
    if abs(gap) < 0.0005:
        return f"{where}, the same as the held-out score: no sign of optimism."
    if gap > 0:
        return (
            f"{where}, {points(gap, sign=False)} above the held-out score: the optimism gap, "
            "expected because the search chose the merge on those items."
        )
    return f"{where}, {points(gap, sign=False)} below the held-out score: no sign of optimism."


def _beaten(rows: Sequence[Row]) -> str | None:
    chosen = next((r.test.value for r in rows if r.chosen), None)
    if chosen is None:
        return None
    above = [r for r in rows if r.test.value is not None and r.test.value > chosen]
    if not above:
        return None
    names = listed([f"“{r.name}” ({percent(r.test.value)})" for r in above])
    return f"Held-out scores above that of the chosen merge: {names}."
