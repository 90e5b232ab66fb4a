"""Finds items that occur in more than one split: contamination between search and test."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from evomerge.errors import Problem
from evomerge.types import Item


@dataclass(frozen=True)
class Overlap:
    """Items of one split that another split holds too.

    Attributes:
        first: name of one split.
        second: name of the other; the one whose items are counted.
        by: "id" or "prompt text".
        ids: ids, in the second split, of the items concerned; never empty.
        size: number of items of the second split.
    """

    first: str
    second: str
    by: str
    ids: tuple[str, ...]
    size: int

    def problem(self, key: str = "task") -> Problem:
        """The overlap in the four parts of an error; `key` is the config key of the task."""
        remedy = (
            f"Drop them with {key}.{self.first}.exclude, or give a file for {key}.{self.second} "
            "that does not hold them."
        )
        if self.by == "id":
            remedy += f" If the items differ, set {key}.id to a column unique over all files."
        return Problem(
            f"{key}.{self.first} and {key}.{self.second}",
            f"{len(self.ids)} of the {self.size} items of {self.second} in {self.first} too, "
            f"by {self.by}, for example {self.ids[0]!r}",
            "splits that share no item",
            remedy,
        )


def comparable(text: str) -> str:
    """A text as it is compared: NFKC-normalised, runs of white space made one space."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def find_overlaps(
    splits: Mapping[str, Sequence[Item]], prompt: Callable[[Item], str]
) -> list[Overlap]:
    """Every overlap between every two splits, by id and by prompt text.

    Args:
        splits: the items of each split.
        prompt: the text that the model is given for an item.

    Returns:
        At most two overlaps for each pair of splits; empty if the splits are disjoint. Items found
        by id are not counted again by prompt text.
    """
    prompts = {name: [comparable(prompt(item)) for item in items] for name, items in splits.items()}
    found: list[Overlap] = []
    for first, second in itertools.combinations(splits, 2):
        ids = {item.id for item in splits[first]}
        texts = set(prompts[first])
        by_id = [item.id for item in splits[second] if item.id in ids]
        by_text = [
            item.id
            for item, text in zip(splits[second], prompts[second], strict=True)
            if text in texts and item.id not in ids
        ]
        found += _overlap(first, second, "id", by_id, len(splits[second]))
        found += _overlap(first, second, "prompt text", by_text, len(splits[second]))
    return found


def _overlap(first: str, second: str, by: str, ids: Iterable[str], size: int) -> list[Overlap]:
    ids = tuple(ids)
    return [Overlap(first, second, by, ids, size)] if ids else []
