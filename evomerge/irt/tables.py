"""Responses from tables: NPZ, CSV and Parquet, with one row a model or one row an answer."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import ConfigError
from evomerge.irt.files import shown
from evomerge.irt.responses import Responses

NAMES: Mapping[str, tuple[str, ...]] = {
    "model": ("model", "model_name", "models", "digest", "recipe"),
    "item": ("item", "item_id", "question_id", "doc_id", "id"),
    "score": ("score", "correct", "response"),
    "group": ("group", "base_model"),
}
"""What a column may be called, the first that is there counts."""

_KEYS = {
    "scores": ("correct", "scores"),
    "models": ("model_names", "models"),
    "items": ("item_ids", "items"),
    "groups": ("base_model", "groups"),
}
_SAME = {kind: (kind,) for kind in ("task", "split", "settings")}
_CSV_BLOCK = 2**26  # bytes; a block must hold a whole line


@dataclass(frozen=True)
class Part:
    """Answers to one task; an empty name where the source names none."""

    task: str
    responses: Responses


def read_npz(path: Path) -> list[Part]:
    """`correct` (models x items), and if there `model_names`, `base_model`, `item_ids`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {
                kind: file[key]
                for kind, keys in _KEYS.items()
                for key in [next((k for k in keys if k in file), None)]
                if key is not None
            }
            names = list(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise damaged(path, error) from error
    scores = found.get("scores")
    if scores is None or scores.ndim != 2 or scores.dtype.kind not in "biuf":
        raise ConfigError.of(
            str(path), f"the arrays {shown(names)}"
            + ("" if scores is None else f", `correct` {scores.dtype} {scores.shape}"),
            "`correct`, numbers of models x items", "Save the matrix under that name.",
        )  # fmt: skip
    rows, columns = scores.shape
    for kind, length in (("models", rows), ("groups", rows), ("items", columns)):
        if kind in found and found[kind].shape != (length,):
            raise ConfigError.of(
                str(path), f"{_KEYS[kind][0]} of shape {found[kind].shape}", f"({length},)",
                "Give one name a row of models, one a column of items.",
            )  # fmt: skip
    return [
        Part("", Responses(
            models=_texts(found.get("models"), rows, "model "),
            items=_texts(found.get("items"), columns, ""),
            scores=np.ascontiguousarray(scores, dtype=np.float32),
            groups=_texts(found["groups"], rows, "") if "groups" in found else None,
        ))
    ]  # fmt: skip


def read_csv(path: Path) -> list[Part]:
    """A CSV file with a header, wide or long."""
    import pyarrow as pa
    from pyarrow import csv

    try:
        table = csv.read_csv(path, read_options=csv.ReadOptions(block_size=_CSV_BLOCK))
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, error) from error
    return from_table(table, str(path))


