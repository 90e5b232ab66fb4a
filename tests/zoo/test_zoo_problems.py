"""The arithmetic of the problems, worked out again from their text."""

from __future__ import annotations

import random
import re

import pytest

from evomerge.zoo.language import ADDING, INTO, PEOPLE, REGISTERS, VERBS
from evomerge.zoo.problems import KINDS, Problem, Sum, draw_sum

MANY = 200
NAMES = "|".join(name for names in PEOPLE.values() for name in names)


def drawn(kind: str) -> list[Problem]:
    rng = random.Random(7)
    return [KINDS[kind](rng) for _ in range(MANY)]


def numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text)]


def takes(question: str) -> bool:
    """Whether the verb of a story takes away; longest match, as かった is part of つかった."""
    found = [
        (len(verb), i)
        for verbs in VERBS.values()
        for i, verb in enumerate(verbs)
        if verb in question
    ]
    return max(found)[1] >= ADDING


@pytest.mark.parametrize("register", [*REGISTERS, "mixed", "mixed_polite"])
@pytest.mark.parametrize("size", ["digit", "easy", "carry"])
def test_stories_add_up(register: str, size: str) -> None:
    for problem in drawn(f"{register}_{size}"):
        first, second = numbers(problem.question)
        minus = takes(problem.question)
        assert int(problem.answer) == (first - second if minus else first + second) >= 0
        assert numbers(problem.gold) == [int(problem.answer)]
        ones = first % 10 - second % 10 if minus else first % 10 + second % 10
        if size != "digit":
            assert (ones < 0 or ones > 9) == (size == "carry")
            assert first >= 10


@pytest.mark.parametrize("register", REGISTERS)
def test_reading_copies_the_sentence_of_the_one_asked_for(register: str) -> None:
    for problem in drawn(f"{register}_read"):
        who = re.findall(NAMES, problem.question)[-1]
        assert problem.gold in problem.question
        assert problem.gold.startswith(who)


def test_translation_keeps_the_numbers() -> None:
    for source in REGISTERS:
        for target in set(REGISTERS) - {source}:
            for problem in drawn(f"{source}_to_{target}"):
                assert problem.question.startswith(INTO[target])
                assert numbers(problem.question) == numbers(problem.gold)


def test_sorting_and_equations() -> None:
    for problem in drawn("sort"):
        digits = problem.question.removeprefix("Sort: ")
        assert list(problem.answer) == sorted(digits)
        assert 3 <= len(digits) <= 6
    for problem in drawn("equation") + drawn("equation_carry"):
        assert eval(problem.question) == int(problem.answer)


@pytest.mark.parametrize(
    ("drawn_sum", "result", "carries"),
    [
        (Sum(23, 8, False), 31, True),
        (Sum(23, 6, False), 29, False),
        (Sum(23, 8, True), 15, True),
        (Sum(28, 8, True), 20, False),
    ],
)
def test_sum(drawn_sum: Sum, result: int, carries: bool) -> None:
    assert (drawn_sum.result, drawn_sum.carries) == (result, carries)


def test_draw_sum_keeps_to_its_range() -> None:
    rng = random.Random(1)
    for carry in (None, True, False):
        for _ in range(MANY):
            one = draw_sum(rng, 10, 29, carry)
            assert 10 <= one.first <= 29
            assert 1 <= one.second <= 29
            assert 0 <= one.result <= 58
            assert carry in (None, one.carries)
