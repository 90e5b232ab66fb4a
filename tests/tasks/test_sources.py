"""Reading rows from every format, keeping some, and what is said when that fails."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.errors import TaskError
from evomerge.tasks.sources import Source

DATA = Path(__file__).parents[2].parent / "shared" / "data"
FIELD = "task.search"
ROWS = [
    {"question": 'He said "hi', "answer": "1,200", "split": "a"},
    {"question": "二\u2028行", "answer": "-5", "split": "b"},
    {"question": "three", "answer": "3", "split": "a"},
]


def read(spec: object) -> list[dict[str, str]]:
    return Source.of(spec, FIELD).read(FIELD)


def write(folder: Path, form: str) -> str:
    """The rows in a file of the format, written by other means than the package's."""
    path = folder / f"rows.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    elif form == "tsv":
        lines = [list(ROWS[0]), *[list(row.values()) for row in ROWS]]
        path.write_text("\n".join("\t".join(line) for line in lines), encoding="utf-8-sig")
    elif form == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    elif form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        import datasets

        path = folder / "saved"
        datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return str(path)


def failure(spec: object) -> Any:
    with pytest.raises(TaskError) as caught:
        read(spec)
    (problem,) = caught.value.problems
    assert problem.found and problem.expected and problem.remedy
    return problem


@pytest.mark.parametrize("form", ["jsonl", "tsv", "csv", "parquet", "saved"])
def test_every_format_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, form)
    assert read(path) == ROWS
    assert read({"path": path, "where": {"split": "a"}, "skip": 1, "limit": 5}) == ROWS[2:]
    assert read({"path": path, "where": {"split": ["b", "c"]}}) == ROWS[1:2]


def test_a_folder_of_files_and_a_dict_of_splits_are_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps({"question": "q", "answer": 3}) + "\n")
    assert read(str(folder)) == [{"question": "q", "answer": "3"}]
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "both"))
    both = str(tmp_path / "both")
    assert read({"path": both, "split": "test"}) == ROWS
    assert "train, test" in failure(both).expected
    assert failure({"path": both, "split": "dev"}).field == "task.search.split"


def test_code_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    mark = tmp_path / "mark"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    assert failure(str(folder)).field == "task.search.path"
    assert failure({"path": str(folder / "evil.py"), "format": "dataset"}).field
    assert not mark.exists()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.fixed_dictionaries({"a": st.text(), "b": st.text()}), min_size=1))
def test_jsonl_keeps_any_text(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    path = tmp_path / "any.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert read(str(path)) == rows


def test_json_values_become_text(tmp_path: Path) -> None:
    path = tmp_path / "kinds.jsonl"
    path.write_text('{"a": 18, "b": 1.5, "c": true, "d": null, "e": ["あ", 1]}\r\n\r\n')
    assert read(str(path)) == [{"a": "18", "b": "1.5", "c": "true", "d": "", "e": '["あ", 1]'}]
    assert len(read({"path": str(path), "where": {"a": 18, "c": True}})) == 1


def test_renaming_replaces_a_column(tmp_path: Path) -> None:
    path = tmp_path / "hub.jsonl"
    path.write_text('{"question": "q", "answer": null, "answer_number": 18}\n')
    spec = {"path": str(path), "rename": {"answer_number": "answer"}}
    assert read(spec) == [{"question": "q", "answer": "18"}]
    assert failure({"path": str(path), "rename": {"x": "y"}}).field == "task.search.rename"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    problem = failure(str(tmp_path / "absent.jsonl"))
    assert problem.field == "task.search.path" and "absent.jsonl" in problem.found


def test_a_missing_folder_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    assert "no folder" in failure(str(tmp_path / "absent")).found
    assert "no folder" in failure("./absent").found


def test_what_the_hub_says_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: dict[str, Any] = {}

    def load_dataset(path: str, name: str, split: str, revision: str) -> Any:
        asked.update(path=path, name=name, split=split, revision=revision)
        if path != "owner/name":
            raise ConnectionError("no network")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    spec = {"path": "owner/name", "config": "ja", "split": "test", "revision": "r"}
    assert read(spec) == ROWS
    assert asked == {"path": "owner/name", "name": "ja", "split": "test", "revision": "r"}
    assert "no network" in failure("other/name").found


def test_a_bad_json_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 1,}\n')
    assert "bad.jsonl:3:" in failure(str(path)).found
    path.write_text('{"a": 1}\n[1]\n')
    assert "bad.jsonl:2: a list" in failure(str(path)).found
    path.write_text("[" * 100_000)
    assert "bad.jsonl:1:" in failure(str(path)).found


