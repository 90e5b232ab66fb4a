"""Which part of a model a tensor belongs to, told from the tensors' names alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

EMBEDDING = "embedding"
HEAD = "head"
_INDEXED = re.compile(r"^(.*?)\.(\d+)\.")
_EMBEDDING = re.compile(r"(embed_tokens|embed_in|wte|wpe|word_embeddings|embeddings?)\b")


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
        return (EMBEDDING, *middle, HEAD)

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

    The blocks are the largest family of tensors whose names differ in the first number only.
    """
    all_names = list(names)
    matches = [m for m in map(_INDEXED.match, all_names) if m]
    families = Counter(m.group(1) for m in matches)
    prefix = families.most_common(1)[0][0] if families else ""
    numbers = {int(m.group(2)) for m in matches if m.group(1) == prefix}
    embeddings = tuple(
        n
        for n in all_names
        if _EMBEDDING.search(n) and not (prefix and n.startswith(f"{prefix}."))
    )
    return Layout(prefix, max(numbers) + 1 if numbers else 0, embeddings)
