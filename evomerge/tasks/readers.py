"""Reads rows of text from files and datasets: JSONL, TSV, CSV, Parquet, Hugging Face datasets.

A row maps column names to text. Numbers become their JSON text, true and false "true" and "false",
null the empty text, lists and objects their JSON. Nothing is ever executed or unpickled.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from evomerge.errors import TaskError

Row = dict[str, str]

_FILES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".tsv": "tsv",
    ".csv": "csv",
    ".parquet": "parquet",
}
FORMATS = ("auto", "jsonl", "tsv", "csv", "parquet", "dataset")


def as_text(value: object) -> str:
    """A cell as text, by the rules of this module."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False, default=str)


def detect_format(path: str) -> str:
    """The format that the form of a path stands for; a dataset if it has no known ending."""
    return _FILES.get(Path(path).suffix.lower(), "dataset")


def read_file(path: str, form: str, columns: Sequence[str] | None, field: str) -> list[Row]:
    """The rows of a local file.

    Args:
        path: relative to the current directory, or absolute.
        form: one of jsonl, tsv, csv, parquet.
        columns: names for the columns of a TSV or CSV file without a header line.
        field: config key of the source, to blame.

    Raises:
        TaskError: the file is missing, unreadable or malformed; names the line where there is one.
    """
    file = Path(path)
    if not file.is_file():
        remedy = f"Set {field}.path to an existing file (relative paths start in {Path.cwd()})."
        found = f"no file {path!r}" if not file.is_dir() else f"a folder, {path!r}"
        raise TaskError.of(f"{field}.path", found, f"a {form} file", remedy)
    if form == "parquet":
        return _parquet(file, field)
    text = _text(file, field)
    if form == "jsonl":
        return _jsonl(text, path, field)
    return _table(text, path, form, columns, field)


def _text(file: Path, field: str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark, its line ends made LF."""
    try:
        data = file.read_bytes()
    except OSError as error:
        _fail(field, f"{file} ({error.strerror})", "a readable file", "Check its permissions.")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _fail(
            field,
            f"{file}:{line}: bytes that are not UTF-8 ({error.reason})",
            "UTF-8 text",
            "Convert the file, for example with iconv -f SHIFT_JIS -t UTF-8.",
        )


def _jsonl(text: str, path: str, field: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            _fail(field, f"{path}:{number}: {error}", "one JSON object a line", "Correct it.")
        if not isinstance(value, dict):
            found = f"{path}:{number}: a {type(value).__name__}"
            _fail(field, found, "one JSON object a line", "Correct it.")
        rows.append({key: as_text(cell) for key, cell in value.items()})
    return rows


def _table(text: str, path: str, form: str, columns: Sequence[str] | None, field: str) -> list[Row]:
    """The rows of a TSV file, where quotes mean nothing, or of a CSV file, where they quote."""
    if form == "tsv":
        lines = enumerate((line.split("\t") for line in text.split("\n")), start=1)
        cells = [(number, row) for number, row in lines if row != [""]]
    else:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        cells = []
        try:
            for row in reader:
                if row:
                    cells.append((reader.line_num, row))
        except csv.Error as error:
            _fail(field, f"{path}:{reader.line_num}: {error}", "CSV", "Correct that line.")
    names = list(columns) if columns is not None else (cells.pop(0)[1] if cells else [])
    if len(set(names)) != len(names):
        _fail(field, f"{path}: columns {names}", "distinct names", f"Set {field}.columns.")
    for number, row in cells:
        if len(row) != len(names):
            _fail(
                field,
                f"{path}:{number}: {len(row)} cells",
                f"{len(names)} ({', '.join(names)})",
                f"Correct that line, or give all names in {field}.columns.",
            )
    return [dict(zip(names, row, strict=True)) for _, row in cells]


def _parquet(file: Path, field: str) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(file).to_pylist()
    except (pa.ArrowException, OSError) as error:
        _fail(field, f"{file} ({error})", "a Parquet file", f"Set {field}.format if it is another.")
    return [{key: as_text(cell) for key, cell in row.items()} for row in rows]


def _fail(field: str, found: str, expected: str, remedy: str) -> NoReturn:
    raise TaskError.of(f"{field}.path", found, expected, remedy)
