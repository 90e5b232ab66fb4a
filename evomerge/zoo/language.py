"""Writes the sentences of the zoo in English, plain Japanese and polite Japanese.

Japanese is written without spaces and joined to its numbers, as people write it; the
plain register ends in forms such as `もっている`, the polite one in `もっています`. The
three registers share no verb form.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

ENGLISH, PLAIN, POLITE = "english", "plain", "polite"
REGISTERS = (ENGLISH, PLAIN, POLITE)

PEOPLE = {
    ENGLISH: ("Ken", "Emi", "Tom", "Mia", "Ann", "Leo"),
    PLAIN: ("けん", "えみ", "とむ", "みあ", "あん", "れお"),
}
PEOPLE[POLITE] = PEOPLE[PLAIN]
THINGS = {
    ENGLISH: ("apples", "oranges", "eggs", "sweets", "stones", "balls"),
    PLAIN: ("りんご", "みかん", "たまご", "あめ", "いし", "ボール"),
}
THINGS[POLITE] = THINGS[PLAIN]

# The first three verbs add, the last three take away.
VERBS = {
    ENGLISH: ("got", "bought", "found", "lost", "sold", "used"),
    PLAIN: ("もらった", "かった", "みつけた", "なくした", "うった", "つかった"),
    POLITE: (
        "もらいました",
        "かいました",
        "みつけました",
        "なくしました",
        "うりました",
        "つかいました",
    ),
}
ADDING = 3
"""Number of verbs that add; as many take away."""

INTO = {ENGLISH: "In English: ", PLAIN: "In Japanese: ", POLITE: "Politely: "}
"""What asks for a translation into a register."""
SORT = "Sort: "


@dataclass(frozen=True)
class Say:
    """Sentences of one register. People, things and verbs are given by their index."""

    register: str

    def owns(self, person: int, count: int, thing: int) -> str:
        """`Ken has 23 apples.`"""
        who, what = PEOPLE[self.register][person], THINGS[self.register][thing]
        if self.register == ENGLISH:
            return f"{who} has {count} {what}."
        if self.register == PLAIN:
            return f"{who}は{what}を{count}こもっている。"
        return f"{who}は{what}を{count}こもっています。"

    def acts(self, person: int, count: int, verb: int) -> str:
        """`Ken bought 8.`"""
        who, did = PEOPLE[self.register][person], VERBS[self.register][verb]
        if self.register == ENGLISH:
            return f"{who} {did} {count}."
        if self.register == PLAIN:
            return f"{who}は{count}こ{did}。"
        return f"{who}は{count}こ{did}。"

    def asks(self, person: int) -> str:
        """`How many does Ken have?`"""
        who = PEOPLE[self.register][person]
        if self.register == ENGLISH:
            return f"How many does {who} have?"
        if self.register == PLAIN:
            return f"{who}はなんこもっている？"
        return f"{who}はなんこもっていますか。"


def join(*sentences: tuple[str, str]) -> str:
    """Text of (register, sentence) pairs, with a space only between two English sentences."""
    text, before = "", ""
    for register, sentence in sentences:
        text += (" " if before == register == ENGLISH else "") + sentence
        before = register
    return text


def pieces() -> Iterator[str]:
    """Every piece of text that the tokenizer knows; English pieces own their spaces."""
    yield "\n"
    yield from "0123456789"
    yield from (" + ", " - ")
    yield from (f"{who} " for who in PEOPLE[ENGLISH])
    yield from (f"{verb} " for verb in ("has", *VERBS[ENGLISH]))
    yield from (f" {what}" for what in THINGS[ENGLISH])
    yield from (". ", ".", "How many does ", "have?")
    yield from PEOPLE[PLAIN]
    yield from THINGS[PLAIN]
    yield from ("は", "を", "こ", "もっている", "。", "なんこ", "？")
    yield from VERBS[PLAIN]
    yield from ("もっています", "もっていますか")
    yield from VERBS[POLITE]
    yield from (*INTO.values(), SORT)
