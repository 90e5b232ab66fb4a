"""Merges LoRA adapters of one model into one adapter, without the model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from evomerge.checkpoints.adapter import CONFIG, PREFIX, SAFETENSORS, Adapter
from evomerge.checkpoints.files import count_non_finite
from evomerge.checkpoints.whole_folder import check_free, whole_folder
from evomerge.errors import EvomergeError, RecipeError, SourceError

LINEAR = ("linear", "task_arithmetic")
"""Methods that are a weighted sum of the deltas, which factors can say exactly."""

Dense = Callable[[str], Tensor]
"""A module's merged delta: its name to an `out x in` float32 tensor."""

_FULL_SVD = 1024
_OVERSAMPLE = 16
_PASSES = 4


@dataclass(frozen=True)
class Fit:
    """How a module's merged delta was written.

    Attributes:
        rank: of the factors.
        error: |written - wanted| / |wanted| (Frobenius), before the rounding to the dtype;
            0 where nothing was left out.
    """

    rank: int
    error: float


@dataclass(frozen=True)
class AdapterReport:
    """What a merge of adapters wrote.

    Attributes:
        path: the new adapter's directory.
        method: the operator's name.
        bases: the models that the sources name, each once; more than one may be a mistake.
        fits: module names to how each was written.
        digest: of the recipe, if there was one.
    """

    path: Path
    method: str
    bases: tuple[str, ...]
    fits: Mapping[str, Fit]
    digest: str = ""

    @property
    def worst(self) -> float:
        """The largest error of any module."""
        return max((fit.error for fit in self.fits.values()), default=0.0)


def merge_adapters(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | Callable[[str], Sequence[float]],
    out: Path,
    *,
    method: str = "linear",
    dense: Dense | None = None,
    rank: int | None = None,
    dtype: torch.dtype = torch.float32,
    extra: Mapping[str, str] | None = None,
) -> AdapterReport:
    """Writes one adapter that stands for several, in PEFT's format.

    A weighted sum is exact: the factors are put side by side, scales and weights in B, and the
    ranks add up; with `rank` the best approximation of that rank is written instead (by the
    singular values of the factors' QR; the full matrices are never formed). Any other operator
    comes as `dense` and each of its matrices is approximated by `rank`. A module that a source
    lacks counts as zero there.

    Args:
        adapters: of one model.
        weights: one for each adapter, or what gives them for a module; used by the weighted
            sum only.
        out: must not exist; appears only when it is complete.
        method: name of the operator; `linear` or `task_arithmetic` without `dense`.
        dense: gives a module's merged delta (see `deltas`).
        rank: of the result. By default the sum's own; with `dense` the largest of the sources.
        dtype: of the written factors; float32 keeps the sum exact.
        extra: further text files, name to content.

    Raises:
        UserError: if `out` exists.
        RecipeError: if weights, rank or method cannot be.
        SourceError: if the adapters do not fit together, have trained tensors that are not
            factors, or hold NaN or infinity.
        EvomergeError: if the disk fills or fails, or if the result is not finite in `dtype`;
            nothing is left behind.
    """
    _check(adapters, out, method, dense, rank)
    if not callable(weights):
        _check_weights(adapters, weights)
    shapes = module_shapes(adapters)
    largest = max(f.rank for a in adapters for f in a.modules.values())
    tensors: dict[str, Tensor] = {}
    fits: dict[str, Fit] = {}
    for module in shapes:
        if dense is None:
            here = weights(module) if callable(weights) else weights
            _check_weights(adapters, here)
            b, a, error = _sum(adapters, here, module, rank)
        else:
            b, a, error = low_rank(_delta(dense, module, shapes[module]), rank or largest)
        fits[module] = Fit(a.shape[0], error)
        for name, factor in zip(_names(adapters, module), (a, b), strict=True):
            written = factor.to(dtype).contiguous()
            if count_non_finite(written):
                raise EvomergeError(f"{name} of the merged adapter is not finite in {dtype}")
            tensors[name] = written
    _write(out, _config(adapters, fits), tensors, extra or {})
    bases = tuple(dict.fromkeys(a.base for a in adapters if a.base))
    return AdapterReport(out, method, bases, fits)


