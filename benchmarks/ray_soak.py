"""Many tiny candidates on Ray workers of which one is killed every so often; memory stays flat.

    python benchmarks/ray_soak.py [--candidates 2000] [--every 20] [--workers 2]

Every answer is checked against the one that this process computes, each candidate has to be
answered exactly once, and the driver's memory is read all along. Workers are real actors that run a
sum instead of an engine; each is killed by SIGKILL right after it was given a candidate. Prints
a table, and as its last line one JSON object with the same figures.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import time
from pathlib import Path

import numpy as np

from evomerge.executors.ray import RayExecutor
from evomerge.executors.worker import Job, Outcome, Request, Worker, WorkerSpec
from evomerge.types import ItemScores

ITEMS = 8
_PAUSE = 0.02
"""Seconds of a candidate, so that a kill meets it at work."""


class SumWorker(Worker):
    """Answers with numbers that follow from the job's."""

    def __init__(self, spec: WorkerSpec, cores: tuple[int, ...] | None = None) -> None:
        """Needs no engine."""

    def evaluate(self, job: Job) -> Outcome:
        """Its process id is the text of every answer."""
        time.sleep(_PAUSE)
        return Outcome(job.id, (answer(job.id, str(os.getpid())),), answered=ITEMS)


def answer(number: int, text: str = "") -> ItemScores:
    """The scores of a job."""
    values = np.modf(np.sin(np.arange(1, ITEMS + 1) * (number + 1)) ** 2)[0]
    ids = tuple(map(str, range(ITEMS)))
    return ItemScores(
        "sum", "search", ids, values, np.log1p(values), (text,) * ITEMS, np.ones(ITEMS, np.int64)
    )  # fmt: skip


def memory() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(candidates: int, every: int, workers: int, address: str | None = None) -> dict[str, float]:
    """Runs it; raises AssertionError if anything is lost, doubled or wrong."""
    spec = WorkerSpec({}, "none", {}, threads=1, seed=0)
    executor = RayExecutor(spec, workers, address, retries=5, make=SumWorker)
    request = (Request("sum", "search", tuple(range(ITEMS))),)
    counts = np.zeros(candidates, dtype=int)
    trace, kills, tries, given = [], 0, 0, 0
    begin = time.perf_counter()
    try:
        for done in range(candidates):
            while given < min(candidates, done + 2 * workers):
                executor.submit(Job(given, {}, request))
                given += 1
            outcome = executor.next()
            assert outcome.scores is not None, outcome.reason
            np.testing.assert_array_equal(outcome.scores[0].scores, answer(outcome.id).scores)
            counts[outcome.id] += 1
            tries += outcome.tries
            if (done + 1) % every == 0 and done + 1 < candidates:
                # it was given another candidate when this one arrived
                os.kill(int(outcome.scores[0].texts[0]), signal.SIGKILL)
                kills += 1
            if (done + 1) % max(1, candidates // 10) == 0:
                trace.append(memory())
                print(
                    f"{done + 1:>10} {kills:>6} {tries - done - 1:>8} {trace[-1]:>9.1f} "
                    f"{time.perf_counter() - begin:>8.0f}",
                    flush=True,
                )
    finally:
        executor.close()
    assert (counts == 1).all()
    return {
        "candidates": candidates,
        "kills": kills,
        "candidates_tried_again": tries - candidates,
        "seconds": round(time.perf_counter() - begin, 1),
        "memory_mb_after_a_tenth": round(trace[0], 1),
        "memory_mb_at_the_end": round(trace[-1], 1),
        "memory_mb_highest": round(max(trace), 1),
    }


def main() -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--candidates", type=int, default=2000)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    print(f"{'candidates':>10} {'kills':>6} {'retried':>8} {'MB':>9} {'seconds':>8}")
    print(json.dumps(soak(options.candidates, options.every, options.workers)))


if __name__ == "__main__":
    main()
