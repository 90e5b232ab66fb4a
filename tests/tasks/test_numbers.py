"""The last number of an answer: examples by the module's rules, and properties."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.tasks.numbers import last_number

EXAMPLES = [
    ("18ドルです。", "18"),
    ("18%", "18"),
    ("$18.00", "18"),
    ("¥1,200", "1200"),
    ("1,200", "1200"),
    ("答えは1,200円です。", "1200"),
    ("-5", "-5"),
    ("答えは-5です", "-5"),
    ("答えは−5です。", "-5"),
    ("答えは：－５", "-5"),
    ("x = -5.", "-5"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("$-5$", "-5"),
    ("-\\$1,200.50", "-1200.5"),
    ("\\boxed{-3}", "-3"),
    ("¥-1,200", "-1200"),
    ("10-5", "5"),
    ("10 -5", "5"),
    ("10 - 5", "5"),
    ("(3+4)-5", "5"),
    ("100%-5", "5"),
    ("10万-5", "5"),
    ("A-5", "5"),
    ("COVID-19", "19"),
    ("--5", "5"),
    ("2024-05-06", "6"),
    ("first\n-5 degrees", "-5"),
    ("3.50", "3.5"),
    ("３．５", "3.5"),
    ("It is 18.", "18"),
    ("18。", "18"),
    ("１，２００円", "1200"),
    ("$.50", "0.5"),
    ("1.2.3", "3"),
    ("...18", "18"),
    ("おわり.18", "18"),
    ("-.5", "-0.5"),
    ("#### 2,125", "2125"),
    ("1,450,000", "1450000"),
    ("1234,567", "567"),
    ("1,2345", "2345"),
    ("1,20,000", "20000"),
    ("1,200,30", "30"),
    ("3, 4, 5", "5"),
    ("1{,}200", "1200"),
    ("1\\,200", "1200"),
    ("8万ドル", "80000"),
    ("1億2,000万人", "120000000"),
    ("1万5000", "15000"),
    ("2.5万", "25000"),
    ("5,000円と3万", "30000"),
    ("3万 20", "20"),
    ("-2万", "-20000"),
    ("1/2", "2"),
    ("0", "0"),
    ("-0", "0"),
    ("16 - 3 - 4 = 9、9 * 2 = 18。よって18ドル", "18"),
]


@pytest.mark.parametrize(("text", "expected"), EXAMPLES)
def test_reads_the_last_number(text: str, expected: str) -> None:
    assert last_number(text) == Decimal(expected)


@pytest.mark.parametrize("text", ["", "十八", "答えはありません。", "-", "$,.", "．。"])
def test_finds_no_number(text: str) -> None:
    assert last_number(text) is None


@settings(deadline=None)
@given(
    number=st.decimals(
        min_value=-(10**9), max_value=10**9, allow_nan=False, allow_infinity=False, places=2
    ),
    style=st.sampled_from(["{:f}", "{:,f}"]),
    frame=st.sampled_from(
        ["{}", "{}です。", "答えは{}円", "1 2 3 = {}.", "The answer is: {} eggs"]
    ),
    wide=st.booleans(),
    before=st.one_of(st.text(), st.integers(0, 500).map(lambda n: "7 " * n)),
)
def test_reads_what_python_formats(
    number: Decimal, style: str, frame: str, wide: bool, before: str
) -> None:
    written = style.format(number)
    if wide:
        written = written.translate({ord(c): ord(c) + 0xFEE0 for c in "0123456789,.-"})
    assert last_number(frame.format(written)) == number
    assert last_number(before + "は" + frame.format(written)) == number


@settings(deadline=None)
@given(st.text(alphabet="0123456789,.-$万億 a円", max_size=40))
def test_a_number_is_found_if_and_only_if_there_is_a_digit(text: str) -> None:
    found = last_number(text)
    assert (found is not None) == any(char.isdigit() for char in text)
    assert found is None or found.is_finite()


@settings(deadline=None)
@given(st.text(max_size=60))
def test_text_without_digits_after_a_number_changes_nothing(text: str) -> None:
    tail = "".join(c for c in text if not c.isdecimal() and c not in "万萬億兆")
    assert last_number("18 " + tail) == 18


@pytest.mark.parametrize(
    "text",
    [
        "1" * 100_000,
        "1,111" * 20_000,
        "1,111," * 17_000,
        "," * 100_000 + "5",
        " " * 100_000 + "-5",
        "10" + " " * 100_000 + "-5",
        "-" * 100_000 + "5",
        "1億" * 50_000,
        "1兆1億1万1" * 14_000,
        "1." * 50_000,
        "{,}" * 33_000 + "1",
        "1{,}" * 25_000,
    ],
    ids=range(12),
)
def test_long_adversarial_texts_take_no_time(text: str) -> None:
    started = time.perf_counter()
    assert last_number(text) is not None
    assert time.perf_counter() - started < 0.5  # quadratic behaviour would take minutes


def test_numbers_longer_than_any_context_are_exact() -> None:
    digits = "7" * 5000
    assert last_number(f"-{digits}万") == Decimal(f"-{digits}0000")
