"""Every form of answers gives the same matrix, and unsound ones give an error."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evomerge.errors import ConfigError, JournalError
from evomerge.irt.responses import Responses, read_responses
from evomerge.journal import Journal
from evomerge.types import ItemScores

MODELS, ITEMS = ("base", "maths", "japanese"), ("q7", "q1", "q10", "q3")
SCORES = np.array([[1, 0, np.nan, 0.5], [1, 1, 0, 0], [0, np.nan, 1, 1]], dtype=np.float32)
GROUPS = ("a", "b", "b")
LONG = [
    (model, item, float(score))
    for model, row in zip(MODELS, SCORES, strict=True)
    for item, score in zip(ITEMS, row, strict=True)
    if not np.isnan(score)
]


def same(found, items=ITEMS, groups=None):
    assert found.models == MODELS and found.items == items
    np.testing.assert_array_equal(found.scores, SCORES)
    assert found.scores.dtype == np.float32 and found.groups == groups


def wide(groups=False):
    table = {"model": list(MODELS)} | ({"base_model": list(GROUPS)} if groups else {})
    columns = [[None if np.isnan(v) else float(v) for v in c] for c in SCORES.T]
    return pa.table(table | dict(zip(ITEMS, columns, strict=True)))


def long(**names):
    columns = dict(zip(("model", "item", "score"), zip(*LONG, strict=True), strict=True))
    return pa.table({names.get(k, k): list(v) for k, v in columns.items()})


def write_csv(path, table):
    from pyarrow import csv

    csv.write_csv(table, path)


def test_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, correct=SCORES, model_names=MODELS, item_ids=ITEMS, base_model=GROUPS)
    same(read_responses([path]), groups=GROUPS)
    np.savez(path, correct=np.array([[1, 0], [0, 1]], dtype=np.uint8), base_model=[3, 4])
    found = read_responses([path])
    assert found.models == ("model 0", "model 1") and found.items == ("0", "1")
    assert found.groups == ("3", "4")


@pytest.mark.parametrize("groups", [False, True])
def test_wide_tables(tmp_path, groups):
    write_csv(tmp_path / "a.csv", wide(groups))
    pq.write_table(wide(groups), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        same(read_responses([tmp_path / name]), groups=GROUPS if groups else None)


@pytest.mark.parametrize(
    "names",
    [{}, {"model": "model_name", "item": "question_id", "score": "correct"}, {"model": "digest"}],
)
def test_long_tables(tmp_path, names):
    write_csv(tmp_path / "a.csv", long(**names))
    pq.write_table(long(**names), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        found = read_responses([tmp_path / name])
        order = [found.items.index(i) for i in ITEMS]
        assert found.models == MODELS and set(found.items) == set(ITEMS)
        np.testing.assert_array_equal(found.scores[:, order], SCORES)


def test_booleans_and_words_for_missing_are_read(tmp_path):
    (tmp_path / "a.csv").write_text("model,x,y\nm,true,NaN\nn,false,\no,true,1\n")
    found = read_responses([tmp_path / "a.csv"])
    np.testing.assert_array_equal(found.scores, [[1, np.nan], [0, np.nan], [1, 1]])


def test_an_answer_may_be_there_twice_if_alike(tmp_path):
    (tmp_path / "a.csv").write_text("model,item,score\nm,x,1\nn,x,0\nm,x,1\n")
    assert read_responses([tmp_path / "a.csv"]).scores.tolist() == [[1], [0]]
    (tmp_path / "a.csv").write_text("model,item,score\nm,x,1\nn,x,0\nm,x,0\n")
    with pytest.raises(ConfigError, match="scores 1 and 0 of m on item x"):
        read_responses([tmp_path / "a.csv"])


def test_several_files_are_joined_by_the_names_of_models_and_items(tmp_path):
    (tmp_path / "a.csv").write_text("model,x,y\nm,1,0\nn,0,1\n")
    (tmp_path / "b.csv").write_text("model,y,z\nn,1,0.5\no,,1\n")
    found = read_responses([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert found.models == ("m", "n", "o") and found.items == ("x", "y", "z")
    nan = np.nan
    np.testing.assert_array_equal(found.scores, [[1, 0, nan], [0, 1, 0.5], [nan, nan, 1]])
    (tmp_path / "b.csv").write_text("model,y,z\nn,0,0.5\n")
    with pytest.raises(ConfigError, match="scores 1 and 0 of n on item y"):
        read_responses([tmp_path / "a.csv", tmp_path / "b.csv"])


def test_tasks_keep_their_items_apart(tmp_path):
    (tmp_path / "a.csv").write_text("task,model,item,score\ns,m,1,1\nt,m,1,0\nt,n,2,1\ns,n,1,0\n")
    found = read_responses([tmp_path / "a.csv"])
    assert found.items == ("s/1", "t/1", "t/2") and found.models == ("m", "n")
    np.testing.assert_array_equal(found.scores, [[1, 0, np.nan], [0, np.nan, 1]])
    assert read_responses([tmp_path / "a.csv"], task="t").items == ("1", "2")
    with pytest.raises(ConfigError, match="one of s, t"):
        read_responses([tmp_path / "a.csv"], task="u")
    (tmp_path / "b.csv").write_text("model,2\nm,1\n")  # names no task: of any
    both = read_responses([tmp_path / "a.csv", tmp_path / "b.csv"], task="t")
    assert both.items == ("1", "2")
    np.testing.assert_array_equal(both.scores, [[0, 1], [np.nan, 1]])


def scored(ids, scores, split="search", task="t"):
    n = len(ids)
    return ItemScores(
        task, split, tuple(ids), np.array(scores, float), np.full(n, np.nan), ("",) * n,
        np.zeros(n, np.int64),
    )  # fmt: skip


def test_a_run_directory_gives_every_candidate_and_measurement_by_its_digest(tmp_path):
    (tmp_path / "run").mkdir()
    journal = Journal(tmp_path / "run")
    journal.append("study", schema=1)
    asked = [{"id": 0, "genome": [], "digest": "d0"}, {"id": 1, "genome": [], "digest": "d1"}]
    journal.append("ask", search="search", generation=0, candidates=asked)
    for number, scores in ((0, [1.0, 0.0]), (1, [0.5, 1.0])):
        file = journal.write_items(f"candidate-{number:06d}", [scored(["x", "y"], scores)])
        journal.append("result", search="search", id=number, status="ok", file=file)
    journal.append("result", search="search", id=2, status="failed")
    parts = [scored(["y", "z"], [0.0, 1.0]), scored(["x"], [1.0], "test")]
    file = journal.write_items("measure-00000", parts)
    journal.append("measure", name="base", digest="d2", status="ok", file=file)
    found = read_responses([tmp_path / "run"])
    nan = np.nan
    assert found.models == ("d0", "d1", "d2") and found.items == ("x", "y", "z")
    np.testing.assert_array_equal(found.scores, [[1, 0, nan], [0.5, 1, nan], [nan, 0, 1]])
    assert read_responses([tmp_path / "run"], split="test").models == ("d2",)
    with pytest.raises(ConfigError, match="answers of the validation split"):
        read_responses([tmp_path / "run"], split="validation")


def test_a_run_that_answered_otherwise_the_second_time_counts_with_the_mean(tmp_path):
    journal = Journal(tmp_path)
    journal.append("study", schema=1)
    for number, score in enumerate((1.0, 0.0, 1.0, 1.0)):
        file = journal.write_items(f"measure-{number:05d}", [scored(["x", "y"], [score, 1.0])])
        journal.append("measure", name="base", digest="d", status="ok", file=file)
    np.testing.assert_array_equal(read_responses([tmp_path]).scores, [[0.75, 1]])


def test_a_ledger_is_read_as_it_was_written(tmp_path):
    from evomerge.ledger import Answer, Ledger

    ledger = Ledger(tmp_path / "ledger")
    for digest, scores in (("a" * 64, [1.0, 0.0]), ("b" * 64, [0.5, 1.0])):
        answers = [Answer("t", item, "s1", score, np.nan, "", 1)
                   for item, score in zip("xy", scores, strict=True)]  # fmt: skip
        ledger.append(digest, answers)
    found = read_responses([tmp_path / "ledger"], task="t")
    assert found.models == ("a" * 64, "b" * 64) and found.items == ("x", "y")
    np.testing.assert_array_equal(found.scores, [[1, 0], [0.5, 1]])
    ledger.append("a" * 64, [Answer("t", "x", "other settings", 0.25, np.nan, "", 1)])
    found = read_responses([tmp_path / "ledger"])
    assert found.models == ("a" * 64 + "@s1", "a" * 64 + "@other se", "b" * 64 + "@s1")
    assert found.groups == ("a" * 64, "a" * 64, "b" * 64)
    np.testing.assert_array_equal(found.scores, [[1, 0], [0.25, np.nan], [0.5, 1]])
    ledger.settle()
    assert read_responses([tmp_path / "ledger"]).models == found.models


def test_a_folder_of_parquet_files_is_a_ledger(tmp_path):
    for number, digest in enumerate(("d0", "d1")):
        folder = tmp_path / f"part{number}"
        folder.mkdir()
        pq.write_table(pa.table({
            "digest": [digest] * 2, "task": ["t"] * 2, "item": ["x", "y"],
            "score": [1.0, float(number)], "text": ["", ""],
        }), folder / "a.parquet")  # fmt: skip
    pq.write_table(pa.table({"id": ["x"], "score": [1.0]}), tmp_path / "other.parquet")
    found = read_responses([tmp_path])
    assert found.models == ("d0", "d1") and found.items == ("x", "y")
    np.testing.assert_array_equal(found.scores, [[1, 0], [1, 1]])


def sample(doc, value, hashed="h", **more):
    return {
        "doc_id": doc, "doc": {"question": "?"}, "target": "1", "arguments": {}, "resps": [["1"]],
        "filtered_resps": ["1"], "doc_hash": f"{hashed}{doc}", "prompt_hash": "p",
        "target_hash": "t", "filter": "none", "metrics": ["exact_match"], "exact_match": value,
    } | more  # fmt: skip


def write_samples(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


FIRST, SECOND = "2025-01-02T03-04-05.678901", "2025-01-03T03-04-05.678901"


def test_lm_evals_folders_are_models_and_the_newest_file_of_each_counts(tmp_path):
    write_samples(
        tmp_path / f"org__one/samples_gsm8k_{FIRST}.jsonl", [sample(0, 0.0), sample(1, 0)]
    )
    write_samples(tmp_path / f"org__one/samples_gsm8k_{SECOND}.jsonl", [sample(1, 1), sample(0, 0)])
    write_samples(
        tmp_path / f"org__two/samples_gsm8k_{FIRST}.jsonl", [sample(0, 1.0), sample(2, 1)]
    )
    found = read_responses([tmp_path])
    assert found.models == ("org__one", "org__two") and found.items == ("1", "0", "2")
    np.testing.assert_array_equal(found.scores, [[1, 0, np.nan], [np.nan, 1, 1]])


def test_results_beside_samples_name_the_model(tmp_path):
    for date, name in ((FIRST, "a/one"), (SECOND, "a/two")):
        write_samples(tmp_path / f"samples_gsm8k_{date}.jsonl", [sample(0, 1.0)])
        (tmp_path / f"out_{date}.json").write_text(json.dumps({"model_name": name}))
    assert read_responses([tmp_path]).models == ("a/one", "a/two")


def test_tasks_of_samples_are_apart_and_files_of_other_names_are_models(tmp_path):
    for task in ("gsm8k", "mgsm_ja"):
        write_samples(tmp_path / f"a/m/samples_{task}_{FIRST}.jsonl", [sample(0, 1.0)])
    assert read_responses([tmp_path / "a"]).items == ("gsm8k/0", "mgsm_ja/0")
    assert read_responses([tmp_path / "a"], task="gsm8k").items == ("0",)
    for name in ("one", "two"):
        write_samples(tmp_path / f"b/{name}.jsonl", [sample(0, 1.0)])
    assert read_responses([tmp_path / "b"]).models == ("one", "two")
    files = [tmp_path / "b/two.jsonl", tmp_path / "b/one.jsonl"]
    assert read_responses(files).models == ("two", "one")


def test_metric_and_filter_are_chosen_or_asked_for(tmp_path):
    rows = [
        sample(doc, value, filter=name, metrics=["exact_match", "f1"], f1=0.5)
        for name, value in (("strict", 0.0), ("flexible", 1.0))
        for doc in (0, 1)
    ]
    write_samples(tmp_path / "m.jsonl", rows)
    paths = [tmp_path / "m.jsonl"]
    assert read_responses(paths, metric="exact_match,flexible").scores.tolist() == [[1, 1]]
    assert read_responses(paths, metric="exact_match,strict").scores.tolist() == [[0, 0]]
    assert read_responses(paths, metric="f1,strict").scores.tolist() == [[0.5, 0.5]]
    for metric in (None, "exact_match", "bleu", "exact_match,other"):
        with pytest.raises(ConfigError, match="exact_match,strict, exact_match,flexible, f1"):
            read_responses(paths, metric=metric)


def test_older_samples_do_not_list_their_metrics(tmp_path):
    rows = [{"doc_id": 0, "doc": {}, "target": "1", "acc": 1.0}]
    write_samples(tmp_path / "m.jsonl", rows)
    assert read_responses([tmp_path / "m.jsonl"]).scores.tolist() == [[1]]


def test_samples_at_odds_are_errors(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    write_samples(one, [sample(0, 1.0)])
    for rows, says in (
        ([sample(0, 1.0, hashed="other")], "another question as item 0"),
        ([sample(0, 1.0), sample(0, 0.0)], "scores 1 and 0 of two on item 0"),
        ([sample(0, [1, 2])], r"exact_match of item 0 is \[1, 2\]"),
        ([{"exact_match": 1}], "line 1 has no doc_id"),
        ([], "it is empty"),
    ):
        write_samples(two, rows)
        with pytest.raises(ConfigError, match=says):
            read_responses([one, two])
    (tmp_path / "b").mkdir()
    write_samples(tmp_path / "b/one.jsonl", [sample(0, 1.0)])
    with pytest.raises(ConfigError, match="one file a model"):
        read_responses([one, tmp_path / "b/one.jsonl"])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "model,x\nm,2\n", r"2 of m on item x"),
        ("a.csv", "model,x\nm,-1\n", r"-1 of m on item x"),
        ("a.csv", "model,x\nm,yes\nn,no\n", "'yes' in column x"),
        ("a.csv", "model,x\nm,1\nm,0\n", "models that appear twice: m"),
        ("a.csv", "model,x,x\nm,1,0\n", "items that appear twice: x"),
        ("a.csv", "model\nm\n", "models in rows and items in columns"),
        ("a.csv", "model,x\n", "models in rows and items in columns"),
        ("a.csv", "model,item,score\nm,x,right\n", "'right' in column score"),
        ("a.csv", "", "missing or damaged"),
        ("a.parquet", "no parquet", "missing or damaged"),
        ("a.npz", "no npz", "missing or damaged"),
        ("a.txt", "m 1", "a .txt file"),
        ("a.jsonl", "{", "missing or damaged"),
    ],
)
def test_unsound_files_are_errors(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=says):
        read_responses([tmp_path / name])


def test_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="nothing there"):
        read_responses([tmp_path / "a.csv"])
    with pytest.raises(ConfigError, match="a folder with none of these"):
        read_responses([tmp_path])
    with pytest.raises(ConfigError, match="no path"):
        read_responses([])
    (tmp_path / "journal.jsonl").write_text('{"event": "study", "schema": 99}\n')
    with pytest.raises(JournalError, match="schema 99"):
        read_responses([tmp_path])


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"other": np.zeros((2, 2))}, "the arrays other"),
        ({"correct": np.zeros(3)}, "numbers of models x items"),
        ({"correct": np.array([["a"]])}, "numbers of models x items"),
        ({"correct": np.zeros((2, 2)), "item_ids": ["a"]}, r"item_ids of shape \(1,\)"),
        ({"correct": np.array([[{}]], dtype=object)}, "missing or damaged"),
    ],
)
def test_unsound_arrays_are_errors(tmp_path, arrays, says):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ConfigError, match=says):
        read_responses([tmp_path / "a.npz"])


def test_models_and_items_with_few_answers_are_left_out_again_and_again():
    nan = np.nan
    scores = np.array([[1, 0, 1, nan], [0, 1, 1, nan], [nan, nan, nan, 1], [0, 0, nan, 1]])
    answers = Responses(tuple("abcd"), tuple("wxyz"), scores.astype(np.float32), tuple("ppqq"))
    kept, notes = answers.answered(2)
    # c has one answer; without it z has one; without that nothing else
    assert (
        kept.models == tuple("abd") and kept.items == tuple("wxy") and kept.groups == tuple("ppq")
    )
    assert "1 models" in notes[0] and "1 items" in notes[1]
    assert answers.answered(1) == (answers, ())
    with pytest.raises(ConfigError, match="5 answers each"):
        answers.answered(5)


def test_models_can_be_selected():
    answers = Responses(MODELS, ITEMS, SCORES, GROUPS).select([2, 0])
    assert answers.models == ("japanese", "base") and answers.groups == ("b", "a")
    np.testing.assert_array_equal(answers.scores, SCORES[[2, 0]])


def test_a_ledger_with_answers_that_stand_twice_is_read_once(tmp_path):
    """A writer that is killed while it unites segments leaves both the old ones and the new one."""
    from evomerge.ledger import Answer, Ledger

    ledger = Ledger(tmp_path)
    for digest, right in (("a", 1.0), ("b", 0.0)):
        for task in ("sums", "sorting"):
            answers = [
                Answer(task, f"{task}{i}", "s", right if i % 2 else 0.5, float("nan"), "", 1)
                for i in range(4)
            ]
            ledger.append(digest, answers)
    ledger.settle()
    segments = sorted(tmp_path.glob("*.parquet"))
    copy = segments[0].with_name(segments[0].name.replace("-", "9-", 1))
    copy.write_bytes(segments[0].read_bytes())
    read = read_responses([tmp_path], task="sums")
    assert set(read.models) == {"a", "b"} and len(read.items) == 4
    row = read.scores[read.models.index("a")]
    assert sorted(row.tolist()) == [0.5, 0.5, 1.0, 1.0]
