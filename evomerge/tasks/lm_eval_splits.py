"""Divides a harness's documents into search, validation and test items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evomerge.errors import Problem, TaskError
from evomerge.tasks.carve import Carve, carve, rank
from evomerge.tasks.lm_eval_docs import default_splits
from evomerge.tasks.overlap import find_overlaps
from evomerge.types import SPLITS, Item

_KEYS = ("split", "limit", "per_task", "exclude")


@dataclass(frozen=True)
class Part:
    """Where a split's items come from.

    Attributes:
        split: of the data set, by its name or by what the harness calls it.
        limit: most items, chosen by the hash of their ids; None takes all.
        per_task: most items of each task of a group, likewise.
        exclude: ids of items to leave out.
    """

    split: str
    limit: int | None = None
    per_task: int | None = None
    exclude: frozenset[str] = frozenset()

    @classmethod
    def of(cls, spec: object, field: str) -> Part:
        """Reads what config holds: the name of a split, or a mapping of the attributes.

        Raises:
            TaskError: for an unknown key or a value of the wrong kind.
        """
        if isinstance(spec, str):
            return cls(spec)
        expected = f"the name of a split, or a mapping of {', '.join(_KEYS)}"
        if not isinstance(spec, Mapping) or not isinstance(spec.get("split"), str):
            raise TaskError.of(field, repr(spec), expected, f"Correct {field}.")
        unknown = [key for key in spec if key not in _KEYS]
        if unknown:
            raise TaskError.of(f"{field}.{unknown[0]}", "an unknown key", expected, "Remove it.")
        for key in ("limit", "per_task"):
            number = spec.get(key)
            if number is not None and (type(number) is not int or number < 1):
                raise TaskError.of(
                    f"{field}.{key}", repr(number), "a whole number of at least 1", "Correct it."
                )
        left_out = spec.get("exclude") or ()
        if isinstance(left_out, str) or not all(isinstance(one, str) for one in left_out):
            raise TaskError.of(f"{field}.exclude", repr(left_out), "a list of ids", "Correct it.")
        return cls(spec["split"], spec.get("limit"), spec.get("per_task"), frozenset(left_out))

    def take(self, items: Sequence[Item], task_of: Callable[[Item], str]) -> list[Item]:
        """The items that are left of all, in their order."""
        rest = [item for item in items if item.id not in self.exclude]
        if self.per_task is not None:
            names = dict.fromkeys(map(task_of, rest))
            chosen = {
                item.id
                for name in names
                for item in _first([i for i in rest if task_of(i) == name], self.per_task)
            }
            rest = [item for item in rest if item.id in chosen]
        if self.limit is not None:
            chosen = {item.id for item in _first(rest, self.limit)}
            rest = [item for item in rest if item.id in chosen]
        return rest


class Division:
    """Which documents are search, validation and test items."""

    def __init__(self, specs: Mapping[str, object], key: str) -> None:
        """Reads what config holds of each split, None for what suits the task.

        Args:
            specs: by split: the name of a split of the data set, a mapping (see `Part`), or
                `{split_from: search, fraction: 0.2}` for a share of another one's items.
            key: config key of the task, for messages.
        """
        self._specs = specs
        self._key = key

    def resolved(self, task: Any) -> tuple[dict[str, Part], dict[str, Carve]]:
        """What has a source of its own, and what is carved out of that.

        Args:
            task: the harness's, which decides where the user says nothing.

        Raises:
            TaskError: for a spec that cannot be.
        """
        usual = default_splits(task)
        specs = {s: usual[s] if self._specs[s] is None else self._specs[s] for s in SPLITS}
        own = [s for s in SPLITS if not Carve.is_meant(specs[s])]
        parts = {s: Part.of(specs[s], f"{self._key}.{s}") for s in own}
        carves = {
            s: Carve.of(specs[s], s, own, f"{self._key}.{s}") for s in SPLITS if s not in parts
        }
        return parts, carves

    def divide(
        self,
        task: Any,
        read: Callable[[str, str], Sequence[Item]],
        content: Callable[[Item], str],
        task_of: Callable[[Item], str],
    ) -> dict[str, tuple[Item, ...]]:
        """The items of each split.

        Args:
            task: the harness's, which decides where the user says nothing.
            read: the items of a split of the data set; the second argument is the config key.
            content: what two items that are the same have in common.
            task_of: which of a group's tasks an item belongs to.

        Raises:
            TaskError: if a split is unknown or has no item.
        """
        parts, carves = self.resolved(task)
        out: dict[str, list[Item]] = {}
        for split, part in parts.items():
            items = part.take(read(part.split, f"{self._key}.{split}"), task_of)
            shares = {s: own.fraction for s, own in carves.items() if own.split_from == split}
            rest, carved = carve(items, shares, content)
            out |= {split: rest, **carved}
        for split in SPLITS:
            if not out[split]:
                raise TaskError.of(
                    f"{self._key}.{split}", "no item", "at least one in every split",
                    "Give more items, or smaller fractions.",
                )  # fmt: skip
        return {split: tuple(out[split]) for split in SPLITS}


def overlap_problems(
    splits: Mapping[str, Sequence[Item]], content: Callable[[Item], str], key: str
) -> Iterator[Problem]:
    """Items that two splits share, by id or by content."""
    for found in find_overlaps(splits, content):
        shown = found if found.by == "id" else replace(found, by="content")
        yield replace(
            shown.problem(key),
            remedy="Take them from different splits of the data set or from parts of one "
            f"(split_from), or name them in {key}.{found.second}.exclude.",
        )


def _first(items: Sequence[Item], count: int) -> list[Item]:
    """Some items, the same whatever their order."""
    return sorted(items, key=rank)[:count]
