"""Licences of parents: where they are read, what they mean together, and that the card says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from evomerge.report.card import model_card
from evomerge.report.licences import Parent, licence_flags, merged_licence
from evomerge.report.model_files import read_licence

APACHE = "                                 Apache License\n        Version 2.0, January 2004\n"
NC = "Attribution-NonCommercial 4.0 International\n\nCreative Commons Corporation is not a law firm"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, ("", "")),
        ({"README.md": "---\nlicense: apache-2.0\n---\n# x"}, ("apache-2.0", "README.md")),
        (
            {"README.md": "---\nlicense: other\nlicense_name: llama3.1\n---\n"},
            ("llama3.1", "README.md"),
        ),
        ({"README.md": "---\nlicense:\n- mit\n- cc0-1.0\n---\n"}, ("mit and cc0-1.0", "README.md")),
        ({"README.md": "---\n: [\n---\n", "LICENSE": APACHE}, ("apache-2.0", "LICENSE")),
        (
            {"README.md": "# license: mit\n", "config.json": '{"license": "mit"}'},
            ("mit", "config.json"),
        ),
        ({"config.json": "{}", "LICENSE.txt": NC}, ("cc-by-nc-4.0", "LICENSE.txt")),
        ({"COPYING": "all rights reserved"}, ("other", "COPYING")),
        ({"LICENSE": "META LLAMA 3 COMMUNITY LICENSE AGREEMENT"}, ("llama3", "LICENSE")),
    ],
)  # fmt: skip
def test_the_licence_is_read_from_the_models_own_files(
    tmp_path: Path, files: dict[str, str], found: tuple[str, str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert read_licence(tmp_path) == found


def parents(*licences: str) -> list[Parent]:
    return [Parent(f"m{i}", licence=licence) for i, licence in enumerate(licences)]


@pytest.mark.parametrize(
    ("licences", "words", "merged"),
    [
        (("apache-2.0", "apache-2.0"), (), "apache-2.0"),
        (("apache-2.0", "MIT"), (), ["apache-2.0", "mit"]),
        (("apache-2.0", "llama3"), (), "llama3"),
        (("apache-2.0", ""), ("No licence was found of m1",), "other"),
        (("mit", "other"), ("No licence was found of m1",), "other"),
        (("mit", "cc-by-nc-4.0"), ("Not for commercial use: m1 (cc-by-nc-4.0)",), "cc-by-nc-4.0"),
        (("mit", "qwen-research"), ("Not for commercial use: m1",), "qwen-research"),
        (("mit", "cc-by-nd-4.0"), ("May not be changed",), "cc-by-nd-4.0"),
        (("cc-by-nc-nd-4.0",), ("Not for commercial", "May not be changed"), "cc-by-nc-nd-4.0"),
        (("llama3", "gemma"), ("may exclude one another: m0 (llama3), m1 (gemma)",), "other"),
        (("gpl-3.0", "cc-by-nc-4.0"), ("Not for commercial", "may exclude"), "other"),
        (("gpl-3.0", "gpl-3.0", "mit"), (), "gpl-3.0"),
    ],
)
def test_what_licences_mean_together(
    licences: tuple[str, ...], words: tuple[str, ...], merged: str | list[str]
) -> None:
    flags = licence_flags(parents(*licences))
    assert len(flags) == len(words)
    assert all(word in flag for word, flag in zip(words, flags, strict=True))
    assert merged_licence(parents(*licences)) == merged


def test_the_card_says_whose_licence_stands_against_it() -> None:
    parent = Parent("evil|<b>*x*", "a" * 40, "f" * 64, "cc-by-nc-4.0", "README.md")
    card = model_card({}, "a: b", parents=[parent, Parent("good", licence="mit")])
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "cc-by-nc-4.0"
    assert yaml.safe_load(head)["base_model"] == ["evil|<b>*x*", "good"]
    assert "> **Licence warning.**" in body and "<b>" not in body
    assert r"evil\|&lt;b&gt;\*x\*" in body and f"`{'f' * 12}`" in body and "a" * 40 in body


def test_the_card_has_no_warning_where_nothing_stands_against_it() -> None:
    card = model_card({}, "a: b", parents=parents("mit", "mit"))
    assert "Licence warning" not in card and "license: mit" in card
