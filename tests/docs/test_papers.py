"""The figures of docs/papers.md are those of the pages beside them; its commands compose."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from evomerge.cli import compose_config

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/papers.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)+(?!\w|\.\d)")
HEADLINE = ("experiments/jp_math/README.md", "evomerge/zoo/README.md", "README.md")
COMMANDS = [
    line
    for line in TEXT.replace("\\\n", " ").split("\n")
    if re.match(r"    python -m evomerge (-m )?\+", line)
]


def test_figures_are_those_of_the_pages() -> None:
    """Of each section; arXiv numbers and versions are no figures."""
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        title = section.split("\n")[0]
        paths = [*re.findall(r"\]\((?:\.\./)([^)#]+)", section), *HEADLINE]
        known = set(NUMBER.findall("".join((ROOT / p).read_text("utf-8") for p in paths)))
        known |= {"0.1.5"}
        text = re.sub(r"arXiv \d{4}\.\d{5}|https://\S+", "", section)
        assert [n for n in NUMBER.findall(text) if n not in known] == [], title


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_composes(command: str) -> None:
    words = shlex.split(command, comments=True)[3:]
    swept = [w.partition(",")[0] for w in words if w != "-m"]
    own = [w for w in swept if not w.endswith(("=RUN", "=DIR"))]
    if "hybrid" in command:  # its first stage is not there
        own.append("models.sources.merge=models/merge")
    assert compose_config(own)["experiment"]


def test_every_experiment_is_on_the_page() -> None:
    names = {p.stem for p in (ROOT / "conf/experiment").glob("*.yaml")}
    assert {n for n in names if f"`{n}`" not in TEXT and f"={n}" not in TEXT} <= {"lm_eval_tiny"}
