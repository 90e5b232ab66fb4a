"""A study: the search, its proof on held-out items, and what it leaves on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import yaml

from evomerge.answering import answering_executor
from evomerge.build import load_target
from evomerge.controls import CONTROLS, RANDOM_SEARCH, controls
from evomerge.domain import Domain
from evomerge.durable import write_atomic
from evomerge.errors import EvomergeError, JournalError
from evomerge.evaluation import LazyExecutor, Measurer, Splits, Subject
from evomerge.fisher import fisher_distance, gold_pairs
from evomerge.identity import matter, task_digests
from evomerge.journal import SCHEMA, Journal, locked
from evomerge.objectives import Goals, measure
from evomerge.optimizers.base import Optimizer
from evomerge.progress import Progress
from evomerge.proof import Proof, prove
from evomerge.questions import write_questions
from evomerge.report import write_report
from evomerge.results import write_study
from evomerge.search import Search
from evomerge.setup import (
    Items,
    Setup,
    make_optimizer,
    model_identities,
    optimizer_name,
    search_requests,
    source_recipes,
)
from evomerge.soups import SoupSpace
from evomerge.space import SearchSpace
from evomerge.trackers.choice import make_trackers
from evomerge.trackers.feed import Feed
from evomerge.trackers.story import Story
from evomerge.trials import Limits
from evomerge.types import FloatArray
from evomerge.versions import versions

_FISHER_ITEMS = 32
_LARGEST = 4 << 30  # bytes of a base whose Fisher information is worth its memory


def run_study(setup: Setup, progress: Progress) -> dict[str, Any]:
    """Runs a study from start to end, or continues one that was interrupted.

    Leaves `best/`, `results.json`, `report.html` and, in `report/`, its figures and tables in the
    run directory.

    Returns:
        The results, as in `results.json`.

    Raises:
        JournalError: if the run directory belongs to another config or process.
        EngineError: if no engine can start.
        EvomergeError: if nothing could be evaluated or the disk fails.
    """
    story = Story(setup.run_dir, setup.config)
    feed = Feed(make_trackers(setup.config), story, progress.say)
    with locked(setup.run_dir), contextlib.closing(feed):
        journal = Journal(setup.run_dir)
        executor = LazyExecutor(lambda: answering_executor(setup, progress.say, progress))
        journal.listeners.append(progress.hear)
        try:
            progress.start("starting the engines", 0, None)
            _begin(setup, journal, executor, progress)
            progress.stop()
            feed.hear_all(journal.events)
            journal.listeners.append(feed.hear)
            proof = _run(setup, journal, executor, progress)
        finally:
            executor.close()
        progress.start("writing the merge and the report", 0, None)
        results = write_study(setup, proof)
        write_report(setup.run_dir, files=True)
        best = results["models"][results["best"]]["digest"]
        if journal.events[-1].get("best") != best:
            journal.append("end", best=best)
        progress.stop()
        return results


def _run(setup: Setup, journal: Journal, executor: LazyExecutor, progress: Progress) -> Proof:
    identities = model_identities(setup)
    measurer = Measurer(journal, executor, identities, task_digests(setup))
    setup = _informed(setup, measurer, progress)
    goals = _bounded(setup, measurer, progress)
    begin = _Begin(setup, goals, journal, executor, identities, progress)
    search = begin.search()
    search.run(progress)
    searches = [search]
    for name in controls(setup.config):
        control = begin.control(name, search)
        control.run(progress)
        searches.append(control)
    return prove(setup, searches, measurer, identities, progress)


def _informed(setup: Setup, measurer: Measurer, progress: Progress) -> Setup:
    """The study with plans that know the sources' complete answers, where estimates use them."""
    if not setup.estimator.needs_sources:
        return setup
    items = {task.name: None for task in setup.search_tasks}
    splits = _of_sources(setup, measurer, progress, "sources, for the estimator", items)
    if not splits:
        raise EvomergeError(
            "no source could be evaluated, and the estimator needs their answers; the journal "
            "holds the reason"
        )
    return setup.informed({name: list(parts.values()) for name, parts in splits.items()})


def _of_sources(
    setup: Setup, measurer: Measurer, progress: Progress, label: str, items: Items
) -> dict[str, Splits]:
    """What the sources answer to search items."""
    recipes = source_recipes(setup.config)
    subjects = [Subject(name, "source", recipe) for name, recipe in recipes.items()]
    return measurer.shown(subjects, search_requests(setup, items), progress, label)


def _bounded(setup: Setup, measurer: Measurer, progress: Progress) -> Goals:
    """The goals with numbers for bounds that name a model, measured on the search items."""
    goals = setup.goals
    if not goals.models():
        return goals
    items = setup.common_items()
    splits = _of_sources(setup, measurer, progress, "sources, for the constraints", items)
    if not goals.can_bound(splits):
        recipes = source_recipes(setup.config)
        missing = [name for name in recipes if name not in splits]
        raise EvomergeError(
            f"{missing[0]} could not be evaluated, and a constraint refers to it; the journal "
            "holds the reason"
        )
    values = {name: measure(list(parts.values())).values for name, parts in splits.items()}
    bounded = goals.bounded(values)
    for constraint in bounded.constraints:
        sense = constraint.sense.replace("_", " ")
        progress.say(f"constraint {constraint.name}: {sense} {constraint.bound:.4g}")
    return bounded


