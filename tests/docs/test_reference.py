"""docs/configuration.md is what the code says, and what it says is so."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml

from evomerge.cli import compose_config
from evomerge.config import FREE_KEYS, Config
from evomerge.reference import described, page

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "configuration.md"
OPTIONS = sorted(p for p in (ROOT / "conf").glob("*/*.yaml"))


@pytest.fixture(scope="module")
def text() -> str:
    return page()


def test_the_page_is_in_step_with_the_code(text: str) -> None:
    assert PAGE.read_text(encoding="utf-8") == text, (
        "run: python -m evomerge.reference > docs/configuration.md"
    )


def test_every_key_of_the_schema_is_described() -> None:
    told = described(Config, "Attributes")
    assert list(told) == [f.name for f in fields(Config)]
    assert set(FREE_KEYS) <= set(told)
    for field in fields(Config):
        below = getattr(Config(), field.name)
        if is_dataclass(below):
            said = type(below).__doc__ or ""
            long = [f.name for f in fields(below) if len(fields(below)) > 3]
            assert said and (not long or len(said) > 40)


def test_defaults_are_those_of_a_composed_study(text: str) -> None:
    """Hydra composes the truth; the experiment's own keys are left out."""
    composed = compose_config(["+experiment=jp_math_tiny"])
    own = {"models.base", "models.sources", "engine.max_model_len", "controls.recipes"}
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| [^|]* \| `?([^|]*?)`? \|$", text, re.MULTILINE)
    assert len(rows) > 25
    for section, key, default in rows:
        if f"{section}.{key}" not in own:
            assert yaml.safe_load(default) == composed[section][key], f"{section}.{key}"


@pytest.mark.parametrize("path", OPTIONS, ids=lambda p: f"{p.parent.name}={p.stem}")
def test_every_choice_is_there(path: Path, text: str) -> None:
    group, name = path.parent.name, path.stem
    if f"#### {group}={name}\n" in text:
        assert path.read_text(encoding="utf-8").strip() in text
    else:
        part = text[text.index(f"{group}=NAME\n") :]
        [said] = re.findall(rf"^\| `{name}` \| (.*) \|$", part.partition("\n### ")[0], re.MULTILINE)
        assert len(said) > 10


def test_a_docstring_is_taken_apart() -> None:
    class Example:
        """Says something.

        Attributes:
            one: is first,
                and goes on.
            two: is last: really.

        Raises:
            KeyError: never.
        """

    assert described(Example, "Attributes") == {
        "one": "is first, and goes on.",
        "two": "is last: really.",
    }
