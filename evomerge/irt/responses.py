"""What many models answered to many items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.irt.files import shown


@dataclass(frozen=True)
class Responses:
    """Scores of `M` models on `N` items.

    Attributes:
        models: the models' names, all different.
        items: the items' ids, all different.
        scores: in [0, 1], NaN where missing, an `M x N` array.
        groups: what each model belongs to, such as its base model; None if unknown. Models of one
            group are not independent: split by group, not by model.
    """

    models: tuple[str, ...]
    items: tuple[str, ...]
    scores: NDArray[np.float32]
    groups: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Checks the names and the scores.

        Raises:
            ConfigError: for names that appear twice, scores outside [0, 1], arrays that do not fit.
        """
        expected = (len(self.models), len(self.items))
        if self.scores.shape != expected or 0 in expected:
            raise ConfigError.of(
                "responses", f"{expected[0]} models, {expected[1]} items and scores of shape "
                f"{self.scores.shape}", "at least one model and item, and scores of models x items",
                "Give one row a model and one column an item.",
            )  # fmt: skip
        if self.groups is not None and len(self.groups) != len(self.models):
            raise ConfigError.of(
                "responses", f"{len(self.groups)} groups", f"{len(self.models)}, one a model",
                "Name the group of every model or of none.",
            )  # fmt: skip
        for kind, names in (("models", self.models), ("items", self.items)):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ConfigError.of(
                    "responses", f"{kind} that appear twice: {shown(twice)}",
                    "names, each once", "Rename them, or drop one of each.",
                )  # fmt: skip
        for i in range(0, len(self.scores), 256):  # small copies only
            block = self.scores[i : i + 256]
            bad = (block < 0) | (block > 1) | np.isinf(block)
            if bad.any():
                row, column = np.argwhere(bad)[0]
                raise ConfigError.of(
                    "responses", f"{block[row, column]:g} of {self.models[i + row]} on item "
                    f"{self.items[column]}", "scores in [0, 1], empty or NaN if missing",
                    "Divide each score by the largest that it can be.",
                )  # fmt: skip

    def select(self, models: Sequence[int] | NDArray[np.int64]) -> Responses:
        """The answers of some models, by place, in the order given."""
        rows = np.asarray(models, dtype=np.int64)
        return Responses(
            models=tuple(self.models[i] for i in rows),
            items=self.items,
            scores=self.scores[rows],
            groups=None if self.groups is None else tuple(self.groups[i] for i in rows),
        )

    def answered(self, at_least: int) -> tuple[Responses, tuple[str, ...]]:
        """Leaves out models and items with fewer answers, again and again until none is left.

        Returns:
            what remains, and a note for each kind that lost some.

        Raises:
            ConfigError: if nothing remains.
        """
        known = ~np.isnan(self.scores)
        rows, columns = np.ones(len(self.models), bool), np.ones(len(self.items), bool)
        while True:
            kept = known[rows][:, columns]
            few_rows, few_columns = kept.sum(axis=1) < at_least, kept.sum(axis=0) < at_least
            if not few_rows.any() and not few_columns.any():
                break
            rows[np.flatnonzero(rows)[few_rows]] = False
            columns[np.flatnonzero(columns)[few_columns]] = False
            if not rows.any() or not columns.any():
                raise ConfigError.of(
                    "min answers", f"no model and item with {at_least} answers each",
                    "a matrix that is not so sparse", "Ask for fewer answers.",
                )  # fmt: skip
        if rows.all() and columns.all():
            return self, ()
        notes = tuple(
            f"left out {(~keep).sum()} {kind} with fewer than {at_least} answers: "
            + shown(name for name, k in zip(names, keep, strict=True) if not k)
            for kind, names, keep in (
                ("models", self.models, rows),
                ("items", self.items, columns),
            )
            if not keep.all()
        )
        smaller = Responses(
            models=tuple(np.array(self.models, dtype=object)[rows]),
            items=tuple(np.array(self.items, dtype=object)[columns]),
            scores=self.scores[rows][:, columns],
            groups=self.groups
            and tuple(g for g, keep in zip(self.groups, rows, strict=True) if keep),
        )
        return smaller, notes


def read_responses(
    paths: Sequence[Path],
    *,
    task: str | None = None,
    metric: str | None = None,
    split: str = "search",
) -> Responses:
    """Reads answers and joins what the paths hold: models and items of all, by their names.

    By what a path is: `.npz`; `.csv` and `.parquet` (one row a model, or columns model, item and
    score); `.jsonl` (lm-eval's samples, one file a model); a study's run directory; a folder of
    lm-eval's samples; a folder of Parquet files with columns model, item and score, such as a
    ledger. Where there are several tasks, items are called TASK/ITEM.

    Args:
        paths: of files and folders.
        task: takes only this one and files that name none, and leaves the items' names as they are.
        metric: of lm-eval's samples; None takes the only one.
        split: the one to take from run directories and ledgers.

    Raises:
        ConfigError: for files that are missing, damaged, of another form or at odds.
    """
    from evomerge.irt.reading import join, read

    if not paths:
        raise ConfigError.of("matrix", "no path", "one or more", "Name a file or a folder.")
    return join(read(paths, metric, split), task)
