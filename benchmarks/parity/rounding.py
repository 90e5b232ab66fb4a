"""Differences in units of a type's rounding, and checkpoints as they lie in folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

BITS = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}
"""Of the mantissa, the leading one not counted."""


def eps(dtype: torch.dtype) -> float:
    """Distance of 1 to the next larger number."""
    return 2.0 ** -BITS[dtype]


def unit(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance of neighbours in a type at each value, float64; that at 1e-30 at least."""
    exponent = values.to(torch.float64).abs().clamp(min=1e-30).log2().floor()
    return torch.pow(2.0, exponent - BITS[dtype])


def largest_unit(values: Tensor, dtype: torch.dtype) -> float:
    """The same at a tensor's largest magnitude."""
    return float(unit(values.abs().max(), dtype))


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, of one file or several."""
    out: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        out.update(load_file(file))
    return out


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a checkpoint."""
    return dict(json.loads((folder / "config.json").read_text("utf-8")))


def fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a Mixtral file as transformers 5 holds them: all experts of a block in one."""
    out: dict[str, Tensor] = {}
    experts: dict[str, dict[str, dict[int, Tensor]]] = {}
    for name, tensor in tensors.items():
        stem, found, rest = name.partition(".block_sparse_moe.")
        if not found:
            out[name] = tensor
        elif rest.startswith("experts."):
            _, number, kind, _ = rest.split(".")
            experts.setdefault(stem, {}).setdefault(kind, {})[int(number)] = tensor
        else:
            out[f"{stem}.mlp.{rest}"] = tensor
    for stem, kinds in experts.items():
        order = sorted(kinds["w1"])
        both = [torch.cat((kinds["w1"][i], kinds["w3"][i])) for i in order]
        out[f"{stem}.mlp.experts.gate_up_proj"] = torch.stack(both)
        out[f"{stem}.mlp.experts.down_proj"] = torch.stack([kinds["w2"][i] for i in order])
    return out
