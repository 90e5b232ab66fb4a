"""From a resolved config to the parts of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evomerge import operators
from evomerge.build import build
from evomerge.checkpoints.checking import check_recipe
from evomerge.checkpoints.fit import check_fit
from evomerge.checkpoints.merger import Merger
from evomerge.domain import Domain
from evomerge.errors import ConfigError, RecipeError
from evomerge.executors.base import Executor
from evomerge.executors.cores import available
from evomerge.executors.worker import WorkerSpec
from evomerge.optimizers.base import Optimizer
from evomerge.recipe import Recipe, Source
from evomerge.seeds import derive
from evomerge.space import SearchSpace
from evomerge.types import Task

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Setup:
    """The parts of a study, built and checked.

    Attributes:
        config: the resolved config as plain data.
        merger: holds the open sources.
        space: what may vary.
        task: the objective.
        report_tasks: measured on test items only, for the report.
        estimator: chooses items and turns scores into fitness.
    """

    config: Config
    merger: Merger
    space: SearchSpace
    task: Task
    report_tasks: tuple[Task, ...]
    estimator: Any

    @property
    def run_dir(self) -> Path:
        """Where the study lives."""
        return Path(self.config["run_dir"])

    @property
    def seed(self) -> int:
        """The study's seed."""
        return int(self.config["seed"])

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The objective and the report's tasks."""
        return (self.task, *self.report_tasks)


def make_setup(config: Config) -> Setup:
    """Builds every part of a study but its engines.

    Raises:
        UserError: at the first thing that is wrong; `check` finds all of them.
    """
    merger = Merger()
    open_models(config, merger)
    task = make_task(config["task"], "task")
    report_tasks = tuple(
        make_task(node, f"report_tasks.{name}") for name, node in config["report_tasks"].items()
    )
    space = make_space(config, merger)
    estimator = build(config["estimator"], "estimator")
    setup = Setup(config, merger, space, task, report_tasks, estimator)
    make_optimizer(setup, config["optimizer"], "optimizer")
    control_recipes(config)
    return setup


def open_models(config: Config, merger: Merger) -> None:
    """Opens the base and every source and checks that they fit together.

    Raises:
        SourceError, ConfigError: naming the key below `models`.
    """
    models = config["models"]
    if not models["sources"]:
        raise ConfigError.of(
            "models.sources", "none", "at least one source", "Add `models.sources.NAME: PATH`."
        )
    base = merger.checkpoint(models["base"], "models.base")
    for name, ref in models["sources"].items():
        check_fit(base, merger.checkpoint(ref, f"models.sources.{name}"))


def model_identities(setup: Setup) -> dict[str, str]:
    """Content fingerprint of every model of the pool, by reference."""
    models = setup.config["models"]
    refs = [models["base"], *models["sources"].values()]
    return {ref: setup.merger.checkpoint(ref).fingerprint for ref in refs}


def make_task(node: Any, field: str) -> Task:
    """Builds a task and reads its items.

    Raises:
        ConfigError, TaskError: naming the key.
    """
    task: Task = build(node, field, key=field)
    return task


def make_space(config: Config, merger: Merger) -> SearchSpace:
    """Builds the search space over the pool's layer groups.

    Raises:
        ConfigError: for a key at fault, and for bounds that the operator does not take.
    """
    models = config["models"]
    layout = merger.checkpoint(models["base"], "models.base").layout
    space: SearchSpace = build(
        config["space"],
        "space",
        base=models["base"],
        sources=models["sources"],
        groups={group: layout.filters(group) for group in layout.groups()},
        dtype=config["dtype"],
        seed=config["seed"],
    )
    for corner in ("low", "high"):
        genome = np.array([getattr(d, corner) for d in space.dimensions])
        with _named("space"):
            recipe = space.decode(genome)
            check_recipe(recipe, strict=True)
            merger.assemble(recipe)
    return space


def make_optimizer(setup: Setup, node: Any, purpose: str) -> Optimizer:
    """Builds an optimiser with a generator of its own for each purpose."""
    optimizer: Optimizer = build(
        node,
        "optimizer",
        domain=Domain(setup.space.dimensions),
        seed=derive(setup.seed, purpose),
    )
    return optimizer


def source_recipes(config: Config) -> dict[str, Recipe]:
    """The base and every source, each as the merge of itself alone."""
    models = {"base": config["models"]["base"], **config["models"]["sources"]}
    return {
        name: Recipe("linear", (Source(ref, {"weight": 1.0}),), dtype=config["dtype"])
        for name, ref in models.items()
    }


