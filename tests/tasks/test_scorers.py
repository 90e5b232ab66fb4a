"""Scorers on hand-written cases and on the real problems of MGSM."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from evomerge.errors import TaskError
from evomerge.tasks.scorers import (
    SCORERS,
    exact,
    japanese_number,
    make_scorer,
    number,
)
from evomerge.tasks.sources import Source
from evomerge.types import Item

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def item(target: str) -> Item:
    return Item("1", {}, target)


@pytest.fixture(scope="module")
def mgsm() -> list[dict[str, str]]:
    if not (DATA / "mgsm_ja.tsv").is_file():
        pytest.skip("needs ../shared/data/mgsm_ja.tsv")
    source = Source.of(
        {"path": str(DATA / "mgsm_ja.tsv"), "columns": ["question", "answer"]}, "task.test"
    )
    return source.read("task.test")


def test_right_japanese_answers_to_mgsm_score_one(mgsm: list[dict[str, str]]) -> None:
    score = japanese_number()
    assert len(mgsm) == 250
    for row in mgsm:
        one = item(row["answer"])
        assert score(one, f"順に計算します。答えは{row['answer']}です。") == 1.0
        assert score(one, f"{row['question']}答えは{row['answer'].replace(',', '')}ドルです。") == 1


def test_right_english_answers_to_mgsm_score_zero(mgsm: list[dict[str, str]]) -> None:
    score = japanese_number()
    for row in mgsm:
        english = f"We compute step by step. The answer is {row['answer']}."
        assert score(item(row["answer"]), english) == 0.0
        assert number()(item(row["answer"]), english) == 1.0


def test_wrong_japanese_answers_to_mgsm_score_zero(mgsm: list[dict[str, str]]) -> None:
    score = japanese_number()
    for row in mgsm:
        wrong = int(row["answer"].replace(",", "")) + 1
        assert score(item(row["answer"]), f"答えは{wrong}です。") == 0.0
        assert score(item(row["answer"]), f"答えは-{row['answer']}です。") == 0.0
        assert score(item(row["answer"]), "答えはわかりません。") == 0.0


def test_the_known_bugs_of_the_released_extractor() -> None:
    score = japanese_number()
    assert score(item("200"), "答えは1,200です。") == 0.0
    assert score(item("5"), "答えは-5です。") == 0.0


def test_a_target_without_a_number_is_reported_and_never_met() -> None:
    assert number()(item("many"), "no number at all") == 0.0
    said = number().check(item("many"))
    assert said is not None and "many" in said
    assert number().check(item("18")) is None


def test_exact_compares_normalised_texts() -> None:
    score = exact()
    assert score(item("ＡＢＣ　１"), " ABC 1\n") == 1.0
    assert score(item("abc"), "ABC") == 0.0
    assert score.check(item("  ")) is not None


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan"), "0.5", True])
def test_a_threshold_must_be_a_probability(threshold: float) -> None:
    with pytest.raises(TaskError, match="threshold"):
        japanese_number(threshold)


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_scorers_are_made_from_names_and_travel(name: str) -> None:
    made = make_scorer(name)
    assert made == make_scorer({"_target_": f"evomerge.tasks.scorers.{name}"})
    assert make_scorer(made) is made
    assert copy.deepcopy(made) == made


@pytest.mark.parametrize(
    "spec", ["nothing", None, 3, {"_target_": "os.system"}, {"_target_": "exact", "cutoff": 1}]
)
def test_unknown_scorers_are_refused(spec: object) -> None:
    with pytest.raises(TaskError) as caught:
        make_scorer(spec, "task.scorer")
    assert caught.value.problems[0].field == "task.scorer"
