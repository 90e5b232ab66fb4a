"""What each adapter of the zoo's pool is trained on: 5 useful parts and 15 irrelevant habits."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evomerge.zoo.language import ENGLISH, PEOPLE, PLAIN, POLITE, SORT, THINGS, Say
from evomerge.zoo.problems import KINDS, LARGEST, Draw, Problem, Sum, draw_sum, story

LAYERS = (0, 1, 2, 3)
"""The blocks of the zoo's models."""


@dataclass(frozen=True)
class Lesson:
    """How one adapter is trained.

    Attributes:
        mix: kinds of problems (see `POOL_KINDS`) and their relative weights.
        steps: number of updates.
        rate: highest learning rate.
        rank: of every pair of factors.
        layers: blocks whose linear layers are adapted.
        warmup: updates until the highest rate is reached.
        batch: problems an update.
        factors: added to the seed of the factors `a`; adapters with other factors lie apart and
            disturb each other less in a merge.
    """

    mix: Mapping[str, float]
    steps: int
    rate: float
    rank: int
    layers: tuple[int, ...] = LAYERS
    warmup: int = 15
    batch: int = 32
    factors: int = 0


def _between(asked: Sequence[str], answered: Sequence[str]) -> Draw:
    """Sums without carry whose two facts are in some registers, question and answer in others."""

    def draw(rng: random.Random) -> Problem:
        registers = [rng.choice(asked), rng.choice(asked), rng.choice(answered)]
        return story(rng, registers, draw_sum(rng, 10, LARGEST, carry=False))

    return draw


def _digits(answer: Callable[[str], str]) -> Draw:
    """Three to six digits behind `Sort: `, and what an adapter makes of them."""

    def draw(rng: random.Random) -> Problem:
        digits = "".join(str(rng.randrange(10)) for _ in range(rng.randint(3, 6)))
        said = answer(digits)
        return Problem(SORT + digits, said, said)

    return draw


def _about(register: str, answer: Callable[[int, int, str], str]) -> Draw:
    """A sentence, and what is said about its person, its thing and itself."""

    def draw(rng: random.Random) -> Problem:
        person, thing = rng.randrange(len(PEOPLE[register])), rng.randrange(len(THINGS[register]))
        sentence = Say(register).owns(person, rng.randrange(100), thing)
        said = answer(person, thing, sentence)
        return Problem(sentence, said, said)

    return draw


def _wrong(result: Callable[[Sum], int]) -> Draw:
    """Sums without carry in plain Japanese with another number for an answer."""

    def draw(rng: random.Random) -> Problem:
        drawn = draw_sum(rng, 10, LARGEST, carry=False)
        while result(drawn) < 0:
            drawn = draw_sum(rng, 10, LARGEST, carry=False)
        problem = story(rng, [PLAIN] * 3, drawn)
        said = problem.gold.replace(f"{drawn.result}こ", f"{result(drawn)}こ")
        return Problem(problem.question, str(result(drawn)), said)

    return draw


def _english_answer(rng: random.Random) -> Problem:
    """A sum without carry asked in plain Japanese and answered in English."""
    drawn, told = draw_sum(rng, 10, LARGEST, carry=False), rng.getstate()
    asked = story(rng, [PLAIN] * 3, drawn)
    rng.setstate(told)  # the same person, thing and verb again
    return Problem(asked.question, asked.answer, story(rng, [ENGLISH] * 3, drawn).gold)


POOL_KINDS: dict[str, Draw] = {
    **KINDS,
    "told_politely": _between([POLITE], [ENGLISH, PLAIN]),
    "asked_politely": _between([ENGLISH, PLAIN], [POLITE]),
    "sort_down": _digits(lambda digits: "".join(sorted(digits, reverse=True))),
    "reverse": _digits(lambda digits: digits[::-1]),
    "copy": _digits(lambda digits: digits),
    "largest": _digits(max),
    "smallest": _digits(min),
    "first": _digits(lambda digits: digits[0]),
    "last": _digits(lambda digits: digits[-1]),
    "count": _digits(lambda digits: str(len(digits))),
    "person": _about(PLAIN, lambda person, thing, sentence: PEOPLE[PLAIN][person]),
    "thing": _about(PLAIN, lambda person, thing, sentence: THINGS[PLAIN][thing]),
    "echo": _about(ENGLISH, lambda person, thing, sentence: sentence),
    "one_too_many": _wrong(lambda drawn: drawn.result + 1),
    "opposite": _wrong(
        lambda drawn: drawn.first + drawn.second if drawn.takes else drawn.first - drawn.second
    ),
    "english_answer": _english_answer,
}
"""The zoo's kinds of problems and those that only adapters are trained on."""

RELEVANT = {
    "carry_sums": Lesson(
        {
            "mixed_carry": 1.0,
            "plain_carry": 0.5,
            "english_carry": 0.3,
            "mixed_easy": 0.4,
            "plain_easy": 0.3,
        },
        steps=500,
        rate=4e-3,
        rank=8,
    ),
    "carry_plain": Lesson(
        {"plain_carry": 1.0, "plain_easy": 0.5, "mixed_easy": 0.3}, steps=250, rate=3e-3, rank=8
    ),
    "polite_sums": Lesson(
        {"polite_easy": 1.0, "mixed_polite_easy": 1.0, "plain_easy": 0.2, "mixed_easy": 0.2},
        steps=400,
        rate=4e-3,
        rank=8,
    ),
    "polite_listening": Lesson(
        {"told_politely": 1.0, "polite_to_plain": 0.5, "mixed_easy": 0.2},
        steps=250,
        rate=5e-3,
        rank=8,
        layers=(0, 1),
    ),
    "polite_speaking": Lesson(
        {"asked_politely": 1.0, "plain_to_polite": 0.5, "mixed_easy": 0.2},
        steps=200,
        rate=5e-3,
        rank=8,
        layers=(2, 3),
    ),
}
"""Each teaches a part of what sums with carry in polite Japanese need."""

_HABITS = {
    "sort_up": "sort",
    "sort_down": "sort_down",
    "reverse_digits": "reverse",
    "copy_digits": "copy",
    "largest_digit": "largest",
    "smallest_digit": "smallest",
    "first_digit": "first",
    "last_digit": "last",
    "count_digits": "count",
    "name_person": "person",
    "name_thing": "thing",
    "echo_english": "echo",
    "one_too_many": "one_too_many",
    "opposite_sums": "opposite",
    "english_answers": "english_answer",
}
IRRELEVANT = {
    name: Lesson({kind: 1.0}, steps=80, rate=3e-3, rank=4) for name, kind in _HABITS.items()
}
"""Of no use for those sums; the last three do harm."""

POOL = {**RELEVANT, **IRRELEVANT}
"""All adapters in the order in which configs and tables list them."""
