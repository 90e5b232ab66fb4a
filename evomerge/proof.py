"""The proof: finalists on validation items, then winner, sources and controls on test items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evomerge.errors import EvomergeError
from evomerge.evaluation import Measurer, Splits, Subject
from evomerge.executors.worker import Request
from evomerge.progress import Progress
from evomerge.recipe import Recipe
from evomerge.search import Search, Trial
from evomerge.setup import Setup, control_recipes, source_recipes

BEST = "best merge"


@dataclass(frozen=True)
class Proof:
    """Everything that the results are made of.

    Attributes:
        subjects: best merge, sources and controls that could be measured, by name.
        splits: item scores of each, by its name and then (task, split).
        digests: recipe digest of each.
        searches: the study's own search first.
        item_evaluations: used for the proof in this run.
        failed: sources and controls that could not be measured.
    """

    subjects: Mapping[str, Subject]
    splits: Mapping[str, Splits]
    digests: Mapping[str, str]
    searches: Sequence[Search]
    item_evaluations: int
    failed: Sequence[str] = field(default_factory=tuple)

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
    subjects = []
    for i, search in enumerate(searches):
        recipe = _winner(setup, search, measurer, progress)
        if recipe is None and i == 0:
            reasons = sorted({e["reason"] for e in search.journal.events if e.get("reason")})
            raise EvomergeError(
                f"all {search.cost.candidates} candidates failed; the reasons: {reasons[:3]}"
            )
        if recipe is not None:
            role = ("merge", BEST) if i == 0 else ("control", search.name)
            subjects.append(Subject(role[1], role[0], recipe))
    sources = source_recipes(setup.config)
    subjects += [Subject(name, "source", recipe) for name, recipe in sources.items()]
    controls = control_recipes(setup.config)
    subjects += [Subject(name, "control", recipe) for name, recipe in controls.items()]
    requests = [Request(setup.task.name, "search", searches[0].indices(0))]
    requests += [Request(task.name, "test") for task in setup.tasks]
    splits = _measure(subjects, requests, measurer, progress, "proof on held-out items")
    for subject in subjects:
        if subject.name not in splits:
            reason = _reason(searches, subject.name)
            progress.say(f"{subject.name} could not be evaluated and is left out: {reason}")
    if BEST not in splits:
        raise EvomergeError(f"{BEST} could not be evaluated: {_reason(searches, BEST)}")
    if not any(name in splits for name in sources):
        raise EvomergeError("no source could be evaluated; the journal holds the reasons")
    return Proof(
        subjects={s.name: s for s in subjects if s.name in splits},
        splits=splits,
        digests={s.name: s.recipe.digest(identities) for s in subjects},
        searches=tuple(searches),
        item_evaluations=measurer.item_evaluations,
        failed=tuple(s.name for s in subjects if s.name not in splits),
    )


def _winner(setup: Setup, search: Search, measurer: Measurer, progress: Progress) -> Recipe | None:
    """The finalist that is fittest on validation items; a search item may have been lucky."""
    trials = search.best(setup.config["finalists"])
    finalists = {f"{search.name} finalist {t.id}": t.recipe for t in trials}
    mean = search.optimizer.recommend()
    if mean is not None and trials:
        finalists[f"{search.name} finalist mean"] = setup.space.decode(mean)
    if not finalists:
        return None
    subjects = [Subject(name, "finalist", recipe) for name, recipe in finalists.items()]
    request = Request(setup.task.name, "validation", loglik=True)
    label = f"finalists of {search.name} on validation items"
    splits = _measure(subjects, [request], measurer, progress, label)
    values = {name: _value(setup, part) for name, part in splits.items()}
    if not values:
        return _first(trials)
    return finalists[max(values, key=lambda name: values[name])]


def _measure(
    subjects: Sequence[Subject],
    requests: Sequence[Request],
    measurer: Measurer,
    progress: Progress,
    label: str,
) -> dict[str, Splits]:
    progress.start(label, 0, len(subjects))
    try:
        return measurer.measure(
            subjects, requests, lambda done, total: progress.update(done, total, None, 0)
        )
    finally:
        progress.stop()


def _value(setup: Setup, splits: Splits) -> float:
    """Mean score, and the weighted mean log-likelihood if the task has one."""
    scores = splits[setup.task.name, "validation"]
    value = float(scores.scores.mean())
    if setup.task.loglik_weight:
        value += setup.task.loglik_weight * float(scores.logliks.mean())
    return value


def _first(trials: Sequence[Trial]) -> Recipe | None:
    return trials[0].recipe if trials else None


def _reason(searches: Sequence[Search], name: str) -> str:
    events = searches[0].journal.events
    reasons = [e["reason"] for e in events if e.get("name") == name and e.get("reason")]
    return reasons[-1] if reasons else "no reason was recorded"
