"""Tensors whose rows are put in the order of another vocabulary while they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.layout import EMBEDDING, HEAD
from evomerge.checkpoints.model import Model
from evomerge.errors import RecipeError, SourceError
from evomerge.kernels.weight import Stored, Weight
from evomerge.recipe.data import TokenRule

ABSENT = -1
ZERO, MEAN, FILL = -1, -2, -3
"""Instead of a donor: zeros, the mean of the models that have the row, the mean of all tokens."""

_BLOCK = 1 << 18
_POSITION = re.compile(r"(^|[._])(wpe|pos|positions?|positional)([._]|$)")
_TOKENS = re.compile(r"(^|\.)(embed_tokens\w*|embed_in|wte|(word|tok)_embeddings?)\.weight$")
_HEADS = re.compile(r"(^|\.)(lm_head|head|embed_out|output|output_layer|decoder)\.weight$")
_NUMBERED = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Donor:
    """A rule with its token looked up.

    Attributes:
        model: reference of the donor; None for a row of zeros, or for the default.
        row: the donor's row.
        default: whether the row comes from where it would without a rule.
        force: whether models that have the token get the row, too.
    """

    model: str | None = None
    row: int = ABSENT
    default: bool = False
    force: bool = False


def donor_of(
    token: str,
    rule: TokenRule,
    models: Mapping[str, Model],
    vocabularies: Mapping[str, Mapping[str, int]],
    limits: Mapping[str, int | None],
) -> Donor:
    """Looks up what a rule for a token of the output names.

    Args:
        token: the output's.
        rule: from the recipe.
        models: by reference.
        vocabularies: of each model, tokens to rows.
        limits: rows of each model where they are known.

    Raises:
        RecipeError: if the model, the token or the row does not exist.
    """
    field = f"tokenizer.tokens.{token}"
    if rule.kind == "default":
        return Donor(default=True, force=rule.force)
    if rule.kind == "zero":
        return Donor(force=rule.force)
    if rule.kind not in ("model", "model_token"):
        raise RecipeError.of(
            field, f"kind {rule.kind!r}", "default, zero, model or model_token", "Correct it."
        )
    ref = rule.model
    if ref is None or ref not in models:
        raise RecipeError.of(
            field, f"model {ref!r}", f"one of {', '.join(models)}", "Correct the name."
        )
    if rule.kind == "model_token" and (rule.token is None) == (rule.token_id is None):
        raise RecipeError.of(
            field, "both or neither of token and token_id", "one of them", "Correct it."
        )
    row = rule.token_id if rule.kind == "model_token" else None
    if row is None:
        name = token if rule.kind == "model" or rule.token is None else rule.token
        row = vocabularies[ref].get(name)
        if row is None:
            raise RecipeError.of(
                field, f"token {name!r}, which has no row in {ref}", "a token of that model",
                "Name another token or model.",
            )  # fmt: skip
    limit = limits[ref]
    if row < 0 or (limit is not None and row >= limit):
        raise RecipeError.of(
            field, f"token_id {row}", f"a row of {ref}, 0 to {(limit or 1) - 1}", "Correct it."
        )
    return Donor(ref, row, force=rule.force)


@dataclass(frozen=True, eq=False)
class Fallback:
    """Where the rows come from that a model lacks; the same for all models of one tensor.

    Attributes:
        donor: int64, one entry for each output row: an index into `weights`, or `ZERO`,
            `MEAN` or `FILL`.
        row: int64, the donor's row where there is a donor.
        weights: the tensor of every model, each of its own number of rows.
        mappings: int64, output row to the row of that model, `ABSENT` where it has none; for
            the models whose mean is taken and aligned with the first of `weights`.
    """

    donor: Tensor
    row: Tensor
    weights: tuple[Weight, ...]
    mappings: tuple[Tensor, ...]

    def mean(self, rows: Tensor) -> Tensor:
        """Mean over the models that have each of these output rows, `len(rows) x width`."""
        dtype = torch.float32
        for weight, _ in zip(self.weights, self.mappings, strict=False):
            dtype = _wider(dtype, weight.dtype)
        total = torch.zeros(len(rows), _width(self.weights[0]), dtype=dtype)
        count = torch.zeros(len(rows), 1, dtype=dtype)
        for weight, mapping in zip(self.weights, self.mappings, strict=False):
            own = mapping[rows]
            have = own >= 0
            if bool(have.any()):
                total[have] += take_rows(weight, own[have]).to(dtype)
                count[have] += 1
        return total / count.clamp(min=1)


@dataclass(frozen=True, eq=False)
class RemappedWeight:
    """A tensor of one model with the rows of another vocabulary, gathered when it is read.

    Attributes:
        weight: `model rows x ...`, an embedding, a head or its bias.
        mapping: int64, output row to the model's row; `ABSENT` where `fallback` decides.
        fallback: has as many rows as `mapping`.
    """

    weight: Weight
    mapping: Tensor
    fallback: Fallback

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's, with the number of output rows."""
        return (len(self.mapping), *self.weight.shape[1:])

    @cached_property
    def dtype(self) -> torch.dtype:
        """The weight's; wider if a donor's is, and at least float32 where rows are averaged."""
        dtype = self.weight.dtype
        for donor in self.fallback.donor[self.mapping < 0].unique().tolist():
            if donor >= 0:
                dtype = _wider(dtype, self.fallback.weights[donor].dtype)
            elif donor == MEAN:
                for weight, _ in zip(self.fallback.weights, self.fallback.mappings, strict=False):
                    dtype = _wider(_wider(dtype, torch.float32), weight.dtype)
            elif donor == FILL:
                dtype = _wider(dtype, torch.float32)
        return dtype

    def read(self, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor; a view where rows follow each other."""
        if stop <= start:
            return torch.empty(0, dtype=self.dtype)
        width = _width(self.weight)
        first, end = start // width, -(-stop // width)
        own = self.mapping[first:end]
        head, tail = int(own[0]), int(own[-1])
        follows = tail - head == len(own) - 1 and bool((own.diff() == 1).all())
        if head >= 0 and follows:
            shift = (head - first) * width
            return self.weight.read(start + shift, stop + shift).to(self.dtype)
        rows = self._rows(torch.arange(first, end)).reshape(-1)
        return rows[start - first * width : stop - first * width]

    def _rows(self, rows: Tensor) -> Tensor:
        """These output rows, `len(rows) x width`."""
        own = self.mapping[rows]
        have = own >= 0
        if bool(have.all()):
            return take_rows(self.weight, own).to(self.dtype)
        out = torch.zeros(len(rows), _width(self.weight), dtype=self.dtype)
        if bool(have.any()):
            out[have] = take_rows(self.weight, own[have]).to(self.dtype)
        donors = self.fallback.donor[rows]
        for donor in donors[~have].unique().tolist():
            here = ~have & (donors == donor)
            if donor >= 0:
                taken = take_rows(self.fallback.weights[donor], self.fallback.row[rows[here]])
                out[here] = taken.to(self.dtype)
            elif donor == MEAN:
                out[here] = self.fallback.mean(rows[here]).to(self.dtype)
            elif donor == FILL:
                out[here] = self._fill
        return out

    @cached_property
    def _fill(self) -> Tensor:
        """Mean of all rows that belong to a token, read once in blocks; of `width` numbers."""
        width = _width(self.weight)
        tokens = (self.fallback.donor != FILL).nonzero().reshape(-1)
        total = torch.zeros(width, dtype=torch.float64)
        for rows in tokens.split(max(1, _BLOCK // width)):
            total += self._rows(rows).sum(0, dtype=torch.float64)
        return (total / max(1, len(tokens))).to(self.dtype)


def remap_rows(
    weights: Mapping[str, Weight],
    mappings: Mapping[str, Tensor],
    members: Sequence[str],
    base: str | None,
    donors: Mapping[int, Donor],
    tokens: Mapping[str, int],
) -> dict[str, Weight]:
    """One tensor of all members, each with the rows of the output's vocabulary.

    Args:
        weights: model to `its rows x ...`.
        mappings: model to int64, output row to the model's row or `ABSENT`.
        members: the models whose tensors are merged.
        base: the model whose row is taken where several others have it, if it is a member.
        donors: output rows with a rule.
        tokens: of the output, to their rows.

    Raises:
        SourceError: if the shapes differ beyond the rows, or a rule's donor is missing.
    """
    check_widths({ref: {"the tensor": w.shape} for ref, w in weights.items()}, {})
    order = [*members, *(ref for ref in weights if ref not in members)]
    own = {}
    for ref in order:
        own[ref] = mappings[ref].masked_fill(mappings[ref] >= weights[ref].shape[0], ABSENT)
    stacked = torch.stack([own[ref] for ref in members])
    donor, row = _usual_donors(stacked, members.index(base) if base in members else None)
    for token_row, rule in donors.items():
        if rule.default:
            continue
        if rule.model is not None and not (
            rule.model in order and rule.row < weights[rule.model].shape[0]
        ):
            raise SourceError.of(
                "tokenizer.tokens", f"{rule.model} as donor, which lacks the tensor or the row",
                f"one of {', '.join(order)}", "Name one of the models that are merged.",
            )  # fmt: skip
        donor[token_row] = ZERO if rule.model is None else order.index(rule.model)
        row[token_row] = rule.row
    is_token = torch.zeros(len(donor), dtype=torch.bool)
    is_token[list(tokens.values())] = True
    donor = donor.masked_fill(~is_token, FILL)
    forced = torch.zeros(len(donor), dtype=torch.bool)
    forced[[i for i, rule in donors.items() if rule.force]] = True
    fallback = Fallback(
        donor, row, tuple(weights[ref] for ref in order), tuple(own[ref] for ref in members)
    )
    out: dict[str, Weight] = {}
    for ref in members:
        mapping = own[ref].masked_fill(forced, ABSENT)
        same = torch.equal(mapping, torch.arange(weights[ref].shape[0]))
        out[ref] = weights[ref] if same else RemappedWeight(weights[ref], mapping, fallback)
    return out


def _usual_donors(own: Tensor, base: int | None) -> tuple[Tensor, Tensor]:
    """Donor and its row where no rule says otherwise; `own` is `members x output rows`."""
    present = own >= 0
    count = present.sum(0)
    donor = torch.where(count > 1, MEAN, ZERO)
    donor = torch.where(count == 1, present.int().argmax(0), donor)
    if base is not None:
        donor = donor.masked_fill((count > 1) & present[base], base)
    return donor, own.gather(0, donor.clamp(min=0)[None])[0]


@dataclass(frozen=True, eq=False)
class FirstRows:
    """The beginning of a tensor.

    Attributes:
        weight: has at least `rows` rows.
        rows: how many are left of it.
    """

    weight: Weight
    rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's, with `rows` rows."""
        return (self.rows, *self.weight.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """The weight's."""
        return self.weight.dtype

    def read(self, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor."""
        return self.weight.read(start, stop)


def fit_rows(weight: Weight, rows: int, name: str = "tensor", field: str = "model") -> Weight:
    """Cuts a tensor to its first rows, for models of one vocabulary with rows to spare.

    Args:
        weight: `at least rows x ...`.
        rows: of the output.
        name: of the tensor, for the message.
        field: the config key of its model, for the message.

    Raises:
        SourceError: if it has fewer rows.
    """
    have = weight.shape[0] if weight.shape else 0
    if have == rows:
        return weight
    if have < rows:
        raise SourceError.of(
            field, f"{name} with {have} rows", f"at least {rows}",
            "Give the recipe a tokenizer, such as `tokenizer: {source: base}`, so that rows "
            "are matched by their tokens.",
        )  # fmt: skip
    return Stored(weight.tensor[:rows]) if isinstance(weight, Stored) else FirstRows(weight, rows)


def vocabulary_tensors(model: Model) -> frozenset[str]:
    """Names of the tensors with one row a token: embeddings, heads and the heads' biases.

    Told from names, groups and the config's vocabulary size. A head has the embedding's width
    and as many rows as the embedding or a head's name; position embeddings are left out.
    """
    least = min(_sizes(model.config), default=1)
    shapes = {
        n: s for n, s in model.shapes.items() if s and s[0] >= least and not _POSITION.search(n)
    }
    found = {n for n in model.layout.embeddings if n in shapes}
    first = next((shapes[n] for n in model.layout.embeddings if n in found), None)
    for name, shape in shapes.items():
        free = model.layout.group_of(name) == HEAD and not _NUMBERED.search(name)
        tokens, head = bool(_TOKENS.search(name)), bool(_HEADS.search(name))
        if len(shape) != 2:
            continue
        if shape == first:  # inside the blocks of a model that predicts several tokens, too
            taken = free or tokens or head
        else:  # embeddings of a token for every layer are wider
            taken = free and (tokens or (head and (first is None or shape[1:] == first[1:])))
        if taken:
            found.add(name)
    rows = {shapes[n][0] for n in found}
    for name, shape in shapes.items():
        weight = name.removesuffix("bias") + "weight"
        if name.endswith(".bias") and len(shape) == 1 and shape[0] in rows:
            own = weight not in model.shapes and not _NUMBERED.search(name)
            if weight in found or own:
                found.add(name)
    return frozenset(found)


def rows_of(model: Model) -> int | None:
    """Rows of the token embeddings; None if they cannot be found."""
    names = vocabulary_tensors(model)
    inputs = [n for n in names if model.layout.group_of(n) == EMBEDDING]
    if names:
        return min(model.shapes[n][0] for n in inputs or names)
    return min(_sizes(model.config), default=None)


def check_widths(
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]], models: Mapping[str, Model]
) -> None:
    """Refuses tensors of one name whose shapes differ beyond the rows.

    Args:
        shapes: model to tensor names to shapes.
        models: by the same references, for messages.

    Raises:
        SourceError: naming the tensor and both models.
    """
    first: dict[str, tuple[str, tuple[int, ...]]] = {}
    for ref, tensors in shapes.items():
        for name, shape in tensors.items():
            where, expected = first.setdefault(name, (ref, shape[1:]))
            if shape[1:] != expected:
                raise SourceError.of(
                    models[ref].field if ref in models else "tokenizer",
                    f"{name} with rows of {list(shape[1:])} in {ref}",
                    f"rows of {list(expected)} as in {where}",
                    "Merge models of one hidden size; a tokenizer can only match the rows.",
                )  # fmt: skip


def text_parts(config: Mapping[str, Any]) -> list[str]:
    """Keys of a config under which the language model has a config of its own."""
    keys = ("text_config", "llm_config", "language_config")
    return [key for key in keys if isinstance(config.get(key), dict)]


def is_size(key: str, value: Any) -> bool:
    """Whether an entry of a config is a number of rows of the vocabulary."""
    return key.startswith("vocab_size") and type(value) is int and value > 0


def _sizes(config: Mapping[str, Any]) -> list[int]:
    parts = [config, *(config[key] for key in text_parts(config))]
    return [value for part in parts for key, value in part.items() if is_size(key, value)]


def take_rows(weight: Weight, rows: Tensor) -> Tensor:
    """Some rows of a weight, `len(rows) x width`, in its dtype; reads nothing else."""
    width = _width(weight)
    if isinstance(weight, Stored):
        return weight.tensor.index_select(0, rows).reshape(len(rows), width)
    ids = rows.tolist()
    breaks = ((rows.diff() != 1).nonzero().reshape(-1) + 1).tolist()
    edges = [0, *breaks, len(ids)] if ids else []
    runs = [
        weight.read(ids[start] * width, (ids[end - 1] + 1) * width)
        for start, end in pairwise(edges)
    ]
    out = torch.cat(runs) if runs else torch.empty(0, dtype=weight.dtype)
    return out.reshape(len(rows), width)


def _width(weight: Weight) -> int:
    """Elements of one row."""
    return max(1, prod(weight.shape[1:]))


def _wider(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The dtype that holds both; torch does not promote floats of 8 bits."""
    if one == other:
        return one
    if one.itemsize == 1 and one.is_floating_point:
        return _wider(torch.float32, other)
    if other.itemsize == 1 and other.is_floating_point:
        return _wider(one, torch.float32)
    return torch.promote_types(one, other)
