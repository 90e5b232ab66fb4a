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

    `gpus_per_worker` defaults to 1 where there are GPUs, and 0 means the CPU; `workers` to one
    for each such share of the GPUs, or one a core without; `threads` to a share of the cores.
    """

    name: str = "serial"
    workers: int | None = None
    threads: int | None = None
    address: str | None = None
    gpus_per_worker: float | None = None
    retries: int = 2


@dataclass
class Controls:
    """What the best merge is compared with besides the sources."""

    recipes: dict[str, Any] = field(default_factory=dict)
    random_search: bool = False


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
class Config:
    """A whole study."""

    experiment: str = "study"
    seed: int = 0
    run_dir: str = "runs/${experiment}/seed${seed}"
    dtype: str = "bfloat16"
    models: Models = field(default_factory=Models)
    space: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    report_tasks: dict[str, Any] | None = field(default_factory=dict)
    estimator: dict[str, Any] = field(default_factory=dict)
    engine: Engine = field(default_factory=Engine)
    executor: Executor = field(default_factory=Executor)
    controls: Controls = field(default_factory=Controls)
    budget: Budget = field(default_factory=Budget)
    stop: Stop = field(default_factory=Stop)
    finalists: int = 8
    trust_remote_code: bool = False


FREE_KEYS = ("budget", "stop", "executor", "controls", "run_dir", "report_tasks", "finalists")
"""Keys that may change between a run and its resumption: they change no recorded result."""
