"""Asks models only what a ledger does not know yet."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.executors.base import Executor
from evomerge.executors.worker import Job, Outcome, Request
from evomerge.ledger import Answer, Ledger, item_digest
from evomerge.types import ItemScores, Task

Found = dict[tuple[str, str], Answer]
"""Answers of one model by task and item."""


@dataclass(frozen=True)
class _Work:
    """A job, what was known of it, and the part of it that has to be answered."""

    job: Job
    known: Found
    asked: tuple[Request, ...]


class RememberingExecutor:
    """Gives another executor the items that a ledger does not know, and remembers the answers.

    Jobs of one recipe are worked on one after the other, in the order in which they were
    submitted, unless all of a job is known. So the second of two equal jobs waits for the first
    and is answered by it, or is run itself if the first one failed; and which job is charged
    with an item depends on the order of the jobs alone, not on the number of workers.

    Answers are in the ledger before their outcome is handed back. A job that failed leaves
    nothing there. Where the log-likelihood is asked for and only the answer is known, the item
    is answered again.

    Items are known by their content: equal ones are answered once for all their places. At a
    temperature above 0 an answer is therefore one draw that is kept, not one a place.
    """

    def __init__(
        self,
        start: Callable[[], Executor],
        workers: int,
        ledger: Ledger,
        tasks: Iterable[Task],
        settings: Mapping[str, str],
    ) -> None:
        """Starts nothing yet.

        Args:
            start: starts the other executor; called once it is needed.
            workers: how many it is going to have.
            ledger: what is known.
            tasks: all that jobs may ask.
            settings: task name to a hash of everything that answers and scores depend on
                besides the weights and the item.
        """
        self._planned = workers
        self._begin = start
        self._ledger = ledger
        self._tasks = {task.name: task for task in tasks}
        self._settings = dict(settings)
        self._executor: Executor | None = None
        self._start_seconds = 0.0
        self._items: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
        self._ready: deque[Outcome] = deque()
        self._lines: dict[str, deque[Job]] = {}
        self._at_work: dict[int, _Work] = {}
        self._strangers = 0

    @property
    def workers(self) -> int:
        """As many as the other executor has; before it is started, as many as planned."""
        return self._planned if self._executor is None else self._executor.workers

    def start(self) -> None:
        """Starts the other executor now; without it the first job that needs it does.

        Raises:
            EngineError, ConfigError: if it cannot start.
        """
        self._other()

    def submit(self, job: Job) -> None:
        """Answers a job from the ledger, hands on what is missing, or queues it."""
        if not job.digest:
            self._strangers += 1
            self._pass_on(job)
            return
        work = self._divide(job)
        if not work.asked:
            self._ready.append(self._join(work, Outcome(job.id, (), answered=0)))
        elif job.digest in self._lines:
            self._lines[job.digest].append(job)
        else:
            self._lines[job.digest] = deque()
            self._send(work)

    def next(self) -> Outcome:
        """Waits for the next outcome; those that were known come first.

        Raises:
            RuntimeError: if nothing was submitted.
        """
        while not self._ready:
            if not self._at_work and not self._strangers:
                raise RuntimeError("next: no job was submitted")
            outcome = self._other().next()
            work = self._at_work.pop(outcome.id, None)
            if work is None:
                self._strangers -= 1
                self._ready.append(self._with_start(outcome))
            else:
                self._arrive(work, self._with_start(outcome))
        return self._ready.popleft()

    def close(self) -> None:
        """Closes the other executor if it was started, and makes the ledger's tail a segment."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None
        self._ledger.settle()

    def _other(self) -> Executor:
        if self._executor is None:
            self._executor = self._begin()
        return self._executor

    def _pass_on(self, job: Job) -> None:
        begin, idle = time.perf_counter(), self._executor is None
        executor = self._other()
        if idle:
            self._start_seconds = time.perf_counter() - begin
        executor.submit(job)

    def _with_start(self, outcome: Outcome) -> Outcome:
        seconds, self._start_seconds = self._start_seconds, 0.0
        return replace(outcome, start_seconds=seconds)

    def _send(self, work: _Work) -> None:
        self._at_work[work.job.id] = work
        self._pass_on(replace(work.job, requests=work.asked))

    def _arrive(self, work: _Work, outcome: Outcome) -> None:
        """Remembers fresh answers, hands the outcome back and goes on with its recipe's line."""
        digest = work.job.digest
        if outcome.scores is None:
            self._ready.append(outcome)
        else:
            fresh = self._fresh(work, outcome.scores)
            self._ledger.append(digest, self._news(work, fresh))
            found = dict(fresh) if work.job.timed else _joined(work.known, fresh.items())
            self._ready.append(self._join(replace(work, known=found), outcome))
        line = self._lines[digest]
        while line:
            following = self._divide(line.popleft())
            if following.asked:
                self._send(following)
                return
            self._ready.append(self._join(following, Outcome(following.job.id, (), answered=0)))
        del self._lines[digest]

    def _divide(self, job: Job) -> _Work:
        """Finds out what is known of a job and what has to be answered."""
        known: Found = {}
        for task in dict.fromkeys(r.task for r in job.requests):
            answers = self._ledger.known(job.digest, task, self._settings[task])
            known |= {(task, item): answer for item, answer in answers.items()}
        if job.timed:
            return _Work(job, known, job.requests)
        coming = {key: not math.isnan(answer.loglik) for key, answer in known.items()}
        asked = []
        for request in job.requests:
            missing = []
            places, items = self._places(request)
            for place, item in zip(places, items, strict=True):
                key = (request.task, item)
                if key not in coming or (request.loglik and not coming[key]):
                    missing.append(place)
                    coming[key] = request.loglik
            if missing:
                whole = len(missing) == len(places)
                asked.append(request if whole else replace(request, indices=tuple(missing)))
        return _Work(job, known, tuple(asked))

    def _fresh(self, work: _Work, scores: Sequence[ItemScores]) -> Found:
        """What was answered just now."""
        rows = [
            ((part.task, item), Answer(
                part.task, item, self._settings[part.task], float(part.scores[i]),
                float(part.logliks[i]), part.texts[i], int(part.tokens[i]),
            ))
            for request, part in zip(work.asked, scores, strict=True)
            for i, item in enumerate(self._places(request)[1])
        ]  # fmt: skip
        return _joined({}, rows)

    def _news(self, work: _Work, fresh: Found) -> list[Answer]:
        """The fresh answers that the ledger does not have; a timed job repeats known ones."""
        return [
            answer
            for key, answer in fresh.items()
            if key not in work.known
            or (math.isnan(work.known[key].loglik) and not math.isnan(answer.loglik))
        ]

    def _join(self, work: _Work, outcome: Outcome) -> Outcome:
        """The outcome of the whole job, of answers that are all known by now."""
        scores = tuple(self._scores(request, work.known) for request in work.job.requests)
        answered = outcome.answered
        if answered is None:
            answered = sum(len(part) for part in outcome.scores or ())
        return replace(outcome, scores=scores, answered=answered)

    def _scores(self, request: Request, known: Found) -> ItemScores:
        ids, _ = self._split(request.task, request.split)
        places, items = self._places(request)
        answers = [known[request.task, item] for item in items]
        logliks = [a.loglik if request.loglik else math.nan for a in answers]
        return ItemScores(
            task=request.task,
            split=request.split,
            ids=tuple(ids[place] for place in places),
            scores=np.array([a.score for a in answers], dtype=np.float64),
            logliks=np.array(logliks, dtype=np.float64),
            texts=tuple(a.text for a in answers),
            tokens=np.array([a.tokens for a in answers], dtype=np.int64),
        )

    def _places(self, request: Request) -> tuple[Sequence[int], list[str]]:
        """Indices of a request's items in their split, and the items' hashes."""
        _, items = self._split(request.task, request.split)
        if request.indices is None:
            return range(len(items)), items
        return request.indices, [items[i] for i in request.indices]

    def _split(self, task: str, split: str) -> tuple[list[str], list[str]]:
        """Ids and hashes of all items of a split."""
        if (task, split) not in self._items:
            asks = self._tasks[task]
            items = asks.items(split)
            hashes = [item_digest(item, asks.prompt(item)) for item in items]
            self._items[task, split] = [item.id for item in items], hashes
        return self._items[task, split]


def _joined(before: Found, rows: Iterable[tuple[tuple[str, str], Answer]]) -> Found:
    """Answers with further ones; of two to one item the first counts that has a log-likelihood."""
    out = dict(before)
    for key, answer in rows:
        if key not in out or (math.isnan(out[key].loglik) and not math.isnan(answer.loglik)):
            out[key] = answer
    return out
