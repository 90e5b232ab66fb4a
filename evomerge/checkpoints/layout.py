"""Which part of a model a tensor belongs to, told from the tensors' names alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

EMBEDDING = "embedding"
HEAD = "head"
_INDEXED = re.compile(r"^(.*?)\.(\d+)\.")
_TOKENS = r"embed_tokens|embed_in|wte|word_embeddings?|tok_embeddings|embeddings?"
_TOKEN_EMBEDDING = re.compile(rf"(^|\.)({_TOKENS})\.weight$")
_EMBEDDING = re.compile(rf"(^|\.)({_TOKENS}|wpe|embed_positions|position_embeddings?)\.weight$")


@dataclass(frozen=True)
class Layout:
    """The layer groups of a checkpoint.

    Attributes:
        prefix: what stands before a block's number, such as `model.layers`.
        blocks: number of transformer blocks.
        embeddings: names of the input embeddings.
    """

    prefix: str
    blocks: int
    embeddings: tuple[str, ...]

    def groups(self) -> tuple[str, ...]:
        """Names of the groups from the input to the output."""
        middle = tuple(f"block.{i}" for i in range(self.blocks))
        return (*((EMBEDDING,) if self.embeddings else ()), *middle, HEAD)

    def group_of(self, tensor: str) -> str:
        """Group of one tensor; what is neither block nor embedding counts as head."""
        if tensor in self.embeddings:
            return EMBEDDING
        found = _INDEXED.match(tensor)
        if found and found.group(1) == self.prefix:
            return f"block.{int(found.group(2))}"
        return HEAD

    def filters(self, group: str) -> tuple[str | None, ...]:
        """Name substrings that pick a group; None stands for everything else."""
        if group == EMBEDDING:
            return self.embeddings
        if group == HEAD:
            return (None,)
        return (f"{self.prefix}.{group.removeprefix('block.')}.",)


def layout_of(names: Iterable[str]) -> Layout:
    """Reads the layout off the tensor names.

    Tensors whose names differ in the first number only are a family. The blocks are the
    family that lies nearest to the token embeddings, so that a vision tower is not taken for
    the language model; the largest one where that does not tell.
    """
    all_names = list(names)
    matches = [m for m in map(_INDEXED.match, all_names) if m]
    families = Counter(m.group(1) for m in matches)
    tokens = [n for n in all_names if _TOKEN_EMBEDDING.search(n) and not _INDEXED.match(n)]
    prefix = max(
        families,
        key=lambda family: (max((_shared(family, t) for t in tokens), default=0), families[family]),
        default="",
    )
    numbers = {int(m.group(2)) for m in matches if m.group(1) == prefix}
    room = prefix.rpartition(".")[0]
    embeddings = tuple(
        n
        for n in all_names
        if _EMBEDDING.search(n) and not _INDEXED.match(n) and (not room or n.startswith(f"{room}."))
    )
    return Layout(prefix, max(numbers) + 1 if numbers else 0, embeddings)


def _shared(one: str, other: str) -> int:
    """Number of dotted parts with which both names begin."""
    count = 0
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        count += 1
    return count
