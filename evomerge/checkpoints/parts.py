"""What a merge is made of, tensor by tensor, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from evomerge.checkpoints.model import Model
from evomerge.checkpoints.vocabulary import VocabularyPlan
from evomerge.kernels.masks import MaskKey
from evomerge.kernels.plans import Plan
from evomerge.operators import Operator
from evomerge.recipe import Recipe

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


@dataclass(frozen=True)
class Input:
    """A tensor of a model; `key` is the model's name in the recipe."""

    model: Model
    name: str
    key: str


@dataclass(frozen=True)
class Part:
    """How one tensor of the output is made.

    Attributes:
        name: in the output.
        shape: of it.
        dtype: that it is rounded to.
        sources: what is merged; one for a copy.
        base: what task vectors start from, if the operator takes one.
        operator: makes the plan; None where `plan` is given.
        arguments: of the operator.
        keys: of random masks, one a source.
        plan: what is done where no operator says it.
        indexed: whether the rows are the vocabulary's.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    sources: tuple[Input, ...]
    base: Input | None = None
    operator: Operator | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    keys: tuple[MaskKey, ...] = ()
    plan: Plan | None = None
    indexed: bool = False

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Everything that is read, the base first if there is one."""
        return self.sources if self.base is None else (self.base, *self.sources)


@dataclass(frozen=True)
class Assembly:
    """All that a merge writes.

    Attributes:
        parts: the tensors, in the order in which they are written.
        config: of the merged model.
        donor: whose other files (tokenizer, generation config) are copied.
        vocabulary: the output's, if the recipe gives it one.
        notes: what the user should know.
    """

    parts: tuple[Part, ...]
    config: dict[str, Any]
    donor: Model
    vocabulary: VocabularyPlan | None = None
    notes: tuple[str, ...] = ()


def key_of(reference: str | Recipe) -> str:
    """What a model or a nested merge is called in a plan."""
    return reference if isinstance(reference, str) else f"merge {reference.digest()[:16]}"


def out_dtype(recipe: Recipe, model: Model, name: str) -> torch.dtype:
    """Dtype that a merged tensor is rounded to: the recipe's, else that of the model's file."""
    if recipe.dtype is not None:
        dtype: torch.dtype = getattr(torch, recipe.dtype)
        return dtype
    return DTYPES[model.dtype(name)]


def is_float(model: Model, name: str) -> bool:
    """Whether a tensor holds numbers that can be merged."""
    return model.dtype(name) in DTYPES
