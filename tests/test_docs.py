"""The documents: their YAML, commands and Python run; their table, outputs and links hold."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge import operators
from evomerge.checkpoints.merger import Merger
from evomerge.cli import run
from evomerge.operators.__main__ import table
from evomerge.recipe import Recipe
from evomerge.zoo import zoo_path

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), *sorted(DOCS.parent.glob("*.md"))]
NOT_RUN = "# not run: "
VARYING = ("time ", "disk ")
"""Lines of output that depend on the machine, from their second word on."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page of `docs`."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, language: str) -> list[Block]:
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(page, text[: m.start()].count("\n") + 1, m[1]) for m in found]


RECIPES = blocks("recipes.md", "yaml")
COMMANDS = [line for b in blocks("merging.md", "sh") for line in b.text.splitlines()]
SHOWN = blocks("merging.md", "console")


def write_adapter(path: Path, seed: int) -> None:
    """A LoRA adapter of the zoo's models, of rank 2."""
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for i in range(4):
        name = f"base_model.model.model.layers.{i}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(2, 128, generator=rng) / 10
        tensors[f"{name}.lora_B.weight"] = torch.randn(128, 2, generator=rng) / 10
    path.mkdir(parents=True)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages take to be there: the zoo's models, two adapters, the files of merging.md."""
    (tmp_path / "evomerge/zoo").mkdir(parents=True)
    (tmp_path / "evomerge/zoo/models").symlink_to(zoo_path("models"))
    for seed, name in enumerate(("polite", "brief")):
        write_adapter(tmp_path / "adapters" / name, seed)
    files = ("recipe.yaml", "adapters.yaml", "typo.yaml")
    for name, block in zip(files, blocks("merging.md", "yaml"), strict=True):
        (tmp_path / name).write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", RECIPES, ids=str)
def test_a_recipe_of_the_page_merges_and_is_read_back(block: Block, folder: Path) -> None:
    (folder / "example.yaml").write_text(block.text, encoding="utf-8")
    recipe = Recipe.from_yaml(folder / "example.yaml")
    (folder / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert Recipe.from_yaml(folder / "again.yaml").digest() == recipe.digest()
    if block.text.startswith(NOT_RUN):
        return
    assert run(["merge", "example.yaml", "out"]) == 0
    written = load_file(folder / "out/model.safetensors")
    merged = dict(Merger(threads=1).merge(recipe))
    assert written.keys() == merged.keys()
    assert all(torch.equal(written[name], merged[name]) for name in merged)


def test_the_page_shows_every_key_of_a_recipe() -> None:
    from evomerge.recipe.reading import _KEYS

    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    listed = text[text.index("## Keys") : text.index("## Models")]
    assert [key for key in _KEYS if f"`{key}`" not in listed] == []
    examples = "".join(b.text for b in RECIPES)
    absent = [key for key in _KEYS if not re.search(rf"^{key}:", examples, re.MULTILINE)]
    assert absent == ["out_dtype"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command)
    own = [w for w in words[: words.index("python")] if "=" in w]
    for variable in own:
        monkeypatch.setenv(*variable.split("=", 1))
    arguments = words[len(own) :]
    assert arguments[:3] == ["python", "-m", "evomerge"]
    if own:  # the loops and the cache are chosen once in a process
        subprocess.run([sys.executable, *arguments[1:]], check=True, timeout=300)
    else:
        assert run(arguments[3:]) == 0
    assert len(list((folder / arguments[5]).glob("*.safetensors"))) >= 1


@pytest.mark.parametrize("block", SHOWN, ids=str)
def test_a_shown_output_is_the_real_one(
    block: Block, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, _, shown = block.text.partition("\n")
    arguments = shlex.split(command.removeprefix("$ "))
    run(arguments[3:])
    captured = capsys.readouterr()
    lines = (captured.out + captured.err).rstrip().split("\n")
    expected = shown.rstrip().split("\n")
    assert len(lines) == len(expected)
    for got, want in zip(lines, expected, strict=True):
        if want.startswith(VARYING):
            assert got.split()[0] == want.split()[0]
        else:
            assert got == want


def test_the_python_of_the_page_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [block] = blocks("merging.md", "python")
    names: dict[str, object] = {}
    exec(compile(block.text, str(block), "exec"), names)
    assert "model.norm.weight (128,)" in capsys.readouterr().out
    assert (folder / "from_python/model.safetensors").is_file()
    merged = names["merged"]
    assert isinstance(merged, torch.Tensor) and merged.shape == (4, 8)


def test_the_table_of_operators_is_that_of_the_registry() -> None:
    assert table() in (DOCS / "operators.md").read_text(encoding="utf-8")


def test_the_page_says_something_of_every_operator_beside_the_table() -> None:
    text = (DOCS / "operators.md").read_text(encoding="utf-8").replace(table(), "")
    families = text[: text.index("## Where we differ")]
    assert [n for n in operators.names() if f"`{n}`" not in families] == []


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_of_a_page_resolve(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []
