"""A model of another shape than the base's, for engines to start on."""

from __future__ import annotations

import shutil
from pathlib import Path

from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.executors.base import Executor
from evomerge.executors.worker import Job, Outcome
from evomerge.recipe import Recipe

_RECIPE = "recipe.yaml"


def write_template(recipe: Recipe, merger: Merger, folder: Path) -> None:
    """Writes a merge for engines to start on, unless it is there already.

    Raises:
        UserError: if the disk has too little room.
        EvomergeError: if it fails.
    """
    text = recipe.to_yaml(merger.identities(recipe))
    if folder.is_dir():
        told = folder / _RECIPE
        if told.is_file() and told.read_text(encoding="utf-8") == text:
            return
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(recipe, merger, folder, {_RECIPE: text})


def remove_unfinished(folder: Path) -> None:
    """Removes what is left of writes of a template that were killed."""
    for unfinished in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(unfinished, ignore_errors=True)


class TemplatedExecutor:
    """Removes the folder that another executor's engines were started on, once it is closed."""

    def __init__(self, executor: Executor, folder: Path) -> None:
        """Takes a running executor and the folder."""
        self._executor = executor
        self._folder = folder

    @property
    def workers(self) -> int:
        """As many as the executor has."""
        return self._executor.workers

    def submit(self, job: Job) -> None:
        """Gives a job to the executor."""
        self._executor.submit(job)

    def next(self) -> Outcome:
        """The executor's next outcome."""
        return self._executor.next()

    def close(self) -> None:
        """Closes the executor and removes the folder."""
        self._executor.close()
        shutil.rmtree(self._folder, ignore_errors=True)
