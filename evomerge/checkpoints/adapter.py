"""A LoRA adapter in PEFT's format: what it adds to which weight of a model."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.files import WeightFiles, complaint, read_json
from evomerge.checkpoints.locate import is_hub_name, locate
from evomerge.errors import SourceError
from evomerge.kernels.weight import Weight

CONFIG = "adapter_config.json"
SAFETENSORS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."

_FACTOR = re.compile(r"^(.+)\.lora_(embedding_)?([AB])(\.weight)?$")
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to start the factors that leave the model as it was; others change its weights."""

_HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save",
    "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
"""Settings that are followed here or that matter in training only."""


@dataclass(frozen=True)
class Factors:
    """The pair of matrices of one module; the module's product is `scale * b @ a`.

    Attributes:
        a: name of the `rank x in` tensor in the adapter's file.
        b: name of the `out x rank` tensor.
        rank: their common size.
        scale: what the product is multiplied by.
        embedding: whether they belong to a lookup table, whose weight is `in x out`.
        shape: (out, in).
    """

    a: str
    b: str
    rank: int
    scale: float
    embedding: bool
    shape: tuple[int, int]


@dataclass(frozen=True, eq=False)
class AdaptedWeight:
    """A matrix plus a scaled product of two thin ones, summed in float32 for what is read.

    Attributes:
        base: `rows x columns`.
        left: `rows x rank`.
        right: `rank x columns`.
        scale: what the product is multiplied by.
    """

    base: Weight
    left: Tensor
    right: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The base's."""
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        """float32, whatever the base and the factors have."""
        return torch.float32

    def read(self, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened sum; computes the rows they touch."""
        columns = self.shape[1]
        if stop <= start or not columns:
            return torch.empty(0)
        first, last = start // columns, -(-stop // columns)
        skip, right = start - first * columns, self.right
        if last - first == 1:
            right, skip = right[:, skip : skip + stop - start], 0
        product = torch.mm(self.left[first:last].to(torch.float32), right.to(torch.float32))
        part = product.reshape(-1)[skip : skip + stop - start]
        return part.mul_(self.scale).add_(self.base.read(start, stop))


class Adapter:
    """Opens a PEFT LoRA adapter without reading its weights.

    Attributes:
        ref: the reference it was opened by.
        field: the config key that names it, for error messages.
        path: its directory on this machine.
        config: its `adapter_config.json`.
        shapes: names in its file to shapes.
        modules: module names, as in the base model, to their factors.
        saved: names of the model's tensors that the adapter has whole (trained biases,
            `modules_to_save`) to the names in its file.
    """

    def __init__(self, ref: str, field: str = "model", allow_pickled: bool = False) -> None:
        """Opens the file and checks that it is an adapter this package can add.

        Args:
            ref: a directory or a hub name.
            field: the config key that names it, for error messages.
            allow_pickled: whether `adapter_model.bin` may be read where there is no
                safetensors file, through torch's weights-only loader.

        Raises:
            SourceError: if it is missing, damaged, incomplete, or of a kind whose weights are
                not `W + scale * B A`.
        """
        self.ref = ref
        self.field = field
        self.path = locate(ref, field, allow_pickled)
        self._complain = complaint(field, ref)
        self.config: dict[str, Any] = read_json(
            self.path / CONFIG, self._complain, "a LoRA adapter's"
        )
        self._check_config()
        self._weights = WeightFiles(self.path, field, ref, SAFETENSORS, PICKLED, allow_pickled)
        self.shapes = self._weights.shapes
        pairs: dict[str, dict[str, str]] = {}
        self.saved: dict[str, str] = {}
        for name in self.shapes:
            own = name.removeprefix(PREFIX)
            if match := _FACTOR.match(own):
                module, embedding, letter, _ = match.groups()
                pairs.setdefault(module, {})[(embedding or "") + letter] = name
            elif ".lora_" in own or ".token_adapter." in own or "trainable_tokens" in own:
                raise self.refuse(f"the tensor {name}", "factors lora_A and lora_B alone")
            else:
                plain = own.replace(".modules_to_save.", ".").replace(".base_layer.", ".")
                self.saved[plain] = name
        self.modules = {module: self._factors(module, pair) for module, pair in pairs.items()}

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the model stores its weights as `in x out` (GPT-2), by the adapter's config."""
        return bool(self.config.get("fan_in_fan_out"))

    @property
    def base(self) -> str | None:
        """The model that it was trained on, `@revision` included, or None if it does not say."""
        base = self.config.get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            return None
        revision = self.config.get("revision")
        if isinstance(revision, str) and revision and is_hub_name(base):
            return base if Path(base).exists() else f"{base}@{revision}"
        return base

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the weights and of the scales."""
        digest = hashlib.sha256(self._weights.fingerprint().encode())
        digest.update(str(self.fan_in_fan_out).encode())
        for module, factors in sorted(self.modules.items()):
            digest.update(f"{module}\0{factors.scale!r}\0".encode())
        return digest.hexdigest()

    def tensor(self, name: str) -> Tensor:
        """One tensor of the adapter's file, by its name there."""
        return self._weights.of(name).tensor(name)

    def dtype(self, name: str) -> str:
        """Dtype of one tensor of the adapter's file as safetensors spells it."""
        return self._weights.of(name).dtype(name)

    def bytes(self) -> int:
        """Size of the weight files."""
        return self._weights.bytes()

    def delta(self, module: str) -> Tensor:
        """What is added to a module: `scale * b @ a`, an `out x in` float32 tensor."""
        factors = self.modules[module]
        a, b = self.tensor(factors.a).float(), self.tensor(factors.b).float()
        return (b @ a).mul_(factors.scale)

    def refuse(self, found: str, expected: str) -> SourceError:
        """Makes an error about an adapter that is whole but cannot be used."""
        return SourceError.of(
            self.field,
            f"{found} in the adapter {self.ref}",
            expected,
            "Merge it into its model once with PEFT's merge_and_unload, and use that.",
        )

    def _check_config(self) -> None:
        config = self.config
        if config.get("peft_type") != "LORA":
            raise self.refuse(f"peft_type {config.get('peft_type')!r}", "LORA")
        for key, value in config.items():
            if key not in _HARMLESS and value:
                raise self.refuse(
                    f"{key}: {_short(value)}", "plain LoRA, W + scale * B A, without that setting"
                )
        if config.get("init_lora_weights") not in _INITS:
            raise self.refuse(
                f"init_lora_weights {config['init_lora_weights']!r}, which changes the model",
                f"one of {', '.join(map(str, _INITS[1:]))}, to which PEFT can convert",
            )
        if config.get("bias", "none") not in ("none", "all", "lora_only"):
            raise self._complain(f"bias {config['bias']!r} in {CONFIG}", "none, all or lora_only")
        for key in ("rank_pattern", "alpha_pattern"):
            pattern = config.get(key) or {}
            if not isinstance(pattern, dict) or not all(map(_is_number, pattern.values())):
                raise self._complain(f"{key} {_short(pattern)} in {CONFIG}", "names to numbers")
            for name in pattern:
                try:
                    re.compile(name)
                except re.error as error:
                    raise self._complain(
                        f"{key} with {name!r} in {CONFIG}", "a regular expression"
                    ) from error
        for key in ("r", "lora_alpha"):
            if not _is_number(config.get(key)):
                raise self._complain(f"{key} {config.get(key)!r} in {CONFIG}", "a number")

    def _factors(self, module: str, pair: dict[str, str]) -> Factors:
        embedding = any(letter.startswith("embedding_") for letter in pair)
        want = [f"embedding_{letter}" if embedding else letter for letter in "AB"]
        if sorted(pair) != want:
            raise self._complain(
                f"{module} with {' and '.join(f'lora_{p}' for p in sorted(pair))}",
                " and ".join(f"lora_{p}" for p in want),
            )
        a, b = (pair[letter] for letter in want)
        shape_a, shape_b = self.shapes[a], self.shapes[b]
        if len(shape_a) != 2 or len(shape_b) != 2:
            raise self.refuse(
                f"{module} with factors of shape {list(shape_a)} and {list(shape_b)}",
                "matrices (of a linear layer or an embedding)",
            )
        rank = _by_pattern(self.config.get("rank_pattern") or {}, module, self.config["r"])
        if shape_a[0] != shape_b[1] or shape_a[0] != rank or rank < 1:
            raise self._complain(
                f"{module} with factors of shape {list(shape_a)} and {list(shape_b)}",
                f"[{rank}, in] and [out, {rank}], by r and rank_pattern of {CONFIG}",
            )
        for name in (a, b):
            if self.dtype(name) not in ("F64", "F32", "F16", "BF16"):
                raise self.refuse(f"{name} of dtype {self.dtype(name)}", "floating point factors")
        alpha = _by_pattern(
            self.config.get("alpha_pattern") or {}, module, self.config["lora_alpha"]
        )
        scale = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        return Factors(a, b, shape_a[0], scale, embedding, (shape_b[0], shape_a[1]))


def _by_pattern(pattern: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first key, a regular expression, that ends a module's name at a dot."""
    for key, value in pattern.items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return value
    return default


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