def read_parquet(path: Path) -> list[Part]:
    """A Parquet file, wide or long."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        columns = long_columns(names)
        if columns is None:
            return from_table(pq.read_table(path), str(path))
        texts = [columns[kind] for kind in columns.keys() - {"score"}]
        table = pq.read_table(path, columns=[*columns.values()], read_dictionary=texts)
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, error) from error
    return from_table(table, str(path))


def long_columns(names: Sequence[str]) -> dict[str, str] | None:
    """The columns of a long table by kind; None unless model, item and score are there."""
    lower = {name.lower(): name for name in names}
    found = {
        kind: lower[known[0]]
        for kind, choices in {**NAMES, **_SAME}.items()
        if (known := [c for c in choices if c in lower])
    }
    return found if {"model", "item", "score"} <= found.keys() else None


def from_table(
    table: Any, where: str, split: str | None = None, *, average: bool = False
) -> list[Part]:
    """Responses of an Arrow table, wide or long.

    Args:
        table: if long and with a column `settings`, then a model that answered a task under several
            settings counts as one model for each, in one group.
        where: what to call it in errors.
        split: of a long table with a column `split`, the only one to take.
        average: takes the mean where an answer is there with several scores.

    Raises:
        ConfigError: for unsound values.
    """
    columns = long_columns(table.column_names)
    if columns is None:
        return [Part("", _wide(table, where))]
    if split is not None and "split" in columns:
        import pyarrow.compute as pc

        table = table.filter(pc.equal(table[columns["split"]], split))
    if table.num_rows == 0:
        return []
    tasks, of_task = codes(table, columns.get("task"), where)
    models, of_model = codes(table, columns["model"], where)
    items, of_item = codes(table, columns["item"], where)
    groups, of_group = codes(table, columns.get("group"), where)
    kinds, of_kind = codes(table, columns.get("settings"), where)
    scores = numbers(table[columns["score"]], where, columns["score"])
    parts = []
    for place, task in enumerate(tasks):
        rows = slice(None) if len(tasks) == 1 else of_task == place
        names, of_name, groups_of = models, of_model[rows], None
        if "group" in columns:
            known = dict(zip(of_name.tolist(), of_group[rows].tolist(), strict=True))
            groups_of = {m: groups[g] for m, g in known.items()}
        if np.ptp(of_kind[rows]) > 0:
            of_name = of_name * len(kinds) + of_kind[rows]
            names = [f"{model}@{kind[:8]}" for model in models for kind in kinds]
            groups_of = groups_of or dict(enumerate(models))
            groups_of = {m * len(kinds) + k: g for m, g in groups_of.items()
                         for k in range(len(kinds))}  # fmt: skip
        answers = pivot(names, items, of_name, of_item[rows], scores[rows], where, average)
        if groups_of is not None:
            by_name = {names[m]: group for m, group in groups_of.items()}
            answers = replace(answers, groups=tuple(by_name[m] for m in answers.models))
        parts.append(Part(task, answers))
    return parts


def pivot(
    models: Sequence[str],
    items: Sequence[str],
    of_model: NDArray[np.integer[Any]],
    of_item: NDArray[np.integer[Any]],
    scores: NDArray[np.float32],
    where: str,
    average: bool = False,
) -> Responses:
    """A matrix from single answers: names, and places in them for each answer.

    Names that no answer is of are left out. An answer may be there twice if both times alike, or
    if their mean is wanted.

    Raises:
        ConfigError: naming a model and an item with two different scores.
    """
    used, row = _used(of_model, len(models))
    asked, column = _used(of_item, len(items))
    matrix = np.full((len(used), len(asked)), np.nan, dtype=np.float32)
    known = ~np.isnan(scores)
    if not known.all():
        row, column, scores = row[known], column[known], scores[known]
    matrix[row, column] = scores
    unlike = matrix[row, column] != scores
    if unlike.any() and average:
        sums, counts = np.zeros(matrix.shape), np.zeros(matrix.shape)
        np.add.at(sums, (row, column), scores)
        np.add.at(counts, (row, column), 1)
        matrix[row, column] = (sums / np.maximum(counts, 1))[row, column]
    elif unlike.any():
        at = int(unlike.argmax())
        model, item = models[used[row[at]]], items[asked[column[at]]]
        raise two_scores(where, model, item, scores[at], matrix[row[at], column[at]])
    return Responses(tuple(models[i] for i in used), tuple(items[i] for i in asked), matrix)


def _used(
    places: NDArray[np.integer[Any]], count: int
) -> tuple[NDArray[np.int64], NDArray[np.integer[Any]]]:
    """Which of `count` places occur, and for each one its place among those."""
    there = np.bincount(places, minlength=count) > 0
    if there.all():
        return np.arange(count), places
    return np.flatnonzero(there), (np.cumsum(there, dtype=np.int32) - 1)[places]


def two_scores(where: str, model: str, item: str, one: float, other: float) -> ConfigError:
    """The error for one question with two answers."""
    return ConfigError.of(
        where, f"scores {one:g} and {other:g} of {model} on item {item}",
        "one score for each model and item",
        "Leave all but one measurement out, or average them first.",
    )  # fmt: skip


def codes(table: Any, column: str | None, where: str) -> tuple[list[str], NDArray[np.int32]]:
    """The different texts of a column in the order of appearance, and the place of each row's."""
    import pyarrow as pa

    if column is None:
        return [""], np.zeros(table.num_rows, dtype=np.int32)
    values = table[column].combine_chunks()
    if values.null_count:
        raise ConfigError.of(
            where, f"{values.null_count} rows with no {column}", "one in every row",
            "Fill them in, or drop the rows.",
        )  # fmt: skip
    if isinstance(values, pa.ChunkedArray):
        values = values.unify_dictionaries().combine_chunks()
    if not isinstance(values, pa.DictionaryArray):
        values = values.dictionary_encode()
    return (
        [str(v) for v in values.dictionary.to_pylist()],
        values.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False),
    )


def numbers(column: Any, where: str, name: str) -> NDArray[np.float32]:
    """A column of scores, NaN where empty."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan, dtype=np.float32)
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        example = next((v for v in column.to_pylist() if v is not None), "")
        raise ConfigError.of(
            where, f"{example!r} in column {name}", "numbers in [0, 1]",
            "Long tables need columns " + ", ".join(NAMES[k][0] for k in ("model", "item", "score"))
            + "; in wide ones the first column is the model and the others are items.",
        )  # fmt: skip
    return np.asarray(column.cast(pa.float32()).to_numpy(), dtype=np.float32)


def damaged(path: Path, error: Exception) -> ConfigError:
    """The error for a file that cannot be read."""
    return ConfigError.of(
        str(path), f"a missing or damaged file ({error})", "a matrix of answers",
        "See docs/irt.md for the forms that are read.",
    )  # fmt: skip


def _wide(table: Any, where: str) -> Responses:
    """First column the model, perhaps a column of groups, the others items."""
    names = table.column_names
    group = next((n for n in names[1:] if n.lower() in NAMES["group"]), None)
    items = [n for n in names[1:] if n != group]
    if not items or table.num_rows == 0:
        raise ConfigError.of(
            where, f"{table.num_rows} rows and the columns {shown(names)}",
            "models in rows and items in columns, or columns model, item and score",
            "See docs/irt.md for the forms that are read.",
        )  # fmt: skip
    if len(set(items)) < len(items):
        twice = [n for n, count in Counter(items).items() if count > 1]
        raise ConfigError.of(
            where, f"items that appear twice: {shown(twice)}", "one column an item",
            "Rename them, or drop one of each.",
        )  # fmt: skip
    scores = np.empty((table.num_rows, len(items)), dtype=np.float32)
    places = [i for i, name in enumerate(names) if i and name != group]
    for i, (place, name) in enumerate(zip(places, items, strict=True)):
        scores[:, i] = numbers(table.column(place), where, name)
    return Responses(
        models=tuple(str(v) for v in table[names[0]].to_pylist()),
        items=tuple(items),
        scores=scores,
        groups=None if group is None else tuple(str(v) for v in table[group].to_pylist()),
    )


def _texts(names: NDArray[Any] | None, count: int, prefix: str) -> tuple[str, ...]:
    if names is None:
        return tuple(f"{prefix}{i}" for i in range(count))
    return tuple(str(name) for name in names)
