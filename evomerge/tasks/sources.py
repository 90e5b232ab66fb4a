"""Where the rows of a split come from, and which of them are kept."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from evomerge.errors import TaskError
from evomerge.tasks.hub import read_dataset
from evomerge.tasks.overlap import comparable
from evomerge.tasks.readers import FORMATS, Row, as_text, detect_format, read_file


@dataclass(frozen=True)
class Exclude:
    """Drops the rows whose `key` occurs in another source.

    Attributes:
        source: the other source.
        key: column of the rows to be filtered, such as "question".
        other_key: the column of the other source to compare with.
    """

    source: Source
    key: str
    other_key: str


@dataclass(frozen=True)
class Source:
    """Where rows come from, and which are kept: `where`, `exclude`, `skip`, `limit`, in that order.

    Attributes:
        path: a file, a folder, or the name of a dataset on the hub.
        format: one of `FORMATS`; "auto" decides by the form of the path.
        columns: names of the columns of a TSV or CSV file that has no header line; other formats
            do not need them and ignore them.
        config: configuration of a dataset.
        split: split of a dataset.
        revision: revision of a dataset on the hub.
        rename: new names of columns, before anything else looks at them; a column that already
            has the new name is replaced.
        where: keeps the rows whose column has the value, or one of the values.
        exclude: drops the rows that occur in another source.
        skip: number of rows passed over.
        limit: the largest number of rows kept.
    """

    path: str
    format: str = "auto"
    columns: tuple[str, ...] | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    rename: tuple[tuple[str, str], ...] = ()
    where: tuple[tuple[str, tuple[str, ...]], ...] = ()
    exclude: Exclude | None = None
    skip: int = 0
    limit: int | None = None

    @classmethod
    def of(cls, spec: object, field: str) -> Source:
        """Checks and freezes what config holds: a path, a mapping of the attributes, or a Source.

        In a mapping, `rename` maps old names of columns to new ones, `where` maps columns to a
        value or a list of values, and `exclude` is a mapping like this one with `key` and, if the
        other source names it differently, `other_key`.

        Raises:
            TaskError: an unknown key or a value of the wrong kind.
        """
        if isinstance(spec, Source):
            return spec
        if isinstance(spec, str):
            spec = {"path": spec}
        if not isinstance(spec, Mapping):
            _fail(field, _shown(spec), "a path or a mapping with `path`", "Give {path: FILE}.")
        known = [attribute.name for attribute in fields(cls)]
        for key in spec:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                _fail(
                    f"{field}.{key}",
                    "an unknown key",
                    "one of " + ", ".join(known),
                    f"Did you mean {close[0]}?" if close else "Remove it.",
                )
        return cls(
            path=_string(spec.get("path"), f"{field}.path", required=True) or "",
            format=_format(spec.get("format", "auto"), f"{field}.format"),
            columns=_columns(spec.get("columns"), f"{field}.columns"),
            config=_string(spec.get("config"), f"{field}.config"),
            split=_string(spec.get("split"), f"{field}.split"),
            revision=_string(spec.get("revision"), f"{field}.revision"),
            rename=_rename(spec.get("rename"), f"{field}.rename"),
            where=_where(spec.get("where"), f"{field}.where"),
            exclude=_exclude(spec.get("exclude"), f"{field}.exclude"),
            skip=_count(spec.get("skip", 0), f"{field}.skip", least=0) or 0,
            limit=_count(spec.get("limit"), f"{field}.limit", least=1),
        )

    def read(self, field: str) -> list[Row]:
        """The rows that are kept, in the order of the source; never empty.

        Raises:
            TaskError: the source is missing or malformed, a column is missing, or no row is left.
        """
        form = detect_format(self.path) if self.format == "auto" else self.format
        if form == "dataset" and Path(self.path).is_file():
            _fail(
                f"{field}.format",
                f"the file {self.path!r}, whose ending tells no format",
                ".jsonl, .tsv, .csv or .parquet",
                f"Set {field}.format to one of {', '.join(FORMATS[1:-1])}, or rename the file.",
            )
        if form == "dataset":
            rows = read_dataset(self.path, self.config, self.split, self.revision, field)
        else:
            rows = read_file(self.path, form, self.columns, field)
        if not rows:
            _fail(f"{field}.path", f"no row in {self.path!r}", "at least one", "Give another file.")
        total = len(rows)
        for old, new in self.rename:
            _need(rows, old, f"{field}.rename")
            rows = [{**_without(row, old), new: row[old]} for row in rows]
        for column, values in self.where:
            _need(rows, column, f"{field}.where")
            rows = [row for row in rows if row[column] in values]
        if self.exclude is not None and rows:
            rows = _drop(rows, self.exclude, f"{field}.exclude")
        end = None if self.limit is None else self.skip + self.limit
        rows = rows[self.skip : end]
        if not rows:
            _fail(
                field,
                f"none of the {total} rows of {self.path!r} left",
                "at least one after where, exclude, skip and limit",
                "Relax these.",
            )
        return rows


def _without(row: Row, column: str) -> Row:
    return {name: value for name, value in row.items() if name != column}


def _drop(rows: list[Row], exclude: Exclude, field: str) -> list[Row]:
    """The rows whose key is not in the other source; white space and NFKC forms do not matter."""
    others = exclude.source.read(field)
    _need(rows, exclude.key, f"{field}.key")
    _need(others, exclude.other_key, f"{field}.other_key")
    unwanted = {comparable(row[exclude.other_key]) for row in others}
    return [row for row in rows if comparable(row[exclude.key]) not in unwanted]


def _need(rows: Sequence[Row], column: str, field: str) -> None:
    for number, row in enumerate(rows, start=1):
        if column not in row:
            _fail(
                field,
                f"the column {column!r}, which row {number} lacks",
                "one of " + ", ".join(row),
                "Correct the name; for a file without a header line, name its columns.",
            )


def _fail(field: str, found: str, expected: str, remedy: str) -> NoReturn:
    raise TaskError.of(field, found, expected, remedy)


def _shown(value: object) -> str:
    return f"{value!r} ({type(value).__name__})"


def _string(value: object, field: str, required: bool = False) -> str | None:
    if value is None and not required:
        return None
    if not isinstance(value, str) or not value.strip():
        _fail(field, "nothing" if value is None else _shown(value), "a text", f"Set {field}.")
    return value


def _format(value: object, field: str) -> str:
    if not isinstance(value, str) or value not in FORMATS:
        _fail(field, _shown(value), "one of " + ", ".join(FORMATS), "Use auto if in doubt.")
    return value


def _columns(value: object, field: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    named = isinstance(value, Sequence) and not isinstance(value, str)
    if not named or not all(isinstance(name, str) for name in _sequence(value)):
        _fail(field, _shown(value), "a list of names", "Give for example [question, answer].")
    return tuple(str(name) for name in _sequence(value))


def _sequence(value: object) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _rename(value: object, field: str) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping) or not all(isinstance(new, str) for new in value.values()):
        _fail(field, _shown(value), "a mapping of old to new names", "Give {Problem: question}.")
    return tuple((str(old), new) for old, new in value.items())


def _where(value: object, field: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        _fail(field, _shown(value), "a mapping of columns to values", "Give {split: search}.")
    return tuple(
        (str(column), tuple(as_text(one) for one in _sequence(wanted)) or (as_text(wanted),))
        for column, wanted in value.items()
    )


def _exclude(value: object, field: str) -> Exclude | None:
    if value is None or isinstance(value, Exclude):
        return value
    if not isinstance(value, Mapping):
        _fail(field, _shown(value), "a mapping with `path` and `key`", "See the sources' docs.")
    rest = {name: item for name, item in value.items() if name not in ("key", "other_key")}
    key = _string(value.get("key"), f"{field}.key", required=True) or ""
    other = _string(value.get("other_key"), f"{field}.other_key") or key
    return Exclude(Source.of(rest, field), key, other)


def _count(value: object, field: str, least: int) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        _fail(field, _shown(value), f"a whole number of at least {least}", f"Correct {field}.")
    return value
