"""Answers the items of a recorded merge anew and compares item by item."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.errors import EvomergeError, TaskError, UserError
from evomerge.estimators.intervals import PairedTest, paired_test
from evomerge.evaluation import in_order
from evomerge.executors.worker import Job, Request
from evomerge.identity import items_digest
from evomerge.journal import read_items
from evomerge.recorded import Chosen, Recorded
from evomerge.report.reading import Json, mapping
from evomerge.setup import Config, all_task_nodes, make_task
from evomerge.types import ItemScores, Task
from evomerge.versions import versions
from evomerge.workers import make_executor, plan_workers

Portion = Sequence[ItemScores]
"""What was answered at a time: one part a task."""


@dataclass(frozen=True)
class Comparison:
    """A split of a task, then and now.

    Attributes:
        task: its name.
        split: search, validation or test.
        ids: of the items, `n` of them.
        then: what was recorded.
        now: what was answered anew, item for item.
    """

    task: str
    split: str
    ids: tuple[str, ...]
    then: ItemScores
    now: ItemScores

    @property
    def scores_differ(self) -> list[int]:
        """Places of items with another score."""
        return np.flatnonzero(self.then.scores != self.now.scores).tolist()

    @property
    def texts_differ(self) -> list[int]:
        """Places of items with another text."""
        pairs = zip(self.then.texts, self.now.texts, strict=True)
        return [place for place, (then, now) in enumerate(pairs) if then != now]

    @property
    def same(self) -> bool:
        """Whether scores and texts are all as they were."""
        return not self.scores_differ and not self.texts_differ

    @property
    def loglik_gap(self) -> float | None:
        """Largest difference of a log-likelihood in nats; None where none was measured."""
        gaps = np.abs(self.then.logliks - self.now.logliks)
        known = gaps[np.isfinite(gaps)]
        return float(known.max()) if len(known) else None

    def paired(self) -> PairedTest:
        """How much higher the mean is now, on the same items."""
        return paired_test(self.now.scores, self.then.scores)


def recorded_answers(study: Recorded, chosen: Chosen, held_out: bool) -> list[Portion]:
    """What a merge answered, in the portions in which it was asked.

    Args:
        study: that it is of.
        chosen: the merge.
        held_out: the validation and test items, in the place of those of the search.

    Raises:
        UserError: if it answered none.
        JournalError: if a file is damaged.
    """
    events = study.files.events
    files = [] if held_out else _search_files(events, chosen.number)
    if files:
        return [read_items(study.run_dir / file) for file in files]
    found: dict[tuple[str, str], ItemScores] = {}
    for event in events:
        if event.get("event") != "measure" or event.get("status") != "ok":
            continue
        if event.get("digest") == chosen.digest:
            for part in read_items(study.run_dir / str(event["file"])):
                if (part.split == "search") != held_out:
                    found[part.task, part.split] = part
    if not found:
        what = "held-out items" if held_out else "search items"
        raise UserError.of(
            "CANDIDATE", f"{chosen.name}, which answered no {what}. {chosen.note}".rstrip(" ."),
            "a merge with a result to compare with",
            "Give another one." if held_out else "Try --held-out, or give another one.",
        )  # fmt: skip
    return [[part] for part in found.values()]


def _search_files(events: Sequence[Json], number: int | None) -> list[str]:
    """Files of a candidate's answers: race by race, then what it answered when it led."""
    own = [e for e in events if e.get("id") == number and number is not None and e.get("file")]
    parts = [e for e in own if e["event"] == "part"]
    results = [e for e in own if e["event"] == "result" and e.get("status") == "ok"]
    again = [e for e in own if e["event"] == "recheck" and e.get("status") == "ok"]
    return [str(e["file"]) for e in [*(parts or results), *again]]


def current_tasks(study: Recorded, portions: Sequence[Portion]) -> dict[str, Task]:
    """The tasks of recorded answers, whose items are still the same.

    Raises:
        UserError: if a task cannot be made, or its items have changed.
    """
    nodes = all_task_nodes(study.config)
    fields = {str(node["name"]): field for field, node in nodes.items()}
    wanted = {(part.task, part.split) for portion in portions for part in portion}
    matter = mapping(study.files.study.get("matter"))
    tasks = {name: make_task(nodes[fields[name]], fields[name]) for name, _ in sorted(wanted)}
    for name, split in sorted(wanted):
        key = f"{fields[name]}.{split}"
        then, now = matter.get(key), items_digest(tasks[name], split)
        if then is not None and then != now:
            raise TaskError.of(
                key, f"items of the digest {now[:12]}", f"{str(then)[:12]}, as the study had them",
                "Restore the file, or the version of the data set that the study used.",
            )  # fmt: skip
    return tasks


