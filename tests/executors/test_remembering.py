"""A ledger before an executor: the same outcomes, and no item asked twice."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.evaluation import Pipeline, in_order
from evomerge.executors.remembering import RememberingExecutor
from evomerge.executors.worker import Job, Outcome, Request
from evomerge.ledger import Ledger, item_digest
from evomerge.types import SPLITS, Item, ItemScores, Sampling

SETTINGS = {"sums": "s1", "words": "s2"}


class Listed:
    """A task over questions that are given; some of them have equal content."""

    sampling = Sampling()
    loglik_weight = 0.0

    def __init__(self, name: str, questions: dict[str, list[str]]) -> None:
        self.name = name
        self._items = {
            split: [Item(f"{split}{i}", {"q": q}, q.upper()) for i, q in enumerate(all_of)]
            for split, all_of in questions.items()
        }

    def items(self, split: str) -> list[Item]:
        return self._items[split]

    def prompt(self, item: Item) -> str:
        return f"{item.fields['q']}?"

    def score(self, item: Item, text: str) -> float:
        return float(text == item.target)


TASKS = (
    Listed("sums", {"search": ["a", "b", "a", "c"], "validation": ["d", "e"], "test": ["c", "f"]}),
    Listed("words", {"search": ["a", "g"], "validation": ["h"], "test": ["i", "i", "i"]}),
)
BY_NAME = {task.name: task for task in TASKS}


def value(digest: str, *what: object) -> float:
    """What a model makes of an item: any number that depends on nothing else."""
    return int.from_bytes(repr((digest, *what)).encode()[-5:], "little") % 997 / 997


class Computed:
    """Answers jobs by arithmetic, with any number of workers; notes what it is asked.

    A recipe that is marked as bad fails, one that is marked as shaky only the first time.
    """

    def __init__(self, workers: int = 1, last_first: bool = False) -> None:
        self.workers = workers
        self.asked: Counter[tuple[object, ...]] = Counter()
        self.jobs: list[int] = []
        self.closed = False
        self._last_first = last_first
        self._queue: deque[Job] = deque()
        self._failed: set[str] = set()

    def submit(self, job: Job) -> None:
        self.jobs.append(job.id)
        self._queue.append(job)
        assert len(self._queue) <= self.workers

    def next(self) -> Outcome:
        if not self._queue:
            raise RuntimeError("next: no job was submitted")
        job = self._queue.pop() if self._last_first else self._queue.popleft()
        name = str(job.recipe["name"])
        if name == "bad" or (name == "shaky" and name not in self._failed):
            self._failed.add(name)
            return Outcome(job.id, None, "it fails", total_seconds=1.0)
        scores = tuple(self._answer(name, request) for request in job.requests)
        return Outcome(job.id, scores, None, 1.0, 2.0, 3.0, 4.0)

    def close(self) -> None:
        self.closed = True

    def _answer(self, name: str, request: Request) -> ItemScores:
        task = BY_NAME[request.task]
        items = task.items(request.split)
        if request.indices is not None:
            items = [items[i] for i in request.indices]
        keys = [item_digest(item, task.prompt(item)) for item in items]
        for key in keys:
            self.asked[name, request.task, key, request.loglik] += 1
        texts = [f"{name} says {item.target}" for item in items]
        return ItemScores(
            task.name, request.split, tuple(item.id for item in items),
            np.array([value(name, task.name, item.target) for item in items]),
            np.array([-value(name, item.target, 1) for item in items])
            if request.loglik
            else np.full(len(items), np.nan),
            tuple(texts), np.array([len(t) for t in texts], dtype=np.int64),
        )  # fmt: skip


def remembering(folder: Path, executor: Computed) -> RememberingExecutor:
    return RememberingExecutor(lambda: executor, executor.workers, Ledger(folder), TASKS, SETTINGS)


def contents(outcome: Outcome) -> object:
    """All of an outcome but times and counts; as text, since NaN is not equal to itself."""
    if outcome.scores is None:
        return outcome.id, outcome.reason
    return outcome.id, [
        (s.task, s.split, s.ids, s.scores.tolist(), str(s.logliks.tolist()), s.texts,
         s.tokens.tolist(), str(s.scores.dtype), str(s.tokens.dtype))
        for s in outcome.scores
    ]  # fmt: skip


@st.composite
def some_requests(draw: st.DrawFn) -> tuple[Request, ...]:
    found = []
    for _ in range(draw(st.integers(1, 3))):
        task, split = draw(st.sampled_from(TASKS)), draw(st.sampled_from(SPLITS))
        places = st.integers(0, len(task.items(split)) - 1)
        some = draw(st.none() | st.lists(places, min_size=1, max_size=5).map(tuple))
        found.append(Request(task.name, split, some, draw(st.booleans())))
    return tuple(found)


def made(jobs: list[tuple[str, tuple[Request, ...]]], timed: bool = False) -> list[Job]:
    return [
        Job(i, {"name": name}, asked, name if name != "unnamed" else "", timed)
        for i, (name, asked) in enumerate(jobs)
    ]


MANY = st.lists(
    st.tuples(st.sampled_from(["x", "y", "bad", "unnamed"]), some_requests()), max_size=9
)


@given(jobs=MANY, workers=st.integers(1, 4), last_first=st.booleans(), cut=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_any_jobs_have_the_outcomes_that_they_have_without_a_ledger(
    tmp_path_factory: pytest.TempPathFactory, jobs, workers, last_first, cut
) -> None:
    """Whatever the workers, their order, and a restart in between; no key is asked twice."""
    jobs = made(jobs)
    plain = [contents(o) for o in in_order(Computed(), jobs)]
    folder = tmp_path_factory.mktemp("ledger") / "ledger"
    asked: Counter[tuple[object, ...]] = Counter()
    found, answered = [], 0
    for part in (jobs[:cut], jobs[cut:]):
        executor = Computed(workers, last_first)
        found += list(in_order(remembering(folder, executor), part))
        asked += executor.asked
    assert [contents(o) for o in found] == plain
    named = Counter({key: n for key, n in asked.items() if key[0] != "unnamed"})
    assert set(named.values()) <= {1}
    for job, outcome in zip(jobs, found, strict=True):
        assert not job.digest or (outcome.answered is None) == (outcome.scores is None)
        answered += (outcome.answered or 0) if job.digest else 0
    assert answered == named.total()


@given(jobs=MANY, workers=st.integers(2, 4), last_first=st.booleans())
@settings(max_examples=80, deadline=None)
def test_who_is_charged_does_not_depend_on_the_workers(
    tmp_path_factory: pytest.TempPathFactory, jobs, workers, last_first
) -> None:
    def charged(executor: Computed) -> list[int | None]:
        folder = tmp_path_factory.mktemp("ledger") / "ledger"
        return [o.answered for o in in_order(remembering(folder, executor), made(jobs))]

    assert charged(Computed(workers, last_first)) == charged(Computed())


def test_a_known_job_starts_nothing_and_waits_for_nobody(tmp_path: Path) -> None:
    [job] = made([("x", (Request("sums", "search"),))])
    first = Computed()
    [before] = in_order(remembering(tmp_path, first), [job])
    assert (before.answered, before.roundtrip_seconds) == (3, 4.0)  # of 4 items two are equal
    executor = RememberingExecutor(
        lambda: pytest.fail("started"), 1, Ledger(tmp_path), TASKS, SETTINGS
    )
    executor.submit(job)
    after = executor.next()
    assert contents(after) == contents(before)
    assert (after.answered, after.answer_seconds, after.merge_seconds) == (0, 0.0, 0.0)
    with pytest.raises(RuntimeError, match="no job"):
        executor.next()
    executor.close()


def test_an_equal_job_waits_for_the_first_and_is_run_if_that_fails(tmp_path: Path) -> None:
    asks = (Request("sums", "test"),)
    executor = Computed(workers=3)
    shaky = in_order(
        remembering(tmp_path, executor), made([("shaky", asks), ("shaky", asks), ("shaky", asks)])
    )
    first, second, third = shaky
    assert first.scores is None
    assert executor.jobs == [0, 1]
    assert contents(second)[1] == contents(third)[1]
    assert (second.answered, third.answered) == (2, 0)


def test_other_settings_or_another_content_are_other_answers(tmp_path: Path) -> None:
    [job] = made([("x", (Request("sums", "test"),))])
    list(in_order(remembering(tmp_path, Computed()), [job]))
    other = RememberingExecutor(
        Computed, 1, Ledger(tmp_path), TASKS, SETTINGS | {"sums": "a longer answer"}
    )
    assert next(in_order(other, [job])).answered == 2
    changed = (Listed("sums", {"test": ["c", "F"]}), TASKS[1])
    again = RememberingExecutor(Computed, 1, Ledger(tmp_path), changed, SETTINGS)
    assert next(in_order(again, [job])).answered == 1


def test_timed_jobs_are_run_whole_and_remembered(tmp_path: Path) -> None:
    asks = (Request("sums", "search"),)
    executor = Computed()
    timed = made([("x", asks), ("x", asks)], timed=True)
    outcomes = list(in_order(remembering(tmp_path, executor), timed))
    assert [o.answered for o in outcomes] == [4, 4]
    assert {o.answer_seconds for o in outcomes} == {2.0}
    assert len(Ledger(tmp_path)) == 3
    plain = dataclasses.replace(timed[0], timed=False)
    [known] = in_order(remembering(tmp_path, Computed()), [plain])
    assert known.answered == 0
    assert contents(known) == contents(outcomes[0])


def test_only_the_first_job_is_charged_with_the_start(tmp_path: Path) -> None:
    asks = (Request("sums", "test"),)
    pipeline = Pipeline(remembering(tmp_path, Computed()))
    for job in made([("x", asks), ("y", asks)]):
        pipeline.add(job)
    first, second = pipeline.next(), pipeline.next()
    assert first.start_seconds > 0 == second.start_seconds
    started = remembering(tmp_path, Computed())
    started.start()
    [third] = in_order(started, made([("z", asks)]))
    assert third.start_seconds == 0


def test_close_closes_what_was_started(tmp_path: Path) -> None:
    executor = Computed()
    idle = remembering(tmp_path, executor)
    idle.close()
    assert not executor.closed
    idle.start()
    idle.close()
    assert executor.closed
