"""From a resolved config to the parts of a study."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from evomerge import operators
from evomerge.build import build, load_target
from evomerge.checkpoints.checking import check_recipe
from evomerge.checkpoints.fit import check_fit
from evomerge.checkpoints.lazy_gram import LazyGram
from evomerge.checkpoints.merger import Merger
from evomerge.domain import Domain
from evomerge.errors import ConfigError, RecipeError
from evomerge.estimators.base import Estimator, ItemPlan
from evomerge.estimators.mean import MeanEstimator
from evomerge.estimators.racing import NoRace, Race
from evomerge.executors.worker import Request
from evomerge.fidelity import check_item_scores, item_plans, make_evaluation, rotating
from evomerge.objectives import Goals, item_values, read_goals
from evomerge.optimizers.base import Optimizer
from evomerge.recipe import Recipe, Source
from evomerge.route_checks import check_routes
from evomerge.seeds import derive
from evomerge.space import SearchSpace
from evomerge.types import FloatArray, ItemScores, Task
from evomerge.warm_start import Start, read_start

Config = Mapping[str, Any]
Items = Mapping[str, tuple[int, ...] | None]
"""The search items that candidates answer, by task; None stands for all."""


@dataclass(frozen=True)
class Setup:
    """The parts of a study, built and checked.

    Attributes:
        config: the resolved config as plain data.
        merger: holds the open sources.
        space: what may vary.
        search_tasks: whose search items every candidate answers; the first is `task`.
        report_tasks: measured on test items only, for the report.
        estimator: chooses items and turns scores into fitness.
        goals: objectives and constraints; bounds that name a model are not measured yet.
        start: what an earlier study or recipes give this one to begin with.
        race: when candidates answer how many items.
        plans: the estimator's, by task of the search.
    """

    config: Config
    merger: Merger
    space: SearchSpace
    search_tasks: tuple[Task, ...]
    report_tasks: tuple[Task, ...]
    estimator: Estimator
    goals: Goals
    start: Start = field(default_factory=Start)
    race: Race = field(default_factory=NoRace)
    plans: Mapping[str, ItemPlan] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        """Where the study lives."""
        return Path(self.config["run_dir"])

    @property
    def seed(self) -> int:
        """The study's seed."""
        return int(self.config["seed"])

    @property
    def task(self) -> Task:
        """The first task."""
        return self.search_tasks[0]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of the search and the report's."""
        return (*self.search_tasks, *self.report_tasks)

    @property
    def domain(self) -> Domain:
        """What the study's optimiser searches."""
        return search_domain(self.space, self.goals, self.start, self.loglik_weights)

    @property
    def loglik_weights(self) -> dict[str, float]:
        """By task of the search, the weight of the log-likelihood beside the score."""
        return {task.name: task.loglik_weight for task in self.search_tasks}

    def traits(self, space: SearchSpace, genome: FloatArray) -> dict[str, float]:
        """Metrics of a genome that need no model to be run, by name."""
        own = getattr(space, "blocks", None)
        base = self.merger.checkpoint(self.config["models"]["base"])
        blocks = base.layout.blocks if own is None else own(genome)
        return {"sparsity": space.sparsity(genome), "blocks": float(blocks)}

    def items(self, generation: int) -> Items:
        """The search items that a generation answers if nothing stops it."""
        out: dict[str, tuple[int, ...] | None] = {}
        for task in self.search_tasks:
            chosen = self.plans[task.name].choose(generation)
            whole = len(chosen) == len(task.items("search"))
            out[task.name] = None if whole else tuple(int(i) for i in chosen)
        return out

    def common_items(self) -> Items:
        """The search items on which finished models are set side by side.

        All of them where those of the candidates rotate or are anchors, of which a plain mean
        means nothing.
        """
        if self.rotates() or not isinstance(self.estimator, MeanEstimator):
            return {task.name: None for task in self.search_tasks}
        return self.items(0)

    def item_count(self, items: Items) -> int:
        """How many search items a candidate answers, of all tasks together."""
        return sum(
            len(task.items("search")) if (some := items[task.name]) is None else len(some)
            for task in self.search_tasks
        )

    def rotates(self) -> bool:
        """Whether another generation answers other items."""
        return rotating(self.plans)

    def informed(self, sources: Mapping[str, Sequence[ItemScores]]) -> Setup:
        """The same with plans that know the sources' complete answers, by name."""
        plans = item_plans(self.estimator, self.search_tasks, self.seed, sources)
        return replace(self, plans=plans)

    def item_values(self, scores: Sequence[ItemScores]) -> FloatArray:
        """What a candidate has of each item of the objectives; see `item_values`."""
        return item_values(self.goals.by_item(), scores, self.loglik_weights)

    def wants_loglik(self, task: Task) -> bool:
        """Whether right answers of a task are scored, too."""
        return bool(task.loglik_weight) or self.goals.wants_loglik(task.name)


def make_setup(config: Config) -> Setup:
    """Builds every part of a study but its engines.

    Raises:
        UserError: at the first thing that is wrong; `check` finds all of them.
    """
    merger = Merger()
    open_models(config, merger)
    search_tasks = tuple(make_task(node, f) for f, node in task_nodes(config).items())
    report_tasks = tuple(
        make_task(node, f"report_tasks.{name}") for name, node in config["report_tasks"].items()
    )
    space = make_space(config, merger)
    goals = make_goals(config)
    check_traits(space, goals)
    estimator, race, plans = make_evaluation(config, search_tasks, goals)
    start = read_start(config["warm_start"], space, goals)
    setup = Setup(
        config, merger, space, search_tasks, report_tasks, estimator, goals, start, race, plans
    )
    optimizer = make_optimizer(setup, config["optimizer"], "optimizer")
    check_item_scores(optimizer_name(config), optimizer, goals, race, plans)
    check_candidates(optimizer, _affordable(setup), setup.start)
    control_recipes(config)
    return setup


