"""The questions behind a run's answers, kept beside its journal so that a report can show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evomerge.durable import replaced
from evomerge.errors import EvomergeError
from evomerge.types import Task

FILE = "questions.parquet"
SPLIT = "test"

Questions = Mapping[tuple[str, str], tuple[str, str]]
"""Prompt and expected answer by (task, item id)."""


def write_questions(run_dir: Path, tasks: Sequence[Task]) -> None:
    """Writes prompts and expected answers of the held-out items; columns task, id, prompt, target.

    Raises:
        EvomergeError: if the disk is full or fails.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(task, item) for task in tasks for item in task.items(SPLIT)]
    columns = {
        "task": [task.name for task, _ in rows],
        "id": [item.id for _, item in rows],
        "prompt": [task.prompt(item) for task, item in rows],
        "target": [item.target for _, item in rows],
    }
    table = pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns]))
    with replaced(run_dir / FILE) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_questions(run_dir: Path) -> Questions:
    """What `write_questions` wrote; empty if there is none.

    Raises:
        EvomergeError: if the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = run_dir / FILE
    if not path.is_file():
        return {}
    try:
        rows = pq.read_table(path, columns=["task", "id", "prompt", "target"]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise EvomergeError(
            f"{path}: damaged ({error}). Delete it; the report does without."
        ) from (error)
    return {(r["task"], r["id"]): (r["prompt"], r["target"]) for r in rows}