def control_recipes(config: Config) -> dict[str, Recipe]:
    """The fixed merges that the best one is compared with.

    Raises:
        ConfigError: for a control without a method.
    """
    models = config["models"]
    recipes = {}
    for name, node in config["controls"]["recipes"].items():
        if not isinstance(node, Mapping):
            raise ConfigError.of(
                f"controls.recipes.{name}", repr(node), "a mapping with a method", "Correct it."
            )
        parameters = dict(node)
        method = parameters.pop("method", None)
        with_base = parameters.pop("include_base", False)
        if not isinstance(method, str):
            raise ConfigError.of(
                f"controls.recipes.{name}.method", repr(method), "the name of an operator",
                "Add it.",
            )  # fmt: skip
        refs = ([models["base"]] if with_base else []) + list(models["sources"].values())
        weight = parameters.pop("weight", "mean")
        if weight != "mean" and (isinstance(weight, bool) or not isinstance(weight, int | float)):
            raise ConfigError.of(
                f"controls.recipes.{name}.weight", repr(weight), "a number, or mean for 1 / models",
                "Correct it.",
            )  # fmt: skip
        with _named(f"controls.recipes.{name}"):
            operator = operators.get(method)
        has_weight = "weight" in operator.parameters
        value = 1.0 / len(refs) if weight == "mean" else float(weight)
        recipe = Recipe(
            method,
            tuple(Source(ref, {"weight": value} if has_weight else {}) for ref in refs),
            None if operator.takes_base == "never" else models["base"],
            {**parameters, "seed": config["seed"]} if operator.needs_keys else parameters,
            config["dtype"],
        )
        with _named(f"controls.recipes.{name}"):
            check_recipe(recipe, strict=True)
        recipes[name] = recipe
    return recipes


@contextmanager
def _named(field: str) -> Iterator[None]:
    """Lets an error of a recipe say which part of the config made it."""
    try:
        yield
    except RecipeError as error:
        raise ConfigError(
            [replace(p, field=f"{field} ({p.field})") for p in error.problems]
        ) from error


def worker_spec(config: Config, plan: Plan) -> WorkerSpec:
    """What each worker needs to start."""
    tasks = {config["task"]["name"]: config["task"]}
    tasks.update({node["name"]: node for node in config["report_tasks"].values()})
    engine = dict(config["engine"])
    if config["trust_remote_code"]:
        engine["args"] = {**engine["args"], "trust_remote_code": True}
    return WorkerSpec(
        engine, config["models"]["base"], tasks, plan.threads, int(config["seed"]), plan.gpus > 0
    )


def make_executor(config: Config) -> Executor:
    """Starts the executor that the config names.

    Raises:
        ConfigError: for an unknown name or impossible numbers.
        EngineError: if the engines cannot start.
    """
    node = config["executor"]
    plan = plan_workers(config)
    spec = worker_spec(config, plan)
    if node["name"] == "serial":
        from evomerge.executors.serial import SerialExecutor

        return SerialExecutor(spec)
    from evomerge.executors.ray import RayExecutor

    return RayExecutor(spec, plan.workers, node["address"], plan.gpus, node["retries"])


@dataclass(frozen=True)
class Plan:
    """How many workers there are, and what each of them gets."""

    workers: int
    threads: int
    gpus: float


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
    least = {"workers": 1, "threads": 1, "gpus_per_worker": 0, "retries": 0}
    for key, low in least.items():
        if node[key] is not None and node[key] < low:
            raise ConfigError.of(
                f"executor.{key}", str(node[key]), f"at least {low}", "Correct it."
            )
    gpus = node["gpus_per_worker"]
    found = _gpu_count(config)
    if gpus is None:
        gpus = 1.0 if found else 0.0
    cores = len(available())
    if node["name"] == "serial":
        if node["workers"] not in (None, 1):
            raise ConfigError.of(
                "executor.workers", str(node["workers"]), "1 for the serial executor",
                "Use executor=ray for several workers.",
            )  # fmt: skip
        workers = 1
    elif node["workers"] is not None:
        workers = node["workers"]
    else:
        workers = max(1, int(found / gpus)) if gpus else cores
    return Plan(workers, node["threads"] or max(1, cores // workers), gpus)


def _gpu_count(config: Config) -> int:
    """GPUs of this machine that the engine may use."""
    import torch

    if config["engine"]["args"].get("device") == "cpu" or not torch.cuda.is_available():
        return 0
    return torch.cuda.device_count()
