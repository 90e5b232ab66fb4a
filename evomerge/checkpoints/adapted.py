"""A model with a LoRA adapter, added while the weights are read; and how models are opened."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, MutableMapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from evomerge.checkpoints.adapter import CONFIG, AdaptedWeight, Adapter, Factors
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.files import count_non_finite
from evomerge.checkpoints.layout import Layout, layout_of
from evomerge.checkpoints.locate import locate
from evomerge.checkpoints.model import Model
from evomerge.errors import SourceError
from evomerge.kernels.weight import Stored, Weight, whole

_FLOATS = ("F64", "F32", "F16", "BF16")
_CHECKED = 1 << 22


class AdaptedCheckpoint:
    """Presents a model with an adapter added as one model; nothing that is added is kept.

    Tensors that the adapter leaves alone are the model's own.

    Attributes:
        ref: `model+adapter`.
        field: the config key that names it, for error messages.
        path: the model's directory.
        config: the model's; embeddings are untied if the adapter treats the head apart.
        shapes: the model's, with a tied head added if the adapter treats it apart.
    """

    def __init__(self, base: Model, adapter: Adapter) -> None:
        """Finds the model's weight for each part of the adapter.

        Args:
            base: the model.
            adapter: trained on a model of the same names and shapes.

        Raises:
            SourceError: if a target is not in the model, has another shape, is quantised, or
                is an embedding tied to a head that the adapter does not have.
        """
        self.base = base
        self.adapter = adapter
        self.ref = f"{base.ref}+{adapter.ref}"
        self.field = adapter.field
        self.path = base.path
        self.config = base.config
        self.shapes = dict(base.shapes)
        self._names = {name: name for name in base.names}
        self._saved: dict[str, str] = {}
        for own, name in adapter.saved.items():
            shape = adapter.shapes[name]
            target = self._target(own, shape)
            if shape != self.shapes[target]:
                raise self._misfit(own, shape, target)
            self._saved[target] = name
        factors: dict[str, Factors] = {}
        for module, pair in adapter.modules.items():
            out, into = pair.shape
            shape = (into, out) if pair.embedding else (out, into)
            target = self._target(f"{module}.weight", shape)
            if self.shapes[target] not in {shape, shape if pair.embedding else (into, out)}:
                raise self._misfit(module, shape, target)
            if self.dtype(target) not in _FLOATS:
                raise adapter.refuse(
                    f"the target {target} of dtype {self.dtype(target)} in {base.ref}",
                    "a model that is not quantised",
                )
            factors[target] = pair
        self._factors = {
            target: (pair, transposed)
            for (target, pair), transposed in zip(
                factors.items(), self._orientations(factors), strict=True
            )
        }
        self._check_tied()

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
        """sha256 of the model's and the adapter's fingerprints."""
        both = f"{self.base.fingerprint}+{self.adapter.fingerprint}"
        return hashlib.sha256(both.encode()).hexdigest()

    @property
    def vocabulary(self) -> dict[str, int]:
        """The model's."""
        return self.base.vocabulary

    def tokenizer(self) -> Any:
        """The model's."""
        return self.base.tokenizer()

    def weight(self, name: str) -> Weight:
        """One tensor, to be read in pieces; float32 where the adapter adds to it."""
        if name in self._saved:
            weight: Weight = Stored(self.adapter.tensor(self._saved[name]))
        else:
            weight = self.base.weight(self._names[name])
        if name not in self._factors:
            return weight
        factors, transposed = self._factors[name]
        a, b = self.adapter.tensor(factors.a), self.adapter.tensor(factors.b)
        left, right = (a.T, b.T) if transposed else (b, a)
        return AdaptedWeight(weight, left, right, factors.scale)

    def tensor(self, name: str) -> Tensor:
        """One tensor, whole; float32 where the adapter adds to it."""
        if name in self._factors or name in self._saved:
            return whole(self.weight(name))
        return self.base.tensor(self._names[name])

    def dtype(self, name: str) -> str:
        """Dtype in the file that the tensor comes from; a sum is float32 when it is read."""
        if name in self._saved:
            return self.adapter.dtype(self._saved[name])
        return self.base.dtype(self._names[name])

    def bytes(self) -> int:
        """Size of the model's and the adapter's weight files."""
        return self.base.bytes() + self.adapter.bytes()

    def non_finite(self) -> Iterator[tuple[str, int]]:
        """Reads all weights and yields (tensor, count) where NaN or infinity occurs."""
        for name in self.names:
            weight, size = self.weight(name), prod(self.shapes[name])
            count = sum(
                count_non_finite(weight.read(start, min(start + _CHECKED, size)))
                for start in range(0, size, _CHECKED)
            )
            if count:
                yield name, count

    def _target(self, name: str, shape: tuple[int, ...]) -> str:
        """The model's name of a tensor; adds a tied head as a tensor of its own."""
        for known in (name, name.partition(".")[2]):  # GPT-2's files lack the first part
            if known in self.shapes:
                return known
        embeddings = [e for e in self.base.layout.embeddings if self.shapes[e] == shape]
        if self._tied() and len(embeddings) == 1:
            self.shapes[name] = shape
            self._names[name] = embeddings[0]
            self.config = {**self.config, "tie_word_embeddings": False}
            return name
        close = difflib.get_close_matches(name, self.base.names, 1, 0)
        raise self.adapter.refuse(
            f"the target {name}",
            f"tensors of {self.base.ref}" + (f", such as {close[0]}" if close else ""),
        )

    def _tied(self) -> bool:
        """Whether the model's head may be its embedding."""
        return self.base.config.get("tie_word_embeddings") is not False

    def _check_tied(self) -> None:
        """Refuses what would change a head that the adapter was not trained with."""
        touched = [e for e in self.base.layout.embeddings if e in {*self._factors, *self._saved}]
        added = [name for name, own in self._names.items() if name != own]
        if (touched or added) and self._tied() and self.adapter.config.get("ensure_weight_tying"):
            raise self.adapter.refuse("ensure_weight_tying: True", "embeddings that are not tied")
        for name in touched:
            others = [n for n, s in self.shapes.items() if s == self.shapes[name] and n != name]
            if self._tied() and not others:
                raise self.adapter.refuse(
                    f"the target {name}, to which the head of {self.base.ref} is tied",
                    "an adapter with the head too, or one that leaves the embedding alone",
                )

    def _orientations(self, factors: dict[str, Factors]) -> Iterator[bool]:
        """For each target, whether the weight is stored as `in x out`.

        The shapes tell; a square one goes with the others of its adapter, as PEFT corrects
        the config's flag by the kind of layer.
        """
        told = {
            self.shapes[target] != pair.shape
            for target, pair in factors.items()
            if not pair.embedding and pair.shape[0] != pair.shape[1] and target in self.base.shapes
            and self.base.layout.group_of(target).startswith("block.")
        }  # fmt: skip
        for target, pair in factors.items():
            if pair.embedding or pair.shape[0] != pair.shape[1]:
                yield pair.embedding or self.shapes[target] != pair.shape
            elif len(told) == 2:
                raise self.adapter.refuse(
                    f"the square target {target} beside layers of both orientations",
                    "layers of one orientation",
                )
            else:
                yield next(iter(told), self.adapter.fan_in_fan_out)

    def _misfit(self, own: str, shape: tuple[int, ...], target: str) -> SourceError:
        return self.adapter.refuse(
            f"{own} of shape {list(shape)}",
            f"shape {list(self.shapes[target])} as in {self.base.ref}",
        )