@dataclass(frozen=True)
class _Begin:
    """Sets up the study's own search and its controls."""

    setup: Setup
    goals: Goals
    journal: Journal
    executor: LazyExecutor
    identities: Mapping[str, str]
    progress: Progress

    def search(self) -> Search:
        """The study's own search."""
        setup = self.setup
        node = setup.config["optimizer"]
        domain = setup.domain
        if getattr(load_target(node, "optimizer"), "uses_distance", False):
            domain = replace(domain, distance=self._distance())
        optimizer = make_optimizer(setup, node, "optimizer", domain)
        if setup.start.observations:
            if not optimizer.learns():
                self.progress.say(
                    f"note: {optimizer_name(setup.config)} does not learn from another study; "
                    "only the mean and the anchors of warm_start count"
                )
            optimizer.learn(setup.start.observations)
        budget, stop = setup.config["budget"], setup.config["stop"]
        hours = budget["hours"]
        limits = Limits(
            budget["candidates"], budget["item_evaluations"],
            None if hours is None else hours * 3600, stop["score"], stop["patience"],
        )  # fmt: skip
        return self._search("search", setup.space, optimizer, limits)

    def _distance(self) -> Callable[[FloatArray], float] | None:
        """Fisher-weighted distance from the base, where the space has one and the base is small.

        The base is held three times in float32 in this process.
        """
        setup = self.setup
        base = setup.merger.checkpoint(setup.config["models"]["base"])
        if base.bytes() > _LARGEST:
            return None
        pairs = [pair for task in setup.search_tasks for pair in gold_pairs(task, _FISHER_ITEMS)]
        cache = self.journal.run_dir / "fisher.json"
        return fisher_distance(setup.space, setup.merger, pairs, len(pairs), cache)

    def control(self, name: str, equal_to: Search) -> Search:
        """A control with at most the candidates that another search used."""
        setup = self.setup
        space: SearchSpace = setup.space
        domain = Domain(
            space.dimensions, self.goals.count, len(self.goals.constraints),
            seeds=getattr(space, "seeds", 0),
        )  # fmt: skip
        if name == RANDOM_SEARCH:
            space = space.fresh() if hasattr(space, "fresh") else space
        else:
            models = setup.config["models"]
            space = SoupSpace(models["base"], models["sources"], setup.config["dtype"])
            domain = replace(domain, dimensions=space.dimensions, seeds=0)
        node = {"_target_": CONTROLS[name]}
        optimizer = make_optimizer(setup, node, name, domain)
        return self._search(name, space, optimizer, Limits(equal_to.cost.candidates))

    def _search(
        self, name: str, space: SearchSpace, optimizer: Optimizer, limits: Limits
    ) -> Search:
        return Search(
            name, self.setup, space, self.goals, optimizer, self.journal, self.executor,
            self.identities, limits,
        )  # fmt: skip


def _begin(setup: Setup, journal: Journal, executor: LazyExecutor, progress: Progress) -> None:
    """Writes the first event, or checks that the journal belongs to this config."""
    now = matter(setup)
    results = sum(e["event"] in ("result", "measure") for e in journal.events)
    if results:
        _refuse_changes(journal, now)
        before = journal.events[0]["versions"]
        for name, version in versions().items():
            if before.get(name) != version:
                progress.say(f"note: {name} was {before.get(name)}, is {version}")
        progress.say(f"resuming {journal.run_dir}: {results} results are there already")
    config = yaml.safe_dump(dict(setup.config), sort_keys=False, allow_unicode=True)
    write_atomic(journal.run_dir / "config.yaml", config)
    write_questions(journal.run_dir, setup.tasks)
    if results:
        return
    journal.clear()  # a study that never had a result may begin with another config
    executor.get()  # engines that cannot start leave no journal behind
    journal.append(
        "study",
        schema=SCHEMA,
        experiment=setup.config["experiment"],
        seed=setup.seed,
        matter=now,
        space={
            "name": setup.config["space"].get("method") or type(setup.space).__name__,
            "dimensions": [
                {"name": d.name, "low": d.low, "high": d.high, "kind": d.kind}
                | ({"choices": list(d.choices)} if d.choices else {})
                for d in setup.space.dimensions
            ],
        },
        tasks=[t.name for t in setup.tasks],
        optimizer=optimizer_name(setup.config),
        objectives=[asdict(o) for o in setup.goals.objectives],
        scalarize=setup.goals.scalarize,
        constraints=[asdict(c) for c in setup.goals.constraints],
        identities={
            name: setup.merger.checkpoint(ref).fingerprint
            for name, ref in {
                "base": setup.config["models"]["base"], **setup.config["models"]["sources"]
            }.items()
        },
        versions=versions(),
    )  # fmt: skip


def _refuse_changes(journal: Journal, now: Mapping[str, Any]) -> None:
    before = journal.events[0]["matter"]
    changed = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    if changed:
        lines = "\n".join(f"  {k}: {before.get(k)!r} -> {now.get(k)!r}" for k in changed)
        raise JournalError.of(
            f"run_dir={journal.run_dir}", f"a study with another config:\n{lines}\n",
            "the config that the study began with",
            "Undo the change, or give this study another run_dir.",
        )  # fmt: skip