@pytest.mark.parametrize("form", ["jsonl", "tsv", "csv"])
def test_bytes_that_are_not_utf8_are_named(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"sjis.{form}"
    path.write_bytes(b'{"a": "b"}\n' + '{"a": "答え"}\n'.encode("shift_jis"))
    problem = failure(str(path))
    assert f"sjis.{form}:2:" in problem.found and "UTF-8" in problem.expected


@pytest.mark.parametrize("form", ["tsv", "csv"])
def test_a_short_line_is_named(tmp_path: Path, form: str) -> None:
    separator = "\t" if form == "tsv" else ","
    path = tmp_path / f"short.{form}"
    path.write_text(f"a{separator}b\n1{separator}2\nonly one\n")
    assert f"short.{form}:3: 1 cells" in failure(str(path)).found


@pytest.mark.parametrize(("form", "text"), [("csv", 'a,b\n"x,y\n'), ("parquet", "PAR1")])
def test_damaged_files_are_refused(tmp_path: Path, form: str, text: str) -> None:
    path = tmp_path / f"damaged.{form}"
    path.write_text(text)
    assert failure(str(path)).field == "task.search.path"


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    assert failure(str(tmp_path / "empty.jsonl")).field == "task.search.path"
    assert "3 rows" in failure({"path": path, "where": {"split": "z"}}).found
    assert failure({"path": path, "skip": 3}).field == "task.search"
    missing = failure({"path": path, "where": {"part": "a"}})
    assert missing.field == "task.search.where" and "question" in missing.expected


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (None, "task.search"),
        ({}, "task.search.path"),
        ({"path": 3}, "task.search.path"),
        ({"path": "x.tsv", "colums": ["a"]}, "task.search.colums"),
        ({"path": "x.tsv", "columns": "a"}, "task.search.columns"),
        ({"path": "x.tsv", "format": "xml"}, "task.search.format"),
        ({"path": "x.tsv", "limit": 0}, "task.search.limit"),
        ({"path": "x.tsv", "skip": True}, "task.search.skip"),
        ({"path": "x.tsv", "where": "a"}, "task.search.where"),
        ({"path": "x.tsv", "exclude": {"path": "y"}}, "task.search.exclude.key"),
        ({"path": "x.tsv", "exclude": {"key": "a"}}, "task.search.exclude.path"),
    ],
)
def test_misspelt_specs_name_the_key(spec: object, field: str) -> None:
    assert failure(spec).field == field


def test_an_unknown_ending_asks_for_the_format(tmp_path: Path) -> None:
    path = tmp_path / "rows.data"
    path.write_text('{"a": "1"}\n')
    assert failure(str(path)).field == "task.search.format"
    assert read({"path": str(path), "format": "jsonl"}) == [{"a": "1"}]


def test_exclude_ignores_white_space_and_width(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    other = tmp_path / "other.tsv"
    other.write_text("ｔｈｒｅｅ \tx\n", encoding="utf-8")
    exclude = {"path": str(other), "columns": ["q", "a"], "key": "question", "other_key": "q"}
    assert read({"path": path, "exclude": exclude}) == ROWS[:2]
    problem = failure({"path": path, "exclude": {**exclude, "other_key": "Q"}})
    assert problem.field == "task.search.exclude.other_key"


def test_gsm8k_without_mgsm_leaves_1069() -> None:
    if not (DATA / "gsm8k_test.jsonl").is_file():
        pytest.skip("needs ../shared/data/gsm8k_test.jsonl and mgsm_en.tsv")
    mgsm = {"path": str(DATA / "mgsm_en.tsv"), "columns": ["question", "answer"]}
    gsm8k = {"path": str(DATA / "gsm8k_test.jsonl")}
    assert len(read(gsm8k)) == 1319 and len(read(mgsm)) == 250
    left = read({**gsm8k, "exclude": {**mgsm, "key": "question"}})
    assert len(left) == 1069
    assert not {row["question"] for row in left} & {row["question"] for row in read(mgsm)}
