"""The part of a model that a merge is about, and how its tensors correspond to others'."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from evomerge.checkpoints.layout import EMBEDDING, HEAD, Layout, layout_of
from evomerge.checkpoints.model import Model

_DERIVED = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias|\.attention\.(masked_)?bias)$")
"""Buffers that old checkpoints hold and that models compute for themselves."""

_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")


def is_derived(name: str) -> bool:
    """Whether a tensor is a buffer that models compute for themselves."""
    return bool(_DERIVED.search(name))


def is_head(name: str) -> bool:
    """Whether a tensor is the matrix of an output embedding, which may be tied."""
    return bool(_HEAD.search(name))


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
        return tuple(n for n in self.names if self.layout.group_of(n) == group)

    def moved(self, name: str, block: int, to: Region, at: int) -> str:
        """What a tensor of one of this region's blocks is called in a block of another region."""
        suffix = name.removeprefix(f"{self.layout.prefix}.{block}.")
        return f"{to.layout.prefix}.{at}.{suffix}"

    def counterpart(self, name: str, to: Region) -> str | None:
        """A tensor outside the blocks in another region: under its own name, without this
        region's prefix, or, for a tied head, the embedding; None if there is none."""
        bare = name.removeprefix(self.prefix)
        for candidate in (
            name,
            to.prefix + bare,
            bare,
            f"model.{bare}",
            bare.removeprefix("model."),
        ):
            if candidate in to.present:
                return candidate
        if is_head(name):
            tied = [n for n in to.outside(EMBEDDING) if len(to.model.shapes[n]) == 2]
            return tied[0] if tied else None
        return None


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


__all__ = ["EMBEDDING", "HEAD", "Region", "below", "is_derived", "is_head", "part", "whole"]
