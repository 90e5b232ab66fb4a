"""What a merge is, as frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Scalar = float | int | bool | str
Value = Scalar | tuple[Scalar, ...]
"""One value, or a gradient: values spread evenly over the depth, numbers interpolated."""

DTYPES = ("float32", "bfloat16", "float16")
READINGS = ("block_output", "stream")


@dataclass(frozen=True)
class Case:
    """One line of a `{filter, value}` list; a filter of None matches every tensor."""

    filter: str | None
    value: Value


Setting = Value | tuple[Case, ...]
"""A parameter's value: the same for all tensors, or by depth, or chosen by the tensor's name."""

Settings = Mapping[str, Setting]

Reference = "str | Recipe"
"""A model directory, a hub name, `model+adapter`, or a merge in its place."""


@dataclass(frozen=True)
class Source:
    """A model that takes part in a merge, with the parameters that are its own.

    Attributes:
        model: a directory, a hub name, `model+adapter`, or a recipe (a nested merge).
        parameters: the source's own.
        layer_range: blocks [first, end) of the model, in a slice only.
    """

    model: str | Recipe
    parameters: Settings = field(default_factory=dict, hash=False)
    layer_range: tuple[int, int] | None = None


@dataclass(frozen=True)
class Slice:
    """A run of the output's blocks and the equally long runs that are merged into it."""

    sources: tuple[Source, ...]
    base: str | Recipe | None = None
    parameters: Settings = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Module:
    """A part of a model with blocks of its own; `sources` or `slices`, as in a recipe."""

    sources: tuple[Source, ...] = ()
    slices: tuple[Slice, ...] = ()
    parameters: Settings = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class TokenRule:
    """Where the embedding of one token comes from.

    Attributes:
        kind: `default` (as for any token), `zero`, `model` or `model_token`.
        model: the donor for `model` and `model_token`.
        token: the donor's token, if it is another one (or `token_id`).
        token_id: the donor's row.
        force: whether models that have the token get the donor's row, too.
    """

    kind: str = "default"
    model: str | None = None
    token: str | None = None
    token_id: int | None = None
    force: bool = False


@dataclass(frozen=True)
class Tokenizer:
    """Which vocabulary the merged model gets.

    Attributes:
        source: `base`, `union` or the reference of a model.
        tokens: rules for single tokens; tokens that no tokenizer has are added.
        pad_to_multiple_of: rows of the embeddings are rounded up to it.
    """

    source: str = "union"
    tokens: Mapping[str, TokenRule] = field(default_factory=dict, hash=False)
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True)
class Scope:
    """Merges only the tensors below a prefix and copies the rest from one parent.

    Attributes:
        prefix: of tensor names in the parent, such as `language_model.`.
        rest: the parent; None for the base (or the first source).
    """

    prefix: str
    rest: str | None = None


@dataclass(frozen=True)
class Slot:
    """One layer of a route: a block of a model, or nothing (an identity).

    Attributes:
        model: whose block; None for an identity.
        layer: number of the block.
        scale: multiplies what enters the slot, see `Route.scale`.
    """

    model: str | Recipe | None
    layer: int = 0
    scale: float = 1.0


@dataclass(frozen=True)
class Route:
    """Blocks of several models in any order (data-flow space, arXiv 2403.13187).

    Attributes:
        slots: from the input to the output.
        scale: what a slot's scale multiplies: `block_output`, the previous block's MLP output
            (for the first slot the embedding), or `stream`, the whole residual stream.
        depth: number of blocks of the written model; identities are added at the end up to
            it. None for as many as there are slots.
    """

    slots: tuple[Slot, ...]
    scale: str = "block_output"
    depth: int | None = None


@dataclass(frozen=True)
class Pieces:
    """Linear combinations of the sources on intervals of the flattened parameters (M2N2).

    Attributes:
        breakpoints: where intervals end, strictly increasing; the last is the number of
            parameters.
        coefficients: for each interval one number a source.
    """

    breakpoints: tuple[int, ...]
    coefficients: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Recipe:
    """A merge as data. Exactly one of `sources`, `slices`, `modules` and `route` is given.

    Attributes:
        method: name of the operator (`evomerge.operators.names()`); `passthrough` for a
            route, `pieces` for a merge by pieces.
        sources: the models, in order.
        base: the model that task vectors start from, if the operator needs one.
        parameters: parameters of the whole merge, and defaults for the sources'.
        dtype: of the tensors that come out; None keeps that of each tensor's file.
        slices: runs of blocks, from the input to the output.
        modules: parts of the model, by name.
        tokenizer: None copies the base's (or the first source's).
        chat_template: Jinja text, or `auto` for the one that most models have; None keeps it.
        scope: merge a part of the model only.
        route: blocks in any order.
        pieces: intervals of the flattened parameters, over `sources`.
        methods: operators of tensors that `method` is not for: the value of the first case
            whose filter is a part of the tensor's name. All operators of a recipe take the same
            models; each knows its own parameters and passes over the others'.
    """

    method: str
    sources: tuple[Source, ...] = ()
    base: str | Recipe | None = None
    parameters: Settings = field(default_factory=dict, hash=False)
    dtype: str | None = "bfloat16"
    slices: tuple[Slice, ...] = ()
    modules: Mapping[str, Module] = field(default_factory=dict, hash=False)
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    scope: Scope | None = None
    route: Route | None = None
    pieces: Pieces | None = None
    methods: tuple[Case, ...] = ()

    def models(self) -> tuple[str, ...]:
        """Every model that the recipe reads, the base first, without repeats.

        Those of nested merges stand where the merge stands. Models that only lend a
        tokenizer, an embedding or the tensors outside the scope come last.
        """
        from evomerge.recipe.writing import references

        return tuple(dict.fromkeys(references(self)))

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data, in mergekit's form wherever that can say it."""
        from evomerge.recipe.writing import plain_recipe

        return plain_recipe(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """Reads plain data in mergekit's form or ours.

        Raises:
            RecipeError: naming the key at fault below `where`.
        """
        from evomerge.recipe.reading import read_dict

        return read_dict(data, where)

    def to_yaml(self, identities: Mapping[str, str] | None = None) -> str:
        """The recipe as YAML; the digest stands in a comment on top."""
        from evomerge.recipe.writing import yaml_text

        return f"# digest: {self.digest(identities)}\n{yaml_text(self.to_dict())}"

    @classmethod
    def from_yaml(cls, path: Path) -> Recipe:
        """Reads a YAML file.

        Raises:
            RecipeError: if the file cannot be read or is not a recipe.
        """
        from evomerge.recipe.reading import read_file

        return read_file(path)

    def digest(self, identities: Mapping[str, str] | None = None) -> str:
        """sha256 of the recipe's meaning, 64 hex digits.

        With `identities` (model reference to content fingerprint) it does not depend on
        where the models lie or what they are called. Equal numbers count as one value,
        however they are written (1 and 1.0); the order of a mapping's keys says nothing.
        """
        from evomerge.recipe.digest import digest

        return digest(self, identities or {})
