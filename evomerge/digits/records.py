"""What one search of the digits experiment gives, as a CSV file."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from evomerge.errors import JournalError

CHECKPOINTS = (100, 300, 1_000, 3_000, 5_000, 10_000, 20_000, 50_000)
"""Evaluations after which accuracies are written down; also after the last."""


@dataclass(frozen=True)
class Plan:
    """Everything that a search follows from.

    Attributes:
        method: its name.
        start: `scratch` or `pretrained`.
        budget: evaluations.
        seed: of the networks and of the search.
        pixels: `raw` or `unit`, see `evomerge.zoo.digits`.
        initial: `normal` or `torch`, see `evomerge.zoo.digits`.
        angle: `segment` or `global`, see `evomerge.vectors`.
    """

    method: str
    start: str
    budget: int
    seed: int
    pixels: str = "raw"
    initial: str = "normal"
    angle: str = "segment"

    @property
    def name(self) -> str:
        """A file name that no other plan has."""
        own = [
            getattr(self, f.name) for f in fields(self)[4:] if getattr(self, f.name) != f.default
        ]
        return "-".join([self.method, self.start, *own, str(self.budget), f"seed{self.seed}"])


@dataclass(frozen=True)
class Record:
    """Where a search stands.

    Attributes:
        evaluations: networks that were run on the training images.
        train: best accuracy on the training images among the members alive.
        test: accuracy of that member on the test images.
        seconds: since the search began.
    """

    evaluations: int
    train: float
    test: float
    seconds: float


HEAD = (*(f.name for f in fields(Plan)), *(f.name for f in fields(Record)))


def checkpoints(evaluations: int) -> tuple[int, ...]:
    """Those of `CHECKPOINTS` below `evaluations`, and `evaluations`."""
    return (*(c for c in CHECKPOINTS if c < evaluations), evaluations)


def write(path: Path, plan: Plan, records: Sequence[Record]) -> None:
    """Writes a finished search; the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(HEAD)
            rows.writerows((*astuple(plan), *astuple(record)) for record in records)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read(path: Path) -> tuple[Plan, list[Record]]:
    """Reads what `write` wrote.

    Raises:
        JournalError: for a file that is something else.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head, *rows = list(csv.reader(file))
        if tuple(head) != HEAD:
            raise ValueError("another first line")
        plans = {Plan(r[0], r[1], int(r[2]), int(r[3]), *r[4:7]) for r in rows}
        records = [Record(int(r[7]), float(r[8]), float(r[9]), float(r[10])) for r in rows]
        (plan,) = plans
    except (ValueError, IndexError, UnicodeDecodeError, csv.Error) as error:
        raise JournalError.of(
            str(path), f"a file that is no result ({error})", "a CSV file of one search",
            "Name another file, or move this one away.",
        ) from error  # fmt: skip
    return plan, records


def finished(path: Path, plan: Plan) -> bool:
    """Whether a file holds this search already.

    Raises:
        JournalError: if it holds another one, which is not to be lost.
    """
    if not path.exists():
        return False
    found, _ = read(path)
    if found != plan:
        raise JournalError.of(
            str(path), found.name, plan.name, "Name another file, or move this one away."
        )
    return True
