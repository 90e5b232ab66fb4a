"""Trains the models of the zoo: `python -m evomerge.zoo.train --seed 0 --out DIR`."""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.zoo import zoo_path
from evomerge.zoo.curriculum import BASE, SPECIALISTS, Stage

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

PRIVATE_KEYS = ("_name_or_path", "name_or_path", "backend")
"""Keys of the machine or of one version of transformers; not written."""


def save_model(model: LlamaForCausalLM, directory: Path) -> None:
    """Writes a model in bf16 with its tokenizer, in the ordinary Hugging Face layout."""
    from evomerge.zoo.tokenizer import build_tokenizer

    directory.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).bfloat16().save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)
    for path in directory.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in content.items() if key not in PRIVATE_KEYS}
        if "tokenizer_class" in kept:  # the name that every version since 4.0 knows
            kept["tokenizer_class"] = "PreTrainedTokenizerFast"
        text = json.dumps(kept, ensure_ascii=False, indent=2)
        path.write_text(text + "\n", encoding="utf-8")


def shorten(stage: Stage, steps: int | None) -> Stage:
    """The stage cut to a number of steps, or as it is."""
    return stage if steps is None else replace(stage, steps=min(steps, stage.steps))


def train_zoo(
    seed: int, steps: int | None = None, quiet: bool = False
) -> dict[str, LlamaForCausalLM]:
    """Trains base and specialists; returns them by name, base first.

    Args:
        steps: cuts every stage to so many steps; for trying things out.
    """
    from evomerge.zoo.training import new_model, train_stage

    def run(model: LlamaForCausalLM, stage: Stage) -> None:
        stage, started = shorten(stage, steps), time.monotonic()

        def report(done: int, loss: float) -> None:
            if not quiet and (done % 50 == 0 or done == stage.steps):
                seconds = time.monotonic() - started
                print(
                    f"{stage.name}: step {done}/{stage.steps}, loss {loss:.4f}, {seconds:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )

        train_stage(model, stage, seed, report)

    base = new_model(seed)
    for stage in BASE:
        run(base, stage)
    models = {"base": base}
    for name, stage in SPECIALISTS.items():
        models[name] = copy.deepcopy(base)
        run(models[name], stage)
    return models


def main(argv: list[str] | None = None) -> None:
    """Trains and writes the four models."""
    parser = argparse.ArgumentParser(
        prog="python -m evomerge.zoo.train",
        description="Train a small base model and the specialists fine-tuned from it. "
        "Takes up to 15 minutes on one core; the same seed gives the same weights.",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data (default 0)")
    parser.add_argument(
        "--out",
        type=Path,
        default=zoo_path("models"),
        help="directory for base/, math/, japanese/ and sorter/ (default: inside the package)",
    )
    parser.add_argument("--steps", type=int, help="cut every stage to so many steps, to try it out")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of torch (default 1: the number changes how sums are rounded)",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    args = parser.parse_args(argv)

    import torch

    torch.set_num_threads(args.threads)
    started = time.monotonic()
    for name, model in train_zoo(args.seed, args.steps, args.quiet).items():
        save_model(model, args.out / name)
        print(f"wrote {args.out / name}: {model.num_parameters()} parameters")
    print(f"seconds in all: {time.monotonic() - started:.0f}")


if __name__ == "__main__":
    main()
