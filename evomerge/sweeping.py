"""Sweeps of studies by Hydra: where their runs lie, and what became of their jobs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_LONGEST = 80  # characters of a run directory's name
_UNNAMED = ("budget", "stop", "executor", "seed", "log", "trackers")
"""Keys that a run directory's name leaves out."""
_FOLDER = "runs/multirun"  # as in conf/config.yaml


class Notes:
    """What the jobs of a sweep leave behind, whatever process or machine they run on.

    They lie beside the sweep's own files, which all jobs can reach.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """Finds a place; `arguments` are those of the command line."""
        given = [a.split("=", 1)[1] for a in arguments if a.startswith("hydra.sweep.dir=")]
        plain = given and "${" not in given[-1]
        folder = Path(given[-1].strip("'\"") if plain else _FOLDER).absolute()
        self._folder = folder / f".jobs-{os.getpid()}-{time.time_ns()}"

    def write(self, job: int, run_dir: str, code: int) -> None:
        """Leaves a job's run directory and exit code."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{job:06d}.json"
        path.write_text(json.dumps([run_dir, code]), encoding="utf-8")

    def take(self) -> list[tuple[str, int]]:
        """Run directories and exit codes in the order of the jobs; removes the notes."""
        paths = sorted(self._folder.glob("*.json"))
        found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        shutil.rmtree(self._folder, ignore_errors=True)
        return [(str(run_dir), int(code)) for run_dir, code in found]


def job_number() -> int:
    """Of the job of a sweep that this is; 0 where it is none."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    node = HydraConfig.get()
    return int(node.job.num) if node.mode == RunMode.MULTIRUN else 0


def sweep_dir(config: Mapping[str, Any]) -> str:
    """A run directory for each job of a sweep, from what the job sets besides its seed.

    Budget, stop, executor, log and trackers are left out, so that the same sweep with another
    budget goes on.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    node = HydraConfig.get()
    given = [o.lstrip("+~").split("=", 1) for o in node.overrides.task]
    if node.mode != RunMode.MULTIRUN or any(key == "run_dir" for key, *_ in given):
        return str(config["run_dir"])
    named = [
        value if key in ("optimizer", "experiment") else f"{key}={value}"
        for key, value in (pair for pair in given if len(pair) == 2)
        if key.split(".")[0] not in _UNNAMED
        and (key, value) != ("experiment", config["experiment"])
    ]
    named.sort(key=lambda part: "=" in part)  # the optimizer first
    full = ",".join(named)
    label = re.sub(r"[^\w.=,+-]+", "_", full)
    if len(label) > _LONGEST or label != full:
        label = f"{label[:_LONGEST]}-{hashlib.sha256(full.encode()).hexdigest()[:8]}"
    return str(Path("runs") / config["experiment"] / label / f"seed{config['seed']}")


def forced(arguments: Sequence[str]) -> list[str]:
    """Puts `++` before keys of a swept group: Hydra first composes a sweep without the group.

    `estimator=posterior,gp_irt estimator.responses=RUN` would fail there, as the default estimator
    has no such key. A key that the group does not know either is named when the study is checked.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    swept = set()
    for argument in arguments:
        with contextlib.suppress(HydraException):  # a flag, or a mistake that Hydra names later
            if parser.parse_override(argument).is_sweep_override():
                swept.add(argument.split("=", 1)[0].lstrip("+"))
    out = []
    for argument in arguments:
        group, dot, _ = argument.split("=", 1)[0].partition(".")
        out.append(f"++{argument}" if dot and group in swept else argument)
    return out
