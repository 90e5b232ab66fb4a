"""The loop of one optimiser: ask, evaluate, record, tell; and its replay from a journal."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evomerge.errors import CandidateError, JournalError
from evomerge.evaluation import LazyExecutor, in_order, summary
from evomerge.executors.worker import Job, Outcome, Request
from evomerge.journal import Journal
from evomerge.optimizers.base import Optimizer
from evomerge.progress import Progress
from evomerge.recipe import Recipe
from evomerge.seeds import derive
from evomerge.setup import Setup
from evomerge.types import Fitness, FloatArray, Observation

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """A candidate with its result; `fitness` and `score` are None if it failed."""

    id: int
    genome: FloatArray
    recipe: Recipe
    digest: str
    fitness: Fitness | None
    score: float | None

    @property
    def value(self) -> float:
        """The fitness to rank by; minus infinity if it failed."""
        return self.fitness.values[0] if self.fitness else float("-inf")


@dataclass
class Cost:
    """What a search has used so far; times in seconds."""

    candidates: int = 0
    failed: int = 0
    item_evaluations: int = 0
    seconds: float = 0.0
    overhead: float = 0.0


@dataclass(frozen=True)
class Limits:
    """When a search ends; None means never for that reason."""

    candidates: int | None = None
    item_evaluations: int | None = None
    seconds: float | None = None
    score: float | None = None
    patience: int | None = None


@dataclass
class Search:
    """Runs one optimiser within limits, continuing from what the journal holds.

    Attributes:
        name: marks this search's events in the journal.
        trials: all candidates so far, in order.
        cost: what they took.
    """

    name: str
    setup: Setup
    optimizer: Optimizer
    journal: Journal
    executor: LazyExecutor
    identities: Mapping[str, str]
    limits: Limits
    trials: list[Trial] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    _generation: int = 0
    _bests: list[float] = field(default_factory=list)
    _best: Trial | None = None
    _busy: float = 0.0

    def run(self, progress: Progress) -> None:
        """Replays the journal, then searches until a limit is reached."""
        pending = self._replay()
        total = self._total()
        if pending is not None or not (self._finished() or total == self.cost.candidates):
            self.executor.get()  # engines start before the clock does
        progress.start(self.name, self.cost.candidates, total)
        try:
            while True:
                if pending is None:
                    if self._finished():
                        break
                    pending = self._ask()
                    if pending is None:
                        break
                self._evaluate(pending, progress, total)
                pending = None
        finally:
            progress.stop()

    def best(self, count: int) -> list[Trial]:
        """The fittest distinct trials, best first; earlier ones first among equals."""
        found: dict[str, Trial] = {}
        for trial in sorted(self.trials, key=lambda t: -t.value):
            if trial.fitness:
                found.setdefault(trial.digest, trial)
        return list(found.values())[:count]

    def indices(self, generation: int) -> tuple[int, ...] | None:
        """The search items that a generation answers; None stands for all."""
        count = len(self.setup.task.items("search"))
        chosen = self.setup.estimator.choose(count, generation, derive(self.setup.seed, "items"))
        return None if len(chosen) == count else tuple(int(i) for i in chosen)

    # -- one generation -------------------------------------------------------------------

    def _ask(self) -> dict[str, Any] | None:
        begin = time.perf_counter()
        indices = self.indices(self._generation)
        n = min(self.optimizer.batch, self._allowed(self._item_count(indices)))
        if n < 1:
            return None
        first = _next_id(self.journal)
        candidates = []
        for i, genome in enumerate(self.optimizer.ask(n)):
            digest = self.setup.space.decode(genome).digest(self.identities)
            candidates.append({"id": first + i, "genome": genome.tolist(), "digest": digest})
        event = self.journal.append(
            "ask",
            search=self.name,
            generation=self._generation,
            items=None if indices is None else list(indices),
            candidates=candidates,
        )
        self._busy += time.perf_counter() - begin
        return event

    def _evaluate(self, ask: Mapping[str, Any], progress: Progress, total: int | None) -> None:
        """Evaluates what a generation still lacks, then tells the optimiser."""
        have = {t.id for t in self.trials}
        missing = [c for c in ask["candidates"] if c["id"] not in have]
        items = ask["items"]
        indices = None if items is None else tuple(items)
        request = Request(self.setup.task.name, "search", indices, loglik=True)
        recipes = {c["id"]: self.setup.space.decode(np.array(c["genome"])) for c in missing}
        jobs = [Job(c["id"], recipes[c["id"]].to_dict(), (request,)) for c in missing]
        if jobs:
            outcomes = in_order(self.executor.get(), jobs)
            arrived = time.perf_counter()
            for candidate in missing:
                outcome = next(outcomes)
                previous, arrived = arrived, time.perf_counter()
                result = self._record(candidate, outcome, arrived - previous)
                self._add_trial(candidate, recipes[candidate["id"]], result)
                best = self._best.score if self._best else None
                progress.update(self.cost.candidates, total, best, self.cost.failed)
                self._busy += time.perf_counter() - arrived
        begin = time.perf_counter()
        self._tell([c["id"] for c in ask["candidates"]])
        self._busy += time.perf_counter() - begin

    def _record(
        self, candidate: Mapping[str, Any], outcome: Outcome, elapsed: float
    ) -> dict[str, Any]:
        data: dict[str, Any] = {"search": self.name, "id": candidate["id"]}
        outside = outcome.roundtrip_seconds - outcome.merge_seconds - outcome.answer_seconds
        times = {
            "merge": round(outcome.merge_seconds, 4),
            "answer": round(outcome.answer_seconds, 4),
            "elapsed": round(elapsed, 4),
            "overhead": round(max(0.0, outside) + self._busy, 5),
        }
        self._busy = 0.0
        fitness, reason = None, outcome.reason
        if outcome.scores is not None:
            try:
                fitness = self.setup.estimator.estimate(
                    outcome.scores, [self.setup.task.loglik_weight]
                )
            except CandidateError as error:
                reason = str(error)
        if fitness is None or outcome.scores is None:
            return self.journal.append(
                "result", **data, status="failed", reason=reason, seconds=times
            )
        parts = summary(outcome.scores)
        return self.journal.append(
            "result",
            **data,
            status="ok",
            scores={task: by_split["search"] for task, by_split in parts.items()},
            fitness=list(fitness.values),
            stderr=list(fitness.stderr),
            file=self.journal.write_items(f"candidate-{candidate['id']:06d}", outcome.scores),
            seconds=times,
        )

    def _add_trial(
        self, candidate: Mapping[str, Any], recipe: Recipe, result: Mapping[str, Any]
    ) -> None:
        fitness = score = None
        if result["status"] == "ok":
            fitness = Fitness(tuple(result["fitness"]), tuple(result["stderr"]))
            mine = result["scores"][self.setup.task.name]
            score = mine["score"]
        else:
            self.cost.failed += 1
        # A failed candidate counts as if it had answered, or a budget in items never ends.
        self.cost.item_evaluations += self._item_count(self.indices(0))
        self.cost.candidates += 1
        self.cost.seconds += result["seconds"]["elapsed"]
        self.cost.overhead += result["seconds"]["overhead"]
        genome = np.array(candidate["genome"])
        trial = Trial(candidate["id"], genome, recipe, candidate["digest"], fitness, score)
        self.trials.append(trial)
        if self._best is None or trial.value > self._best.value:
            self._best = trial

    def _tell(self, ids: Sequence[int]) -> None:
        by_id = {t.id: t for t in self.trials}
        told = [by_id[i] for i in ids]
        self.optimizer.tell([Observation(t.genome, t.fitness) for t in told])
        self._bests.append(self._best.value if self._best else float("-inf"))
        self._generation += 1

    # -- resuming -------------------------------------------------------------------------

    def _replay(self) -> Mapping[str, Any] | None:
        """Feeds recorded generations to the optimiser; returns one that is not complete."""
        results = {
            e["id"]: e
            for e in self.journal.events
            if e["event"] == "result" and e["search"] == self.name
        }
        for event in self.journal.events:
            if event["event"] != "ask" or event["search"] != self.name:
                continue
            candidates = event["candidates"]
            genomes = [np.array(c["genome"], dtype=np.float64) for c in candidates]
            if not self.optimizer.replay(genomes):
                _LOG.warning(
                    "%s: generation %d is not proposed to the last bit as recorded (another "
                    "processor or version?); going on from the recorded one",
                    self.name, event["generation"],
                )  # fmt: skip
            for candidate, genome in zip(candidates, genomes, strict=True):
                recipe = self.setup.space.decode(genome)
                if recipe.digest(self.identities) != candidate["digest"]:
                    raise JournalError.of(
                        f"{self.journal.path} candidate {candidate['id']}",
                        "a genome that now means another merge",
                        "the sources and the space that the study began with",
                        "Undo the change, or give this study another run_dir.",
                    )  # fmt: skip
                if candidate["id"] in results:
                    self._add_trial(candidate, recipe, results[candidate["id"]])
            ids = [c["id"] for c in candidates]
            if any(i not in results for i in ids):
                return event
            self._tell(ids)
        return None

    # -- limits ---------------------------------------------------------------------------

    def _item_count(self, indices: tuple[int, ...] | None) -> int:
        return len(self.setup.task.items("search")) if indices is None else len(indices)

    def _allowed(self, items: int) -> int:
        """How many more candidates the budget bears."""
        allowed = [1 << 30]
        if self.limits.candidates is not None:
            allowed.append(self.limits.candidates - self.cost.candidates)
        if self.limits.item_evaluations is not None:
            allowed.append((self.limits.item_evaluations - self.cost.item_evaluations) // items)
        return min(allowed)

    def _finished(self) -> bool:
        if self.limits.seconds is not None and self.cost.seconds >= self.limits.seconds:
            return True
        score = self._best.score if self._best else None
        if self.limits.score is not None and score is not None and score >= self.limits.score:
            return True
        patience = self.limits.patience
        if patience is not None and len(self._bests) > patience:
            return self._bests[-1] <= self._bests[-1 - patience]
        return False

    def _total(self) -> int | None:
        allowed = self._allowed(self._item_count(self.indices(0)))
        return None if allowed >= 1 << 29 else self.cost.candidates + allowed


def _next_id(journal: Journal) -> int:
    asked = [c["id"] for e in journal.events if e["event"] == "ask" for c in e["candidates"]]
    return max(asked, default=-1) + 1
