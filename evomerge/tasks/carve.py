"""Carves one split out of another: `validation: {split_from: search, fraction: 0.2}`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evomerge.errors import TaskError
from evomerge.tasks.overlap import comparable
from evomerge.types import Item


@dataclass(frozen=True)
class Carve:
    """Takes a share of another split's items.

    Attributes:
        split_from: the split that gives its items away; it must have a source of its own.
        fraction: the share taken, in (0, 1).
    """

    split_from: str
    fraction: float

    @staticmethod
    def is_meant(spec: object) -> bool:
        """Whether what config holds is a carve-out rather than a source."""
        return isinstance(spec, Carve) or (isinstance(spec, Mapping) and "split_from" in spec)

    @classmethod
    def of(cls, spec: object, split: str, parents: Sequence[str], field: str) -> Carve:
        """Checks what config holds.

        Args:
            spec: a `Carve`, or a mapping of its two attributes.
            split: the split that is to be carved out.
            parents: the splits that have a source of their own.
            field: config key to blame.

        Raises:
            TaskError: an unknown key, a parent without a source, a fraction outside (0, 1).
        """
        values = spec if isinstance(spec, Mapping) else vars(spec)
        unknown = sorted(str(key) for key in values if key not in ("split_from", "fraction"))
        if unknown:
            raise TaskError.of(
                f"{field}.{unknown[0]}", "an unknown key", "split_from and fraction", "Remove it."
            )
        parent, fraction = values["split_from"], values.get("fraction")
        if parent == split or parent not in parents:
            raise TaskError.of(
                f"{field}.split_from",
                repr(parent),
                "a split that is read from a source: " + (", ".join(parents) or "there is none"),
                "Name one of them.",
            )
        number = isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
        if fraction is None or not number or not 0.0 < fraction < 1.0:
            raise TaskError.of(
                f"{field}.fraction", repr(fraction), "a number between 0 and 1", "Use 0.2, say."
            )
        return cls(parent, float(fraction))


def carve(
    items: Sequence[Item], fractions: Mapping[str, float], prompt: Callable[[Item], str]
) -> tuple[list[Item], dict[str, list[Item]]]:
    """Divides items by the hash of their ids, the same way on every machine and in every order.

    Items with the same prompt text stay together, so that a repeated item cannot end up on both
    sides; the shares are then met as closely as that allows, and hold at least one item each.

    Args:
        items: what there is to divide.
        fractions: the share of each split that is carved out.
        prompt: the text that the model is given for an item.

    Returns:
        The items that remain, and those of each split; both in the order given.
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(comparable(prompt(item)), []).append(item)
    queue = sorted(groups.values(), key=lambda group: min(rank(item) for item in group))
    owner: dict[str, str] = {}
    for split, fraction in fractions.items():
        wanted, taken = max(1, round(fraction * len(items))), 0
        while queue and taken < wanted:
            group = queue.pop(0)
            taken += len(group)
            owner.update((item.id, split) for item in group)
    rest = [item for item in items if item.id not in owner]
    return rest, {
        split: [item for item in items if owner.get(item.id) == split] for split in fractions
    }


def rank(item: Item) -> bytes:
    """The place of an item among others, by the hash of its id."""
    return hashlib.sha256(item.id.encode("utf-8", "surrogatepass")).digest()
