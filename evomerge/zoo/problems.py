"""Draws the problems of the zoo: word problems, reading, translation, equations, sorting."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evomerge.zoo.language import (
    ADDING,
    ENGLISH,
    INTO,
    PEOPLE,
    PLAIN,
    POLITE,
    REGISTERS,
    SORT,
    THINGS,
    VERBS,
    Say,
    join,
)

LARGEST = 29
"""The largest operand of a sum; so no answer has more than two digits."""


@dataclass(frozen=True)
class Problem:
    """A question, the answer that is compared, and the full text of a right answer."""

    question: str
    answer: str
    gold: str


@dataclass(frozen=True)
class Sum:
    """`first + second`, or `first - second` when `takes` is true."""

    first: int
    second: int
    takes: bool

    @property
    def result(self) -> int:
        return self.first - self.second if self.takes else self.first + self.second

    @property
    def carries(self) -> bool:
        """Whether working digit by digit needs a carry or a borrow."""
        ones, others = self.first % 10, self.second % 10
        return ones < others if self.takes else ones + others > 9


def draw_sum(rng: random.Random, low: int, high: int, carry: bool | None = None) -> Sum:
    """Draws a sum whose first operand is in [low, high] and whose second is in [1, high].

    Args:
        carry: True or False to ask for sums with or without carry or borrow, None for any.
    """
    while True:
        drawn = Sum(rng.randint(low, high), rng.randint(1, high), rng.random() < 0.5)
        if drawn.result >= 0 and carry in (None, drawn.carries):
            return drawn


def story(rng: random.Random, registers: Sequence[str], drawn: Sum) -> Problem:
    """A word problem: somebody has some things, gets or loses some, and has how many?

    Args:
        registers: of the three sentences; the answer is in that of the last.
    """
    owning, acting, asking = map(Say, registers)
    person, thing = rng.randrange(len(PEOPLE[PLAIN])), rng.randrange(len(THINGS[PLAIN]))
    verb = rng.randrange(ADDING) + (ADDING if drawn.takes else 0)
    question = join(
        (owning.register, owning.owns(person, drawn.first, thing)),
        (acting.register, acting.acts(person, drawn.second, verb)),
        (asking.register, asking.asks(person)),
    )
    return Problem(question, str(drawn.result), asking.owns(person, drawn.result, thing))


def reading(rng: random.Random, register: str) -> Problem:
    """Two people have things; the answer copies the sentence about the one asked for."""
    say = Say(register)
    people = rng.sample(range(len(PEOPLE[register])), 2)
    counts = rng.randrange(100), rng.randrange(100)
    thing = rng.randrange(len(THINGS[register]))
    owned = [say.owns(*pair, thing) for pair in zip(people, counts, strict=True)]
    chosen = rng.randrange(2)
    question = join(*((register, said) for said in (*owned, say.asks(people[chosen]))))
    return Problem(question, owned[chosen], owned[chosen])


def translation(rng: random.Random, source: str, target: str) -> Problem:
    """One sentence, said again in another register."""
    person, number = rng.randrange(len(PEOPLE[source])), rng.randrange(100)
    thing, verb = rng.randrange(len(THINGS[source])), rng.randrange(len(VERBS[source]))
    kind = rng.randrange(5)

    def render(register: str) -> str:
        say = Say(register)
        if kind < 2:
            return say.owns(person, number, thing)
        return say.acts(person, number, verb) if kind < 4 else say.asks(person)

    said = render(target)
    return Problem(INTO[target] + render(source), said, said)


def equation(rng: random.Random, drawn: Sum) -> Problem:
    """A sum in figures: `23 + 8`."""
    sign = "-" if drawn.takes else "+"
    answer = str(drawn.result)
    return Problem(f"{drawn.first} {sign} {drawn.second}", answer, answer)


def sorting(rng: random.Random) -> Problem:
    """Three to six digits, to be put in order."""
    digits = [str(rng.randrange(10)) for _ in range(rng.randint(3, 6))]
    answer = "".join(sorted(digits))
    return Problem(SORT + "".join(digits), answer, answer)


Draw = Callable[[random.Random], Problem]


def _catalogue() -> dict[str, Draw]:
    kinds: dict[str, Draw] = {
        "sort": sorting,
        "equation": lambda rng: equation(rng, draw_sum(rng, 1, LARGEST, carry=False)),
        "equation_carry": lambda rng: equation(rng, draw_sum(rng, 10, LARGEST, carry=True)),
    }
    for register in REGISTERS:
        kinds[f"{register}_read"] = lambda rng, one=register: reading(rng, one)  # type: ignore[misc]
        kinds |= _story_kinds(register, [register])
    kinds |= _story_kinds("mixed", [ENGLISH, PLAIN])
    kinds |= _story_kinds("mixed_polite", REGISTERS)
    for source in REGISTERS:
        for target in REGISTERS:
            if source != target:
                kinds[f"{source}_to_{target}"] = (
                    lambda rng, a=source, b=target: translation(rng, a, b)  # type: ignore[misc]
                )
    return kinds


def _story_kinds(name: str, registers: Sequence[str]) -> dict[str, Draw]:
    """Stories whose sentences are each in one of some registers, by the size of their sums."""

    def draw(low: int, high: int, carry: bool | None) -> Draw:
        return lambda rng: story(rng, rng.choices(registers, k=3), draw_sum(rng, low, high, carry))

    return {
        f"{name}_digit": draw(1, 9, None),
        f"{name}_easy": draw(10, LARGEST, False),
        f"{name}_carry": draw(10, LARGEST, True),
    }


KINDS: dict[str, Draw] = _catalogue()
"""Every kind of problem by name, e.g. `english_carry`, `plain_read`, `plain_to_polite`."""

TASK_KINDS = {
    "jp_math": f"{POLITE}_carry",
    "en_math": f"{ENGLISH}_carry",
    "polite": f"{PLAIN}_to_{POLITE}",
    "sort": "sort",
}
"""The kind of problem of each task; `jp_math` is never trained on."""
