"""Tiny random models on disk, real ones and hand-made folders of tensors."""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

SMALL = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 12,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
IDS = {"bos_token_id": 1, "eos_token_id": 2}


def real_model(kind: str, **changes) -> transformers.PreTrainedModel:
    """A random model of an architecture of transformers, with 12 blocks."""
    torch.manual_seed(changes.pop("seed", 0))
    if kind == "Llava":
        vision = transformers.CLIPVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=14, num_attention_heads=2,
            image_size=28, patch_size=14, projection_dim=16,
        )  # fmt: skip
        text = transformers.LlamaConfig(**{**SMALL, **changes})
        config = transformers.LlavaConfig(vision_config=vision, text_config=text)
        return transformers.LlavaForConditionalGeneration(config)
    if kind == "GPT2":
        config = transformers.GPT2Config(
            vocab_size=32, n_embd=16, n_layer=12, n_head=2, n_positions=16, **IDS
        )
        return transformers.GPT2LMHeadModel(config)
    settings = {**SMALL, **changes}
    if kind == "GPTNeoX":
        for key in ("num_key_value_heads", "head_dim"):
            settings.pop(key)
    if kind == "Mixtral":
        settings["num_local_experts"] = 3
    config = getattr(transformers, f"{kind}Config")(**settings)
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def write_folder(path: Path, tensors: dict, shards: int = 1, config: dict | None = None) -> Path:
    """Writes tensors as a checkpoint; with `shards` > 1 in several files with an index."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config or {"vocab_size": 6}))
    if shards == 1:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return path
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        save_file(part, path / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    write_index(path, weight_map)
    return path


def write_index(path: Path, weight_map: object) -> None:
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def random_tensors(seed: int, rows: int = 6, blocks: int = 12, dtype=torch.float32) -> dict:
    """Tensors named as in Llama."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (rows, 4), "lm_head.weight": (rows, 4)}
    for i in range(blocks):
        shapes[f"model.layers.{i}.mlp.weight"] = (3, 5)
        shapes[f"model.layers.{i}.norm.weight"] = (4,)
    shapes["model.norm.weight"] = (4,)
    return {n: torch.randn(s, generator=rng).to(dtype) for n, s in shapes.items()}
