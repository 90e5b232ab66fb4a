"""Small real studies on the zoo's models, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from evomerge.cli import compose_config

QUICK = (
    "+experiment=jp_math_tiny",
    "engine=transformers",
    "executor=serial",
    "executor.threads=1",
    "controls=none",
    "report_tasks=null",
    "finalists=2",
    "++task.search.limit=12",
    "++task.validation.limit=8",
    "++task.test.limit=10",
    "task.sampling.max_new_tokens=8",
)
"""Overrides of a study that takes seconds: 12 search items, no controls."""

TIMES = ("time", "seconds", "answered")


def quick_config(run_dir: Path, *overrides: str) -> dict[str, Any]:
    """The resolved config of a quick study; later overrides win."""
    return compose_config([*quick_arguments(run_dir, *overrides)])


def quick_arguments(run_dir: Path, *overrides: str) -> list[str]:
    """Command-line arguments of a quick study."""
    keys = {o.split("=")[0] for o in overrides}
    kept = [o for o in QUICK if o.split("=")[0] not in keys]
    return [*kept, f"run_dir={run_dir}", *overrides]


def journal(run_dir: Path) -> list[dict[str, Any]]:
    """The events without what may differ between two runs: times, and what a ledger answered."""
    lines = (run_dir / "journal.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in TIMES} for x in lines]


def items(run_dir: Path) -> dict[str, str]:
    """Rows of all item files, by name; as text, since NaN is not equal to itself."""
    return {p.name: repr(pq.read_table(p).to_pylist()) for p in (run_dir / "items").iterdir()}


def results(run_dir: Path) -> dict[str, Any]:
    """`results.json` without its times."""
    data = json.loads((run_dir / "results.json").read_text())
    for cost in (data["cost"], *data["controls_cost"].values()):
        cost.pop("seconds", None)
        cost.pop("answered", None)
        cost.pop("overhead_ms_per_candidate", None)
    return data
