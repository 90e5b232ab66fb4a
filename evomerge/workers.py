"""From a resolved config to running workers: how many, on what model, with what share."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.routing import fixed_depth
from evomerge.engines.auto import resolve_engine
from evomerge.errors import ConfigError
from evomerge.executors.base import Executor
from evomerge.executors.cores import available
from evomerge.executors.staging import content_digests
from evomerge.executors.template import TemplatedExecutor, remove_unfinished, write_template
from evomerge.executors.worker import WorkerSpec
from evomerge.recipe import Recipe
from evomerge.setup import Config, make_space, task_nodes

TEMPLATE = "template"
"""In the run directory while engines run that are of another shape than the base."""


def worker_spec(config: Config, plan: Plan, model: str | None = None) -> WorkerSpec:
    """What each worker needs to start; `model` gives the engine its shape, by default the base."""
    nodes = [*task_nodes(config).values(), *config["report_tasks"].values()]
    tasks = {node["name"]: node for node in nodes}
    engine = dict(config["engine"])
    if config["trust_remote_code"]:
        engine["args"] = {**engine["args"], "trust_remote_code": True}
    if group_size(config) > 1 and resolve_engine(engine["name"]) == "vllm":
        # in a placement group vLLM would look for Ray workers; the GPUs are the actor's own
        engine["args"] = {"distributed_executor_backend": "mp", **engine["args"]}
    return WorkerSpec(
        engine,
        model or config["models"]["base"],
        tasks,
        plan.threads,
        int(config["seed"]),
        plan.gpus > 0,
    )


def _with_stage(config: Config, spec: WorkerSpec) -> WorkerSpec:
    """The spec of workers that copy the sources to their own disks, if that is asked for."""
    stage = config["executor"]["stage"]
    if stage is None:
        return spec
    refs = [config["models"]["base"], *config["models"]["sources"].values(), spec.model]
    return replace(spec, stage=stage, sources=content_digests(refs))


def make_executor(config: Config) -> Executor:
    """Starts the executor that the config names.

    Where candidates have another shape than the base, the engines start on a template of that
    shape, which is in the run directory until the executor is closed.

    Raises:
        ConfigError: for an unknown name or impossible numbers.
        EngineError: if the engines cannot start.
    """
    merger = Merger()
    recipe = template_recipe(config, merger)
    folder = Path(config["run_dir"]) / TEMPLATE
    remove_unfinished(folder)
    if recipe is None:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        return _started(config, config["models"]["base"])
    write_template(recipe, merger, folder)
    try:
        return TemplatedExecutor(_started(config, str(folder)), folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _started(config: Config, model: str) -> Executor:
    """The executor, with engines that are started on a model."""
    node = config["executor"]
    plan = plan_workers(config)
    spec = _with_stage(config, worker_spec(config, plan, model))
    if node["name"] == "serial":
        from evomerge.executors.serial import SerialExecutor

        return SerialExecutor(spec)
    from evomerge.executors.limits import Limits
    from evomerge.executors.ray import RayExecutor

    return RayExecutor(
        spec, None if plan.elastic else plan.workers, node["address"], plan.gpus, node["retries"],
        max_workers=node["max_workers"], limits=Limits(node["timeout"]), wait=node["wait"],
    )  # fmt: skip


def template_recipe(config: Config, merger: Merger) -> Recipe | None:
    """A merge of the shape that engines have to have; None if that is the base's.

    Routes can be deeper than the base, and have the vocabulary of their first source.
    """
    if "depth" not in config["space"]:
        return None
    space: Any = make_space(config, merger)
    recipe = space.decode(np.array([d.start for d in space.dimensions]))
    if recipe.route is None:
        return None
    base = merger.checkpoint(config["models"]["base"])
    depth = max(space.depth, base.layout.blocks)
    route = fixed_depth(replace(recipe.route, depth=None), depth)
    recipe = replace(recipe, route=route)
    shapes = {part.name: part.shape for part in merger.assemble(recipe).parts}
    return None if shapes == base.shapes else recipe


@dataclass(frozen=True)
class Plan:
    """How many workers there are, and what each of them gets.

    Where they are `elastic`, their number is the cluster's business, and `workers` is the least.
    """

    workers: int
    threads: int
    gpus: float
    elastic: bool = False


def plan_workers(config: Config) -> Plan:
    """Fills in what the executor's config leaves open.

    Raises:
        ConfigError: for an unknown executor or impossible numbers.
    """
    node = config["executor"]
    if node["name"] not in ("serial", "ray"):
        raise ConfigError.of(
            "executor.name", repr(node["name"]), "serial or ray", "Use executor=serial or =ray."
        )
    least = {
        "workers": 1, "max_workers": 1, "threads": 1, "gpus_per_worker": 0, "retries": 0,
        "timeout": 1, "wait": 0,
    }  # fmt: skip
    for key, low in least.items():
        if node[key] is not None and node[key] < low:
            raise ConfigError.of(
                f"executor.{key}", str(node[key]), f"at least {low}", "Correct it."
            )
    if node["order"] not in ("given", "arrival"):
        raise ConfigError.of(
            "executor.order", repr(node["order"]), "given or arrival", "Correct it."
        )
    gpus = node["gpus_per_worker"]
    found = _gpu_count(config)
    group = group_size(config)
    if gpus is None:
        gpus = float(group) if found else 0.0
    elif gpus and gpus != group and (group > 1 or gpus > 1):
        raise ConfigError.of(
            "executor.gpus_per_worker", f"{gpus:g} with a model on {group} GPU(s)",
            "as many GPUs as engine.args.tensor_parallel_size times pipeline_parallel_size",
            "Leave it empty, or set the engine's sizes.",
        )  # fmt: skip
    cores = len(available())
    if node["name"] == "serial":
        if node["workers"] not in (None, 1):
            raise ConfigError.of(
                "executor.workers", str(node["workers"]), "1 for the serial executor",
                "Use executor=ray for several workers.",
            )  # fmt: skip
        workers = 1
    elif node["address"] is not None and node["workers"] is None:
        return Plan(1, node["threads"] or 1, gpus, elastic=True)
    elif node["workers"] is not None:
        workers = node["workers"]
    else:
        workers = max(1, int(found / gpus)) if gpus else cores
    return Plan(workers, node["threads"] or max(1, cores // workers), gpus)


def group_size(config: Config) -> int:
    """GPUs that one engine is spread over."""
    sizes = ("tensor_parallel_size", "pipeline_parallel_size")
    return prod(int(config["engine"]["args"].get(name) or 1) for name in sizes)


def _gpu_count(config: Config) -> int:
    """GPUs of this machine that the engine may use."""
    import torch

    if config["engine"]["args"].get("device") == "cpu" or not torch.cuda.is_available():
        return 0
    return torch.cuda.device_count()
