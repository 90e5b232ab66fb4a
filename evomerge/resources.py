"""What a study needs of the machine: engine, devices, memory, disk."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from evomerge import footprint, scaling
from evomerge.answering import ledger_folder
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.model import Model
from evomerge.checkpoints.writer import existing_folder
from evomerge.engines.auto import check_engine, resolve_engine
from evomerge.errors import Problem, UserError
from evomerge.executors.cores import available
from evomerge.ledger import check_folder, segment_rows
from evomerge.setup import Config
from evomerge.workers import plan_workers

_ITEM_BYTES = 2048
_SPARE = 200 << 20
_DTYPES = ("auto", "float32", "bfloat16", "float16")


def check_resources(
    config: Config, merger: Merger, tell: Callable[[str], None]
) -> Iterator[Problem]:
    """Everything that the machine lacks for a study, part by part."""
    for step in (_engine, _workers, _devices, _memory, _disk, _ledger):
        try:
            yield from step(config, merger, tell)
        except UserError as error:
            yield from error.problems


def quiet_base(config: Config, merger: Merger) -> Model | None:
    """The base, or None where it cannot be opened (which is said elsewhere)."""
    if config["models"]["base"] is None:
        return None
    try:
        return merger.checkpoint(config["models"]["base"], "models.base")
    except UserError:
        return None


def _engine(config: Config, merger: Merger, tell: Callable[[str], None]) -> Iterator[Problem]:
    node = config["engine"]
    if node["dtype"] not in _DTYPES:
        yield Problem(
            "engine.dtype", repr(node["dtype"]), f"one of {', '.join(_DTYPES)}", "Correct it."
        )
    name = resolve_engine(node["name"])
    check_engine(node)
    tell(f"engine: {name}")


def _workers(config: Config, merger: Merger, tell: Callable[[str], None]) -> Iterator[Problem]:
    plan = plan_workers(config)
    cores = len(available())
    if config["executor"]["address"] is None and plan.workers * plan.threads > cores:
        yield Problem(
            "executor.threads", f"{plan.workers} worker(s) with {plan.threads} thread(s) each",
            f"at most the {cores} core(s) of this machine, as threads that share a core were "
            "measured 10 times slower", "Use fewer workers or threads.",
        )  # fmt: skip
        return
    number = str(plan.workers)
    if plan.elastic:
        most = config["executor"]["max_workers"]
        number = "as many as have room" + (f" (at most {most})" if most else "")
    tell(f"workers: {number} with {plan.threads} thread(s) and {plan.gpus:g} GPU(s) each")


def _devices(config: Config, merger: Merger, tell: Callable[[str], None]) -> Iterator[Problem]:
    plan = plan_workers(config)
    if plan.gpus <= 0 or config["executor"]["address"] is not None:
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < plan.gpus * plan.workers:
        yield Problem(
            "executor.gpus_per_worker",
            f"{plan.gpus:g} GPU(s) for each of {plan.workers} worker(s), with {count} GPU(s) here",
            "as many GPUs as the workers need",
            "Run it on a GPU machine, or set executor.gpus_per_worker=0 to use the CPU "
            "(practical for small models only).",
        )
        return
    base = quiet_base(config, merger)
    memory = min(torch.cuda.mem_get_info(i)[1] for i in range(count))
    needed = 0 if base is None else math.ceil(1.3 * base.bytes() * max(1.0, 1 / plan.gpus))
    if needed > memory:
        yield Problem(
            "executor.gpus_per_worker",
            f"{memory / 1e9:.1f} GB of GPU memory for about {needed / 1e9:.1f} GB of engines",
            "a GPU that holds the model and its cache",
            "Use a larger GPU, fewer workers a GPU, or engine.args.tensor_parallel_size.",
        )


def _memory(config: Config, merger: Merger, tell: Callable[[str], None]) -> Iterator[Problem]:
    plan = plan_workers(config)
    base = quiet_base(config, merger)
    if config["executor"]["address"] is not None or plan.gpus > 0 or base is None:
        return
    if not hasattr(os, "sysconf"):
        return
    merged = footprint.held(config, merger)
    engine, largest = footprint.engine(config, merger, base), footprint.largest(base)
    # The result is written by a merger of its own, which merges such sources once more.
    needed = plan.workers * scaling.cpu_worker(engine, largest, merged) + merged
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _page_cache()
    if needed > free:
        yield Problem(
            "executor.workers", f"{plan.workers} worker(s) that need about {needed / 1e9:.1f} GB"
            + (f", sources that are merges {merged / 1e9:.1f} GB of it each" if merged else ""),
            f"at most the {free / 1e9:.1f} GB of free memory",
            "Use fewer workers, smaller models or a larger machine"
            + ("; or write the merges (evomerge merge) and name the folders." if merged else "."),
        )  # fmt: skip


def _disk(config: Config, merger: Merger, tell: Callable[[str], None]) -> Iterator[Problem]:
    run_dir = Path(config["run_dir"])
    folder = existing_folder(run_dir)
    if not folder.is_dir():
        yield Problem("run_dir", f"the file {folder}", "a directory", "Set run_dir=DIR.")
        return
    if not os.access(folder, os.W_OK):
        yield Problem(
            "run_dir", f"{folder}, which cannot be written", "a writable folder",
            "Set run_dir=DIR.",
        )  # fmt: skip
        return
    base = quiet_base(config, merger)
    candidates = config["budget"]["candidates"] or 1000
    shape = footprint.template(config, merger)
    model = max(footprint.size(base) if base else 0, shape)
    needed = model + shape + candidates * 100 * _ITEM_BYTES + _SPARE
    free = shutil.disk_usage(folder).free
    if free < needed:
        yield Problem(
            "run_dir", f"{free / 1e9:.2f} GB free on the disk of {run_dir}",
            f"about {needed / 1e9:.2f} GB for the merged model"
            + (", the one that engines start on" if shape else "") + " and the journal",
            "Free some space or set run_dir=DIR on another disk.",
        )  # fmt: skip


def _ledger(config: Config, merger: Merger, tell: Callable[[str], None]) -> Iterator[Problem]:
    folder = ledger_folder(config)
    check_folder(folder)
    rows = sum(segment_rows(folder).values()) if folder.is_dir() else 0
    if config["ledger"] is not None:
        tell(f"ledger: {rows} answers in {folder}")
    yield from ()


def _page_cache() -> int:
    """Bytes of memory that the system would give up from its file cache (Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if ":" in line}
    return max(0, values.get("MemAvailable", 0) - values.get("MemFree", 0))
