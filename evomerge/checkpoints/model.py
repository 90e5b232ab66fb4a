"""What the merger asks of a source, whether it is a checkpoint, an adapted one or a merge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from evomerge.checkpoints.layout import Layout
from evomerge.kernels.weight import Weight


class Model(Protocol):
    """Named tensors with a config and a tokenizer.

    Attributes:
        ref: the reference that it was opened by.
        field: the config key that names it, for error messages.
        path: directory of its config and tokenizer on this machine.
        config: its `config.json`.
        shapes: tensor names to shapes, in the order of the files.
    """

    ref: str
    field: str
    path: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""

    @property
    def layout(self) -> Layout:
        """The layer groups."""

    @property
    def fingerprint(self) -> str:
        """Hash of the weights, 64 hex digits."""

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token to id; empty if the source has no `tokenizer.json`."""

    def tokenizer(self) -> Any:
        """The fast tokenizer, or None if the source has none."""

    def weight(self, name: str) -> Weight:
        """One tensor, to be read in pieces."""

    def tensor(self, name: str) -> Tensor:
        """One tensor, whole."""

    def dtype(self, name: str) -> str:
        """Dtype of one tensor as safetensors spells it, such as BF16."""

    def bytes(self) -> int:
        """Size of the files that have to be read."""

    def non_finite(self) -> Iterator[tuple[str, int]]:
        """Reads all weights and yields (tensor, count) where NaN or infinity occurs."""
