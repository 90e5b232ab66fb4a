"""Evaluating models through an executor and recording what came out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.executors.base import Executor
from evomerge.executors.worker import Job, Outcome, Request
from evomerge.journal import Journal, read_items
from evomerge.progress import Progress
from evomerge.recipe import Recipe
from evomerge.types import ItemScores

Splits = Mapping[tuple[str, str], ItemScores]
"""Item scores by (task, split)."""


@dataclass(frozen=True)
class Subject:
    """A model to measure in full: its name in the report, its role and its recipe."""

    name: str
    role: str
    recipe: Recipe


class LazyExecutor:
    """Starts the executor at its first job, so that a finished study starts none."""

    def __init__(self, start: Callable[[], Executor]) -> None:
        self._start = start
        self._executor: Executor | None = None

    def get(self) -> Executor:
        """The running executor."""
        if self._executor is None:
            self._executor = self._start()
        return self._executor

    def close(self) -> None:
        """Stops it if it was started."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None


class Pipeline:
    """Keeps an executor's workers busy and hands outcomes back in the order of the jobs.

    No more jobs are handed over than there are workers.
    """

    def __init__(self, executor: Executor, by_arrival: bool = False) -> None:
        """Takes an executor that nobody else uses meanwhile.

        Args:
            executor: where jobs run.
            by_arrival: outcomes are handed back as they come.
        """
        self._executor = executor
        self._by_arrival = by_arrival
        self._order: deque[int] = deque()
        self._waiting: deque[Job] = deque()
        self._arrived: dict[int, Outcome] = {}
        self._running = 0

    def __len__(self) -> int:
        """Jobs whose outcome was not handed back yet."""
        return len(self._order)

    def add(self, job: Job) -> None:
        """Queues a job."""
        self._order.append(job.id)
        self._waiting.append(job)
        self._feed()

    def next(self) -> Outcome:
        """Waits for the outcome of the oldest job, or for whichever comes first.

        Raises:
            RuntimeError: if there is none.
        """
        if not self._order:
            raise RuntimeError("next: no job was added")
        if self._by_arrival:
            outcome = self._executor.next()
            self._running -= 1
            self._order.remove(outcome.id)
            self._feed()
            return outcome
        first = self._order.popleft()
        while first not in self._arrived:
            outcome = self._executor.next()
            self._running -= 1
            self._arrived[outcome.id] = outcome
            self._feed()
        return self._arrived.pop(first)

    def _feed(self) -> None:
        while self._waiting and self._running < self._executor.workers:
            self._executor.submit(self._waiting.popleft())
            self._running += 1