def search_domain(
    space: SearchSpace, goals: Goals, start: Start, loglik_weights: Mapping[str, float]
) -> Domain:
    """What an optimiser searches.

    Args:
        space: what may vary.
        goals: objectives and constraints.
        start: where an earlier study or recipes let it begin.
        loglik_weights: by task, the weight of the log-likelihood beside the score.
    """
    return Domain(
        start.begin(space.dimensions),
        goals.count,
        len(goals.constraints),
        (*start.anchors, *space.anchors()),
        space.sparsity,
        ranges=goals.ranges(loglik_weights),
        seeds=getattr(space, "seeds", 0),
    )


def task_nodes(config: Config) -> dict[str, Any]:
    """The tasks that the search answers: where they stand in the config, and their nodes."""
    return {"task": config["task"]} | {f"tasks.{k}": v for k, v in config["tasks"].items()}


def all_task_nodes(config: Config) -> dict[str, Any]:
    """The same with the tasks that are only reported."""
    reported = {f"report_tasks.{k}": v for k, v in config["report_tasks"].items()}
    return task_nodes(config) | reported


def make_goals(config: Config) -> Goals:
    """Reads objectives and constraints.

    Raises:
        ConfigError: naming the key at fault; for tasks that no goal reads, too.
    """
    names = [str(node["name"]) for node in task_nodes(config).values()]
    sources = config.get("_names") or config["models"]["sources"]
    goals = read_goals(config, names, ["base", *sources])
    unused = [name for name in names if name not in goals.tasks()]
    if unused:
        raise ConfigError.of(
            "objectives", f"no objective or constraint on the task {unused[0]!r}",
            "each of task and tasks to be read by one",
            f"Add objectives.NAME={{task: {unused[0]}}}, or move the task to report_tasks.",
        )  # fmt: skip
    return goals


def check_traits(space: SearchSpace, goals: Goals) -> None:
    """Checks that what the goals read of genomes varies in the space.

    Raises:
        ConfigError: for the number of blocks where all merges have as many.
    """
    if goals.reads(None, "blocks") and not hasattr(space, "blocks"):
        raise ConfigError.of(
            "objectives", "the metric blocks, which is the same for all merges of this space",
            "a space whose merges differ in it", "Use space=routes, or another metric.",
        )  # fmt: skip


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


def search_requests(setup: Setup, items: Items | None = None) -> list[Request]:
    """What a candidate answers in the search; by default as the first generation does."""
    items = setup.items(0) if items is None else items
    return [
        Request(task.name, "search", items[task.name], setup.wants_loglik(task))
        for task in setup.search_tasks
    ]


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
        ConfigError: for a key at fault, for bounds that the operator does not take, and for
            routes that one engine cannot hold.
    """
    models = config["models"]
    layout = merger.checkpoint(models["base"], "models.base").layout
    kept = Path(config["run_dir"]) / "gram.npz"

    def grams(refs: Sequence[str]) -> LazyGram:
        return LazyGram([merger.checkpoint(ref) for ref in refs], kept)

    wants = inspect.signature(load_target(config["space"], "space")).parameters
    space: SearchSpace = build(
        config["space"],
        "space",
        base=models["base"],
        sources=models["sources"],
        groups={group: layout.filters(group) for group in layout.groups()},
        dtype=config["dtype"],
        seed=config["seed"],
        **({"grams": grams} if "grams" in wants else {}),
    )
    corners = [[getattr(d, end) for d in space.dimensions] for end in ("low", "high")]
    for genome in space.extremes() if hasattr(space, "extremes") else map(np.array, corners):
        with _named("space"):
            recipe = space.decode(genome)
            check_recipe(recipe, strict=True)
            merger.assemble(recipe)
    with _named("space"):
        check_routes(space, models["base"], merger)
    return space


def make_optimizer(
    setup: Setup, node: Any, purpose: str, domain: Domain | None = None
) -> Optimizer:
    """Builds an optimiser with a generator of its own for each purpose."""
    optimizer: Optimizer = build(
        node,
        "optimizer",
        domain=domain or setup.domain,
        seed=derive(setup.seed, purpose),
    )
    return optimizer


@runtime_checkable
class Demanding(Protocol):
    """An optimiser that says nothing useful before a number of candidates."""

    def least_candidates(self) -> int:
        """How many it needs."""

    def least_reason(self) -> tuple[str, str]:
        """Why it needs them, and what to do where they are too many."""


def check_candidates(optimizer: Optimizer, budget: int | None, start: Start) -> None:
    """Checks that the budget, with what was learnt before, has the candidates that are needed.

    Raises:
        ConfigError: for fewer.
    """
    # The optimiser here is for checks alone; the study makes its own.
    if budget is None or not isinstance(optimizer, Demanding):
        return
    if start.observations and optimizer.learns():
        optimizer.learn(start.observations)  # clustered results can tell less than a design
    least = optimizer.least_candidates()
    if budget < least:
        reason, remedy = optimizer.least_reason()
        raise ConfigError.of(
            "budget.candidates", str(budget), f"at least {least}: {reason}", remedy
        )


def _affordable(setup: Setup) -> int | None:
    """How many candidates the budget bears; None without a limit that says so."""
    budget = setup.config["budget"]
    bounds = [budget["candidates"]]
    if budget["item_evaluations"] is not None:
        bounds.append(budget["item_evaluations"] // setup.item_count(setup.items(0)))
    return min((b for b in bounds if b is not None), default=None)


def optimizer_name(config: Config) -> str:
    """The name of the optimiser's file, such as cma_es."""
    return str(config["optimizer"].get("_target_", "")).split(".")[-2]


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
