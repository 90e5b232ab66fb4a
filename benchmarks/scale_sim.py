"""Drives the real scheduler with simulated engines: how many workers can one driver keep busy?

    python benchmarks/scale_sim.py                      # the tables of benchmarks/RESULTS.md
    python benchmarks/scale_sim.py --workers 64 --optimizers random tpe --windows 1 2 4
    python benchmarks/scale_sim.py --durations RUN      # from the journal of another study

Search loop, pipeline, ledger, journal, space and optimisers are the package's own; only the engines
are not there. A simulated worker takes as long as a candidate took in a real run (`DURATIONS`, or
the journal of `--durations`), brought to `--seconds` on the mean, times a log-normal factor; two
in a hundred are stragglers, whose factor has a median of 5. Of a hundred attempts one is lost with
its worker, which takes `--restart` mean durations to come back; the candidate is tried again up to
twice, as the Ray executor does it. Half a percent of the candidates fail.

The clock runs on with the driver's own seconds and jumps over the waiting, so a slow driver leaves
workers idle here as it would on a cluster. The driver's seconds are those of its processor and
those that it waits for the disk (fsync); with `--ideal` they do not count, which shows what the
order of the results alone costs. Results are recorded in the order in which candidates were given
out (`--order given`) or as they arrive (`--order arrival`), as the key `executor.order` of a study
says. `busy` is the share of the workers' time that is work while there are candidates to give
out: from when every worker had one to the last hand-over; `all` includes start and end.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.answering import answer_settings
from evomerge.cli import compose_config
from evomerge.evaluation import LazyExecutor
from evomerge.executors.remembering import RememberingExecutor
from evomerge.executors.worker import Job, Outcome
from evomerge.journal import Journal, read_events, write_items
from evomerge.ledger import Ledger
from evomerge.progress import Progress
from evomerge.search import Search
from evomerge.setup import Setup, make_optimizer, make_setup, model_identities
from evomerge.trials import Limits
from evomerge.types import ItemScores

DURATIONS = (
    0.200, 0.206, 0.208, 0.218, 0.224, 0.232, 0.235, 0.243, 0.249, 0.257, 0.263, 0.268,
    0.272, 0.276, 0.281, 0.283, 0.291, 0.293, 0.307, 0.317, 0.332, 0.357, 0.364, 0.395,
    0.423, 0.464, 0.517, 0.552, 0.591, 0.630, 0.680, 0.731,
)  # fmt: skip
"""Seconds of merging and answering 50 items, transformers on one core: 32 quantiles of the
candidates of seed 0 of `experiments/merge3_tiny` with `estimator.items=50`."""

SPREAD, STRAGGLERS, SLOWER, SLOWER_SPREAD = 0.25, 0.02, 5.0, 0.5
LOST, FAILED, RETRIES = 0.01, 0.005, 2
TEXTS = ("答えは{}です。", "{}です", "合計は{}になります。")
POPULATION = {"cma_es": "population", "nsga2": "population", "pso": "particles"}
"""What the number of candidates at work is called where it is not `batch`."""

HEADER = (
    "| optimiser | workers | at work | candidates | busy | all | driver ms | fsyncs | disk ms "
    "| journal MB/10k | scores MB/10k |\n|---|" + "---:|" * 10
)


class Disk:
    """Counts the waits for the disk, and their seconds."""

    def __init__(self) -> None:
        self.count, self.seconds, self._real = 0, 0.0, os.fsync

    def __call__(self, handle: int) -> None:
        begin = time.perf_counter()
        self._real(handle)
        self.seconds += time.perf_counter() - begin
        self.count += 1


DISK = Disk()


@dataclass
class Simulated:
    """An executor whose workers only take time, on a clock of its own.

    Attributes:
        setup: the study's.
        seconds: that a candidate takes on the mean.
        restart: seconds until a lost worker is back.
        base: measured durations, divided by their mean.
        workers: how many.
        driver: seconds of the processor spent outside of this executor.
        disk: seconds that the driver waited for the disk.
        ideal: whether neither counts.
        now: the time.
        full: when every worker had a job for the first time.
        last: when the last job was given out.
        lost: attempts that were lost.
    """

    workers: int
    setup: Setup
    seconds: float
    restart: float
    base: np.ndarray
    ideal: bool = False
    driver: float = 0.0
    disk: float = 0.0
    now: float = 0.0
    full: float | None = None
    last: float = 0.0
    lost: int = 0
    _spans: list[tuple[float, float]] = field(default_factory=list)
    _events: list[tuple[float, int, Job, bool]] = field(default_factory=list)
    _free: list[float] = field(default_factory=list)
    _queue: deque[tuple[Job, int]] = field(default_factory=deque)
    _tries: dict[int, int] = field(default_factory=dict)
    _count: int = 0
    _left: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        self._free = [0.0] * self.workers
        self._ids = {t.name: [i.id for i in t.items("search")] for t in self.setup.search_tasks}
        self._leave()

    def submit(self, job: Job) -> None:
        self._enter()
        self._queue.append((job, 0))
        self._start()
        self._leave()

    def next(self) -> Outcome:
        self._enter()
        try:
            while self._events:
                end, _, job, lost = heapq.heappop(self._events)
                self.now = max(self.now, end)
                heapq.heappush(self._free, end + (self.restart if lost else 0.0))
                if not lost:
                    return self._outcome(job)
                self.lost += 1
                tries = self._tries[job.id] = self._tries.get(job.id, 0) + 1
                if tries > RETRIES:
                    return Outcome(job.id, None, f"the worker died {tries} times")
                self._queue.appendleft((job, tries))
                self._start()
            raise RuntimeError("next: no job was submitted")
        finally:
            self._leave()

    def close(self) -> None:
        return

    def busy(self, begin: float, end: float) -> float:
        """Share of the workers' time between two moments that is work."""
        work = sum(max(0.0, min(b, end) - max(a, begin)) for a, b in self._spans)
        return work / (self.workers * (end - begin)) if end > begin else float("nan")

    def _start(self) -> None:
        while self._queue and len(self._events) < self.workers:
            job, tries = self._queue.popleft()
            begin = max(self.now, heapq.heappop(self._free))
            rng = np.random.default_rng((job.id, tries))
            slow = SLOWER * rng.lognormal(0.0, SLOWER_SPREAD) if rng.random() < STRAGGLERS else 1.0
            length = self.seconds * rng.choice(self.base) * rng.lognormal(0.0, SPREAD) * slow
            lost = bool(rng.random() < LOST)
            end = begin + length * (rng.random() if lost else 1.0)
            self._spans.append((begin, end))
            heapq.heappush(self._events, (end, self._count, job, lost))
            self._count += 1
            self.last = begin
            if self.full is None and len(self._events) == self.workers:
                self.full = begin

    def _outcome(self, job: Job) -> Outcome:
        rng = np.random.default_rng((job.id, 99))
        if rng.random() < FAILED:
            return Outcome(job.id, None, "NaN in the answers (simulated)")
        skill = rng.beta(2, 4)
        parts = []
        for request in job.requests:
            ids = self._ids[request.task]
            places = range(len(ids)) if request.indices is None else request.indices
            right = rng.random(len(places)) < skill
            parts.append(
                ItemScores(
                    request.task, request.split, tuple(ids[i] for i in places),
                    right.astype(np.float64), -rng.random(len(places)),
                    tuple(TEXTS[i % 3].format(i) for i in places),
                    np.full(len(places), 8, dtype=np.int64),
                )
            )  # fmt: skip
        count = sum(map(len, parts))
        return Outcome(job.id, tuple(parts), None, 0.05, self.seconds, self.seconds, answered=count)

    def _enter(self) -> None:
        processor, disk = self._left
        own, waited = time.process_time() - processor, DISK.seconds - disk
        self.driver += own
        self.disk += waited
        self.now += 0.0 if self.ideal else own + waited

    def _leave(self) -> None:
        self._left = (time.process_time(), DISK.seconds)


