"""Further items for the best candidates from time to time, so that a lucky subset never wins."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evomerge.candidates import answers_of
from evomerge.errors import CandidateError
from evomerge.estimators.base import further
from evomerge.executors.worker import Outcome
from evomerge.journal import Journal
from evomerge.rating import Rating, joined
from evomerge.records import listed, rated, rating_of
from evomerge.seeds import derive
from evomerge.setup import Items, Setup
from evomerge.standing import Standing
from evomerge.trials import Trial
from evomerge.types import FloatArray, ItemScores

Rate = Callable[[FloatArray, Sequence[ItemScores], Mapping[str, float]], Rating]
Read = Callable[[Iterable[str]], list[ItemScores]]


@dataclass
class Rechecks:
    """Plans, records and counts the re-evaluation of a search's leaders.

    After every `recheck.every` candidates the `recheck.count` best that answered everything answer
    `recheck.items` items of each task that they have not answered yet. What they are worth is then
    estimated from all of their answers. With `recheck.backfill` they also do so with every
    generation, as the last of its jobs: workers that would wait for stragglers have something to
    do, and nobody waits for it.

    Attributes:
        pending: the trial and its items by candidate number, of jobs that are not settled yet.
    """

    name: str
    setup: Setup
    journal: Journal
    standing: Standing
    rate: Rate
    read: Read
    pending: dict[int, tuple[Trial, Items]] = field(default_factory=dict)
    _known: dict[str, dict[str, set[int]]] = field(default_factory=dict)
    _recorded: int = 0

    @property
    def backfill(self) -> bool:
        """Whether the leaders answer while a generation's last candidates are at work."""
        return bool(self.setup.config["recheck"]["backfill"])

    def due(self, candidates: int) -> bool:
        """Whether it is time after so many candidates."""
        every = self.setup.config["recheck"]["every"]
        return every is not None and candidates % every == 0

    def plan(self, at_work: Collection[int]) -> list[int]:
        """Gives the leaders further items; returns their numbers.

        Args:
            at_work: numbers of candidates that have no result yet.
        """
        node = self.setup.config["recheck"]
        planned = []
        for trial in self.standing.leaders(node["count"]):
            if trial.id in self.pending or trial.id in at_work:
                continue
            items = self._further(trial, node["items"])
            if self.setup.item_count(items):
                self.pending[trial.id] = trial, items
                planned.append(trial.id)
        return planned

    def record(self, outcome: Outcome, times: Mapping[str, float]) -> dict[str, Any]:
        """Writes what a leader answered, and what it is worth now; returns the event."""
        trial, items = self.pending[outcome.id]
        count = self.setup.item_count(items)
        data: dict[str, Any] = {
            "search": self.name,
            "id": outcome.id,
            "digest": trial.digest,
            "items": listed(items),
            "answered": count if outcome.answered is None else outcome.answered,
            "seconds": dict(times),
        }
        reason = outcome.reason
        if outcome.scores is not None:
            files = next(t.files for t in self.standing.trials if t.id == trial.id)
            parts = joined([*self.read(files), *outcome.scores])
            seconds = times["answer"] * sum(map(len, parts)) / count
            try:
                rating = self.rate(trial.genome, parts, {"answer": seconds})
            except CandidateError as error:
                reason = str(error)
            else:
                name = f"recheck-{outcome.id:06d}-{self._recorded:04d}"
                return self.journal.append(
                    "recheck",
                    **data,
                    status="ok",
                    **rated(rating, parts),
                    file=self.journal.write_items(name, outcome.scores),
                )
        return self.journal.append("recheck", **data, status="failed", reason=reason)

    def settle(self, event: Mapping[str, Any]) -> int:
        """Takes a recorded event; returns how many items it is about."""
        trial, items = self.pending.pop(event["id"])
        self._recorded += 1
        if event["status"] == "ok":
            self.standing.update(trial.digest, rating_of(event), str(event["file"]))
        return self.setup.item_count(items)

    def _further(self, trial: Trial, wanted: int | None) -> Items:
        """Items of each task that a merge has not answered yet."""
        known = self._known.setdefault(trial.digest, {})
        for name, (places, _) in answers_of(self.setup, self.read(trial.files)).items():
            known.setdefault(name, set()).update(places.tolist())
        out: dict[str, tuple[int, ...]] = {}
        for task in self.setup.search_tasks:
            count = len(task.items("search"))
            asked = np.array(sorted(known[task.name]), dtype=np.int64)
            seed = derive(self.setup.seed, f"recheck {task.name}")
            chosen = further(count, asked, wanted or count, seed)
            out[task.name] = tuple(int(i) for i in chosen)
        return out
