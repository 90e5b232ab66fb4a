"""Embeddings of the items' texts by a small local model, for clusters of items that read alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import ConfigError
from evomerge.types import FloatArray

_BATCH = 16


def embed(texts: Sequence[str], model_path: str | Path, max_tokens: int = 512) -> FloatArray:
    """The mean of a model's last hidden states over each text's tokens, of length 1.

    Args:
        texts: of the `N` items; an empty one gets zeros.
        model_path: folder of a local transformers model with its tokenizer; nothing is downloaded
            and no code in it is run.
        max_tokens: what is longer is cut.

    Returns:
        an `N x F` array, F the model's hidden size.

    Raises:
        ConfigError: if there is no such folder, or no model in it that can be read.
    """
    if not texts:
        raise ConfigError.of(
            "estimator.embeddings", "no texts", "the prompts of the items", "Give the task's items."
        )
    folder = Path(model_path)
    if not (folder / "config.json").is_file():
        raise ConfigError.of(
            "estimator.embeddings", f"{str(folder)!r} without config.json",
            "a folder of a transformers model", "Download a model and name its folder.",
        )  # fmt: skip
    import torch

    model, tokenizer = _load(folder)
    longest = getattr(model.config, "max_position_embeddings", None) or max_tokens
    rows = []
    for at in range(0, len(texts), _BATCH):
        tokens = [
            tokenizer(text)["input_ids"][: min(max_tokens, longest)]
            for text in texts[at : at + _BATCH]
        ]
        width = max(1, *map(len, tokens))
        ids = torch.zeros((len(tokens), width), dtype=torch.long)
        mask = torch.zeros((len(tokens), width), dtype=torch.long)
        for row, found in enumerate(tokens):
            ids[row, : len(found)] = torch.tensor(found, dtype=torch.long)
            mask[row, : len(found)] = 1
        attended = mask.clone()
        attended[:, 0] = 1  # a row without any token to look at has no softmax
        with torch.inference_mode():
            states = model(input_ids=ids, attention_mask=attended).last_hidden_state.float()
        sums = (states * mask[..., None]).sum(1)
        rows.append((sums / mask.sum(1, keepdim=True).clamp(min=1)).double().numpy())
    pooled = np.concatenate(rows)
    return np.asarray(pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12))


def _load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
        model: Any = AutoModel.from_pretrained(str(folder), use_safetensors=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError.of(
            "estimator.embeddings", f"{str(folder)!r}, which cannot be read ({error})",
            "a transformers model in safetensors, with its tokenizer", "Name another folder.",
        ) from error  # fmt: skip
    return model.eval(), tokenizer
