"""A worker that answers by arithmetic instead of a network, and has faults when files say so.

All of `Worker` but its engine is the real one, so it starts in a second without torch. A file
`KIND-JOB-N` in the folder of faults makes the job with that number fail in that way once: whoever
deletes the file has the fault.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evomerge.build import build
from evomerge.errors import EngineError
from evomerge.executors.worker import Job, Outcome, Worker, WorkerSpec, _staged
from evomerge.recipe import Recipe
from evomerge.types import FloatArray, Generation, Sampling

SLOW, HANG = 6.0, 600.0


class OutOfMemoryError(RuntimeError):
    """Is called like torch's, which would take seconds to import."""


def order(folder: Path, kind: str, job: int, times: int = 1) -> None:
    """Orders a fault."""
    folder.mkdir(exist_ok=True)
    for number in range(times):
        (folder / f"{kind}-{job}-{number}").touch()


class TinyEngine:
    """Answers depend on recipe and prompt alone, whichever machine holds the recipe's models."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, str] = {}
        self.job = -1
        self.always_nan = False
        self._digest = ""

    def know(self, names: dict[str, str]) -> None:
        self._names = {copy: ref for ref, copy in names.items()}

    def load(self, recipe: Recipe) -> None:
        text = json.dumps(recipe.to_dict(), sort_keys=True)
        for copy, ref in self._names.items():
            assert f'"{ref}"' not in text, "a source that was staged is read from elsewhere"
            text = text.replace(copy, ref)
        self._digest = hashlib.sha256(text.encode()).hexdigest()
        if self._has("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._has("memory"):
            raise OutOfMemoryError("out of memory")
        if self._has("broken"):
            raise EngineError("the engine broke")
        if self._has("hang"):
            time.sleep(HANG)
        if self._has("slow"):
            time.sleep(SLOW)
        self.always_nan |= self._has("always_nan")

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Generation]:
        return [Generation(str(int(self._number(p) * 40)), 1) for p in prompts]

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> FloatArray:
        if self._has("nan") or self.always_nan:
            return np.full(len(pairs), np.nan)
        return np.array([-self._number(context + text) for context, text in pairs])

    def close(self) -> None:
        pass

    def _number(self, text: str) -> float:
        digest = hashlib.sha256(f"{self._digest} {text}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48

    def _has(self, kind: str) -> bool:
        for path in sorted(self._folder.glob(f"{kind}-{self.job}-*")):
            try:
                path.unlink()
            except FileNotFoundError:
                continue
            return True
        return False


class TinyWorker(Worker):
    """Finds the folder of faults in `TINY_FAULTS` of its spec's engine arguments."""

    def __init__(self, spec: WorkerSpec, cores: tuple[int, ...] | None = None) -> None:
        self._tasks = {name: build(node, f"task.{name}") for name, node in spec.tasks.items()}
        folder = Path(spec.engine["args"]["faults"])
        if (folder / "no_engine").exists():
            raise EngineError("there is no engine")
        self._names = _staged(spec)
        engine = TinyEngine(folder)
        engine.know(self._names)
        self._engine = engine  # type: ignore[assignment]

    def evaluate(self, job: Job) -> Outcome:
        self._engine.job = job.id  # type: ignore[union-attr]
        return super().evaluate(job)
