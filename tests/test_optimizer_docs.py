"""docs/optimizers.md keeps step with the optimisers and their YAML files."""

import re
from pathlib import Path

import pytest
import yaml

from evomerge.build import load_target

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "optimizers.md"
FILES = sorted((ROOT / "conf" / "optimizer").glob("*.yaml"))


def chapter(name):
    text = PAGE.read_text(encoding="utf-8")
    return re.search(rf"^## {name}$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]


def section(name):
    text = chapter("Settings")
    found = re.search(rf"^### {name}$(.*?)(?=^##|\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"no section on {name}"
    return found[1]


def settings(file):
    node = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {key: value for key, value in node.items() if key != "_target_"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_setting_is_described(file):
    text = section(file.stem)
    assert [key for key in settings(file) if f"`{key}`" not in text] == []


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_tables_of_settings_have_the_defaults_of_the_yaml(file):
    own = settings(file)
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", section(file.stem), re.MULTILINE)
    assert {key for key, _ in rows} <= set(own)
    for key, default in rows:
        expected = own[key]
        shown = yaml.safe_load(default.split(":")[0])
        assert shown == expected, f"{file.stem}.{key}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_table_says_what_the_class_takes(file):
    node = yaml.safe_load(file.read_text(encoding="utf-8"))
    target = load_target(node, "optimizer")
    text = chapter("All of them")
    [row] = re.findall(rf"^\| `{file.stem}` \|(.*)\|$", text, re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[1] == ("yes" if target.multi_objective else "no")
    if "steady_state" in node:
        assert cells[2] == "`steady_state`"
    else:
        assert cells[2] == ("yes" if target.asynchronous else "no")


def test_nothing_else_is_described():
    text = chapter("Settings")
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) == {f.stem for f in FILES}
