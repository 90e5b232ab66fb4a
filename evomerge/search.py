"""The loop of one optimiser: ask, evaluate, record, tell; and its replay from a journal."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evomerge.errors import CandidateError, JournalError
from evomerge.evaluation import LazyExecutor, Pipeline, summary
from evomerge.executors.worker import Job, Outcome
from evomerge.journal import Journal, read_items
from evomerge.objectives import Goals, measure
from evomerge.optimizers.base import Optimizer
from evomerge.progress import Progress
from evomerge.recipe import Recipe
from evomerge.setup import Items, Setup, search_requests
from evomerge.space import SearchSpace
from evomerge.trials import Cost, Limits, Trial, best_trials
from evomerge.types import Fitness, FloatArray, ItemScores, Observation

_LOG = logging.getLogger(__name__)
_NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class Open:
    """A candidate that was asked for and has no result yet."""

    id: int
    genome: FloatArray
    recipe: Recipe
    digest: str
    items: Items


@dataclass
class Search:
    """Runs one optimiser within limits, continuing from what the journal holds.

    Results are recorded in the order of the candidates, whatever the number of workers. An
    asynchronous optimiser has `batch` candidates at work at any time and is told of each
    result before it proposes the next: candidate n depends on the results up to n - batch, so
    no worker waits for a generation and the journal is the same with any number of workers.
    Other optimisers are told when a whole generation is complete.

    Attributes:
        name: marks this search's events in the journal.
        space: gives genomes their meaning.
        goals: objectives, and constraints with bounds that are numbers.
        trials: all candidates so far, in order.
        cost: what they took.
    """

    name: str
    setup: Setup
    space: SearchSpace
    goals: Goals
    optimizer: Optimizer
    journal: Journal
    executor: LazyExecutor
    identities: Mapping[str, str]
    limits: Limits
    trials: list[Trial] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    _open: deque[Open] = field(default_factory=deque)
    _number: int = 0
    _asked: int = 0
    _asks: int = 0
    _untold: list[Trial] = field(default_factory=list)
    _best: Trial | None = None
    _front: list[tuple[float, ...]] = field(default_factory=list)
    _told: int = 0
    _improved: int = 0
    _busy: float = 0.0
    _mark: float = 0.0

    def run(self, progress: Progress) -> None:
        """Replays the journal, then searches until a limit is reached."""
        self._replay()
        ended = self.optimizer.batch < 1 or self._allowed() < 1 or self._finished()
        if ended and not self._open:
            return
        executor = self.executor.get()  # engines start before the clock does
        progress.start(self.name, self.cost.candidates, self._total())
        self._number = _next_id(self.journal)
        self._mark = time.perf_counter()
        pipeline = Pipeline(executor)
        for candidate in self._open:
            pipeline.add(self._job(candidate))
        try:
            while True:
                for candidate in self._fill():
                    pipeline.add(self._job(candidate))
                if not self._open:
                    break
                self._take(pipeline.next(), progress)
        finally:
            progress.stop()

    def best(self, count: int) -> list[Trial]:
        """The fittest distinct trials, best first; earlier ones first among equals."""
        return best_trials(self.trials, count)

    # -- asking ---------------------------------------------------------------------------

    def _fill(self) -> list[Open]:
        """Asks for as many candidates as may be at work now."""
        window = self.optimizer.batch
        if self.optimizer.asynchronous:
            room = window - len(self._open)
        else:
            room = 0 if self._open else window
        n = min(room, self._allowed())
        if n < 1 or self._finished():
            return []
        begin = time.perf_counter()
        generation = self._asked // window if self.optimizer.asynchronous else self._asks
        items = self.setup.items(generation)
        asked = []
        for number, genome in enumerate(self.optimizer.ask(n), start=self._number):
            recipe = self.space.decode(genome)
            asked.append(Open(number, genome, recipe, recipe.digest(self.identities), items))
        self._number += n
        self.journal.append(
            "ask",
            search=self.name,
            generation=generation,
            items={task: None if some is None else list(some) for task, some in items.items()},
            candidates=[
                {"id": c.id, "genome": c.genome.tolist(), "digest": c.digest} for c in asked
            ],
        )
        self._remember(asked)
        self._busy += time.perf_counter() - begin
        return asked

    def _remember(self, asked: Sequence[Open]) -> None:
        self._open.extend(asked)
        self._asked += len(asked)
        self._asks += 1

    def _job(self, candidate: Open) -> Job:
        requests = tuple(search_requests(self.setup, candidate.items))
        return Job(candidate.id, candidate.recipe.to_dict(), requests)

    # -- results --------------------------------------------------------------------------

    def _take(self, outcome: Outcome, progress: Progress) -> None:
        arrived = time.perf_counter()
        candidate = self._open[0]
        result = self._record(candidate, outcome, arrived - self._mark)
        self._mark = arrived
        self._settle(result, outcome.scores)
        best = self._best.values if self._best else {}
        progress.update(
            self.cost.candidates, self._total(), next(iter(best.values()), None), self.cost.failed
        )
        self._busy += time.perf_counter() - arrived

    def _record(self, candidate: Open, outcome: Outcome, elapsed: float) -> dict[str, Any]:
        data: dict[str, Any] = {"search": self.name, "id": candidate.id}
        outside = outcome.roundtrip_seconds - outcome.merge_seconds - outcome.answer_seconds
        times = {
            "merge": round(outcome.merge_seconds, 4),
            "answer": round(outcome.answer_seconds, 4),
            "elapsed": round(elapsed, 4),
            "overhead": round(max(0.0, outside) + self._busy, 5),
        }
        self._busy = 0.0
        if outcome.scores is None:
            reason = outcome.reason
        else:
            try:
                fitness, raw = self._fitness(candidate, outcome)
            except CandidateError as error:
                reason = str(error)
            else:
                parts = summary(outcome.scores)
                limits = {"constraints": list(fitness.constraints)} if fitness.constraints else {}
                return self.journal.append(
                    "result",
                    **data,
                    status="ok",
                    scores={task: by_split["search"] for task, by_split in parts.items()},
                    fitness=list(fitness.values),
                    stderr=list(fitness.stderr),
                    **limits,
                    values=raw,
                    file=self.journal.write_items(f"candidate-{candidate.id:06d}", outcome.scores),
                    seconds=times,
                )
        return self.journal.append("result", **data, status="failed", reason=reason, seconds=times)

    def _fitness(self, candidate: Open, outcome: Outcome) -> tuple[Fitness, dict[str, float]]:
        scores = outcome.scores or ()
        estimates = self.setup.estimates(scores)
        traits = self.setup.traits(self.space, candidate.genome)
        measured = measure(scores, outcome.answer_seconds, traits)
        return self.goals.fitness(measured, estimates), self.goals.raw(measured)

    def _settle(
        self, result: Mapping[str, Any], scores: Sequence[ItemScores] | None = None
    ) -> None:
        """Closes the oldest open candidate, and tells the optimiser when it is due.

        Args:
            result: the journal's event.
            scores: what it answered; None to read them from the journal where they are needed.
        """
        candidate = self._open.popleft()
        fitness, values, seconds, item_values = None, {}, None, None
        count = self.setup.item_count(candidate.items)
        if result["status"] == "ok":
            seconds = result["seconds"]["answer"] / count
            limits = tuple(result.get("constraints", ()))
            fitness = Fitness(tuple(result["fitness"]), tuple(result["stderr"]), limits)
            values = dict(result["values"])
            self.cost.infeasible += not fitness.feasible
            if self.optimizer.uses_item_scores:
                scores = scores or read_items(self.journal.run_dir / result["file"])
                item_values = self.setup.item_values(scores)
        else:
            self.cost.failed += 1
        # A failed candidate counts as if it had answered, or a budget in items never ends.
        self.cost.item_evaluations += count
        self.cost.candidates += 1
        self.cost.seconds += result["seconds"]["elapsed"]
        self.cost.overhead += result["seconds"]["overhead"]
        trial = Trial(
            candidate.id, candidate.genome, candidate.recipe, candidate.digest, fitness, values,
            seconds, item_values,
        )  # fmt: skip
        self.trials.append(trial)
        self._untold.append(trial)
        self._note(trial)
        if self.optimizer.asynchronous or not self._open:
            self.optimizer.tell(
                [Observation(t.genome, t.fitness, t.item_values) for t in self._untold]
            )
            self._told += len(self._untold)
            self._untold.clear()

    def _note(self, trial: Trial) -> None:
        """Remembers when the best, or the front, last changed."""
        if self._best is None or trial.rank > self._best.rank:
            self._best = trial
            if not self.goals.pareto:
                self._improved = self.cost.candidates
        if self.goals.pareto and trial.fitness is not None and trial.fitness.feasible:
            own = trial.fitness.values
            if any(all(a >= b for a, b in zip(f, own, strict=True)) for f in self._front):
                return
            kept = [f for f in self._front if any(a > b for a, b in zip(f, own, strict=True))]
            self._front = [*kept, own]
            self._improved = self.cost.candidates

    # -- resuming -------------------------------------------------------------------------

    def _replay(self) -> None:
        """Feeds what the journal holds to the optimiser; leaves open what has no result."""
        for event in list(self.journal.events):
            if event.get("search") != self.name:
                continue
            if event["event"] == "ask":
                self._replay_ask(event)
            elif event["event"] == "result":
                self._settle(event)

    def _replay_ask(self, event: Mapping[str, Any]) -> None:
        genomes = [np.array(c["genome"], dtype=np.float64) for c in event["candidates"]]
        if not self.optimizer.replay(genomes):
            _LOG.warning(
                "%s: generation %d is not proposed to the last bit as recorded (another "
                "processor or version?); going on from the recorded one",
                self.name, event["generation"],
            )  # fmt: skip
        items = {t: None if some is None else tuple(some) for t, some in event["items"].items()}
        asked = []
        for candidate, genome in zip(event["candidates"], genomes, strict=True):
            recipe = self.space.decode(genome)
            if recipe.digest(self.identities) != candidate["digest"]:
                raise JournalError.of(
                    f"{self.journal.path} candidate {candidate['id']}",
                    "a genome that now means another merge",
                    "the sources and the space that the study began with",
                    "Undo the change, or give this study another run_dir.",
                )  # fmt: skip
            asked.append(Open(candidate["id"], genome, recipe, candidate["digest"], items))
        self._remember(asked)

    # -- limits ---------------------------------------------------------------------------

    def _allowed(self) -> int:
        """How many more candidates the budget bears."""
        allowed = [_NO_LIMIT]
        at_work = len(self._open)
        if self.limits.candidates is not None:
            allowed.append(self.limits.candidates - self.cost.candidates - at_work)
        if self.limits.item_evaluations is not None:
            items = self.setup.item_count(self.setup.items(0))
            left = self.limits.item_evaluations - self.cost.item_evaluations
            allowed.append(left // items - at_work)
        return min(allowed)

    def _finished(self) -> bool:
        if self.limits.seconds is not None and self.cost.seconds >= self.limits.seconds:
            return True
        best = self._best.fitness if self._best else None
        if self.limits.score is not None and self._best and best and best.feasible:
            first = self.goals.objectives[0]
            value = self._best.values.get(first.name)
            if value is not None and first.sign * value >= first.sign * self.limits.score:
                return True
        patience = self.limits.patience
        if patience is not None and self.optimizer.batch:
            since = self._told - self._improved
            return since >= patience * self.optimizer.batch
        return False

    def _total(self) -> int | None:
        allowed = self._allowed()
        return (
            None
            if allowed >= _NO_LIMIT // 2
            else (self.cost.candidates + len(self._open) + allowed)
        )


def _next_id(journal: Journal) -> int:
    asked = [c["id"] for e in journal.events if e["event"] == "ask" for c in e["candidates"]]
    return max(asked, default=-1) + 1
