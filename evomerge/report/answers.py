"""What the measured models answered to the held-out items, read from the files of a journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from evomerge.errors import EvomergeError
from evomerge.journal import read_items
from evomerge.questions import SPLIT, Questions, read_questions
from evomerge.report.reading import Json, RunFiles, mapping
from evomerge.report.rows import ROLES
from evomerge.types import FloatArray, ItemScores

RIGHT = 0.5
"""The score from which on an answer counts as right."""


@dataclass(frozen=True)
class Subject:
    """A model that answered: its name, its role as in `ROLES`, and its recipe's digest."""

    name: str
    role: str
    digest: str

    @property
    def chosen(self) -> bool:
        """Whether this is the chosen merge."""
        return self.role == ROLES[0]


@dataclass(frozen=True)
class TaskAnswers:
    """One task's held-out items as the models answered them.

    Attributes:
        task: its name.
        ids: of the `n` items that all `m` models answered.
        subjects: the models, by role: the chosen merge first.
        scores: an `m x n` array in [0, 1].
        texts: the answers, `m` rows of `n`.
        tokens: number of tokens of each answer, an `m x n` array.
        prompts: of the items, empty where unknown.
        targets: the expected answers, empty where unknown.
    """

    task: str
    ids: tuple[str, ...]
    subjects: tuple[Subject, ...]
    scores: FloatArray
    texts: tuple[tuple[str, ...], ...]
    tokens: FloatArray
    prompts: tuple[str, ...]
    targets: tuple[str, ...]

    @property
    def chosen(self) -> int | None:
        """The row of the chosen merge."""
        return next((at for at, one in enumerate(self.subjects) if one.chosen), None)

    @property
    def sources(self) -> list[int]:
        """The rows of the sources."""
        return [at for at, one in enumerate(self.subjects) if one.role == "source"]


@dataclass(frozen=True)
class Answers:
    """All tasks, and what could not be read."""

    tasks: tuple[TaskAnswers, ...] = ()
    notes: tuple[str, ...] = field(default=())


def read_answers(run: RunFiles, split: str = SPLIT) -> Answers:
    """The answers of the chosen merge, the sources and the controls to the items of a split.

    A file that is missing or damaged leaves its model out, with a note.
    """
    if run.folder is None:
        return Answers()
    notes: list[str] = []
    wanted = subjects(run)
    digests = {one.digest for one in wanted}
    parts: dict[str, dict[str, ItemScores]] = {}
    for event in run.events:
        digest = str(event.get("digest", ""))
        if event.get("event") != "measure" or event.get("status") != "ok":
            continue
        if digest not in digests or not _has(event, split):
            continue
        try:
            for part in read_items(run.folder / str(event.get("file"))):
                if part.split == split:
                    parts.setdefault(digest, {})[part.task] = part
        except (EvomergeError, KeyError) as error:
            notes.append(f"The answers of {event.get('name')} could not be read ({error}).")
    try:
        questions = read_questions(run.folder) if split == SPLIT else {}
    except EvomergeError as error:
        questions = {}
        notes.append(str(error))
    names = dict.fromkeys(task for by_task in parts.values() for task in by_task)
    first = str(mapping(run.results).get("objective", ""))
    tasks = [
        _task(name, [(one, parts[one.digest][name]) for one in wanted
                     if name in parts.get(one.digest, {})], questions)
        for name in sorted(names, key=lambda name: name != first)
    ]  # fmt: skip
    return Answers(tuple(task for task in tasks if task is not None), tuple(notes))


def subjects(run: RunFiles) -> list[Subject]:
    """The chosen merge, sources and controls, as results or, without them, the journal say."""
    found: dict[str, Subject] = {}
    if run.results:
        for name, entry in mapping(run.results.get("models")).items():
            role = ROLES[0] if name == run.results.get("best") else str(mapping(entry).get("role"))
            found[name] = Subject(name, role, str(mapping(entry).get("digest", "")))
    else:
        for event in run.events:
            role = {"merge": ROLES[0]}.get(str(event.get("role")), str(event.get("role")))
            if event.get("event") == "measure":
                name = str(event.get("name", ""))
                found[name] = Subject(name, role, str(event.get("digest", "")))
    known = [one for one in found.values() if one.role in (ROLES[0], "source", "control")]
    return sorted(known, key=lambda one: ROLES.index(one.role))


def _has(event: Json, split: str) -> bool:
    return any(split in mapping(splits) for splits in mapping(event.get("scores")).values())


def _task(
    name: str,
    parts: Sequence[tuple[Subject, ItemScores]],
    questions: Questions,
) -> TaskAnswers | None:
    """Lays the models' answers side by side; None if they have no item in common."""
    common = set.intersection(*(set(part.ids) for _, part in parts))
    ids = tuple(key for key in parts[0][1].ids if key in common)
    if not ids:
        return None
    rows, texts, tokens = [], [], []
    for _, part in parts:
        place = {key: at for at, key in enumerate(part.ids)}
        order = [place[key] for key in ids]
        rows.append(part.scores[order])
        texts.append(tuple(part.texts[at] for at in order))
        tokens.append(part.tokens[order].astype(np.float64))
    asked = [questions.get((name, key), ("", "")) for key in ids]
    return TaskAnswers(
        name, ids, tuple(one for one, _ in parts), np.vstack(rows), tuple(texts),
        np.vstack(tokens), tuple(p for p, _ in asked), tuple(t for _, t in asked),
    )  # fmt: skip
