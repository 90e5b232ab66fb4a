"""LoRA adapters on disk: hand-made folders, and real ones that PEFT wrote."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

PREFIX = "base_model.model."
CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 6, "use_rslora": False,
    "fan_in_fan_out": False, "bias": "none", "target_modules": ["mlp"], "rank_pattern": {},
    "alpha_pattern": {}, "use_dora": False, "lora_bias": False, "base_model_name_or_path": None,
}  # fmt: skip


def factor_pair(module: str, out: int, into: int, rank: int, rng, dtype=torch.float32) -> dict:
    """Random factors of one linear module, by their names in an adapter's file."""
    return {
        f"{PREFIX}{module}.lora_A.weight": torch.randn(rank, into, generator=rng).to(dtype),
        f"{PREFIX}{module}.lora_B.weight": torch.randn(out, rank, generator=rng).to(dtype),
    }


def random_factors(seed: int, rank: int = 2, blocks: int = 12, dtype=torch.float32) -> dict:
    """Factors for the `mlp` weights (3 x 5) of `checkpoint_models.random_tensors`."""
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for i in range(blocks):
        tensors |= factor_pair(f"model.layers.{i}.mlp", 3, 5, rank, rng, dtype)
    return tensors


def write_adapter(path: Path, tensors: dict, **changes) -> Path:
    """Writes an adapter's folder; the changes go into its config."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    return path


def peft_adapter(folder: Path, model, seed: int = 0, **settings) -> tuple[Path, object]:
    """A random adapter that PEFT made and saved, and the PEFT model in memory."""
    import peft

    torch.manual_seed(seed)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return folder, adapted
