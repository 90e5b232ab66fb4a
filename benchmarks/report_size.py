"""A report over many candidates and items: time to build it, memory, size and smooth scrolling.

    python benchmarks/report_size.py                            10000 candidates x 1000 items
    python benchmarks/report_size.py --candidates 500 --items 200 --keep runs/synthetic

The run directory is made up, but written by the package's own journal and Parquet writers: two
objectives, a random search as control, 48 coefficients, 300 characters an answer. Only the first
200 candidates have answer files of their own contents; the others' are hard links to these. The
report is built by the verb `report` in a process of its own; peak memory is of that process. Time
is given as wall-clock and as processor time, since a busy machine stretches the first. Scrolling is
measured in headless Chromium, if playwright and /usr/bin/chromium are there: the page is scrolled
to its end by 120 pixels a frame, with the time of each frame.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from evomerge.durable import write_atomic
from evomerge.journal import SCHEMA, Journal
from evomerge.types import ItemScores

OWN = 200
TASK = "made_up"
SOURCES = ("math", "japanese", "code", "chat")
CONTROLS = ("uniform average", "task arithmetic", "random search")
GROUPS = ["embedding", *(f"block.{n}" for n in range(10)), "head"]
OBJECTIVES = [
    {"name": "accuracy", "task": TASK, "metric": "score", "goal": "maximize", "weight": 0.7},
    {"name": "length", "task": TASK, "metric": "tokens", "goal": "minimize", "weight": 0.3},
]
WORDS = [
    "the",
    "merge",
    "answers",
    "with",
    "a",
    "number",
    "of",
    "apples",
    "and",
    "oranges",
    "that",
    "it",
    "has",
    "counted",
    "twice",
    "12",
    "47",
]
TARGETS = {"seconds": 30.0, "peak_gb": 2.0, "page_mb": 5.0}


def answers(rng: np.random.Generator, items: int, skill: float, split: str) -> ItemScores:
    """What a model of some skill answers: right with that probability on average."""
    hard = np.linspace(-2, 2, items)
    scores = (rng.random(items) < 1 / (1 + np.exp(hard - 4 * (skill - 0.5)))).astype(np.float64)
    picks = rng.integers(0, len(WORDS), (items, 55))
    texts = tuple(" ".join(WORDS[w] for w in row)[:300] for row in picks)
    tokens = rng.integers(20, 90, items)
    ids = tuple(f"item-{n:05d}" for n in range(items))
    return ItemScores(TASK, split, ids, scores, np.full(items, np.nan), texts, tokens)


def summary(part: ItemScores) -> dict[str, Any]:
    return {"score": float(part.scores.mean()), "loglik": None, "items": len(part)}


@contextlib.contextmanager
def unsynced() -> Iterator[None]:
    """Writers that do not wait for the disk: nothing here is worth keeping."""
    with mock.patch("os.fsync"):
        yield


def make_run(folder: Path, candidates: int, items: int, seed: int = 0) -> None:
    """Writes the run directory of a finished study."""
    rng = np.random.default_rng(seed)
    dimensions = [
        {"name": f"weight/{source}/{group}", "low": -0.25, "high": 1.25, "kind": "real"}
        for source in SOURCES for group in GROUPS
    ]  # fmt: skip
    with unsynced():
        journal = Journal(folder)
        journal.append(
            "study", schema=SCHEMA, experiment="made_up", seed=seed, matter={"device": "cpu"},
            space={"name": "task_arithmetic", "dimensions": dimensions}, tasks=[TASK],
            optimizer="nsga2", objectives=OBJECTIVES, constraints=[],
            identities=dict.fromkeys(("base", *SOURCES), "0" * 64),
            versions={"evomerge": "made up"},
        )  # fmt: skip
        first = 0
        best: dict[int, dict[str, float]] = {}
        for search, count in (("search", candidates), ("random search", candidates // 10)):
            best |= _search(journal, rng, search, first, count, items, len(dimensions))
            first += count
        _proof(journal, rng, best, items)
    config = {
        "experiment": "made_up", "seed": seed, "executor": {"name": "serial"},
        "models": {"base": "models/base", "sources": {name: f"models/{name}" for name in SOURCES}},
    }  # fmt: skip
    write_atomic(folder / "config.yaml", json.dumps(config, indent=1))


def _search(
    journal: Journal, rng: np.random.Generator, name: str, first: int, count: int, items: int,
    genes: int,
) -> dict[int, dict[str, float]]:  # fmt: skip
    found: dict[int, dict[str, float]] = {}
    files: list[str] = []
    for start in range(first, first + count, 50):
        ids = range(start, min(start + 50, first + count))
        genomes = rng.uniform(-0.25, 1.25, (len(ids), genes)).round(6)
        journal.append(
            "ask", search=name, generation=(start - first) // 50, items={TASK: None},
            candidates=[
                {"id": i, "genome": g.tolist(), "digest": f"{i:064x}"}
                for i, g in zip(ids, genomes, strict=True)
            ],
        )  # fmt: skip
        for number, genome in zip(ids, genomes, strict=True):
            if number % 37 == 36:
                journal.append("result", search=name, id=number, status="failed",
                               reason=f"the merge holds NaN in block.{number % 3}",
                               seconds={"merge": 0.1, "answer": 0.0, "elapsed": 0.2,
                                        "overhead": 0.01})  # fmt: skip
                continue
            progress = (number - first) / count if name == "search" else 0.0
            skill = 0.3 + 0.2 * progress + 0.2 * genome[:12].mean() + rng.normal(0, 0.02)
            length = 30 + 40 * float(skill) ** 2 + rng.gamma(2, 6)
            values = {"accuracy": round(float(skill), 4), "length": round(length, 2)}
            file = f"candidate-{number:06d}"
            if len(files) < OWN:
                files.append(journal.write_items(file, [answers(rng, items, skill, "search")]))
                path = files[-1]
            else:
                path = f"items/{file}.parquet"
                os.link(journal.run_dir / files[number % OWN], journal.run_dir / path)
            journal.append(
                "result", search=name, id=number, status="ok",
                scores={TASK: {"score": values["accuracy"], "loglik": None, "items": items}},
                fitness=[values["accuracy"], -values["length"]], stderr=[0.01, 0.5], values=values,
                file=path, answered=items,
                seconds={"merge": 0.3, "answer": 2.0, "elapsed": 2.6, "overhead": 0.02},
            )  # fmt: skip
            found[number] = values
    return found


def _proof(
    journal: Journal, rng: np.random.Generator, found: dict[int, dict[str, float]], items: int
) -> None:
    """Measures sources, controls and a front on held-out items, and writes the results."""
    ranked = sorted(found, key=lambda n: -found[n]["accuracy"])
    front, shortest = [], float("inf")
    for number in ranked:
        if found[number]["length"] < shortest:
            front.append(number)
            shortest = found[number]["length"]
    models: dict[str, Any] = {}
    names = [("best merge", "merge", 0.66), *((n, "source", 0.45 + 0.04 * k)
             for k, n in enumerate(SOURCES)),
             *((n, "control", 0.52) for n in CONTROLS)]  # fmt: skip
    for name, role, skill in names:
        digest = f"{front[0]:064x}" if role == "merge" else f"digest-{name}"
        parts = [answers(rng, items, skill, split) for split in ("search", "test")]
        number = sum(e["event"] == "measure" for e in journal.events)
        scores = {TASK: {part.split: summary(part) for part in parts}}
        journal.append("measure", name=name, role=role, digest=digest, asked=[], status="ok",
                       scores=scores, answered=2 * items,
                       file=journal.write_items(f"measure-{number:05d}", parts))  # fmt: skip
        models[name] = {
            "role": role, "digest": digest,
            "scores": {TASK: {
                part.split: {"value": summary(part)["score"], "low": summary(part)["score"] - 0.03,
                             "high": summary(part)["score"] + 0.03, "items": items}
                for part in parts
            }},
            "objectives": {"test": {"accuracy": summary(parts[1])["score"],
                                    "length": float(parts[1].tokens.mean())}},
        }  # fmt: skip
    points = [
        {"name": f"candidate {n}", "candidate": n, "digest": f"{n:064x}", "chosen": n == front[0],
         "values": {"search": found[n], "test": {k: v * 0.97 for k, v in found[n].items()}},
         "low": {k: v * 0.94 for k, v in found[n].items()},
         "high": {k: v * 1.0 for k, v in found[n].items()}, "violation": 0.0}
        for n in front
    ]  # fmt: skip
    results = {
        "schema": 1, "experiment": "made_up", "seed": 0, "objective": TASK, "optimizer": "nsga2",
        "objectives": OBJECTIVES, "constraints": [], "best": "best merge", "models": models,
        "splits": {TASK: {"search": items, "validation": items, "test": items}},
        "paired_test": {"against": "chat", "difference": 0.1, "low": 0.05, "high": 0.15,
                        "p": 0.001},
        "front": {"points": points, "budgets": {str(len(found)): front},
                  "reference": {"accuracy": 0.0, "length": 120.0}},
        "cost": {"candidates": len(found), "failed": 0, "seconds": 1.0},
        "not_measured": [], "versions": {"evomerge": "made up"},
    }  # fmt: skip
    write_atomic(journal.run_dir / "results.json", json.dumps(results))
    journal.append("end", best=f"{front[0]:064x}")


def build(folder: Path, page_only: bool) -> dict[str, float]:
    """Builds the report in a process of its own; seconds, processor seconds and peak memory."""
    code = (
        "import sys, time, resource, pathlib\n"
        "begin = time.perf_counter()\n"
        "from evomerge.report import write_report\n"
        f"write_report(pathlib.Path(sys.argv[1]), files={not page_only})\n"
        "use = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(time.perf_counter() - begin, use.ru_utime + use.ru_stime, use.ru_maxrss)\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=env, stdout=subprocess.PIPE, text=True,
        check=True, cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    wall, processor, peak = map(float, done.stdout.split())
    return {"seconds": wall, "processor_seconds": processor, "peak_gb": peak / 1e6}


SCROLL = """() => new Promise((done) => {
  const frames = []; let last = performance.now();
  const step = (now) => {
    frames.push(now - last); last = now;
    const before = window.scrollY;
    window.scrollBy(0, 120);
    if (window.scrollY === before && frames.length > 5) done(frames.slice(1));
    else requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})"""


def scroll(page: Path) -> dict[str, float]:
    """Frame times in ms while the page scrolls to its end, and its number of elements."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return {}
    if chromium is None:
        return {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1100, "height": 800})
        begin = time.perf_counter()
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-charts=drawn]", state="attached", timeout=300_000)
        drawn = time.perf_counter() - begin
        tab.wait_for_timeout(1000)
        frames = np.array(tab.evaluate(SCROLL))
        elements = tab.evaluate("document.getElementsByTagName('*').length")
        browser.close()
    return {
        "drawn_seconds": round(drawn, 2), "frames": len(frames), "elements": elements,
        "frame_ms_median": round(float(np.median(frames)), 1),
        "frame_ms_p95": round(float(np.quantile(frames, 0.95)), 1),
        "frame_ms_max": round(float(frames.max()), 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=1_000)
    parser.add_argument("--keep", type=Path, help="write the run here, and keep it")
    parser.add_argument("--page-only", action="store_true", help="without figures and tables")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch) / "run"
        if not (folder / "results.json").is_file():
            begin = time.perf_counter()
            make_run(folder, options.candidates, options.items)
            print(f"made up the run in {time.perf_counter() - begin:.0f} s", flush=True)
        found: dict[str, Any] = {"page": build(folder, page_only=True)}
        if not options.page_only:
            found["page_and_files"] = build(folder, page_only=False)
        size = (folder / "report.html").stat().st_size / 1e6
        found |= {"page_mb": round(size, 2), "scroll": scroll((folder / "report.html").resolve())}
    print(f"{options.candidates} candidates x {options.items} items; load {os.getloadavg()[0]:.1f}")
    print(f"{'':16} {'seconds':>8} {'processor':>10} {'peak GB':>8}")
    for name in ("page", "page_and_files"):
        if name in found:
            one = found[name]
            print(f"{name:16} {one['seconds']:8.1f} {one['processor_seconds']:10.1f} "
                  f"{one['peak_gb']:8.2f}")  # fmt: skip
    print(f"size of the page {size:.2f} MB (target {TARGETS['page_mb']:g})")
    print(f"scrolling: {found['scroll'] or 'not measured, no browser'}")
    print(json.dumps({
        "candidates": options.candidates, "items": options.items, "load": os.getloadavg()[0],
        "targets": TARGETS, **found,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
