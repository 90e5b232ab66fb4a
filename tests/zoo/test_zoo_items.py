"""The committed items are what the generator makes; splits share nothing."""

from __future__ import annotations

import random

import pytest

from evomerge.zoo import TASKS, zoo_path
from evomerge.zoo.curriculum import BASE, SPECIALISTS
from evomerge.zoo.items import (
    SIZES,
    item_file,
    make_items,
    read_items,
    render_items,
    reserved_questions,
)
from evomerge.zoo.make_items import main
from evomerge.zoo.problems import TASK_KINDS


@pytest.mark.parametrize("task", TASKS)
def test_committed_items_are_those_of_the_generator(task: str) -> None:
    assert item_file(task).read_text(encoding="utf-8") == render_items(task)


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_question_and_no_id(task: str) -> None:
    rows = [row for split in SIZES for row in read_items(task, split)]
    assert rows == make_items(task)
    assert len(rows) == sum(SIZES.values())
    for column in ("id", "question"):
        assert len({row[column] for row in rows}) == len(rows)


def test_make_items_writes_every_task(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    main(["--out", str(tmp_path)])
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(TASKS)
    assert capsys.readouterr().out.count("wrote") == len(TASKS)


def test_nobody_is_trained_on_the_target() -> None:
    for stage in (*BASE, *SPECIALISTS.values()):
        assert TASK_KINDS["jp_math"] not in stage.mix


def test_training_never_draws_an_item() -> None:
    from evomerge.zoo.training import draw_batch

    rng = random.Random(3)
    for stage in SPECIALISTS.values():
        for _ in range(100):
            drawn = {problem.question for problem in draw_batch(stage, rng)}
            assert not drawn & reserved_questions()


def test_zoo_path_is_inside_the_package() -> None:
    assert zoo_path("data").is_dir()
    assert zoo_path("data/sort.jsonl") == item_file("sort")
