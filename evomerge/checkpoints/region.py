"""The part of a model that a merge is about, and how its tensors correspond to others'."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from evomerge.checkpoints.layout import EMBEDDING, HEAD, Layout, layout_of
from evomerge.checkpoints.model import Model
from evomerge.checkpoints.remapped import text_parts, vocabulary_tensors

_DERIVED = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias|\.attention\.(masked_)?bias)$")
"""Buffers that old checkpoints hold and that models compute for themselves."""

_EARLY = re.compile(r"(^|\.)(word_embeddings_layernorm|emb(ed)?_(layer_?)?norm)\.[a-z]+$")
"""Norms of the embedding, which stand before the blocks, too."""

_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
_NUMBERED = re.compile(r"\.\d+\.")


def is_derived(name: str) -> bool:
    """Whether a tensor is a buffer that models compute for themselves."""
    return bool(_DERIVED.search(name))


def is_head(name: str) -> bool:
    """Whether a tensor is the matrix of an output embedding, which may be tied."""
    return bool(_HEAD.search(name)) and not _NUMBERED.search(name)


def may_be_tied(model: Model) -> bool:
    """Whether a model without a head is one whose head is its embedding."""
    parts = [model.config, *(model.config[key] for key in text_parts(model.config))]
    return all(part.get("tie_word_embeddings") is not False for part in parts)


@dataclass(frozen=True)
class Region:
    """Some tensors of a model.

    Attributes:
        model: whose.
        names: of the tensors, in the order of the files.
        prefix: what the names begin with; empty for all of the model.
    """

    model: Model
    names: tuple[str, ...]
    prefix: str = ""

    @cached_property
    def layout(self) -> Layout:
        """Layer groups of these tensors."""
        return layout_of(self.names)

    @cached_property
    def present(self) -> frozenset[str]:
        """The names, to look up."""
        return frozenset(self.names)

    @cached_property
    def by_block(self) -> dict[int, tuple[str, ...]]:
        """Tensors of each block."""
        out: dict[int, list[str]] = {}
        for name in self.names:
            group = self.layout.group_of(name)
            if group.startswith("block."):
                out.setdefault(int(group.removeprefix("block.")), []).append(name)
        return {block: tuple(names) for block, names in out.items()}

    def outside(self, group: str) -> tuple[str, ...]:
        """Tensors before (`embedding`) or behind (`head`) the blocks."""
        names = (n for n in self.names if not self.layout.group_of(n).startswith("block."))
        early = {*self.layout.embeddings}
        return tuple(
            n for n in names if (n in early or bool(_EARLY.search(n))) == (group == EMBEDDING)
        )

    def moved(self, name: str, block: int, to: Region, at: int) -> str:
        """What a tensor of one of this region's blocks is called in a block of another region."""
        suffix = name.removeprefix(f"{self.layout.prefix}.{block}.")
        return f"{to.layout.prefix}.{at}.{suffix}"

    def named(self, name: str, to: Region) -> str | None:
        """What a tensor outside the blocks is called in another region, None if it is not there.

        Under its own name; with what stands before this region's blocks exchanged for what
        stands before the other's (`language_model.model.layers` and `model.layers`); or below
        the other's prefix in place of this one's.
        """
        bare = name.removeprefix(self.prefix)
        short = bare.removeprefix("model.")
        own, other = _before(self.layout.prefix, to.layout.prefix)
        candidates = [name, to.prefix + bare, to.prefix + short, bare, f"model.{bare}", short]
        if name.startswith(own):
            candidates.insert(1, other + name.removeprefix(own))
        if is_head(name):  # there is one, in the language model or beside it
            candidates += [n for n in to.names if is_head(n)]
        return next((c for c in candidates if c in to.present), None)

    def counterpart(self, name: str, to: Region) -> str | None:
        """A tensor outside the blocks in another region: as it is `named` there or, for a head
        that is tied there, the embedding; None if there is none."""
        found = self.named(name, to)
        if found is None and is_head(name) and may_be_tied(to.model):
            return next(iter(to.tokens), None)
        return found

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The token embeddings, without those of positions."""
        indexed = vocabulary_tensors(self.model)
        return tuple(n for n in self.outside(EMBEDDING) if n in indexed)


def _before(one: str, other: str) -> tuple[str, str]:
    """Two dotted prefixes without the parts in which they end alike, each with its last dot."""
    a, b = one.split("."), other.split(".")
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return "".join(f"{part}." for part in a), "".join(f"{part}." for part in b)


def whole(model: Model) -> Region:
    """All tensors of a model."""
    return Region(model, model.names)


def below(model: Model, prefix: str) -> Region:
    """Tensors below a prefix, or all of them where none is."""
    names = tuple(n for n in model.names if n.startswith(prefix))
    return Region(model, names, prefix) if names else whole(model)


def part(model: Model, names: Iterable[str]) -> Region:
    """Chosen tensors of a model."""
    return Region(model, tuple(names))


__all__ = [
    "EMBEDDING", "HEAD", "Region", "below", "is_derived", "is_head", "may_be_tied", "part", "whole",
]  # fmt: skip
