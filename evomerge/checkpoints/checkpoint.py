"""A source model: config, tokenizer and memory-mapped tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from torch import Tensor

from evomerge.checkpoints.files import WeightFiles, complaint, count_non_finite, read_json
from evomerge.checkpoints.layout import Layout, layout_of
from evomerge.checkpoints.locate import locate
from evomerge.checkpoints.pickled import PickledFile, Strided, aliases
from evomerge.kernels.weight import Stored, Weight

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"


class Checkpoint:
    """Opens a model directory in the Hugging Face layout without reading its weights.

    Attributes:
        ref: the reference it was opened by (a path or a hub name).
        field: the config key that names it, for error messages.
        path: its directory on this machine.
        config: its `config.json`.
        shapes: tensor names to shapes, in the order of the files.
    """

    def __init__(self, ref: str, field: str = "model", allow_pickled: bool = False) -> None:
        """Opens the files and checks that each is what it claims to be.

        Args:
            ref: a directory or a hub name.
            field: the config key that names it, for error messages.
            allow_pickled: whether `pytorch_model.bin` may be read where there are no
                safetensors, through torch's weights-only loader.

        Raises:
            SourceError: if it is missing, truncated, not safetensors or not readable.
        """
        self.ref = ref
        self.field = field
        self.path = locate(ref, field, allow_pickled)
        self._complain = complaint(field, ref)
        self.config: dict[str, Any] = read_json(self.path / "config.json", self._complain)
        self._weights = WeightFiles(self.path, field, ref, SAFETENSORS, PICKLED, allow_pickled)
        left_out = self._tied_heads()
        self.shapes: dict[str, tuple[int, ...]] = {
            name: shape for name, shape in self._weights.shapes.items() if name not in left_out
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return tuple(self.shapes)

    @cached_property
    def layout(self) -> Layout:
        """The layer groups."""
        return layout_of(self.shapes)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the weights: whole up to 256 MB, else headers and 64 samples a file."""
        return self._weights.fingerprint()

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token to id from `tokenizer.json`; empty if the source has none."""
        tokenizer = self.tokenizer()
        return {} if tokenizer is None else dict(tokenizer.get_vocab(with_added_tokens=True))

    def tokenizer(self) -> Any:
        """The fast tokenizer of `tokenizer.json`, or None if the source has none.

        Raises:
            SourceError: if the file is damaged.
        """
        if not (self.path / "tokenizer.json").is_file():
            return None
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(self.path / "tokenizer.json"))
        except Exception as error:  # the library raises nothing more precise
            raise self._complain(f"tokenizer.json is damaged ({error})", "a tokenizer") from error

    def weight(self, name: str) -> Weight:
        """One tensor, read in pieces from the memory map."""
        tensor = self._weights.of(name).view(name)
        return Stored(tensor) if tensor.is_contiguous() else Strided(tensor)

    def tensor(self, name: str) -> Tensor:
        """One tensor, backed by the memory map, in the dtype of the file."""
        return self._weights.of(name).tensor(name)

    def dtype(self, name: str) -> str:
        """Dtype of one tensor as safetensors spells it, such as BF16."""
        return self._weights.of(name).dtype(name)

    def bytes(self) -> int:
        """Size of the weight files."""
        return self._weights.bytes()

    def non_finite(self) -> Iterator[tuple[str, int]]:
        """Reads all weights and yields (tensor, count) where NaN or infinity occurs."""
        for name in self.names:
            count = count_non_finite(self.tensor(name))
            if count:
                yield name, count

    def _tied_heads(self) -> set[str]:
        """Heads that a pickled file lists beside the embedding whose memory they share.

        Safetensors leave a tied head out, so both forms of a model have the same names.
        """
        text = self.config.get("text_config")
        parts = [self.config, *([text] if isinstance(text, dict) else [])]
        if any(part.get("tie_word_embeddings") is False for part in parts):
            return set()
        embeddings = layout_of(self._weights.shapes).embeddings
        found = set()
        for file in self._weights.files.values():
            if not isinstance(file, PickledFile):
                continue
            for pair in aliases({name: file.view(name) for name in file.shapes}):
                heads = [name for name in pair if name not in embeddings]
                if len(pair) == 2 and len(heads) == 1:
                    found.add(heads[0])
        return found