def open_model(
    ref: str,
    field: str = "model",
    allow_pickled: bool = False,
    opened: MutableMapping[str, Checkpoint] | None = None,
) -> Model:
    """Opens a checkpoint, `model+adapter`, or an adapter that names its model.

    Args:
        ref: a directory or a hub name, or two with a `+` between them.
        field: the config key that names it, for error messages.
        allow_pickled: whether pickled weights may be read where there are no safetensors.
        opened: checkpoints by reference, to which those opened here are added; pass one
            mapping for many adapters of one model and the model is opened once.

    Raises:
        SourceError: if either part is missing, damaged or does not fit the other.
    """
    known = {} if opened is None else opened

    def checkpoint(name: str) -> Checkpoint:
        if name not in known:
            known[name] = Checkpoint(name, field, allow_pickled)
        return known[name]

    if "+" in ref and not _is_folder(ref):
        model, adapter = _split(ref, field)
        return AdaptedCheckpoint(checkpoint(model), Adapter(adapter, field, allow_pickled))
    if ref in known:
        return known[ref]
    path = locate(ref, field)
    if (path / "config.json").is_file() or not (path / CONFIG).is_file():
        return checkpoint(ref)
    alone = Adapter(ref, field, allow_pickled)
    if alone.base is None:
        raise _unnamed(ref, field, "an adapter that does not name its model")
    try:
        base = checkpoint(alone.base)
    except SourceError as error:
        found = f"an adapter whose model cannot be opened ({error.problems[0].found})"
        raise _unnamed(ref, field, found) from error
    return AdaptedCheckpoint(base, alone)


def _split(ref: str, field: str) -> tuple[str, str]:
    """Model and adapter of a reference: at the plus that folders tell, else at the last."""
    splits = [(ref[:i], ref[i + 1 :]) for i, letter in enumerate(ref) if letter == "+"]
    told = [pair for pair in splits if all(map(_is_folder, pair))]
    model, adapter = told[-1] if told else splits[-1]
    if not model or not adapter or any("+" in p and not _is_folder(p) for p in (model, adapter)):
        raise SourceError.of(
            field,
            ref,
            "MODEL+ADAPTER, a single adapter",
            "Correct it, or merge one into the model.",
        )
    return model, adapter


def _is_folder(ref: str) -> bool:
    try:
        return bool(ref) and Path(ref).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):
        return False


def _unnamed(ref: str, field: str, found: str) -> SourceError:
    return SourceError.of(
        field, f"{found} in {ref}", "the model that it adapts", f"Name it: {field}=MODEL+{ref}."
    )
