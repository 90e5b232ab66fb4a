"""The loop of one optimiser: ask, evaluate, record, tell; and its replay from a journal."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from evomerge.candidates import TIMES, Open, first_stage, planned_items
from evomerge.errors import CandidateError, JournalError
from evomerge.estimators.racing import NoRace
from evomerge.evaluation import LazyExecutor, Pipeline
from evomerge.executors.worker import Job, Outcome
from evomerge.heats import Heats
from evomerge.journal import Journal, read_items
from evomerge.limits import NO_LIMIT, left, reached
from evomerge.objectives import Goals
from evomerge.optimizers.base import Optimizer
from evomerge.progress import Progress
from evomerge.rating import Rating, joined, rate
from evomerge.rechecks import Rechecks
from evomerge.records import listed, next_id, rated, rating_of
from evomerge.search_state import Searching, searching
from evomerge.setup import Items, Setup, search_requests
from evomerge.space import SearchSpace
from evomerge.standing import Standing, levelled
from evomerge.trials import Cost, Limits, Trial, best_trials
from evomerge.types import FloatArray, ItemScores, Observation

_LOG = logging.getLogger(__name__)


@dataclass
class Search:
    """Runs one optimiser within limits, continuing from what the journal holds.

    Results are recorded in the order in which their jobs were given out, whatever the number of
    workers. An asynchronous optimiser has `batch` candidates at work at any time and is told of
    each result before it proposes the next: candidate n depends on the results up to n - batch,
    and the journal on no number of workers. With `executor.order=arrival` it hears results as they
    come. Other optimisers are told when a whole generation is complete.

    In a race a candidate answers in stages: each answer is recorded as a `part`, and its `result`
    follows when it stops. From time to time the best answer further items (`recheck`).

    Attributes:
        name: marks this search's events in the journal.
        space: gives genomes their meaning.
        goals: objectives, and constraints with bounds that are numbers.
        cost: what its candidates took.
        standing: its trials and which are best.
        rechecks: further items for the best.
        heats: decide in a race who answers more.
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
    cost: Cost = field(default_factory=Cost)
    standing: Standing = field(init=False)
    rechecks: Rechecks = field(init=False)
    heats: Heats = field(init=False)
    _open: dict[int, Open] = field(default_factory=dict)
    _todo: deque[int] = field(default_factory=deque)
    _number: int = 0
    _asked: int = 0
    _asks: int = 0
    _untold: list[tuple[Trial, int]] = field(default_factory=list)
    _told: int = 0
    _items: Items = field(default_factory=dict)
    _busy: float = 0.0
    _mark: float = 0.0

    def __post_init__(self) -> None:
        self.standing = Standing(self.goals.pareto)
        self.rechecks = Rechecks(
            self.name, self.setup, self.journal, self.standing, self._rate, self._read
        )
        self.heats = Heats(self.setup, self.standing, self._read)
        self._races = not isinstance(self.setup.race, NoRace)
        by_arrival = self.setup.config["executor"]["order"] == "arrival"
        self._by_arrival = by_arrival and self.optimizer.asynchronous
        self._together = self.setup.race.together and not self.optimizer.asynchronous

    @property
    def trials(self) -> list[Trial]:
        """All candidates so far, in the order of their results."""
        return self.standing.trials

    def run(self, progress: Progress) -> None:
        """Replays the journal, then searches until a limit is reached."""
        self._replay()
        ended = self.optimizer.batch < 1 or self._allowed() < 1 or self._finished()
        if ended and not self._open and not self.rechecks.pending:
            return
        executor = self.executor.get()  # engines start before the clock does
        progress.start(self.name, self.cost.candidates, self._total(), search=self._state())
        self._number = next_id(self.journal)
        self._mark = time.perf_counter()
        pipeline = Pipeline(executor, self._by_arrival)
        try:
            while True:
                self._advance()
                self._fill()
                while self._todo:
                    pipeline.add(self._job(self._todo.popleft()))
                if not len(pipeline):
                    break
                self._take(pipeline.next(), progress)
        finally:
            progress.stop()

    def _state(self) -> Searching:
        return searching(self.standing, self.goals, self.cost, self.limits)

    def best(self, count: int) -> list[Trial]:
        """The fittest distinct trials, best first; earlier ones first among equals."""
        return best_trials(self.trials, count)

    # -- asking ---------------------------------------------------------------------------

    def _fill(self) -> None:
        """Asks for as many candidates as may be at work now."""
        window = self.optimizer.batch
        if self.optimizer.asynchronous:
            room = window - len(self._open)
        else:
            room = 0 if self._open else window
        n = min(room, self._allowed())
        if n < 1 or self._finished():
            return
        begin = time.perf_counter()
        generation = self._asked // window if self.optimizer.asynchronous else self._asks
        items = first_stage(self.setup, generation)
        asked = []
        for number, genome in enumerate(self.optimizer.ask(n), start=self._number):
            recipe = self.space.decode(genome)
            digest = recipe.digest(self.identities)
            asked.append(Open(number, genome, recipe, digest, generation, items))
        self._number += n
        self.journal.append(
            "ask",
            search=self.name,
            generation=generation,
            **self._changed(items),
            candidates=[
                {"id": c.id, "genome": c.genome.tolist(), "digest": c.digest} for c in asked
            ],
        )
        self._remember(asked)
        self._busy += time.perf_counter() - begin

    def _changed(self, items: Items) -> dict[str, Any]:
        """What an ask says of the items; nothing if they are those of the ask before."""
        same, self._items = items == self._items, items
        return {} if same else {"items": listed(items)}

    def _remember(self, asked: Sequence[Open]) -> None:
        for candidate in asked:
            self._open[candidate.id] = candidate
            self._give(candidate)
        self._asked += len(asked)
        self._asks += 1
        if self.rechecks.backfill and not self.optimizer.asynchronous:
            self._todo.extend(self.rechecks.plan(self._open))  # behind the generation

    def _give(self, candidate: Open) -> None:
        """Puts a candidate's stage among the jobs."""
        candidate.asked += self.setup.item_count(candidate.items)
        self._todo.append(candidate.id)

    def _job(self, number: int) -> Job:
        if number in self._open:
            candidate = self._open[number]
            recipe, digest, items = candidate.recipe, candidate.digest, candidate.items
        else:
            trial, items = self.rechecks.pending[number]
            recipe, digest = trial.recipe, trial.digest
        requests = tuple(search_requests(self.setup, items))
        timed = self.goals.reads(None, "seconds")
        return Job(number, recipe.to_dict(), requests, digest, timed)

    # -- answers --------------------------------------------------------------------------

    def _take(self, outcome: Outcome, progress: Progress) -> None:
        arrived = time.perf_counter()
        times = self._times(outcome, arrived - self._mark - outcome.start_seconds)
        self._mark = arrived
        if outcome.id in self._open:
            self._answered(self._open[outcome.id], outcome, times)
        else:
            self._settle_recheck(self.rechecks.record(outcome, times))
        self._advance()
        progress.show(self._state(), self.cost.candidates, self._total())
        self._busy += time.perf_counter() - arrived

    def _times(self, outcome: Outcome, elapsed: float) -> dict[str, float]:
        inside = outcome.start_seconds + outcome.merge_seconds + outcome.answer_seconds
        overhead = max(0.0, outcome.roundtrip_seconds - inside) + self._busy
        self._busy = 0.0
        return {
            "merge": round(outcome.merge_seconds, 4),
            "answer": round(outcome.answer_seconds, 4),
            "elapsed": round(max(0.0, elapsed), 4),
            "overhead": round(overhead, 5),
        }

    def _answered(self, candidate: Open, outcome: Outcome, times: Mapping[str, float]) -> None:
        """Rates what a candidate answered, and records it if more may follow."""
        candidate.add_times(times)
        count = self.setup.item_count(candidate.items)
        candidate.fresh += count if outcome.answered is None else outcome.answered
        if outcome.scores is None:
            candidate.fail(outcome.reason or "no reason was given")
            return
        self.heats.load(candidate)
        candidate.parts = joined([*candidate.parts, *outcome.scores])
        candidate.answered = max(len(part) for part in candidate.parts)
        try:
            candidate.rating = self._rate(candidate.genome, candidate.parts, candidate.times)
        except CandidateError as error:
            candidate.fail(str(error))
            return
        candidate.waiting = True
        if not self._races:
            return
        stage = len(candidate.files)
        file = self.journal.write_items(f"part-{candidate.id:06d}-{stage:02d}", outcome.scores)
        candidate.files.append(file)
        self.journal.append(
            "part",
            search=self.name,
            id=candidate.id,
            items=listed(candidate.items),
            seen=candidate.answered,
            **rated(candidate.rating, candidate.parts),
            file=file,
            answered=candidate.fresh,
            seconds=dict(times),
        )

    def _rate(
        self, genome: FloatArray, parts: Sequence[ItemScores], times: Mapping[str, float]
    ) -> Rating:
        return rate(self.setup, self.goals, self.space, genome, parts, times["answer"])

    def _advance(self) -> None:
        """Decides who answers more, and records the results of those who do not."""
        self._decide()
        for candidate in [c for c in self._open.values() if c.stopped]:
            self.heats.load(candidate)
            self._settle(self._record(candidate), candidate.parts)

    def _decide(self) -> None:
        waiting = [c for c in self._open.values() if c.waiting]
        if not self._together:
            for candidate in waiting:
                self._go_on([candidate], self.heats.going_on([candidate]))
        elif waiting and len(waiting) == sum(not c.stopped for c in self._open.values()):
            self._go_on(waiting, self.heats.going_on(waiting))

    def _go_on(self, waiting: Sequence[Open], going: Collection[int]) -> None:
        """Gives those that go on their next items; the others have answered all."""
        for candidate in waiting:
            self.heats.note(candidate)
            candidate.waiting = False
            if candidate.id in going and self.heats.next_stage(candidate):
                self._give(candidate)
            else:
                candidate.stopped = True

    def _read(self, files: Iterable[str]) -> list[ItemScores]:
        return joined([p for file in files for p in read_items(self.journal.run_dir / file)])

    # -- results --------------------------------------------------------------------------

    def _record(self, candidate: Open) -> dict[str, Any]:
        times = {key: round(candidate.times[key], 5) for key in TIMES}
        data: dict[str, Any] = {"search": self.name, "id": candidate.id}
        if self._races:
            data["items"] = candidate.asked
        if candidate.failure is not None or candidate.rating is None:
            return self.journal.append(
                "result", **data, status="failed", reason=candidate.failure,
                answered=candidate.fresh, seconds=times,
            )  # fmt: skip
        if self._races:
            planned = planned_items(self.setup, candidate.generation)
            runner = candidate.runner(self.setup, with_answers=False)
            data["complete"] = self.setup.race.enough(runner, planned)
        if len(candidate.files) == 1:
            file = candidate.files[0]
        else:
            file = self.journal.write_items(f"candidate-{candidate.id:06d}", candidate.parts)
        pooled = self._pooled(candidate)
        return self.journal.append(
            "result",
            **data,
            status="ok",
            **rated(candidate.rating, candidate.parts),
            **({"pooled": rated(*pooled)} if pooled else {}),
            file=file,
            answered=candidate.fresh,
            seconds=times,
        )

    def _pooled(self, candidate: Open) -> tuple[Rating, list[ItemScores]] | None:
        """What a genome is worth by all its answers, where it had answered other items before."""
        before = self.standing.files_of(candidate.digest)
        if not before:
            return None
        earlier = self._read(before)
        parts = joined([*earlier, *candidate.parts])
        if sum(map(len, parts)) == sum(map(len, earlier)):
            return None  # the same items again
        # seconds an item are the machine's, not the genome's: the latest ones stand for all
        items = sum(map(len, candidate.parts))
        seconds = candidate.times["answer"] * sum(map(len, parts)) / items
        return self._rate(candidate.genome, parts, {"answer": seconds}), parts

    def _settle(
        self, result: Mapping[str, Any], scores: Sequence[ItemScores] | None = None
    ) -> None:
        """Closes a candidate, and tells the optimiser when it is due.

        Args:
            result: the journal's event.
            scores: what it answered; None to read them from the journal where they are needed.
        """
        candidate = self._open.pop(result["id"])
        fitness, seconds, item_values = None, None, None
        values: Mapping[str, float] = {}
        files: tuple[str, ...] = ()
        count = candidate.asked
        if result["status"] == "ok":
            seconds = result["seconds"]["answer"] / count
            rating = rating_of(result)
            fitness, values = rating.fitness, rating.values
            files = (str(result["file"]),)
            self.cost.infeasible += not fitness.feasible
            self.cost.stopped += not result.get("complete", True)
            if self.optimizer.uses_item_scores:
                scores = scores or read_items(self.journal.run_dir / result["file"])
                item_values = self.setup.item_values(scores)
        else:
            self.cost.failed += 1
        # A failed candidate counts as if it had answered, or a budget in items never ends.
        self.cost.item_evaluations += count
        self.cost.answered += result.get("answered", count)
        self.cost.candidates += 1
        self._add_times(result["seconds"])
        trial = Trial(
            candidate.id, candidate.genome, candidate.recipe, candidate.digest, fitness, values,
            seconds, item_values, result.get("complete", True), files,
        )  # fmt: skip
        self._untold.append((trial, candidate.answered))
        if "pooled" in result:
            trial = replace(trial, files=(*self.standing.files_of(trial.digest), *files))
        self.standing.add(trial)
        if "pooled" in result:
            self.standing.update(trial.digest, rating_of(result["pooled"]))
        self._tell()
        if self.rechecks.due(self.cost.candidates):
            self._todo.extend(self.rechecks.plan(self._open))

    def _settle_recheck(self, event: Mapping[str, Any]) -> None:
        """Counts what a leader answered, whose standing is updated."""
        count = self.rechecks.settle(event)
        self.cost.item_evaluations += count
        self.cost.answered += event.get("answered", count)
        self._add_times(event["seconds"])

    def _add_times(self, times: Mapping[str, float]) -> None:
        self.cost.seconds += times["elapsed"]
        self.cost.overhead += times["overhead"]

    def _tell(self) -> None:
        """Tells the optimiser what it has not heard, if it wants to hear now."""
        if self._open and not self.optimizer.asynchronous:
            return
        self._untold.sort(key=lambda pair: pair[0].id)
        observations = [Observation(t.genome, t.fitness, t.item_values) for t, _ in self._untold]
        if self._together:
            observations = levelled(observations, [stage for _, stage in self._untold])
        self.optimizer.tell(observations)
        self._told += len(self._untold)
        self._untold.clear()

    # -- resuming -------------------------------------------------------------------------

    def _replay(self) -> None:
        """Feeds what the journal holds to the optimiser; leaves open what has no result."""
        for event in list(self.journal.events):
            if event.get("search") != self.name:
                continue
            kind = event["event"]
            self._went_on(event)
            if kind == "ask":
                self._replay_ask(event)
            elif kind == "part":
                self._replay_part(event)
            elif kind == "result":
                self._replay_result(event)
            elif kind == "recheck":
                self._todo.remove(event["id"])
                self._settle_recheck(event)

    def _went_on(self, event: Mapping[str, Any]) -> None:
        """Lets those go on who had answered before an event: or it would be their result."""
        if self._together:
            return
        for candidate in [c for c in self._open.values() if c.waiting]:
            if event["event"] != "result" or event["id"] != candidate.id:
                self._go_on([candidate], {candidate.id})

    def _replay_part(self, event: Mapping[str, Any]) -> None:
        candidate = self._open[event["id"]]
        self._todo.remove(candidate.id)
        candidate.add_times(event["seconds"])
        candidate.fresh = event["answered"]
        candidate.files.append(event["file"])
        candidate.parts = []  # to be read again, with this one, where they are needed
        candidate.answered = event["seen"]
        candidate.rating = rating_of(event)
        candidate.waiting = True
        if self._together:
            self._decide()

    def _replay_result(self, event: Mapping[str, Any]) -> None:
        candidate = self._open[event["id"]]
        if candidate.waiting:
            self._go_on([candidate], ())
        elif candidate.id in self._todo:  # it failed, or there is no race
            self._todo.remove(candidate.id)
        self._settle(event)

    def _replay_ask(self, event: Mapping[str, Any]) -> None:
        genomes = [np.array(c["genome"], dtype=np.float64) for c in event["candidates"]]
        if not self.optimizer.replay(genomes):
            _LOG.warning(
                "%s: generation %d is not proposed to the last bit as recorded (another "
                "processor or version?); going on from the recorded one",
                self.name, event["generation"],
            )  # fmt: skip
        if "items" in event:
            self._items = {t: s if s is None else tuple(s) for t, s in event["items"].items()}
        items = self._items
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
            asked.append(
                Open(
                    candidate["id"], genome, recipe, candidate["digest"], event["generation"], items
                )
            )
        self._remember(asked)

    # -- limits ---------------------------------------------------------------------------

    def _allowed(self) -> int:
        """How many more candidates the budget bears."""
        return left(
            self.limits, self.cost, len(self._open),
            lambda: self.setup.item_count(self.setup.items(0)),
        )  # fmt: skip

    def _finished(self) -> bool:
        batch = self.optimizer.batch
        return reached(self.limits, self.cost, self.standing, self.goals, self._told, batch)

    def _total(self) -> int | None:
        allowed = self._allowed()
        at_most = self.cost.candidates + len(self._open) + allowed
        return None if allowed >= NO_LIMIT // 2 else at_most
