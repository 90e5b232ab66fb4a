"""Finds the last number of an answer.

"The last number is the answer" is the rule of arXiv 2403.13187 for grade-school mathematics. Its
released extractor reads "1,200" as 200 and "-5" as 5. The rules here:

- Full-width digits, commas, full stops and signs count as their ASCII forms.
- A comma groups only after one to three digits and before exactly three: "1,200" is 1200,
  "1234,567" and "1,2345" are two numbers each. An Indian "1,20,000" is therefore read as 20000,
  and an unspaced list such as "100,200" as 100200. The forms `1{,}200` and `1\\,200` of LaTeX
  group as well; spaces, apostrophes and dots never do.
- A full stop makes a decimal only when a digit follows: "3.50" equals 3.5, "18." is 18. Without
  a digit before it, it must follow a space, a sign, a bracket or a currency: "$.50", not "...50".
- A hyphen or minus sign counts when it touches the number, or the currency sign before it, unless
  it follows a number, a closing bracket, a percent sign or a letter that is not Japanese: "-5",
  "答えは-5" and "= -$5" are negative; "10-5", "10 -5", "A-5" and "--5" are not.
- The Japanese myriads multiply what precedes them: "8万" is 80000, "1億2,000万" is 120000000.
  The paper's extractor reads 8 and 2000 there. Numbers written in kanji only ("十八") are not read.
- Anything else around a number is a unit or a word: "18%", "¥1,200です。", "18ドル".
- Fractions, exponents, times and dates are not understood; of "1/2" the last number is 2.
"""

from __future__ import annotations

import re
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal

_FOLD = str.maketrans(
    {
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
        "\uff0c": ",",  # full-width comma
        "\uff0e": ".",  # full-width full stop
        "\uff0d": "-",  # full-width hyphen-minus
        "\ufe63": "-",  # small hyphen-minus
        "\u2212": "-",  # minus sign
    }
)
_DIGITS = "0123456789" + "".join(chr(0xFF10 + digit) for digit in range(10))
_ZONE = frozenset(_DIGITS + ",.{}\\万萬億兆\uff0c\uff0e")  # what a number is made of
_CONTEXT = 72  # characters before a number that may decide on its sign
_LATEX_GROUP = re.compile(r"(?<=[0-9])(?:\{,\}|\\,)(?=[0-9])")
# Each alternative consumes a whole run of digits, so that the search is linear in the text.
_NUMBER = re.compile(
    r"(?:(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?P<part>\.[0-9]+)?"
    r"|(?<![^\s$¥€£(\[{=+*/:-])(?P<bare>\.[0-9]+))"
    r"(?P<unit>[万萬億兆])?"
)
_MYRIADS = {"万": 4, "萬": 4, "億": 8, "兆": 12}
_CURRENCY = "$¥€£\uffe5\uff04"
_AFTER_NUMBER = ")]}%\uff09\uff3d\uff5d\uff05万萬億兆"
_JAPANESE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uff66-\uff9f\u3005\u3007]")


def last_number(text: str) -> Decimal | None:
    """The last number in a text, exactly; None if it holds none.

    Args:
        text: any text, of any length; the time taken is linear in it.

    Returns:
        The number as a `Decimal`, whose comparison ignores trailing zeros (3.50 equals 3.5).

    Source: rule of arXiv 2403.13187, section 4.1; see the module for where this departs.
    """
    folded = _LATEX_GROUP.sub(",", _tail(text).translate(_FOLD))
    chain: list[re.Match[str]] = []  # the matches that form one number, such as 1億 2,000万
    for match in _NUMBER.finditer(folded):
        if not (chain and _continues(chain[-1], match)):
            chain.clear()
        chain.append(match)
    if not chain:
        return None
    sign = "-" if _is_negative(folded, chain[0].start()) else ""
    digits = sum(len(match.group()) for match in chain) + 16
    context = Context(prec=digits, Emax=MAX_EMAX, Emin=MIN_EMIN)
    total = Decimal(0)
    for match in chain:
        total = context.add(total, _value(match))
    return Decimal(f"{sign}{total}") if total else Decimal(0)


def _tail(text: str) -> str:
    """The part of a text that decides on its last number: its digits and what is just before."""
    last = max(text.rfind(digit) for digit in _DIGITS)
    start = last
    while start > 0 and text[start - 1] in _ZONE:
        start -= 1
    return text[max(0, start - _CONTEXT) : last + 2]


def _value(match: re.Match[str]) -> Decimal:
    """The value of one match with its unit, exactly."""
    whole, part, bare, unit = match.group("whole", "part", "bare", "unit")
    digits = bare if bare is not None else whole.replace(",", "") + (part or "")
    return Decimal(f"{digits}E{_MYRIADS.get(unit, 0)}")


def _continues(previous: re.Match[str], match: re.Match[str]) -> bool:
    """Whether two neighbouring matches are one number: 1億2000万, 1万5000."""
    unit = previous.group("unit")
    if unit is None or previous.end() != match.start() or match.group("bare"):
        return False
    return _MYRIADS.get(match.group("unit"), 0) < _MYRIADS[unit]


def _is_negative(text: str, start: int) -> bool:
    """Whether the number that starts at `start` carries a minus sign; see the module's rules."""
    at = start - 1
    if at >= 0 and text[at] in _CURRENCY:
        at -= 1
        if at >= 0 and text[at] == "\\":  # LaTeX writes \$
            at -= 1
    if at < 0 or text[at] != "-":
        return False
    if at == 0:
        return True
    before = text[at - 1]
    if before in " \t\u3000":
        line = text.rfind("\n", 0, at) + 1
        before = text[max(line, at - _CONTEXT + 8) : at].rstrip(" \t\u3000")[-1:]
        return not before or not (before.isdigit() or before in _AFTER_NUMBER)
    if before == "-" or before in _AFTER_NUMBER or before.isdigit():
        return False
    return not before.isalpha() or _JAPANESE.match(before) is not None
