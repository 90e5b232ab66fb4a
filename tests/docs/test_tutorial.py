"""docs/tutorial.md runs as it stands there, in an empty folder, with smaller budgets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from evomerge.journal import read_events

ROOT = Path(__file__).parents[2]
SMALLER = {
    "  items: 100  ": "  items: 6  ",
    "  candidates: 150": "  candidates: 3",
    "  random_search: false  ": (
        "  random_parents: false\n  greedy_soup: false\n  selective_merging: false\n"
        "  random_search: false  "
    ),
    "budget.candidates=40": "budget.candidates=3",
    "front.size=10": "front.size=2",
    "english_sums=0.95": "english_sums=0",
    'line in zoo_path(f"data/{source}.jsonl").open(encoding="utf-8")]': (
        'line in list(zoo_path(f"data/{source}.jsonl").open(encoding="utf-8"))[290:340]]\n'
        '    rows += [{**r, "question": r["question"] + "!", "split": "test"} for r in rows[:20]]'
    ),
}
"""What makes the page quick: text of it, and what stands there in this test."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is (or none), and its text."""

    language: str
    file: str
    text: str


def blocks() -> list[Block]:
    text = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
    found = re.finditer(
        r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$', text, re.DOTALL | re.MULTILINE
    )
    return [Block(m[1], m[2] or "", m[3]) for m in found]


def smaller(text: str) -> str:
    for old, new in SMALLER.items():
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything of the page was done."""
    folder = tmp_path_factory.mktemp("tutorial")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    for block in blocks():
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(smaller(block.text), encoding="utf-8")
        elif block.language == "sh":
            ran = subprocess.run(
                ["bash", "-euc", smaller(block.text)],
                cwd=folder, env=environment, capture_output=True, text=True, timeout=900,
            )  # fmt: skip
            assert ran.returncode == 0, f"{block.text}\n{ran.stdout}\n{ran.stderr}"
            (folder / "said.txt").open("a", encoding="utf-8").write(ran.stdout)
    return folder


def test_every_replacement_is_of_the_page() -> None:
    text = "".join(b.text for b in blocks())
    assert [old for old in SMALLER if old not in text] == []


@pytest.mark.slow
def test_the_page_ends_with_a_model_that_answers(done: Path) -> None:
    said = (done / "said.txt").read_text(encoding="utf-8")
    assert "nothing is wrong" in said
    assert "effective number" in said.lower()
    assert (done / "exported/model.safetensors").is_file()
    assert "held-out" in (done / "exported/README.md").read_text(encoding="utf-8").lower()
    assert (done / "chosen/model.safetensors").is_file()
    last = said.rstrip().splitlines()[-1]
    assert re.search(r"[ぁ-ん0-9A-Za-z]", last), last


@pytest.mark.slow
def test_the_studies_of_the_page_are_what_it_says(done: Path) -> None:
    one = json.loads((done / "runs/polite_sums/seed0/results.json").read_text(encoding="utf-8"))
    assert {"best merge", "adds", "polite", "base"} <= set(one["models"])
    assert "random search" not in one["models"]
    assert (done / "runs/polite_sums/seed0/report.html").is_file()
    two = json.loads((done / "runs/two_goals/results.json").read_text(encoding="utf-8"))
    assert set(two["splits"]) == {"polite_sums", "english_sums"}


@pytest.mark.slow
def test_the_architecture_page_names_every_event_and_field(done: Path) -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (.*) \|$", text, re.MULTILINE))
    events = read_events(done / "runs/polite_sums/seed0")
    assert {e["event"] for e in events} == {"study", "ask", "result", "measure", "end"}
    for event in events:
        fields = set(event) - {"event", "time"}
        assert [f for f in fields if f"`{f}`" not in rows[event["event"]]] == []


@pytest.mark.slow
def test_the_run_directory_holds_what_the_architecture_page_says(done: Path) -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    part = text[text.index("## The run directory") : text.index("## Journal events")]
    named = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| ([^|]+) \|", part, re.MULTILINE)))
    run = done / "runs/polite_sums/seed0"
    assert len(named) > 8
    assert [name for name in named if not list(run.glob(name.rstrip("/")))] == []
    listed = {name.split("/")[0] for name in named}
    assert sorted(p.name for p in run.iterdir() if p.name not in listed) == []
