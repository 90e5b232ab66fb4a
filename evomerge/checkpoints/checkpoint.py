"""A source model: config, tokenizer and memory-mapped tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evomerge.checkpoints.layout import Layout, layout_of
from evomerge.checkpoints.locate import locate
from evomerge.errors import SourceError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_WHOLE_LIMIT = 256 << 20
_SAMPLE = 64 << 10
_SAMPLES = 64


class Checkpoint:
    """Opens a model directory in the Hugging Face layout without reading its weights.

    Attributes:
        ref: the reference it was opened by (a path or a hub name).
        path: its directory on this machine.
        config: its `config.json`.
        shapes: tensor names to shapes, in the order of the files.
    """

    def __init__(self, ref: str, field: str = "model") -> None:
        """Opens the files and checks that each is what it claims to be.

        Args:
            ref: a directory or a hub name.
            field: the config key that names it, for error messages.

        Raises:
            SourceError: if it is missing, truncated, not safetensors or not readable.
        """
        self.ref = ref
        self.field = field
        self.path = locate(ref, field)
        self.config = self._read_json("config.json")
        self._handles: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        weight_map = self._weight_map()
        for file in sorted(set(weight_map.values())) if weight_map else [_SINGLE]:
            self._open(file)
        if weight_map:
            self._check_index(weight_map)
        if not self.shapes:
            raise self._bad("no tensors", "weights")

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
        digest = hashlib.sha256()
        files = sorted(self._handles)
        whole = sum((self.path / f).stat().st_size for f in files) <= _WHOLE_LIMIT
        for file in files:
            digest.update(f"{file}\0{(self.path / file).stat().st_size}\0".encode())
            for chunk in _chunks(self.path / file, whole):
                digest.update(chunk)
        return digest.hexdigest()

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
            raise self._bad(f"tokenizer.json is damaged ({error})", "a tokenizer") from error

    def tensor(self, name: str) -> Tensor:
        """One tensor, backed by the memory map, in the dtype of the file."""
        try:
            tensor: Tensor = self._handles[self._file_of[name]].get_tensor(name)
        except SafetensorError as error:
            raise self._bad(str(error), f"a readable tensor {name}") from error
        return tensor

    def dtype(self, name: str) -> str:
        """Dtype of one tensor as safetensors spells it, such as BF16."""
        return str(self._handles[self._file_of[name]].get_slice(name).get_dtype())

    def bytes(self) -> int:
        """Size of the weight files."""
        return sum((self.path / f).stat().st_size for f in self._handles)

    def non_finite(self) -> Iterator[tuple[str, int]]:
        """Reads all weights and yields (tensor, count) where NaN or infinity occurs."""
        for name in self.names:
            tensor = self.tensor(name)
            if tensor.is_floating_point():
                if tensor.element_size() == 1:  # torch cannot ask float8 for it
                    tensor = tensor.to(torch.float32)
                count = int((~torch.isfinite(tensor)).sum())
                if count:
                    yield name, count

    def _weight_map(self) -> dict[str, str]:
        """Tensor to file as the index has it; empty for a single weight file."""
        if (self.path / _INDEX).is_file():
            weight_map = self._read_json(_INDEX).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise self._bad(f"{_INDEX} without a weight_map", "a safetensors index")
            for file in weight_map.values():
                if not isinstance(file, str) or Path(file).name != file:
                    raise self._bad(f"index entry {file!r}", "files inside the model's folder")
            for file in sorted(set(weight_map.values())):
                if not (self.path / file).is_file():
                    raise self._bad(f"no file {file!r}", "every shard that the index lists")
            return weight_map
        if (self.path / _SINGLE).is_file():
            return {}
        pickled = sorted(p.name for p in self.path.glob("*.bin")) + sorted(
            p.name for p in self.path.glob("*.pt*")
        )
        if pickled:
            raise SourceError.of(
                self.field,
                f"only pickled weights ({pickled[0]}) in {self.ref}",
                "safetensors files, since unpickling can run code",
                "Convert it once: load it with transformers and save_pretrained it.",
            )
        raise self._bad("no weight files", f"{_SINGLE} or {_INDEX}")

    def _open(self, file: str) -> None:
        try:
            handle = safe_open(str(self.path / file), framework="pt", device="cpu")
            self._handles[file] = handle
            for name in handle.keys():  # noqa: SIM118 (not a dict)
                if name in self._file_of:
                    raise self._bad(
                        f"{name} both in {self._file_of[name]} and in {file}", "each tensor once"
                    )
                self._file_of[name] = file
                self.shapes[name] = tuple(handle.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise self._bad(
                f"{file} is damaged ({error})", "a complete safetensors file"
            ) from error

    def _check_index(self, weight_map: dict[str, str]) -> None:
        for name, file in weight_map.items():
            if self._file_of.get(name) != file:
                raise self._bad(
                    f"no tensor {name} in {file}, where the index has it", "an index that is right"
                )
        for name, file in self._file_of.items():
            if name not in weight_map:
                raise self._bad(
                    f"{name} in {file}, which the index does not list", "an index that is right"
                )

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            data = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise self._bad(f"no {name}", "a model directory in the Hugging Face layout") from error
        except (OSError, ValueError, RecursionError) as error:
            raise self._bad(f"{name} is damaged ({error})", "valid JSON") from error
        if not isinstance(data, dict):
            raise self._bad(f"{name} is not a mapping", "a JSON object")
        return data

    def _bad(self, found: str, expected: str) -> SourceError:
        return SourceError.of(
            self.field, f"{found} in {self.ref}", expected, "Download or write the model again."
        )


def _chunks(path: Path, whole: bool) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if whole:
            while chunk := file.read(1 << 20):
                yield chunk
            return
        yield file.read(1 << 20)
        for i in range(_SAMPLES):
            file.seek(i * max(0, size - _SAMPLE) // (_SAMPLES - 1))
            yield file.read(_SAMPLE)
