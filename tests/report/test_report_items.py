"""Answers side by side, what was forgotten, and the tests against every model."""

from __future__ import annotations

from math import comb
from pathlib import Path

import answer_runs as answers
import numpy as np
import pytest
import report_runs as runs
from hypothesis import given
from hypothesis import strategies as st

from evomerge.questions import read_questions
from evomerge.report.answers import Answers, Subject, TaskAnswers, read_answers
from evomerge.report.items import KINDS, kinds_of, make_items
from evomerge.report.pairs import against_all
from evomerge.report.reading import read_run

ROLES = ("chosen merge", "source", "source", "control")


def made(scores: list[list[float]], text: str = "x") -> TaskAnswers:
    """A task of which model k has the scores of row k."""
    n = len(scores[0])
    subjects = tuple(Subject(f"model {k}", ROLES[k], str(k)) for k in range(len(scores)))
    return TaskAnswers(
        "made up", tuple(f"i{k}" for k in range(n)), subjects, np.array(scores),
        tuple((text,) * n for _ in scores), np.ones((len(scores), n)), ("",) * n, ("",) * n,
    )  # fmt: skip


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0])] * 3), min_size=1, max_size=30))
def test_kinds_are_what_they_say(rows: list[tuple[float, float, float]]) -> None:
    kinds = kinds_of(made([list(column) for column in zip(*rows, strict=True)]))
    assert kinds is not None and set(kinds) == set(KINDS)
    for at, (merge, first, second) in enumerate(rows):
        right = [name for name, mask in kinds.items() if mask[at]]
        if merge:
            assert right == (["kept"] if first or second else ["solved"])
        elif first and second:
            assert right == ["forgotten", "lost"]
        else:
            assert right == (["forgotten"] if first or second else ["unsolved"])


def test_the_merge_alone_says_nothing() -> None:
    assert kinds_of(made([[1.0, 0.0]])) is None
    assert make_items(Answers((made([[1.0, 0.0]]),))) is None


def test_a_small_budget_keeps_what_was_forgotten_or_solved() -> None:
    scores = np.zeros((3, 200))
    scores[0, ::2] = scores[1, ::2] = 1.0  # kept
    scores[0, [7, 107]], scores[1, [9, 199]] = 1.0, 1.0  # solved, forgotten
    found = make_items(Answers((made(scores.tolist(), "y" * 50),)), budget=10_000)
    assert found is not None and found.held < found.total == 200
    held = {int(item["id"][1:]) for item in found.data[0]["items"]}
    assert {7, 107, 9, 199} <= held
    rest = sorted(held - {7, 107, 9, 199})
    assert max(np.diff([0, *rest, 199])) <= 3 * 200 / len(rest)  # an even choice
    assert found.tasks[0].kinds["solved"] == found.tasks[0].kinds["forgotten"] == 2


def test_a_long_text_is_cut_and_said_so() -> None:
    found = make_items(Answers((made([[1.0], [0.0]], "z" * 5000),)))
    assert found is not None and found.cut
    assert all(len(text) == 400 and text.endswith("…") for text in found.data[0]["items"][0]["a"])


def test_answers_come_from_the_files_of_the_run(tmp_path: Path) -> None:
    run = runs.finished_run(tmp_path)
    known = answers.add_answers(run)
    found = read_answers(read_run(run))
    [task] = found.tasks
    assert [one.role for one in task.subjects[:3]] == ["chosen merge", "source", "source"]
    for one, row in zip(task.subjects, task.scores, strict=True):
        assert row.tolist() == known[one.name, "jp_math"]
    assert task.prompts[3].startswith("How much is 3?")
    assert task.targets[3].startswith("3")
    assert read_questions(run)["jp_math", "item-003"][1].startswith("3")


def test_a_damaged_file_leaves_its_model_out_with_a_note(tmp_path: Path) -> None:
    run = runs.finished_run(tmp_path)
    answers.add_answers(run)
    (run / "items" / "measure-00001.parquet").write_bytes(b"PAR1")
    found = read_answers(read_run(run))
    assert len(found.tasks[0].subjects) == 7
    assert "math could not be read" in found.notes[0]


def test_every_model_is_tested_against_the_merge() -> None:
    merge = [1.0] * 10 + [0.0] * 10
    source = [0.0] * 8 + [1.0] * 2 + [0.0] * 9 + [1.0]
    [rows] = against_all(Answers((made([merge, source, merge, [0.0] * 20]),))).values()
    by_name = {row.name: row for row in rows}
    row = by_name["model 1"]  # 8 wins, 1 loss: McNemar's exact p by hand
    assert (row.wins, row.losses, row.items) == (8, 1, 20)
    assert row.difference == pytest.approx(7 / 20)
    p = 2 * sum(comb(9, k) for k in (0, 1)) / 2**9
    assert row.p == pytest.approx(p)
    never = 2 / 2**10
    assert by_name["model 3"].p == pytest.approx(never)
    # Holm by hand: the smallest of three times 3, the next times 2, the largest times 1
    assert by_name["model 3"].adjusted == pytest.approx(3 * never)
    assert row.adjusted == pytest.approx(2 * p)
    assert by_name["model 2"].finding == "not significant"
    assert by_name["model 3"].finding == "better"
    assert [r.difference for r in rows] == sorted(r.difference for r in rows)
