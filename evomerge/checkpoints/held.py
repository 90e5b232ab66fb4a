"""A recipe file in the place of a model: each tensor is computed once and kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.merged import MergedModel
from evomerge.kernels.weight import Stored, Weight


class HeldModel(MergedModel):
    """The model that a recipe would write, bit for bit, without a file of it.

    A search reads its sources for every candidate, so the tensors that were read stay in
    memory, in the recipe's dtype: at most one model.
    """

    def __init__(self, *arguments: Any) -> None:
        """Takes what `MergedModel` takes; computes nothing yet."""
        super().__init__(*arguments)
        self._held: dict[str, Tensor] = {}

    def weight(self, name: str) -> Weight:
        """One tensor, as it would be written."""
        return Stored(self.tensor(name))

    def tensor(self, name: str) -> Tensor:
        """One tensor, whole, as it would be written."""
        if name not in self._held:
            self._held[name] = self._made(name)
        return self._held[name]

    def _made(self, name: str) -> Tensor:
        part = self._parts[name]
        if part.plan is None and part.operator is None:  # a copy, of integers say
            return part.sources[0].model.tensor(part.sources[0].name)
        made = torch.empty(part.shape, dtype=part.dtype)
        self.merge(name).begin(made)
        return made
