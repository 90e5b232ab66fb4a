"""Tiny random checkpoints: a base and three models like fine-tunes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

_SIZES = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4,
    "num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_GROUPED = {"num_key_value_heads": 2}
_HEADS = {**_GROUPED, "head_dim": 16}


@dataclass(frozen=True)
class Architecture:
    """A class of transformers with the sizes that it wants besides the common ones."""

    kind: str
    changes: Mapping[str, Any]


ARCHITECTURES = {
    "Llama": Architecture("Llama", _HEADS),
    "Llama tied": Architecture("Llama", {**_HEADS, "tie_word_embeddings": True}),
    "Qwen2": Architecture("Qwen2", _GROUPED),
    "Gemma2": Architecture("Gemma2", _HEADS),
    "Mistral": Architecture("Mistral", _HEADS),
    "Phi-3": Architecture("Phi3", _GROUPED),
    "Mixtral": Architecture("Mixtral", {**_HEADS, "num_local_experts": 4}),
    "GPT-NeoX": Architecture("GPTNeoX", {}),
}

BUFFERS = (".attention.bias", ".masked_bias", ".inv_freq")
"""Ends of names of tensors that are no parameters."""

SOURCES = ("a", "b", "c")
_NOISE = {"a": 0.010, "b": 0.007, "c": 0.012}
_UNTOUCHED = {"a": 0.0, "b": 0.3, "c": 0.1}
"""Share of elements that are the base's, exactly."""


def make_family(folder: Path, architecture: str, dtype: torch.dtype) -> None:
    """Writes `base`, `a`, `b` and `c` below a folder.

    All parameters of the base are random, gains and biases too; those of the sources are the
    base's plus normal noise, a share of them unchanged.

    Args:
        folder: gets one folder a model.
        architecture: a key of `ARCHITECTURES`.
        dtype: of the files.
    """
    made = ARCHITECTURES[architecture]
    config_class = getattr(transformers, f"{made.kind}Config")
    model_class = getattr(transformers, f"{made.kind}ForCausalLM")
    torch.manual_seed(len(architecture))
    model = model_class(config_class(**_SIZES, **made.changes)).to(dtype)
    model.save_pretrained(folder / "base")
    rng = torch.Generator().manual_seed(7)
    clean = load_file(folder / "base" / "model.safetensors")
    base = {n: _shaken(t, 0.04, 0.0, rng) for n, t in clean.items()}
    buffers = _buffers() if made.kind == "GPTNeoX" else {}
    _save(folder / "base", {**base, **buffers})
    config = (folder / "base" / "config.json").read_text("utf-8")
    for name in SOURCES:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(config, encoding="utf-8")
        tensors = {n: _shaken(t, _NOISE[name], _UNTOUCHED[name], rng) for n, t in base.items()}
        _save(folder / name, {**tensors, **buffers})


def _buffers() -> dict[str, Tensor]:
    """What files of GPT-NeoX held before transformers left it out; mergekit demands it."""
    out: dict[str, Tensor] = {}
    for i in range(_SIZES["num_hidden_layers"]):
        stem = f"gpt_neox.layers.{i}.attention"
        out[f"{stem}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
        out[f"{stem}.masked_bias"] = torch.tensor(-1e4)
        out[f"{stem}.rotary_emb.inv_freq"] = 10000.0 ** -torch.linspace(0, 1, 8)
    return out


def _shaken(tensor: Tensor, size: float, untouched: float, rng: torch.Generator) -> Tensor:
    noise = torch.randn(tensor.shape, generator=rng) * size
    noise *= torch.rand(tensor.shape, generator=rng) >= untouched
    return (tensor.to(torch.float32) + noise).to(tensor.dtype)


def _save(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# -- vocabularies -----------------------------------------------------------------------------

_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
_WORDS = {
    "base": [f"w{i}" for i in range(120)],
    "a": [f"w{i}" for i in range(120)] + ["<new>", "extra1", "extra2"],
    "b": [f"w{i}" for i in range(119, -1, -1)] + ["other"],
    "c": [f"w{i}" for i in range(40, 120)] + [f"v{i}" for i in range(20)],
}


def give_vocabularies(folder: Path) -> None:
    """Gives the models of a family tokenizers of their own, and embeddings of that many rows.

    `a` has more tokens than the base, `b` the same in another order and one more, `c` lacks
    some and has others.
    """
    for name, words in _WORDS.items():
        tokens = [*_SPECIAL, *words]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        )  # fmt: skip
        fast.save_pretrained(str(folder / name))
        file = folder / name / "model.safetensors"
        tensors = load_file(file)
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[key] = tensors[key][: len(tokens)].contiguous()
        _save(folder / name, tensors)
        config = json.loads((folder / name / "config.json").read_text("utf-8"))
        config["vocab_size"] = len(tokens)
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")


def make_adapter(folder: Path, base: Path) -> None:
    """Writes a LoRA adapter in PEFT's files, rank 4, for queries and down projections."""
    folder.mkdir(parents=True)
    rng = torch.Generator().manual_seed(11)
    tensors = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            rows, columns = tensor.shape
            tensors[f"{stem}.lora_A.weight"] = torch.randn(4, columns, generator=rng) * 0.05
            tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, 4, generator=rng) * 0.05
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base),
        "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "target_modules": ["q_proj", "down_proj"], "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