def replay(
    study: Recorded,
    chosen: Chosen,
    portions: Sequence[Portion],
    tasks: Mapping[str, Task],
    say: Callable[[str], None],
    report: Callable[[int, int], None],
) -> list[Comparison]:
    """Answers everything anew in this process, with the study's own engine and settings.

    Nothing that a ledger knows is used, and nothing of the run directory is changed.

    Args:
        study: that the merge is of.
        chosen: the merge.
        portions: what it answered then.
        tasks: by name, see `current_tasks`.
        say: told when the engine starts.
        report: called with portions done and all.

    Raises:
        TaskError: if an item is gone.
        EngineError: if the engine cannot start.
        EvomergeError: if the merge cannot be evaluated.
    """
    jobs = []
    for number, portion in enumerate(portions):
        requests = tuple(_request(tasks[part.task], part) for part in portion)
        jobs.append(Job(number, chosen.recipe.to_dict(), requests, timed=True))
    found: list[ItemScores] = []
    with tempfile.TemporaryDirectory(prefix="evomerge-replay-") as folder:
        say("starting the engine")
        executor = make_executor(_alone(study.config, folder))
        try:
            for outcome in in_order(executor, jobs):
                if outcome.scores is None:
                    raise EvomergeError(f"{chosen.name} could not be evaluated: {outcome.reason}")
                found.extend(outcome.scores)
                report(len(found), sum(map(len, portions)))
        finally:
            executor.close()
    then = [part for portion in portions for part in portion]
    return _together([*zip(then, found, strict=True)])


def _request(task: Task, part: ItemScores) -> Request:
    """The items of a recorded part, by their place."""
    items = task.items(part.split)
    places = {item.id: place for place, item in enumerate(items)}
    gone = [name for name in part.ids if name not in places]
    if gone:
        raise TaskError.of(
            f"{part.task}.{part.split}", f"no item {gone[0]}", "the items that were answered then",
            "Restore the file, or the version of the data set that the study used.",
        )  # fmt: skip
    chosen = tuple(places[name] for name in part.ids)
    whole = chosen == tuple(range(len(items)))
    loglik = bool(np.isfinite(part.logliks).any())
    return Request(part.task, part.split, None if whole else chosen, loglik)


def _together(pairs: Sequence[tuple[ItemScores, ItemScores]]) -> list[Comparison]:
    """One comparison a task and split, of all its portions."""
    grouped: dict[tuple[str, str], list[tuple[ItemScores, ItemScores]]] = {}
    for then, now in pairs:
        grouped.setdefault((then.task, then.split), []).append((then, now))
    out = []
    for (task, split), own in grouped.items():
        then, now = (_joined([pair[side] for pair in own]) for side in (0, 1))
        out.append(Comparison(task, split, then.ids, then, now))
    return out


def _joined(parts: Sequence[ItemScores]) -> ItemScores:
    """Parts of one task and split behind each other, repeated items included."""
    first = parts[0]
    return ItemScores(
        task=first.task,
        split=first.split,
        ids=tuple(name for part in parts for name in part.ids),
        scores=np.concatenate([part.scores for part in parts]),
        logliks=np.concatenate([part.logliks for part in parts]),
        texts=tuple(text for part in parts for text in part.texts),
        tokens=np.concatenate([part.tokens for part in parts]),
    )


def _alone(config: Config, folder: str) -> dict[str, Any]:
    """The config with one worker in this process, which has the threads of the study's workers."""
    threads = plan_workers(config).threads
    executor = {**config["executor"], "name": "serial", "workers": None, "threads": threads}
    return {**config, "executor": executor, "run_dir": folder}


def changed_versions(study: Recorded) -> list[str]:
    """What is another version now than when the study began, in words."""
    then, now = mapping(study.files.study.get("versions")), versions()
    lines = []
    for name in sorted({*then, *now}):
        before, after = then.get(name), now.get(name)
        if before != after:
            lines.append(f"{name} was {before or 'not there'}, is {after or 'not there'}")
    device = mapping(study.files.study.get("matter")).get("device")
    here = "cuda" if plan_workers(study.config).gpus else "cpu"
    if device is not None and device != here:
        lines.append(f"device was {device}, is {here}")
    return lines
