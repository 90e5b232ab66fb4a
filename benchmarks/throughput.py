"""Candidates a minute: engines that stay against a new engine for every candidate.

    python benchmarks/throughput.py --engine vllm --workers 1 2

Three ways to answer some items with merges of the zoo, all on the same recipes, items, engine and
number of threads:

- `plain`: a loop that writes each merge as a checkpoint, starts a new engine on it, asks the items
  and closes the engine. The process stays, so that imports count once: tools that start a process
  for each candidate are slower than this.
- `N workers`: Ray actors, each with one engine for the whole run into which recipes are merged in
  place. Two candidates a worker are on their way, as in a study.

Each way has a process of its own, and they take turns: in every round each answers its share, while
the others wait. Prints seconds and candidates a minute by round, and as its last line one JSON
object. Idle is the share of the workers' time in which they neither merge nor answer nor score.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evomerge.recipe import Recipe, Source
from evomerge.zoo import zoo_path

CONF = Path(__file__).parents[1] / "conf"
TASK = "jp_math_tiny"
NAMES = ("math", "japanese", "sorter")
Burst = Callable[[list[Recipe]], float]
"""Answers with some merges; returns the seconds for which workers were at work, summed."""


def recipes(seed: int, count: int) -> list[Recipe]:
    """Random task arithmetic over the zoo."""
    rng = np.random.default_rng(seed)
    sources = [str(zoo_path(f"models/{name}")) for name in NAMES]
    base = str(zoo_path("models/base"))
    return [
        Recipe(
            "task_arithmetic",
            tuple(Source(s, {"weight": float(w)}) for s, w in zip(sources, weights, strict=True)),
            base,
        )
        for weights in rng.uniform(0.0, 1.0, (count, len(sources)))
    ]


def task_node() -> dict[str, Any]:
    """The task's config with the zoo's files in it."""
    text = (CONF / "task" / f"{TASK}.yaml").read_text(encoding="utf-8")
    path = str(zoo_path("data/jp_math.jsonl"))
    node: dict[str, Any] = yaml.safe_load(text.replace("${evomerge.zoo:data/jp_math.jsonl}", path))
    return node


def engine_spec(options: argparse.Namespace) -> dict[str, Any]:
    """The engine's config."""
    return {"name": options.engine, "dtype": "auto", "max_model_len": 128, "args": {}}


def plain_loop(options: argparse.Namespace, folder: Path) -> tuple[Burst, Callable[[], None]]:
    """A new checkpoint and a new engine for every candidate."""
    from evomerge.build import build
    from evomerge.checkpoints.merger import Merger
    from evomerge.checkpoints.writer import write_checkpoint
    from evomerge.engines.auto import make_engine

    task = build(task_node(), "task")
    items = list(task.items("search"))[: options.items]
    prompts = [task.prompt(item) for item in items]
    merger = Merger(1)
    cores = sorted(os.sched_getaffinity(0))[:1]

    def burst(some: list[Recipe]) -> float:
        begin = time.perf_counter()
        for i, recipe in enumerate(some):
            out = folder / str(i)
            write_checkpoint(recipe, merger, out)
            engine = make_engine(engine_spec(options), out, threads=1, cores=cores)
            answers = engine.generate(prompts, task.sampling)
            engine.close()
            for item, answer in zip(items, answers, strict=True):
                task.score(item, answer.text)
            shutil.rmtree(out)
        return time.perf_counter() - begin

    return burst, lambda: None


def in_place(options: argparse.Namespace, workers: int) -> tuple[Burst, Callable[[], None]]:
    """Engines that stay, in Ray actors."""
    from evomerge.executors.ray import RayExecutor
    from evomerge.executors.worker import Job, Request, WorkerSpec

    spec = WorkerSpec(
        engine=engine_spec(options),
        model=str(zoo_path("models/base")),
        tasks={TASK: task_node()},
        threads=1,
        seed=0,
    )
    executor = RayExecutor(spec, workers)
    request = Request(TASK, "search", tuple(range(options.items)))

    def burst(some: list[Recipe]) -> float:
        jobs = [Job(i, recipe.to_dict(), (request,)) for i, recipe in enumerate(some)]
        ahead, busy = jobs[: 2 * workers], 0.0
        for job in ahead:
            executor.submit(job)
        for i in range(len(jobs)):
            outcome = executor.next()
            if outcome.scores is None:
                raise RuntimeError(f"candidate {outcome.id} failed: {outcome.reason}")
            busy += outcome.total_seconds
            if len(ahead) + i < len(jobs):
                executor.submit(jobs[len(ahead) + i])
        return busy

    return burst, executor.close


