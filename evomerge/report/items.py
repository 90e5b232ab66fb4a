"""Which items only the merge solves, which it forgot, and all answers side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.report.answers import RIGHT, Answers, TaskAnswers

TEXT = 400
"""The most characters of an answer that the page holds."""

PROMPT = 800
"""The most characters of a question."""

BUDGET = 1_200_000
"""Characters of questions and answers that the page holds; of more, a sample is taken."""

COLUMNS = 8
"""The most models whose answers stand side by side."""

KINDS = {
    "solved": "the merge right, every source wrong",
    "forgotten": "the merge wrong, at least one source right",
    "lost": "the merge wrong, every source right",
    "kept": "the merge right, at least one source right",
    "unsolved": "the merge and every source wrong",
}
"""What an item can be; one that is `lost` is `forgotten`, too."""


@dataclass(frozen=True)
class Counts:
    """How the merge and another model share the items of a task."""

    name: str
    both: int
    merge: int
    other: int
    neither: int


@dataclass(frozen=True)
class TaskItems:
    """The items of one task.

    Attributes:
        task: its name.
        items: how many.
        kinds: how many of each of `KINDS`.
        sources: how many sources answered.
        counts: the merge against each source.
    """

    task: str
    items: int
    kinds: dict[str, int]
    sources: int
    counts: tuple[Counts, ...]


@dataclass(frozen=True)
class Items:
    """What the section says, and the data of its browser.

    Attributes:
        tasks: one each.
        data: what the page's script is given.
        held: how many items the page holds.
        total: how many there are.
        cut: whether a text was shortened.
        left_out: names of the models beyond `COLUMNS`.
    """

    tasks: tuple[TaskItems, ...]
    data: list[dict[str, Any]]
    held: int
    total: int
    cut: bool
    left_out: tuple[str, ...] = ()


def kinds_of(task: TaskAnswers) -> dict[str, np.ndarray[tuple[int], np.dtype[np.bool_]]] | None:
    """A mask of the items for each of `KINDS`; None without a merge or a source."""
    if task.chosen is None or not task.sources:
        return None
    merge = task.scores[task.chosen] >= RIGHT
    sources = task.scores[task.sources] >= RIGHT
    some, every = sources.any(axis=0), sources.all(axis=0)
    return {
        "solved": merge & ~some,
        "forgotten": ~merge & some,
        "lost": ~merge & every,
        "kept": merge & some,
        "unsolved": ~merge & ~some,
    }


def make_items(answers: Answers, budget: int = BUDGET) -> Items | None:
    """The section; None if no task has answers of the merge and of a source.

    Of more text than the budget allows, each task gets a part of it in proportion to its items:
    first those that only the merge solves or that it forgot, then an even choice of the rest.
    """
    usable = [(task, kinds) for task in answers.tasks if (kinds := kinds_of(task)) is not None]
    total = sum(len(task.ids) for task, _ in usable)
    if not total:
        return None
    told, data, held, cut = [], [], 0, False
    left_out: dict[str, None] = {}
    for task, kinds in usable:
        rows = list(range(len(task.subjects)))
        left_out |= dict.fromkeys(task.subjects[at].name for at in rows[COLUMNS:])
        rows = rows[:COLUMNS]
        first = np.flatnonzero(kinds["solved"] | kinds["forgotten"])
        rest = np.flatnonzero(~(kinds["solved"] | kinds["forgotten"]))
        order = [*_spread(first), *_spread(rest)]
        allowed = budget * len(task.ids) // total
        listed: dict[int, dict[str, Any]] = {}
        for at in order:
            entry = _entry(task, rows, at)
            size = len(entry["q"]) + len(entry["t"]) + sum(map(len, entry["a"])) + 60
            allowed -= size
            if allowed < 0:
                break
            listed[at] = entry
            cut |= entry.pop("cut")
        held += len(listed)
        told.append(
            TaskItems(
                task.task, len(task.ids), {kind: int(m.sum()) for kind, m in kinds.items()},
                len(task.sources), tuple(_counts(task, at) for at in task.sources),
            )
        )  # fmt: skip
        data.append(
            {
                "task": task.task,
                "models": [[task.subjects[at].name, task.subjects[at].role] for at in rows],
                "items": [
                    {**listed[at], "k": [k for k, mask in kinds.items() if mask[at]]}
                    for at in sorted(listed)
                ],
            }
        )
    return Items(tuple(told), data, held, total, cut, tuple(left_out))


def _spread(places: np.ndarray[tuple[int], np.dtype[np.intp]]) -> list[int]:
    """The places in an order of which every beginning is spread over all of them."""
    golden = (np.arange(len(places)) * 0.6180339887498949) % 1.0
    return [int(place) for place in places[np.argsort(golden, kind="stable")]]


def _entry(task: TaskAnswers, rows: list[int], at: int) -> dict[str, Any]:
    texts = [task.texts[row][at] for row in rows]
    prompt, target = task.prompts[at], task.targets[at]
    cut = len(prompt) > PROMPT or len(target) > TEXT or any(len(text) > TEXT for text in texts)
    return {
        "id": task.ids[at],
        "q": _short(prompt, PROMPT),
        "t": _short(target, TEXT),
        "a": [_short(text, TEXT) for text in texts],
        "s": [round(float(task.scores[row][at]), 3) for row in rows],
        "cut": cut,
    }


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _counts(task: TaskAnswers, at: int) -> Counts:
    merge, other = task.scores[task.chosen or 0] >= RIGHT, task.scores[at] >= RIGHT
    return Counts(
        task.subjects[at].name, int((merge & other).sum()), int((merge & ~other).sum()),
        int((~merge & other).sum()), int((~merge & ~other).sum()),
    )  # fmt: skip