def simulate(
    name: str, workers: int, window: float, candidates: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Runs one search; returns its figures.

    Args:
        name: of the optimiser.
        workers: simulated ones.
        window: candidates at work, or the population, as a multiple of the workers.
        candidates: to evaluate.
        options: of the command line.
    """
    folder = Path(tempfile.mkdtemp(prefix="scale_sim-", dir=options.folder))
    try:
        write_items(folder / "first.parquet", ())  # imports pyarrow and pandas, once a process
        batch = max(2, round(window * workers))
        config = compose_config(_overrides(name, batch, folder, options.items))
        config["executor"]["order"] = options.order
        setup = make_setup(config)
        journal = Journal(folder)
        journal.append("study", schema=1)
        engines = Simulated(
            workers, setup, options.seconds, options.restart * options.seconds, options.base,
            options.ideal,
        )  # fmt: skip
        writes = DISK.count
        search = _search(setup, journal, engines, candidates)
        search.run(Progress(quiet=True))
        events = read_events(folder)
        results = [e for e in events if e["event"] == "result"]
        items = sum(f.stat().st_size for f in (folder / "items").iterdir())
        end = max(b for _, b in engines._spans)
        return {
            "optimizer": name, "workers": workers, "window": window, "candidates": len(results),
            "busy": engines.busy(engines.full or 0.0, engines.last), "all": engines.busy(0.0, end),
            "driver_ms": 1e3 * engines.driver / len(results),
            "disk_ms": 1e3 * engines.disk / len(results),
            "fsyncs": (DISK.count - writes) / len(results),
            "journal_mb_per_10k": journal.path.stat().st_size / len(results) / 100,
            "items_mb_per_10k": items / len(results) / 100,
            "lost": engines.lost, "failed": sum(e["status"] != "ok" for e in results),
        }  # fmt: skip
    finally:
        shutil.rmtree(folder)


def _search(setup: Setup, journal: Journal, engines: Simulated, candidates: int) -> Search:
    ledger = Ledger(journal.run_dir / "ledger")
    executor = RememberingExecutor(
        lambda: engines, engines.workers, ledger, setup.tasks, answer_settings(setup)
    )
    optimizer = make_optimizer(setup, setup.config["optimizer"], "optimizer")
    return Search(
        "search", setup, setup.space, setup.goals, optimizer, journal,
        LazyExecutor(lambda: executor), model_identities(setup), Limits(candidates),
    )  # fmt: skip


def _overrides(name: str, batch: int, folder: Path, items: int) -> list[str]:
    size = POPULATION.get(name, "batch")
    return [
        "+experiment=jp_math_tiny", "report_tasks=null", "controls=none", "executor=serial",
        "engine=transformers", f"optimizer={name}", f"++optimizer.{size}={batch}",
        f"estimator.items={items}", f"run_dir={folder}", "pool.check=false",
    ]  # fmt: skip


def _durations(run: Path | None) -> np.ndarray:
    """Measured durations, divided by their mean."""
    found = DURATIONS
    if run is not None:
        times = [e["seconds"] for e in read_events(run) if e["event"] == "result"]
        found = tuple(t["merge"] + t["answer"] for t in times if t["answer"] > 0)
    return np.array(found) / np.mean(found)


def main() -> None:
    """Prints the tables, and the figures as JSON on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 512, 2048])
    parser.add_argument("--optimizers", nargs="+", default=["random", "m2n2", "cma_es"])
    parser.add_argument("--windows", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--candidates", type=int, help="default: 4 a worker, at least 1000")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a candidate, on the mean")
    parser.add_argument("--restart", type=float, default=1.0, help="of a worker, in durations")
    parser.add_argument("--items", type=int, default=150)
    parser.add_argument("--durations", type=Path, metavar="RUN")
    parser.add_argument("--folder", type=Path, help="where the journals are written")
    parser.add_argument("--order", choices=("given", "arrival"), default="given")
    parser.add_argument("--ideal", action="store_true", help="a driver that costs nothing")
    options = parser.parse_args()
    os.fsync = DISK
    options.base = _durations(options.durations)
    rows = []
    print(HEADER)
    for name in options.optimizers:
        for workers in options.workers:
            for window in options.windows:
                count = options.candidates or max(1000, 4 * workers)
                row = simulate(name, workers, window, count, options)
                rows.append(row)
                print(
                    f"| {name} | {workers} | {window:g}x | {row['candidates']} "
                    f"| {row['busy']:.1%} | {row['all']:.1%} | {row['driver_ms']:.2f} "
                    f"| {row['fsyncs']:.1f} | {row['disk_ms']:.2f} "
                    f"| {row['journal_mb_per_10k']:.1f} "
                    f"| {row['items_mb_per_10k']:.1f} |",
                    flush=True,
                )
    print(json.dumps({"python": sys.version.split()[0], "rows": rows}))


if __name__ == "__main__":
    main()
