"""A merge in the place of a source: tensors are computed when they are read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.layout import Layout, layout_of
from evomerge.checkpoints.parts import Assembly, Part
from evomerge.kernels.tensor_merge import TensorMerge
from evomerge.kernels.view import View
from evomerge.kernels.weight import Stored, Weight, whole

_KEPT = 4
"""Tensors whose statistics are kept for the next read."""

DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.int8: "I8",
    torch.int16: "I16", torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


class MergedModel:
    """The output of a recipe as a source of another; its values are not rounded in between.

    Attributes:
        ref: what it is called in messages.
        field: the config key that names it.
        path: directory of the donor's config and tokenizer.
        config: of the merge.
        shapes: tensor names to shapes.
        assembly: its plan.
    """

    def __init__(
        self,
        ref: str,
        field: str,
        identity: str,
        assembly: Assembly,
        view: Callable[[Part, Assembly], View],
    ) -> None:
        """Takes a planned merge; `identity` is its recipe's digest by content."""
        self.ref = ref
        self.field = field
        self.path = assembly.donor.path
        self.config = assembly.config
        self.shapes = {p.name: p.shape for p in assembly.parts}
        self.assembly = assembly
        self._parts = {p.name: p for p in assembly.parts}
        self._view = view
        self._identity = identity
        self._merges: OrderedDict[str, TensorMerge] = OrderedDict()
        self._lock = Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return tuple(self.shapes)

    @cached_property
    def layout(self) -> Layout:
        """The layer groups."""
        return layout_of(self.shapes)

    @property
    def fingerprint(self) -> str:
        """The digest of the recipe, by the content of its models."""
        return self._identity

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token to id."""
        tokenizer = self.tokenizer()
        return {} if tokenizer is None else dict(tokenizer.get_vocab(with_added_tokens=True))

    def tokenizer(self) -> Any:
        """The output's tokenizer, or None if the donor has none."""
        if self.assembly.vocabulary is not None:
            return self.assembly.vocabulary.tokenizer
        return self.assembly.donor.tokenizer()

    def weight(self, name: str) -> Weight:
        """One tensor, computed as it is read, in float32."""
        part = self._parts[name]
        if part.plan is None and part.operator is None:
            one = part.sources[0]
            return Stored(one.model.tensor(one.name))
        return _Merged(self, name, part.shape)

    def tensor(self, name: str) -> Tensor:
        """One tensor, whole."""
        return whole(self.weight(name))

    def _made(self, name: str) -> Tensor:
        """One tensor, whole, which nothing keeps."""
        return self.tensor(name)

    def dtype(self, name: str) -> str:
        """Dtype that the merge would be written in, as safetensors spells it."""
        return DTYPE_NAMES[self._parts[name].dtype]

    def bytes(self) -> int:
        """Size of the files that have to be read."""
        inputs = (i for p in self._parts.values() for i in p.inputs)
        models = {id(i.model): i.model for i in inputs}
        return sum(m.bytes() for m in models.values())

    def non_finite(self) -> Iterator[tuple[str, int]]:
        """Computes all tensors and yields (tensor, count) where NaN or infinity occurs."""
        for name in self.names:
            tensor = self._made(name)
            count = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
            if count:
                yield name, count

    def merge(self, name: str) -> TensorMerge:
        """The computation of one tensor; a few are kept with their statistics."""
        with self._lock:  # several threads may read runs of one tensor
            if name not in self._merges:
                part = self._parts[name]
                self._merges[name] = merge_of(part, self._view(part, self.assembly))
                if len(self._merges) > _KEPT:
                    self._merges.popitem(last=False)
            self._merges.move_to_end(name)
            return self._merges[name]


def merge_of(part: Part, view: View) -> TensorMerge:
    """The computation of one tensor."""
    if part.plan is not None:
        return TensorMerge(view, part.plan)
    if part.operator is None:
        raise ValueError(f"{part.name} is copied, not computed")
    return TensorMerge(view, part.operator.function(view, **part.arguments))


class _Merged:
    """A tensor of a merge as a weight."""

    def __init__(self, model: MergedModel, name: str, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.dtype = torch.float32
        self._model = model
        self._name = name

    def read(self, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the merged tensor."""
        return self._model.merge(self._name).read(start, stop)