def in_order(executor: Executor, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """Runs jobs and yields their outcomes in the jobs' order."""
    pipeline = Pipeline(executor)
    for job in jobs:
        pipeline.add(job)
    while len(pipeline):
        yield pipeline.next()


def summary(scores: Sequence[ItemScores]) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean score, mean log-likelihood and item count by task and split, for the journal."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for part in scores:
        known = part.logliks[np.isfinite(part.logliks)]
        out.setdefault(part.task, {})[part.split] = {
            "score": float(part.scores.mean()),
            "loglik": float(known.mean()) if len(known) else None,
            "items": len(part),
        }
    return out


class Measurer:
    """Measures models on whole splits; what the journal already holds is not run again."""

    def __init__(
        self,
        journal: Journal,
        executor: LazyExecutor,
        identities: Mapping[str, str],
        tasks: Mapping[str, str],
    ) -> None:
        """Takes what it works with.

        Args:
            journal: where measurements are recorded and found again.
            executor: where models are evaluated.
            identities: model reference to content fingerprint.
            tasks: task name to a digest of its items and settings; measurements that were
                made with another digest are not used.
        """
        self._tasks = dict(tasks)
        self._journal = journal
        self._executor = executor
        self._identities = identities
        self.item_evaluations = 0

    def measure(
        self,
        subjects: Sequence[Subject],
        requests: Sequence[Request],
        report: Callable[[int, int], None],
    ) -> dict[str, Splits]:
        """Scores by the subjects' names; a subject that failed is left out.

        Args:
            subjects: the models.
            requests: whole splits of tasks.
            report: called with (done, total) after each subject.
        """
        wanted = {(r.task, r.split) for r in requests}
        digests = {s.name: s.recipe.digest(self._identities) for s in subjects}
        known = self._known()
        failed = self._failed(requests)
        jobs: list[Job] = []
        by_id: dict[int, Subject] = {}
        for number, subject in enumerate(subjects):
            digest = digests[subject.name]
            missing = tuple(r for r in requests if (r.task, r.split) not in known.get(digest, {}))
            queued = any(digests[s.name] == digest for s in by_id.values())
            if missing and digest not in failed and not queued:
                jobs.append(Job(number, subject.recipe.to_dict(), missing, digest))
                by_id[number] = subject
        done = len(subjects) - len(jobs)
        if done:
            report(done, len(subjects))
        if jobs:
            for outcome in in_order(self._executor.get(), jobs):
                subject = by_id[outcome.id]
                self._record(subject, digests[subject.name], requests, outcome)
                done += 1
                report(done, len(subjects))
            known = self._known()
        return {
            name: {key: known[digest][key] for key in wanted}
            for name, digest in digests.items()
            if wanted <= set(known.get(digest, {}))
        }

    def shown(
        self,
        subjects: Sequence[Subject],
        requests: Sequence[Request],
        progress: Progress,
        label: str,
    ) -> dict[str, Splits]:
        """Measures as a phase of its own, shown under a label."""
        progress.start(label, 0, len(subjects), "models", names=[s.name for s in subjects])
        try:
            return self.measure(
                subjects, requests, lambda done, total: progress.update(done, total, None, 0)
            )
        finally:
            progress.stop()

    def _record(
        self, subject: Subject, digest: str, requests: Sequence[Request], outcome: Outcome
    ) -> None:
        common = {
            "name": subject.name,
            "role": subject.role,
            "digest": digest,
            "asked": self._asked(requests),
        }
        if outcome.scores is None:
            self._journal.append("measure", **common, status="failed", reason=outcome.reason)
            return
        self.item_evaluations += sum(len(s) for s in outcome.scores)
        number = sum(e["event"] == "measure" for e in self._journal.events)
        file = self._journal.write_items(f"measure-{number:05d}", outcome.scores)
        self._journal.append(
            "measure", **common, status="ok", scores=summary(outcome.scores),
            answered=outcome.answered, file=file,
        )  # fmt: skip

    def _asked(self, requests: Sequence[Request]) -> list[str]:
        """What was to be measured: task, split, and what items and settings they stood for."""
        return sorted(f"{r.task}/{r.split}/{self._tasks[r.task]}" for r in requests)

    def _is_current(self, asked: str) -> bool:
        task, _, digest = asked.rsplit("/", 2)
        return self._tasks.get(task) == digest

    def _failed(self, requests: Sequence[Request]) -> set[str]:
        """Digests that failed on the same requests before."""
        asked = self._asked(requests)
        return {
            e["digest"]
            for e in self._journal.events
            if e["event"] == "measure" and e["status"] == "failed" and e["asked"] == asked
        }

    def _known(self) -> dict[str, dict[tuple[str, str], ItemScores]]:
        """Everything measured so far, by digest and (task, split)."""
        out: dict[str, dict[tuple[str, str], ItemScores]] = {}
        for event in self._journal.events:
            if event["event"] != "measure" or event["status"] != "ok":
                continue
            current = {x.rsplit("/", 1)[0] for x in event["asked"] if self._is_current(x)}
            for part in read_items(self._journal.run_dir / event["file"]):
                if f"{part.task}/{part.split}" in current:
                    out.setdefault(event["digest"], {})[part.task, part.split] = part
        return out
