"""The weight files of a folder: safetensors, or pickled ones where that was asked for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evomerge.errors import SourceError
from evomerge.kernels.cache import cache_folder

_SMALL = 64 << 20
"""Bytes that are hashed anew every time."""


Complaint = Callable[[str, str], SourceError]
"""Makes an error of what was found and what was expected."""


class WeightFile(Protocol):
    """One open file of tensors.

    Attributes:
        shapes: tensor names to shapes, in the order of the file.
    """

    shapes: dict[str, tuple[int, ...]]

    def tensor(self, name: str) -> Tensor:
        """One tensor, contiguous; a view into the memory map where the file has it so."""

    def view(self, name: str) -> Tensor:
        """One tensor as the file has it, which may be strided; never a copy."""

    def dtype(self, name: str) -> str:
        """Dtype as safetensors spells it."""


class SafetensorsFile:
    """Opens one safetensors file; the tensors are views into its memory map."""

    def __init__(self, path: Path, complain: Complaint) -> None:
        """Reads and checks the header.

        Raises:
            SourceError: if it is truncated or its header does not fit the file.
        """
        self._complain = complain
        try:
            self._handle = safe_open(str(path), framework="pt", device="cpu")
            self.shapes = {
                name: tuple(self._handle.get_slice(name).get_shape())
                for name in self._handle.keys()  # noqa: SIM118 (not a dict)
            }
        except (SafetensorError, OSError) as error:
            raise complain(
                f"{path.name} is damaged ({error})", "a complete safetensors file"
            ) from error

    def tensor(self, name: str) -> Tensor:
        """A view into the memory map: nothing is read until it is used."""
        try:
            tensor: Tensor = self._handle.get_tensor(name)
        except SafetensorError as error:
            raise self._complain(str(error), f"a readable tensor {name}") from error
        return tensor

    def view(self, name: str) -> Tensor:
        """The same, since safetensors are contiguous."""
        return self.tensor(name)

    def dtype(self, name: str) -> str:
        """As the header has it."""
        return str(self._handle.get_slice(name).get_dtype())


def complaint(field: str, ref: str) -> Complaint:
    """Makes the errors of one source.

    Args:
        field: the config key that names the source.
        ref: its reference.
    """

    def complain(found: str, expected: str) -> SourceError:
        return SourceError.of(
            field, f"{found} in {ref}", expected, "Download or write the model again."
        )

    return complain


def read_json(path: Path, complain: Complaint, kind: str = "a model") -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        SourceError: if it is missing, damaged or not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise complain(f"no {path.name}", f"{kind} directory in the Hugging Face layout") from error
    except (OSError, ValueError, RecursionError) as error:
        raise complain(f"{path.name} is damaged ({error})", "valid JSON") from error
    if not isinstance(data, dict):
        raise complain(f"{path.name} is not a mapping", "a JSON object")
    return data


class WeightFiles:
    """Opens a folder's weights, one file or several with an index, without reading them.

    Attributes:
        shapes: tensor names to shapes, in the order of the files.
        files: the files' names to the files.
    """

    def __init__(
        self, folder: Path, field: str, ref: str, safetensors: str, pickled: str, allow: bool
    ) -> None:
        """Opens the files and checks that each is what it claims to be.

        Args:
            folder: where they lie.
            field: the config key that names the source, for error messages.
            ref: its reference, for error messages.
            safetensors: name of a single safetensors file; its index adds `.index.json`.
            pickled: the same of a pickled one.
            allow: whether pickled weights may be read where there are no safetensors.

        Raises:
            SourceError: if they are missing, truncated, pickled though `allow` is false, or
                do not agree with their index.
        """
        self.folder = folder
        self._complain = complaint(field, ref)
        single, weight_map = self._find(field, ref, safetensors, pickled, allow)
        self.files: dict[str, WeightFile] = {}
        self.file_of: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(set(weight_map.values())) if weight_map else [single]:
            self._open(file, unpickle=single == pickled)
        if weight_map:
            self._check_index(weight_map)
        if not self.shapes:
            raise self._complain("no tensors", "weights")

    def of(self, name: str) -> WeightFile:
        """The file that has a tensor."""
        return self.files[self.file_of[name]]

    def bytes(self) -> int:
        """Size of the files."""
        return sum((self.folder / f).stat().st_size for f in self.files)

    def fingerprint(self) -> str:
        """sha256 of the files; of large ones it is remembered with their size and time."""
        if self.bytes() <= _SMALL:
            return self._hash()
        stats = [(f, (self.folder / f).stat()) for f in sorted(self.files)]
        state = [
            (f, str(self.folder.resolve()), s.st_size, s.st_mtime_ns, s.st_ino) for f, s in stats
        ]
        name = hashlib.sha256(repr(state).encode()).hexdigest()
        memo = cache_folder() / "fingerprints" / name
        with contextlib.suppress(OSError):
            known = memo.read_text()
            if re.fullmatch(r"[0-9a-f]{64}", known):
                return known
        found = self._hash()
        with contextlib.suppress(OSError):
            memo.parent.mkdir(parents=True, exist_ok=True)
            memo.write_text(found)
        return found

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for file in sorted(self.files):
            digest.update(f"{file}\0{(self.folder / file).stat().st_size}\0".encode())
            with (self.folder / file).open("rb") as opened:
                while chunk := opened.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()

    def _find(
        self, field: str, ref: str, safetensors: str, pickled: str, allow: bool
    ) -> tuple[str, dict[str, str]]:
        """The kind of weights that is there, by the name of its single file, and its index."""
        for single in (safetensors, pickled) if allow else (safetensors,):
            if (self.folder / f"{single}.index.json").is_file():
                return single, self._weight_map(f"{single}.index.json")
            if (self.folder / single).is_file():
                return single, {}
        found = sorted(p.name for p in self.folder.glob("*.bin"))
        found += sorted(p.name for p in self.folder.glob("*.pt*"))
        if found:
            raise SourceError.of(
                field,
                f"only pickled weights ({found[0]}) in {ref}",
                f"safetensors files{f' or {pickled}' if allow else ''}, "
                "since unpickling can run code",
                "Convert it once: load it with transformers and save_pretrained it"
                + ("." if allow else "; or read it with torch's restricted loader: "
                                     "--allow-pickled."),
            )  # fmt: skip
        raise self._complain("no weight files", f"{safetensors} or {safetensors}.index.json")

    def _weight_map(self, index: str) -> dict[str, str]:
        weight_map = read_json(self.folder / index, self._complain).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise self._complain(f"{index} without a weight_map", "an index of weight files")
        for file in weight_map.values():
            if not isinstance(file, str) or Path(file).name != file:
                raise self._complain(f"index entry {file!r}", "files inside the model's folder")
        for file in sorted(set(weight_map.values())):
            if not (self.folder / file).is_file():
                raise self._complain(f"no file {file!r}", "every shard that the index lists")
        return weight_map

    def _open(self, file: str, unpickle: bool) -> None:
        opened: WeightFile
        if unpickle:
            from evomerge.checkpoints.pickled import PickledFile

            opened = PickledFile(self.folder / file, self._complain)
        else:
            opened = SafetensorsFile(self.folder / file, self._complain)
        self.files[file] = opened
        for name, shape in opened.shapes.items():
            if name in self.file_of:
                raise self._complain(
                    f"{name} both in {self.file_of[name]} and in {file}", "each tensor once"
                )
            self.file_of[name] = file
            self.shapes[name] = shape

    def _check_index(self, weight_map: dict[str, str]) -> None:
        for name, file in weight_map.items():
            if self.file_of.get(name) != file:
                raise self._complain(
                    f"no tensor {name} in {file}, where the index has it", "an index that is right"
                )
        for name, file in self.file_of.items():
            if name not in weight_map:
                raise self._complain(
                    f"{name} in {file}, which the index does not list", "an index that is right"
                )


def count_non_finite(tensor: Tensor) -> int:
    """Number of NaN and infinite elements."""
    if not tensor.is_floating_point():
        return 0
    if tensor.element_size() == 1:  # torch cannot ask float8 for it
        tensor = tensor.to(torch.float32)
    return int((~torch.isfinite(tensor)).sum())
