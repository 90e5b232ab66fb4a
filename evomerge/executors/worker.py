"""The work itself: a recipe comes in, item scores go out.

A worker holds one engine and the memory-mapped sources for a whole study.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.build import build
from evomerge.engines.auto import make_engine
from evomerge.errors import CandidateError, ConfigError, EngineError, NotFiniteError, TaskError
from evomerge.executors.faults import ENGINE, fault_of
from evomerge.executors.staging import renamed, stage_sources
from evomerge.recipe import Recipe
from evomerge.types import Answering, ItemScores, Task


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker needs to start; plain data, so that it can travel.

    Attributes:
        engine: the config node of the engine.
        model: model whose architecture, depth and tokenizer the engine takes.
        tasks: task name to its config node.
        threads: of this worker.
        seed: of sampling.
        gpu: whether it may use GPUs.
        stage: folder on the worker's machine to copy sources to; environment variables in it are
            the machine's own. None reads them from where they are.
        sources: content of what is copied, see `content_digests`.
    """

    engine: Mapping[str, Any]
    model: str
    tasks: Mapping[str, Mapping[str, Any]]
    threads: int
    seed: int
    gpu: bool = False
    stage: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """Items to answer: some or (with `indices` None) all of one split of one task.

    With `loglik`, right answers are scored as well.
    """

    task: str
    split: str
    indices: tuple[int, ...] | None = None
    loglik: bool = False


@dataclass(frozen=True)
class Job:
    """One model to evaluate: a number, a recipe as plain data, and items.

    Attributes:
        id: handed back with the outcome.
        recipe: as plain data.
        requests: the items.
        digest: of the recipe by the content of its models; where it is empty, nothing that is
            known of the model is used and nothing is remembered.
        timed: answers everything anew, since it is the time that counts.
    """

    id: int
    recipe: Mapping[str, Any]
    requests: tuple[Request, ...]
    digest: str = ""
    timed: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        id: the job's number.
        scores: one a request; None if the job failed.
        reason: why it failed.
        merge_seconds: putting the weights in place.
        answer_seconds: generating and scoring with the model.
        total_seconds: everything in the worker.
        roundtrip_seconds: from hand-over to arrival, as the executor saw it.
        start_seconds: starting the engines, of the first job that needed them, where they were
            not started before.
        answered: items that the model was really run on; None if the job failed.
        fault: what a failure says of the machine, see `fault_of`; empty for the candidate's own.
        worker: who answered, `number@node`; empty where there is only one.
        tries: how many workers it took, those that were lost with it included.
    """

    id: int
    scores: tuple[ItemScores, ...] | None
    reason: str | None = None
    merge_seconds: float = 0.0
    answer_seconds: float = 0.0
    total_seconds: float = 0.0
    roundtrip_seconds: float = 0.0
    start_seconds: float = 0.0
    answered: int | None = None
    fault: str = ""
    worker: str = ""
    tries: int = 1


class Worker:
    """Holds one engine and evaluates jobs with it, one at a time."""

    def __init__(self, spec: WorkerSpec, cores: tuple[int, ...] | None = None) -> None:
        """Starts the engine.

        Args:
            spec: engine, model and tasks.
            cores: the processor cores that are this worker's own.
        """
        if not spec.gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._tasks: dict[str, Task] = {
            name: build(node, f"task.{name}") for name, node in spec.tasks.items()
        }
        self._names = _staged(spec)
        model = self._names.get(spec.model, spec.model)
        self._engine = make_engine(
            spec.engine, model, threads=spec.threads, cores=cores, seed=spec.seed
        )

    def evaluate(self, job: Job) -> Outcome:
        """Merges, answers and scores. A candidate's failure is returned, not raised.

        Raises:
            EngineError: if the engine broke and could not be rebuilt.
            ConfigError, TaskError: if the study's own settings or items are at fault.
        """
        begin = time.perf_counter()
        try:
            self._engine.load(Recipe.from_dict(renamed(job.recipe, self._names)))
            merged = time.perf_counter()
            scores, answering = [], 0.0
            for request in job.requests:
                part, seconds = self._answer(request)
                scores.append(part)
                answering += seconds
            _check_finite(scores)
        except (ConfigError, TaskError):
            raise  # not the candidate's fault: no other candidate would fare better
        except Exception as error:  # whatever one candidate does, the search goes on
            fault = fault_of(error)
            if isinstance(error, EngineError) and fault != ENGINE:
                raise
            known = isinstance(error, CandidateError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            reason = reason.encode("utf-8", "replace").decode("utf-8")
            return Outcome(
                job.id, None, reason[:500] or type(error).__name__,
                total_seconds=time.perf_counter() - begin, fault=fault,
            )  # fmt: skip
        return Outcome(
            job.id, tuple(scores), None, merged - begin, answering, time.perf_counter() - begin,
            answered=sum(len(part) for part in scores),
        )  # fmt: skip

    def close(self) -> None:
        """Frees the engine."""
        self._engine.close()

    def _answer(self, request: Request) -> tuple[ItemScores, float]:
        task = self._tasks[request.task]
        if isinstance(task, Answering):
            begin = time.perf_counter()
            part = task.answer(self._engine, request.split, request.indices, request.loglik)
            return part, time.perf_counter() - begin
        items = list(task.items(request.split))
        if request.indices is not None:
            items = [items[i] for i in request.indices]
        prompts = [task.prompt(item) for item in items]
        begin = time.perf_counter()
        answers = self._engine.generate(prompts, task.sampling)
        logliks = np.full(len(items), np.nan)
        if request.loglik:
            pairs = [(p, item.gold) for p, item in zip(prompts, items, strict=True)]
            logliks = np.asarray(self._engine.loglikelihood(pairs), dtype=np.float64)
            if not np.isfinite(logliks).all():
                raise NotFiniteError(f"{request.task}: log-likelihood is not finite")
        seconds = time.perf_counter() - begin
        if len(answers) != len(items):
            raise CandidateError(f"{len(answers)} answers to {len(items)} prompts")
        scores = [task.score(item, a.text) for item, a in zip(items, answers, strict=True)]
        part = ItemScores(
            task=request.task,
            split=request.split,
            ids=tuple(item.id for item in items),
            scores=np.array(scores, dtype=np.float64),
            logliks=logliks,
            texts=tuple(a.text for a in answers),
            tokens=np.array([a.tokens for a in answers], dtype=np.int64),
        )
        return part, seconds


def _staged(spec: WorkerSpec) -> dict[str, str]:
    """References to the copies of sources on this machine."""
    if spec.stage is None:
        return {}
    folder = Path(os.path.expandvars(spec.stage)).expanduser()
    return stage_sources(spec.sources, folder)


def _check_finite(scores: Sequence[ItemScores]) -> None:
    """Refuses scores that mean nothing.

    Raises:
        NotFiniteError: naming the task.
    """
    for part in scores:
        if not np.isfinite(part.scores).all():
            raise NotFiniteError(f"{part.task}: a score is not finite")
