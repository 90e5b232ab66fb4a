"""Writes a merged model as an ordinary checkpoint, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from evomerge.checkpoints.merger import Merger
from evomerge.errors import EvomergeError, UserError
from evomerge.recipe import Recipe

_COPIED = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip


def write_checkpoint(
    recipe: Recipe,
    merger: Merger,
    out: Path,
    extra: dict[str, str] | None = None,
    shard_bytes: int = 5 << 30,
) -> None:
    """Merges a recipe and writes it to a new directory, tokenizer and config included.

    Config and tokenizer are the base's (the first source's without a base).

    Args:
        recipe: what to merge.
        merger: holds the open sources.
        out: must not exist; appears only when it is complete.
        extra: further text files, name to content.
        shard_bytes: largest size of one weight file.

    Raises:
        UserError: if `out` exists.
        EvomergeError: if the disk fills or fails, or if the merged weights are not finite in
            the recipe's dtype; nothing is left behind.
    """
    if out.exists():
        raise UserError.of(
            str(out),
            "an existing file or directory",
            "a path that is free",
            "Remove it or choose another.",
        )
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        _write_tensors(recipe, merger, temporary, shard_bytes)
        _write_rest(recipe, merger, temporary, extra or {})
        temporary.chmod(0o755)  # temporary directories and files are private
        for file in temporary.iterdir():
            file.chmod(0o644)
            _sync(file)
        os.replace(temporary, out)
    except (OSError, SafetensorError) as error:
        raise EvomergeError(
            f"{out}: could not be written ({error}). Nothing was left behind; "
            "free some space and run the same command again."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _sync(file: Path) -> None:
    """Waits until a file is on the disk."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _write_tensors(recipe: Recipe, merger: Merger, folder: Path, shard_bytes: int) -> None:
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        nonlocal pending, size
        shards.append(list(pending))
        save_file(pending, str(folder / f"part-{len(shards)}"), metadata={"format": "pt"})
        pending, size = {}, 0

    for name, tensor in merger.merge(recipe):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise EvomergeError(f"{name} of the merged model is not finite in {recipe.dtype}")
        tensor_bytes = tensor.numel() * tensor.element_size()
        if pending and size + tensor_bytes > shard_bytes:
            flush()
        pending[name] = tensor.contiguous()
        size += tensor_bytes
        total += tensor_bytes
    flush()
    if len(shards) == 1:
        os.replace(folder / "part-1", folder / "model.safetensors")
        return
    weight_map = {}
    for i, names in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        os.replace(folder / f"part-{i}", folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_rest(recipe: Recipe, merger: Merger, folder: Path, extra: dict[str, str]) -> None:
    parent = merger.checkpoint(recipe.models()[0])
    config = _with_dtype(parent.config, recipe.dtype)
    if "dtype" not in config and "torch_dtype" not in config:
        config["torch_dtype"] = recipe.dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    for name in _COPIED:
        if (parent.path / name).is_file():
            shutil.copyfile(parent.path / name, folder / name)
    for name, text in extra.items():
        (folder / name).write_text(text, encoding="utf-8")


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A config and its parts (`text_config`) with another dtype and without a path."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, dict):
            out[key] = _with_dtype(value, dtype)
        elif key != "_name_or_path":
            out[key] = dtype if key in ("dtype", "torch_dtype") else value
    return out
