"""Merges the models of the zoo by task arithmetic, one signed weight a source and group.

Independent of the package's own operators, so that each can be checked against the other:
out = base + sum_i w_i (x_i - base).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from evomerge.zoo import SOURCES

BLOCKS = 4
GROUPS = ("embedding", *(f"block {block}" for block in range(BLOCKS)), "head")
"""Layer groups of the search: the head is the final norm, the embedding being tied."""

FloatArray = NDArray[np.float64]


def group_of(name: str) -> int:
    """Index in `GROUPS` of a tensor, by its name."""
    if ".layers." in name:
        return 1 + int(name.split(".layers.")[1].split(".")[0])
    return 0 if "embed_tokens" in name else len(GROUPS) - 1


class ZooMerger:
    """Holds one model and fills it with merges of the base and the specialists.

    Args:
        directory: holds `base/` and a directory for each of the sources.
    """

    def __init__(self, directory: Path, sources: Sequence[str] = SOURCES) -> None:
        self.model = _load(directory / "base")
        self._base = _tensors(self.model)
        self._differences: list[Mapping[str, torch.Tensor]] = []
        for source in sources:
            tensors = _tensors(_load(directory / source))
            self._differences.append({k: v - self._base[k] for k, v in tensors.items()})

    @torch.no_grad()
    def merge(self, weights: FloatArray) -> PreTrainedModel:
        """The model with merged weights, rounded to bf16 as a saved merge would be.

        Args:
            weights: a `sources x len(GROUPS)` array, or `sources x 1` for all groups alike.
        """
        per_group = np.broadcast_to(weights, (len(self._differences), len(GROUPS)))
        for name, parameter in self.model.named_parameters():
            merged = self._base[name].clone()
            column = per_group[:, group_of(name)]
            for weight, difference in zip(column, self._differences, strict=True):
                merged += float(weight) * difference[name]
            parameter.copy_(merged.to(torch.bfloat16))
        return self.model


def _load(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def _tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}