def serve(options: argparse.Namespace) -> None:
    """Runs one way: reads seeds and counts, answers with seconds, until told nothing more."""
    with tempfile.TemporaryDirectory() as folder:
        if options.way == "plain":
            burst, close = plain_loop(options, Path(folder))
        else:
            burst, close = in_place(options, int(options.way))
        burst(recipes(10**6, 1 if options.way == "plain" else 2 * int(options.way)))  # warms up
        print("ready", flush=True)
        for line in sys.stdin:
            seed, count = map(int, line.split())
            some = recipes(seed, count)
            begin = time.perf_counter()
            busy = burst(some)
            told = {"seconds": time.perf_counter() - begin, "busy": busy}
            print(json.dumps(told), flush=True)
        close()


class Way:
    """One way to evaluate, in a process of its own."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        """Starts it and waits until its engines run."""
        self.name = name
        self.rounds: list[dict[str, float]] = []
        self._count = options.plain if name == "plain" else options.candidates * int(name)
        arguments = ["--way", name, "--engine", options.engine, "--items", str(options.items)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._answer("ready")

    def round(self, seed: int) -> dict[str, float]:
        """Lets it answer its share; seconds, candidates a minute and the share of idle time."""
        assert self._process.stdin is not None
        print(seed, self._count, file=self._process.stdin, flush=True)
        told: dict[str, float] = json.loads(self._answer("{"))
        workers = 1 if self.name == "plain" else int(self.name)
        told["per_minute"] = 60 * self._count / told["seconds"]
        told["idle"] = max(0.0, 1 - told["busy"] / (workers * told["seconds"]))
        self.rounds.append(told)
        return told

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _answer(self, start: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(start):
                return line
        raise SystemExit(f"{self.name} ended with code {self._process.wait()}")

    def median(self, key: str) -> float:
        """Of all rounds."""
        return statistics.median(r[key] for r in self.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--items", type=int, default=20, help="that a candidate answers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=40, help="of a worker in a round")
    parser.add_argument("--plain", type=int, default=2, help="candidates of the loop in a round")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        serve(options)
        return
    names = ["plain", *map(str, options.workers)]
    ways = [Way(name, options) for name in names]
    print(f"{options.engine}, {options.items} items a candidate, load {os.getloadavg()[0]:.1f}")
    print(f"{'round':>5} {'way':>10} {'seconds':>8} {'a minute':>9} {'idle':>6}")
    for number in range(options.rounds):
        for way in ways:
            told = way.round(number)
            print(f"{number:5} {way.name:>10} {told['seconds']:8.2f} {told['per_minute']:9.1f} "
                  f"{told['idle']:6.1%}", flush=True)  # fmt: skip
    for way in ways:
        way.close()
    rows = []
    for way in ways:
        ratios = [a["per_minute"] / b["per_minute"]
                  for a, b in zip(way.rounds, ways[0].rounds, strict=True)]  # fmt: skip
        rows.append({
            "way": way.name, "per_minute": round(way.median("per_minute"), 1),
            "idle": round(way.median("idle"), 4),
            "times_plain": round(statistics.median(ratios), 1),
        })  # fmt: skip
        print(f"median {way.name:>9} {rows[-1]['per_minute']:9.1f} a minute, idle "
              f"{rows[-1]['idle']:.1%}, {rows[-1]['times_plain']} times plain")  # fmt: skip
    print(json.dumps({
        "engine": options.engine, "items": options.items, "rounds": options.rounds,
        "load": round(os.getloadavg()[0], 1), "cores": len(os.sched_getaffinity(0)), "rows": rows,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
