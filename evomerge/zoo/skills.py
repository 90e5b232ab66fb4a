"""Five small skills of the base, each with a task and an adapter of its own.

Together with `en_math`, `polite` and `sort` they are eight tasks for eight sources. A prompt tells
which one is meant, in words that the tokenizer knows: it has no token for "reverse".
"""

from __future__ import annotations

import random
from collections.abc import Callable

from evomerge.zoo.language import ADDING, ENGLISH, INTO, PEOPLE, PLAIN, THINGS, VERBS, Say
from evomerge.zoo.lessons import Lesson
from evomerge.zoo.problems import Draw, Problem


def _digits(prompt: str, answer: Callable[[str], str]) -> Draw:
    """Three to six digits behind a prompt."""

    def draw(rng: random.Random) -> Problem:
        digits = "".join(str(rng.randrange(10)) for _ in range(rng.randint(3, 6)))
        said = answer(digits)
        return Problem(prompt + digits, said, said)

    return draw


def who(rng: random.Random) -> Problem:
    """A sentence in plain Japanese; the answer is the person in it."""
    say, person, number = Say(PLAIN), rng.randrange(len(PEOPLE[PLAIN])), rng.randrange(100)
    if rng.random() < 0.5:
        sentence = say.owns(person, number, rng.randrange(len(THINGS[PLAIN])))
    else:
        sentence = say.acts(person, number, rng.randrange(len(VERBS[PLAIN])))
    said = PEOPLE[PLAIN][person]
    return Problem("？" + sentence, said, said)


def undo(rng: random.Random) -> Problem:
    """An English sentence; the answer says the opposite, such as lost for got."""
    say, person, number = Say(ENGLISH), rng.randrange(len(PEOPLE[ENGLISH])), rng.randrange(100)
    verb = rng.randrange(len(VERBS[ENGLISH]))
    opposite = (verb + ADDING) % len(VERBS[ENGLISH])
    said = say.acts(person, number, opposite)
    return Problem(INTO[ENGLISH] + say.acts(person, number, verb), said, said)


SKILL_KINDS: dict[str, Draw] = {
    "greatest": _digits("found ", max),
    "how_many": _digits("How many does ", lambda digits: str(len(digits))),
    "final": _digits("used ", lambda digits: digits[-1]),
    "who": who,
    "undo": undo,
}
"""The problems of each skill; task, kind and adapter have one name."""

_KEPT = {
    "sort": 0.3,
    "english_easy": 0.2,
    "plain_easy": 0.2,
    "plain_to_english": 0.2,
    "english_to_plain": 0.2,
    "english_read": 0.1,
}
"""What the base knows: without it, an adapter answers every prompt in its own way."""

_STEPS = {"greatest": 240, "how_many": 180, "final": 180, "who": 120, "undo": 120}

SKILLS = {
    name: Lesson({name: 1.0, **_KEPT}, steps, 2e-3, rank=4, batch=40, factors=1000 * place)
    for place, (name, steps) in enumerate(_STEPS.items(), start=1)
}
"""How each skill's adapter is trained, in the order of configs and tables."""
