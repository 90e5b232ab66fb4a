"""Item tasks: items, ids, splits, and everything that can be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import TaskError
from evomerge.tasks.item_task import ItemTask
from evomerge.types import SPLITS, Item, Sampling, Task

Maker = Callable[..., ItemTask]


def rows(start: int, count: int, **more: str) -> list[dict[str, str]]:
    return [
        {"id": f"i{n}", "question": f"{n}+1?", "answer": str(n + 1), **more}
        for n in range(start, start + count)
    ]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """Makes a task from rows for each split; what is not given has rows of its own."""

    def made(
        search: Any = None, validation: Any = None, test: Any = None, **options: Any
    ) -> ItemTask:
        specs: dict[str, Any] = {}
        given = dict(zip(SPLITS, (search, validation, test), strict=True))
        for start, (split, spec) in enumerate(given.items()):
            spec = rows(1000 * start, 5) if spec is None else spec
            if isinstance(spec, list):
                path = tmp_path / f"{split}.jsonl"
                path.write_text("".join(json.dumps(row) + "\n" for row in spec))
                spec = {"path": str(path)}
            specs[split] = spec
        return ItemTask("sums", **specs, **{"id": "id", "scorer": "number", **options})

    return made


def fields(task: ItemTask) -> list[str]:
    return [problem.field for problem in task.validate()]


def test_a_good_task(make: Maker) -> None:
    task: Task = make(
        prompt="{question}\n",
        gold="A: {answer}",
        sampling={"max_new_tokens": 24, "stop": ["\n"]},
        loglik_weight=0.1,
    )
    assert isinstance(task, ItemTask) and task.validate() == []
    first = task.items("search")[0]
    assert first == Item("i0", rows(0, 1)[0], "1", "A: 1")
    assert task.prompt(first) == "0+1?\n"
    assert (task.score(first, "It is 1."), task.score(first, "It is 2.")) == (1.0, 0.0)
    assert task.sampling == Sampling(24, ("\n",), 0.0) and task.loglik_weight == 0.1
    assert [len(task.items(split)) for split in SPLITS] == [5, 5, 5]


def test_nothing_is_read_before_use_and_then_only_once(make: Maker, tmp_path: Path) -> None:
    task = make()
    for split in SPLITS:
        assert task.items(split) is task.items(split)
    (tmp_path / "search.jsonl").unlink()
    assert len(task.items("search")) == 5
    late = make(search={"path": str(tmp_path / "later.jsonl")})
    (tmp_path / "later.jsonl").write_text(json.dumps(rows(50, 1)[0]))
    assert late.items("search")[0].id == "i50"


def test_ids_by_content_are_stable_and_numbered(make: Maker) -> None:
    row = {"question": "1+1?", "answer": "2"}
    task = make(search=[row, {"question": "x 3", "answer": "3"}, row], id=None)
    one, other, again = (item.id for item in task.items("search"))
    assert len(one) == 16 and one != other and again == f"{one}-2"
    turned = make(search=[{"answer": "2", "question": "1+1?"}], id=None)
    assert turned.items("search")[0].id == one


def test_all_problems_are_collected_without_raising(make: Maker, tmp_path: Path) -> None:
    task = make(
        prompt="{question",
        scorer={"_target_": "os.system"},
        sampling={"max_tokens": 3},
        loglik_weight=-1,
        target_pattern="(",
        search={"path": "x.tsv", "colums": []},
        validation={"split_from": "test", "fraction": 2},
    )
    assert sorted(fields(task)) == [
        "task.loglik_weight",
        "task.prompt",
        "task.sampling.max_tokens",
        "task.scorer",
        "task.search.colums",
        "task.target_pattern",
        "task.validation.fraction",
    ]
    with pytest.raises(TaskError):
        task.items("test")
    absent = {"path": str(tmp_path / "absent.tsv")}
    assert fields(make(search=absent, test=absent)) == ["task.search.path", "task.test.path"]


def test_repeated_and_missing_ids(make: Maker) -> None:
    task = make(search=rows(0, 3) + rows(1, 1))
    with pytest.raises(TaskError, match="'i1'"):
        task.items("search")
    assert fields(make(id="number")) == ["task.id"] * 3
    with pytest.raises(TaskError, match="found 'train'"):
        task.items("train")


def test_unknown_columns_are_named_with_those_there_are(make: Maker) -> None:
    for part in ("prompt", "target", "gold"):
        problems = make(**{part: "{x.__class__}"}).validate()
        assert {problem.field for problem in problems} == {f"task.{part}"}
        assert "x.__class__" in problems[0].found and "question" in problems[0].found


def test_overlap_by_id_and_by_prompt(make: Maker) -> None:
    by_id = make(test=rows(3, 4)).validate()
    assert len(by_id) == 1
    assert by_id[0].field == "task.search and task.test"
    assert by_id[0].found.startswith("2 of the 4 items of test in search too, by id")
    again = [{"id": "new", "question": " 2+1？", "answer": "3"}, *rows(2000, 2)]
    (by_text,) = make(test=again).validate()
    assert "1 of the 3 items" in by_text.found and "'new'" in by_text.found
    assert "exclude" in by_text.remedy
    other = make(validation=rows(0, 5), key="task.one").validate()
    assert [problem.field for problem in other] == ["task.one.search and task.one.validation"]


def test_targets_that_cannot_be_met_and_missing_gold(make: Maker) -> None:
    bad = [{"id": "b", "question": "?", "answer": "many"}]
    (problem,) = make(test=bad).validate()
    assert problem.field == "task.target" and "'many'" in problem.found
    assert fields(make(loglik_weight=0.5)) == ["task.gold"] * 3
    assert fields(make(loglik_weight=0.5, gold="{answer}")) == []


def test_target_pattern_applies_where_it_matches(make: Maker) -> None:
    search = [
        {"id": "1", "question": "a", "answer": "2 + 3 = 5\n#### 1,205 "},
        {"id": "2", "question": "b", "answer": "7"},
    ]
    task = make(search=search, target_pattern=r"####\s*(.+)$")
    assert [item.target for item in task.items("search")] == ["1,205", "7"]
    assert task.score(task.items("search")[0], "1205円") == 1.0


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), None])
def test_a_score_outside_its_range_is_an_error(make: Maker, value: Any) -> None:
    task = make(scorer=lambda item, text: value)
    with pytest.raises(TaskError, match="scorer"):
        task.score(task.items("search")[0], "1")


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": 3}, "stop"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
    ],
)
def test_sampling_is_checked(make: Maker, sampling: dict[str, Any], field: str) -> None:
    assert f"task.sampling.{field}" in fields(make(sampling=sampling))
