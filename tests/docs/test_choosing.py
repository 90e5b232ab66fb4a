"""The figures of docs/choosing.md are those of the pages that it names, and so are its settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/choosing.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (Optimisers.*?|Estimators)\n(.*?)(?=^## |\Z)", TEXT, re.S | re.M)
NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)+")


def sources(text: str) -> str:
    """The pages that a text links to, and what the text of this repository says of the same."""
    paths = re.findall(r"\]\((\.\./[^)#]+)", text)
    assert paths
    return "".join((ROOT / "docs" / path).read_text(encoding="utf-8") for path in paths)


@pytest.mark.parametrize(("title", "text"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_figures_are_those_of_the_pages(title: str, text: str) -> None:
    known = set(NUMBER.findall(sources(text)))
    shown = NUMBER.findall(text)
    assert len(shown) > 10
    assert [n for n in shown if n not in known] == []


def test_the_short_answers_repeat_figures_of_the_page() -> None:
    head, _, rest = TEXT.partition("## Optimisers on merges")
    elsewhere = ("experiments/map_tiny/README.md", "experiments/m2n2_digits/README.md",
                 "experiments/pareto_tiny/README.md", "benchmarks/optimizers.md")  # fmt: skip
    known = rest + "".join((ROOT / p).read_text(encoding="utf-8") for p in elsewhere)
    assert [n for n in NUMBER.findall(head) if n not in known] == []


def test_every_optimiser_and_estimator_is_on_the_page() -> None:
    names = [p.stem for g in ("optimizer", "racing") for p in (ROOT / "conf" / g).glob("*.yaml")]
    absent = [n for n in names if f"`{n}`" not in TEXT and f"={n}" not in TEXT and n != "none"]
    assert absent == []
    estimators = [p.stem for p in (ROOT / "conf/estimator").glob("*.yaml")]
    assert [n for n in estimators if n != "anchors" and f"estimator={n}" not in TEXT] == []


def test_settings_of_the_page_exist() -> None:
    for group, name in re.findall(r"\b(optimizer|estimator|racing|space)=(\w+)", TEXT):
        assert (ROOT / "conf" / group / f"{name}.yaml").is_file(), f"{group}={name}"
