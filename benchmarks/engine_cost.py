"""What an update, answers and log-likelihoods cost an engine, one candidate after the other.

    python benchmarks/engine_cost.py --engine vllm --dtype bfloat16 --items 1000
    python benchmarks/engine_cost.py --engine vllm --adapters 5 --lora --rank 64 --items 100

Candidates are random task arithmetic over the zoo's three models, or with `--adapters N` over as
many of its LoRA adapters; items are those of `experiments/merge3_tiny`. Prints medians of wall time
and of processor time, which a busy machine disturbs less, and as its last line one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evomerge.engines.auto import make_engine
from evomerge.recipe import Recipe, Source
from evomerge.types import Sampling
from evomerge.zoo import zoo_path

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "merge3_tiny"))
from prepare import rows

NAMES = ("math", "japanese", "sorter")


def candidate(seed: int, adapters: int) -> Recipe:
    """A random merge."""
    base = str(zoo_path("models/base"))
    models = [str(zoo_path(f"models/{name}")) for name in NAMES]
    if adapters:
        folders = sorted(p.parent for p in Path(zoo_path("adapters")).glob("*/adapter_config.json"))
        models = [f"{base}+{folder}" for folder in folders[:adapters]]
    rng = random.Random(seed)
    sources = tuple(Source(m, {"weight": rng.uniform(0.1, 0.5)}) for m in models)
    return Recipe("task_arithmetic", sources, base)


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"))
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--adapters", type=int, default=0)
    parser.add_argument("--lora", action="store_true", help="vLLM: adapters stay beside the base")
    parser.add_argument("--rank", type=int, default=64, help="vLLM: max_lora_rank")
    options = parser.parse_args()
    arguments = {"lora": True, "max_lora_rank": options.rank} if options.lora else {}
    spec = {
        "name": options.engine, "dtype": options.dtype, "max_model_len": 128, "args": arguments,
    }  # fmt: skip
    engine = make_engine(spec, zoo_path("models/base"), threads=1)
    items = rows()[: options.items]
    prompts = [f"{row['question']}\n" for row in items]
    pairs = [(p, row["gold"]) for p, row in zip(prompts, items, strict=True)]
    parts: dict[str, Callable[[Recipe], object]] = {
        "update": engine.load,
        "answers": lambda recipe: engine.generate(prompts, Sampling(24)),
        "log-likelihoods": lambda recipe: engine.loglikelihood(pairs),
    }
    times: dict[str, list[tuple[float, float]]] = {part: [] for part in parts}
    for seed in range(options.repeats + 1):
        recipe = candidate(seed, options.adapters)
        for part, work in parts.items():
            found = timed(lambda work=work, recipe=recipe: work(recipe))  # type: ignore[misc]
            if seed:  # the first warms up
                times[part].append(found)
    engine.close()
    print(f"{options.engine} {options.dtype}, {options.items} items, "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    print(f"{'part':>16} {'wall s':>8} {'processor s':>12}")
    medians = {}
    for part, found_times in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*found_times, strict=True))
        medians[part] = {"wall": round(wall, 4), "processor": round(cpu, 4)}
        print(f"{part:>16} {wall:8.3f} {cpu:12.3f}")
    print(json.dumps(vars(options) | medians))


if __name__ == "__main__":
    main()
