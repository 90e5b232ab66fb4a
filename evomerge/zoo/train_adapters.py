"""Trains the zoo's LoRA adapters: `python -m evomerge.zoo.train_adapters --seed 0`."""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evomerge.zoo import zoo_path
from evomerge.zoo.lessons import LAYERS, POOL, POOL_KINDS, Lesson
from evomerge.zoo.problems import Problem
from evomerge.zoo.skills import SKILL_KINDS, SKILLS
from evomerge.zoo.training import IGNORED, Progress, draw_problems, to_tensors

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTERS = {**POOL, **SKILLS}
SCALE = 2.0
"""What a product of factors is multiplied by: lora_alpha / r."""


class LowRank(nn.Module):
    """A frozen linear layer plus a trained product of two thin matrices (arXiv 2106.09685)."""

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator) -> None:
        """Starts at the linear layer itself: `b` is zero and `a` uniform in ±1 / sqrt(in)."""
        super().__init__()
        out, into = linear.weight.shape
        limit = 1 / math.sqrt(into)
        self.weight = linear.weight
        self.a = nn.Parameter(torch.empty(rank, into).uniform_(-limit, limit, generator=generator))
        self.b = nn.Parameter(torch.zeros(out, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `... x in` to `... x out`."""
        return F.linear(x, self.weight) + SCALE * F.linear(F.linear(x, self.a), self.b)


def load_base() -> LlamaForCausalLM:
    """The committed base in float32, frozen."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(zoo_path("models/base"), dtype=torch.float32)
    return model.requires_grad_(False).train()


def add_factors(model: nn.Module, lesson: Lesson, seed: int) -> dict[str, LowRank]:
    """Replaces the linear layers of a lesson's blocks in place; returns them by module name."""
    generator = torch.Generator().manual_seed(seed)
    adapted = {}
    for layer in lesson.layers:
        block = f"model.layers.{layer}"
        for name, module in list(model.get_submodule(block).named_modules()):
            parent, _, last = name.rpartition(".")
            if last in TARGETS and isinstance(module, nn.Linear):
                low_rank = LowRank(module, lesson.rank, generator)
                setattr(model.get_submodule(f"{block}.{parent}"), last, low_rank)
                adapted[f"{block}.{name}"] = low_rank
    return adapted


def draw(lesson: Lesson, rng: random.Random) -> list[Problem]:
    """A batch of a lesson's problems; never one of the committed items."""
    return draw_problems({**POOL_KINDS, **SKILL_KINDS}, lesson.mix, lesson.batch, rng)


def train_adapter(
    base: LlamaForCausalLM, name: str, lesson: Lesson, seed: int, progress: Progress | None = None
) -> dict[str, Tensor]:
    """Trains one adapter; Adam, linear warm-up, then a cosine down to 2%.

    Args:
        base: stays as it is.
        name: seeds the adapter's data, together with `seed`.
        progress: called after every step with the number of steps done and a running loss.

    Returns:
        The factors in bf16 by their names in PEFT's files.
    """
    model, rng = copy.deepcopy(base), random.Random(f"{seed} {name}")
    adapted = add_factors(model, lesson, seed + lesson.factors)
    factors = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(factors, lr=lesson.rate, betas=(0.9, 0.98))
    running = math.nan
    for step in range(lesson.steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / lesson.steps))
        rate = lesson.rate * min(1.0, (step + 1) / lesson.warmup) * (0.02 + 0.98 * cosine)
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, labels = to_tensors([(p.question, p.gold) for p in draw(lesson, rng)])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        taught = labels[:, 1:] != IGNORED
        loss = F.cross_entropy(model.lm_head(hidden[taught]), labels[:, 1:][taught])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if progress is not None:
            progress(step + 1, running)
    return {
        f"base_model.model.{module}.lora_{letter.upper()}.weight": getattr(low_rank, letter)
        .detach()
        .bfloat16()
        for module, low_rank in adapted.items()
        for letter in "ab"
    }


def adapter_config(lesson: Lesson) -> dict[str, Any]:
    """The `adapter_config.json` of PEFT; it names no model, so a reference has to."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "revision": None,
        "inference_mode": True,
        "r": lesson.rank,
        "lora_alpha": int(SCALE * lesson.rank),
        "lora_dropout": 0.0,
        "target_modules": list(TARGETS),
        "layers_to_transform": None if lesson.layers == LAYERS else list(lesson.layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_rslora": False,
    }


def save_adapter(directory: Path, lesson: Lesson, tensors: dict[str, Tensor]) -> None:
    """Writes an adapter in PEFT's layout."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(adapter_config(lesson), indent=2) + "\n"
    (directory / "adapter_config.json").write_text(text, encoding="utf-8")
    weights = directory / "adapter_model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)


def _reporter(name: str, steps: int) -> Callable[[int, float], None]:
    started = time.monotonic()

    def report(done: int, loss: float) -> None:
        if done % 50 == 0 or done == steps:
            seconds = time.monotonic() - started
            print(
                f"{name}: step {done}/{steps}, loss {loss:.4f}, {seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Trains and writes the adapters."""
    parser = argparse.ArgumentParser(
        prog="python -m evomerge.zoo.train_adapters",
        description="Train the LoRA adapters of the zoo's base: a pool of 20, of which 15 are of "
        "no use for the task, and five skills with a task each. Takes less than 20 minutes on one "
        "core; the same seed gives the same weights.",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data (default 0)")
    parser.add_argument(
        "--out",
        type=Path,
        help="directory for the adapters' folders (default: adapters and skill_adapters inside "
        "the package)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(ADAPTERS), metavar="NAME", help="train these alone"
    )
    parser.add_argument("--steps", type=int, help="cut every lesson to so many steps, to try it")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of torch (default 1: the number changes how sums are rounded)",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    args = parser.parse_args(argv)

    torch.set_num_threads(args.threads)
    started, base = time.monotonic(), load_base()
    for name in args.only or ADAPTERS:
        lesson = ADAPTERS[name]
        if args.steps is not None:
            lesson = replace(lesson, steps=min(args.steps, lesson.steps))
        report = None if args.quiet else _reporter(name, lesson.steps)
        folder = (args.out or zoo_path("skill_adapters" if name in SKILLS else "adapters")) / name
        save_adapter(folder, lesson, train_adapter(base, name, lesson, args.seed, report))
        print(f"wrote {folder}", flush=True)
    print(f"seconds in all: {time.monotonic() - started:.0f}")


if __name__ == "__main__":
    main()
