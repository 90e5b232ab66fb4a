"""The schema of a study's configuration: a misspelt key or a wrong type fails here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MISSING = "???"


@dataclass
class Models:
    """The pool: a base and the models fine-tuned from it, by directory or hub name."""

    base: str = MISSING
    sources: dict[str, str] = field(default_factory=dict)


@dataclass
class Engine:
    """What runs the candidates.

    `name` is auto, vllm or transformers; `args` go to the engine as they are.
    """

    name: str = "auto"
    dtype: str = "auto"
    max_model_len: int | None = None
    batch_tokens: int = 8192
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class Executor:
    """Where candidates run.

    `gpus_per_worker` defaults to 1 where there are GPUs (to the engine's tensor_parallel_size, if
    that is more), and 0 means the CPU; `workers` to one for each such share of the GPUs, or one a
    core without; `threads` to a share of the cores.

    With an `address`, `workers: null` takes as many as the cluster has room for while nodes come
    and go, at most `max_workers`; `threads` is 1 then. A candidate whose worker was lost is tried
    again `retries` times. `timeout` is the seconds after which a worker hangs (null: learnt from
    the others), `wait` those to wait for a worker when none is left, and `stage` a folder on each
    node's own disk where sources are copied to.

    `order` is that of results: `given`, as candidates were given out, so that a seed has one
    journal; or `arrival`, as they come, for which asynchronous optimisers never wait.
    """

    name: str = "serial"
    workers: int | None = None
    threads: int | None = None
    address: str | None = None
    gpus_per_worker: float | None = None
    retries: int = 2
    max_workers: int | None = None
    timeout: float | None = None
    wait: float = 300.0
    stage: str | None = None
    order: str = "given"


@dataclass
class Controls:
    """What the best merge is compared with besides the sources.

    `random_search` draws coefficients from the study's own space, with the budget that the
    search used; `random_parents` merges random subsets of the sources, until there are no more
    of them or the budget is used; `greedy_soup` and `selective_merging` add source by source.
    """

    recipes: dict[str, Any] = field(default_factory=dict)
    random_search: bool = False
    random_parents: bool = False
    greedy_soup: bool = False
    selective_merging: bool = False


@dataclass
class Pool:
    """What is done about the sources before the search; see docs/pool.md."""

    check: bool = True
    prune: bool = False
    duplicate: float = 0.98
    far: float = 0.5
    relevance: bool = False
    keep: int | None = None


@dataclass
class WarmStart:
    """What a study begins with.

    `run` is the run_dir of an earlier study over the same dimensions: with `observations` its
    candidates are told to the optimiser, with `mean` the search begins at its best candidate.
    `recipes` are files whose merges are among the first candidates; without `run` the search
    begins at the first of them.
    """

    run: str | None = None
    recipes: list[str] = field(default_factory=list)
    observations: bool = True
    mean: bool = True


@dataclass
class Front:
    """The Pareto front of a study with several objectives.

    `size` is the most candidates of it that are measured on held-out items; `budgets` are
    numbers of candidates after which the front is recorded, too, for comparisons.
    """

    size: int = 40
    budgets: list[int] = field(default_factory=list)


@dataclass
class Budget:
    """The search ends at whichever comes first; null means no limit."""

    candidates: int | None = 300
    item_evaluations: int | None = None
    hours: float | None = None


@dataclass
class Stop:
    """Ends the search early: at a score, or after generations without a better fitness."""

    score: float | None = None
    patience: int | None = None


@dataclass
class Recheck:
    """Further items for the best candidates, so that a lucky subset never wins.

    After every `every` candidates (null: never) the `count` best that answered all that is planned
    answer `items` items of each task that they have not answered yet (null: all that are left).
    With `backfill` they also do so at the end of every generation of an optimiser that waits for
    generations, on workers that have nothing else to do.
    """

    every: int | None = None
    backfill: bool = False
    count: int = 3
    items: int | None = 50


@dataclass
class Config:
    """A whole study.

    Attributes:
        experiment: its name; the first part of `run_dir`.
        seed: all random numbers follow from it.
        run_dir: where everything is kept; the same command in the same directory goes on.
        dtype: of the merges, in which they are evaluated and written.
        models: base and sources.
        space: what may vary in a merge.
        optimizer: what proposes merges.
        task: what is asked; the objective where nothing else is said.
        tasks: further tasks by name, each an objective unless `objectives` says otherwise.
        objectives: what is maximised or minimised, by name.
        scalarize: weighted_sum or chebyshev makes one objective of several.
        constraints: bounds that the chosen merge has to keep, by name.
        warm_start: what the search begins with.
        pool: what is done about the sources before the search.
        report_tasks: tasks by name that are measured on held-out items only.
        estimator: which items a candidate answers, and what the answers are worth.
        racing: whether candidates answer in stages and may stop early.
        recheck: further items for the best candidates.
        engine: what runs the models.
        executor: where candidates run.
        controls: what the best merge is compared with.
        budget: when the search ends.
        stop: when it ends early.
        front: what is kept of a Pareto front.
        finalists: candidates that are compared on validation items.
        ledger: folder of answers that studies share; null keeps them in the run directory.
        log: how a study shows itself: auto, plain, json or quiet.
        trackers: names, or names with settings.
        trust_remote_code: whether models may run code that they bring along.
    """

    experiment: str = "study"
    seed: int = 0
    run_dir: str = "runs/${experiment}/seed${seed}"
    dtype: str = "bfloat16"
    models: Models = field(default_factory=Models)
    space: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] | None = field(default_factory=dict)
    objectives: dict[str, Any] | None = field(default_factory=dict)
    scalarize: str | None = None
    constraints: dict[str, Any] | None = field(default_factory=dict)
    warm_start: WarmStart = field(default_factory=WarmStart)
    pool: Pool = field(default_factory=Pool)
    report_tasks: dict[str, Any] | None = field(default_factory=dict)
    estimator: dict[str, Any] = field(default_factory=dict)
    racing: dict[str, Any] = field(default_factory=dict)
    recheck: Recheck = field(default_factory=Recheck)
    engine: Engine = field(default_factory=Engine)
    executor: Executor = field(default_factory=Executor)
    controls: Controls = field(default_factory=Controls)
    budget: Budget = field(default_factory=Budget)
    stop: Stop = field(default_factory=Stop)
    front: Front = field(default_factory=Front)
    finalists: int = 8
    ledger: str | None = None
    log: str = "auto"
    trackers: Any = None
    trust_remote_code: bool = False


FREE_KEYS = (
    "budget", "stop", "executor", "controls", "run_dir", "report_tasks", "finalists", "front",
    "pool", "ledger", "log", "trackers",
)  # fmt: skip
"""Keys that may change between a run and its resumption: they change no recorded result."""
