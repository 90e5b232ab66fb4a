"""The proof: finalists on validation items, then winner, sources and controls on test items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evomerge.errors import EvomergeError
from evomerge.evaluation import Measurer, Splits, Subject
from evomerge.executors.worker import Request
from evomerge.finalists import Finalist, choose
from evomerge.pareto import spread
from evomerge.progress import Progress
from evomerge.search import Search
from evomerge.setup import Setup, control_recipes, search_requests, source_recipes
from evomerge.trials import Trial, front

BEST = "best merge"


@dataclass(frozen=True)
class Front:
    """Candidates of a front, measured on test items.

    Attributes:
        trials: by candidate number.
        splits: item scores by candidate number; of those that could be measured.
        budgets: number of candidates to the front after so many.
    """

    trials: Mapping[int, Trial]
    splits: Mapping[int, Splits]
    budgets: Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Proof:
    """Everything that the results are made of.

    Attributes:
        subjects: best merge, sources and controls that could be measured, by name.
        splits: item scores of each, by its name and then (task, split).
        digests: recipe digest of each.
        searches: the study's own search first.
        winner: the chosen finalist.
        item_evaluations: used for the proof in this run.
        failed: sources and controls that could not be measured.
        front: None with one objective.
    """

    subjects: Mapping[str, Subject]
    splits: Mapping[str, Splits]
    digests: Mapping[str, str]
    searches: Sequence[Search]
    winner: Finalist
    item_evaluations: int
    failed: Sequence[str] = field(default_factory=tuple)
    front: Front | None = None

    @property
    def best(self) -> Subject:
        """The winner."""
        return self.subjects[BEST]


def prove(
    setup: Setup,
    searches: Sequence[Search],
    measurer: Measurer,
    identities: Mapping[str, str],
    progress: Progress,
) -> Proof:
    """Chooses the winner of each search and measures everything on search and test items.

    Only here are test items evaluated.

    Raises:
        EvomergeError: if no candidate succeeded, or neither the winner nor any source can be
            evaluated.
    """

    def measure_all(
        subjects: Sequence[Subject], requests: Sequence[Request], label: str
    ) -> dict[str, Splits]:
        return measurer.shown(subjects, requests, progress, label)

    main = searches[0]
    winner = choose(main, measure_all)
    if winner is None:
        reasons = sorted({e["reason"] for e in main.journal.events if e.get("reason")})
        raise EvomergeError(
            f"all {main.cost.candidates} candidates failed; the reasons: {reasons[:3]}"
        )
    subjects = [Subject(BEST, "merge", winner.recipe)]
    for search in searches[1:]:
        chosen = choose(search, measure_all)
        if chosen is not None:
            subjects.append(Subject(search.name, "control", chosen.recipe))
    sources = source_recipes(setup.config)
    subjects += [Subject(name, "source", recipe) for name, recipe in sources.items()]
    controls = control_recipes(setup.config)
    subjects += [Subject(name, "control", recipe) for name, recipe in controls.items()]
    requests = [*search_requests(setup, setup.common_items()), *_test_requests(setup, setup.tasks)]
    splits = measure_all(subjects, requests, "proof on held-out items")
    for subject in subjects:
        if subject.name not in splits:
            reason = _reason(main, subject.name)
            progress.say(f"{subject.name} could not be evaluated and is left out: {reason}")
    if BEST not in splits:
        raise EvomergeError(f"{BEST} could not be evaluated: {_reason(main, BEST)}")
    if not any(name in splits for name in sources):
        raise EvomergeError("no source could be evaluated; the journal holds the reasons")
    found = None
    if main.goals.pareto:
        trials, budgets = fronts(main, winner.digest)
        points = [Subject(f"candidate {i}", "front", t.recipe) for i, t in trials.items()]
        tests = _test_requests(setup, setup.search_tasks)
        measured = measure_all(points, tests, "the front on held-out items")
        numbered = {i: measured[f"candidate {i}"] for i in trials if f"candidate {i}" in measured}
        found = Front(trials, numbered, budgets)
    return Proof(
        subjects={s.name: s for s in subjects if s.name in splits},
        splits=splits,
        digests={s.name: s.recipe.digest(identities) for s in subjects},
        searches=tuple(searches),
        winner=winner,
        item_evaluations=measurer.item_evaluations,
        failed=tuple(s.name for s in subjects if s.name not in splits),
        front=found,
    )


def fronts(search: Search, chosen: str) -> tuple[dict[int, Trial], dict[int, list[int]]]:
    """The fronts after each budget and at the end: trials by number, numbers by budget.

    Large fronts are thinned out to the configured size; the chosen digest stays.
    """
    node = search.setup.config["front"]
    done = len(search.trials)
    trials: dict[int, Trial] = {}
    budgets: dict[int, list[int]] = {}
    for budget in sorted({*(b for b in node["budgets"] if b < done), done}):
        found = front(search.trials[:budget])
        values = np.array([t.fitness.values for t in found if t.fitness is not None])
        kept = [found[int(i)] for i in spread(values, node["size"])]
        kept += [t for t in found if t.digest == chosen and t not in kept]
        trials |= {t.id: t for t in kept}
        budgets[budget] = [t.id for t in kept]
    return trials, budgets


def _test_requests(setup: Setup, tasks: Sequence[object]) -> list[Request]:
    return [
        Request(task.name, "test", loglik=setup.goals.wants_loglik(task.name))
        for task in setup.tasks
        if task in tasks
    ]


def _reason(search: Search, name: str) -> str:
    events = search.journal.events
    reasons = [e["reason"] for e in events if e.get("name") == name and e.get("reason")]
    return reasons[-1] if reasons else "no reason was recorded"