def module_shapes(adapters: Sequence[Adapter]) -> dict[str, tuple[int, int]]:
    """(out, in) of every module that any of the adapters has.

    Raises:
        SourceError: if two adapters have one module in different shapes or kinds.
    """
    first: dict[str, Adapter] = {}
    for adapter in adapters:
        for module, factors in adapter.modules.items():
            other = first.setdefault(module, adapter)
            theirs = other.modules[module]
            if (factors.shape, factors.embedding) != (theirs.shape, theirs.embedding):
                raise SourceError.of(
                    adapter.field,
                    f"{module} of shape {list(factors.shape)} in {adapter.ref}",
                    f"shape {list(theirs.shape)} as in {other.ref}",
                    "Merge adapters of one model.",
                )
    return {module: owner.modules[module].shape for module, owner in first.items()}


def deltas(adapters: Sequence[Adapter], module: str) -> list[Tensor]:
    """What each adapter adds to a module, `out x in` float32; zeros where it adds nothing."""
    shape = module_shapes(adapters)[module]
    return [a.delta(module) if module in a.modules else torch.zeros(shape) for a in adapters]


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Factors of a matrix by its largest singular values.

    Up to 1024 rows or columns by the full decomposition; above by subspace iteration from a
    fixed start (Halko, Martinsson and Tropp 2011, algorithm 4.4), near the best of that rank.

    Args:
        matrix: `out x in`.
        rank: at most the smaller side is used.

    Returns:
        b (`out x rank`), a (`rank x in`), and |matrix - b a| / |matrix|.
    """
    norm = float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
    rank = min(rank, *matrix.shape)
    if norm == 0:
        return matrix.new_zeros(matrix.shape[0], rank), matrix.new_zeros(rank, matrix.shape[1]), 0.0
    if min(matrix.shape) <= _FULL_SVD:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    else:
        generator = torch.Generator().manual_seed(0)
        width = min(rank + _OVERSAMPLE, *matrix.shape)
        basis = torch.randn(matrix.shape[1], width, generator=generator).to(matrix)
        basis = torch.linalg.qr(matrix @ basis).Q
        for _ in range(_PASSES):
            basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
        small, s, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
        u = basis @ small
    root = s[:rank].sqrt()
    b, a = u[:, :rank] * root, root[:, None] * v[:rank]
    rest = torch.addmm(matrix, b, a, alpha=-1)
    return b, a, float(torch.linalg.vector_norm(rest, dtype=torch.float64)) / norm


def _sum(
    adapters: Sequence[Adapter], weights: Sequence[float], module: str, rank: int | None
) -> tuple[Tensor, Tensor, float]:
    """Factors of the weighted sum and the relative error of leaving singular values out."""
    left, right = [], []
    for adapter, weight in zip(adapters, weights, strict=True):
        if module in adapter.modules:
            factors = adapter.modules[module]
            left.append(adapter.tensor(factors.b).double() * (weight * factors.scale))
            right.append(adapter.tensor(factors.a).double())
    b, a = torch.cat(left, 1), torch.cat(right, 0)
    limit = min(b.shape[0], a.shape[1], *([rank] if rank else []))
    if a.shape[0] <= limit:
        return b, a, 0.0
    q_left, r_left = torch.linalg.qr(b)
    q_right, r_right = torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    norm = float(s.norm())
    root = s[:limit].sqrt()
    b, a = q_left @ (u[:, :limit] * root), (root[:, None] * v[:limit]) @ q_right.T
    return b, a, float(s[limit:].norm()) / norm if norm else 0.0


def _delta(dense: Dense, module: str, shape: tuple[int, int]) -> Tensor:
    matrix = dense(module).to(torch.float32)
    if tuple(matrix.shape) != shape:
        raise ValueError(f"a delta of shape {tuple(matrix.shape)} for {module} of shape {shape}")
    if count_non_finite(matrix):
        raise EvomergeError(f"the merged delta of {module} is not finite")
    return matrix


def _names(adapters: Sequence[Adapter], module: str) -> tuple[str, str]:
    """Names of A and B in the file."""
    owner = next(a for a in adapters if module in a.modules)
    if owner.modules[module].embedding:
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _check_weights(adapters: Sequence[Adapter], weights: Sequence[float]) -> None:
    if len(weights) != len(adapters) or not all(map(math.isfinite, weights)):
        raise RecipeError.of(
            "weights", str(list(weights)), f"{len(adapters)} finite numbers", "Correct them."
        )


def _check(
    adapters: Sequence[Adapter],
    out: Path,
    method: str,
    dense: Dense | None,
    rank: int | None,
) -> None:
    check_free(out)
    if not adapters:
        raise RecipeError.of("adapters", "none", "at least one", "Name them.")
    if rank is not None and rank < 1:
        raise RecipeError.of("rank", str(rank), "at least 1", "Correct it.")
    if dense is None and method not in LINEAR:
        raise RecipeError.of(
            "method", method, f"{' or '.join(LINEAR)}, or its dense form", "Correct it."
        )
    for adapter in adapters:
        own = {f"{module}.weight" for module in adapter.modules}  # saved beside their factors
        trained = [name for name in adapter.saved if name not in own]
        if trained:
            raise adapter.refuse(f"{trained[0]}, saved whole,", "factors alone")
        if adapter.fan_in_fan_out != adapters[0].fan_in_fan_out:
            raise adapter.refuse(
                f"fan_in_fan_out {adapter.fan_in_fan_out}", f"the same as in {adapters[0].ref}"
            )
        for factors in adapter.modules.values():
            for name in (factors.a, factors.b):
                if count := count_non_finite(adapter.tensor(name)):
                    raise SourceError.of(
                        adapter.field,
                        f"{count} values of {name} in {adapter.ref} that are NaN or infinite",
                        "finite weights", "Leave this adapter out.",
                    )  # fmt: skip
    if not any(adapter.modules for adapter in adapters):
        raise adapters[0].refuse("no factors", "lora_A and lora_B tensors")


def _config(adapters: Sequence[Adapter], fits: Mapping[str, Fit]) -> dict[str, Any]:
    """The adapter_config.json of factors whose scale is 1 in every module."""
    first = adapters[0].config
    ranks = {module: fit.rank for module, fit in fits.items()}
    most = max(ranks.values())
    lower = [module for module, rank in ranks.items() if rank != most]
    # A key also matches names that end with it, so those need a key too, and an earlier one.
    keyed = [m for m in ranks if m in lower or any(m.endswith(f".{k}") for k in lower)]
    pattern = {module: ranks[module] for module in sorted(keyed, key=len, reverse=True)}
    return {
        "peft_type": "LORA",
        "task_type": first.get("task_type"),
        "base_model_name_or_path": first.get("base_model_name_or_path"),
        "revision": first.get("revision"),
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "use_rslora": False,
        "fan_in_fan_out": adapters[0].fan_in_fan_out,
        "target_modules": _targets(adapters, list(ranks)),
        "lora_dropout": 0.0,
        "bias": "none",
        "modules_to_save": None,
        "init_lora_weights": True,
    }


def _targets(adapters: Sequence[Adapter], modules: list[str]) -> list[str]:
    """Short names where every source chose its modules by them alone, else the full ones."""
    choices = [a.config.get("target_modules") for a in adapters]
    limits = [
        a.config.get(key) for a in adapters for key in ("layers_to_transform", "exclude_modules")
    ]
    short = {name for choice in choices if isinstance(choice, list) for name in choice}
    found = all(any(m == s or m.endswith(f".{s}") for s in short) for m in modules)
    if found and all(isinstance(choice, list) for choice in choices) and not any(limits):
        return sorted(short)
    return sorted(modules)


def _write(
    out: Path, config: dict[str, Any], tensors: dict[str, Tensor], extra: Mapping[str, str]
) -> None:
    files = {CONFIG: json.dumps(config, indent=2, ensure_ascii=False) + "\n", **extra}
    with whole_folder(out, files) as temporary:
        save_file(tensors, str(temporary / SAFETENSORS), metadata={"format": "pt"})
