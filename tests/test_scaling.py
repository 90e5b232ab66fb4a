"""The model of memory and time: its page, published models, and a worker that is measured."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from studies import quick_config

from evomerge import scaling
from evomerge.checkpoints.merger import Merger
from evomerge.cli import run
from evomerge.resources import check_resources
from evomerge.scaling import FIGURES, H100, MODELS, Load, Shape, cpu_worker, estimate, table
from evomerge.study_scale import described, load_of, shape_of
from evomerge.zoo import zoo_path

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
SHAPES = {name.split()[0]: Shape.of_config(name, config) for name, config in MODELS.items()}

MEASURE = """
import json, sys, threading, time
from evomerge.engines.auto import make_engine
from evomerge.recipe import Recipe, Source

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith("RssAnon"))

peak, going = [0], True
def watch():
    while going:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
node = {"name": "transformers", "dtype": "bfloat16", "max_model_len": 64, "batch_tokens": 256,
        "args": {}}
base, *sources = sys.argv[1:]
engine = make_engine(node, base, threads=1, cores=None, seed=0)
started = anonymous()
for weight in (0.3, 0.6):
    recipe = Recipe("task_arithmetic", tuple(Source(s, {"weight": weight}) for s in sources),
                    base=base, dtype="bfloat16")
    engine.load(recipe)
going = False
print(json.dumps([started, peak[0]]))
"""


def test_the_table_of_the_page_is_the_models() -> None:
    assert table(list(SHAPES.values()), Load()) in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "parameters", "kv"),
    [
        ("1.5B", 1_543_714_304, 28_672),
        ("7B", 7_241_732_096, 131_072),
        ("13B", 13_015_864_320, 819_200),
        ("70B", 68_976_648_192, 327_680),
    ],
)
def test_published_numbers(name: str, parameters: int, kv: int) -> None:
    """Parameters as their model cards count them, and cache bytes a token at 16 bits."""
    assert (SHAPES[name].parameters, SHAPES[name].kv) == (parameters, kv)


def test_the_shape_of_a_model_that_is_there() -> None:
    path = zoo_path("models/base")
    config = json.loads((path / "config.json").read_text())
    with safe_open(path / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    shape = shape_of(Merger(threads=1).checkpoint(str(path)))
    assert shape.parameters == sum(t.numel() for t in tensors)
    assert shape.weights == sum(t.nbytes for t in tensors)
    assert shape.layers == config["num_hidden_layers"]
    assert shape == dataclasses.replace(
        Shape.of_config(shape.name, config, shape.value), name=shape.name
    )


@pytest.mark.parametrize("name", list(SHAPES))
def test_what_fits_and_what_is_faster(name: str) -> None:
    shape, load = SHAPES[name], Load()
    one, node, many = (estimate(shape, load, H100, g, n) for g, n in ((1, 1), (8, 1), (8, 16)))
    assert many.workers == 16 * node.workers >= 16 * one.workers
    for need in (node, many):
        on_one = need.weights + need.cache + scaling.WORKSPACE
        assert on_one <= load.share * H100.memory * (1 + 1e-9)
        assert need.weights * need.gpus == pytest.approx(shape.weights)
        held = need.sequences * (load.prompt + load.answer) * shape.kv
        assert held <= need.cache * need.gpus
        half = estimate(shape, dataclasses.replace(load, items=75), H100, 8, 1)
        assert half.answers < need.answers and half.merge == need.merge
        more = estimate(shape, dataclasses.replace(load, models=8), H100, 8, 1)
        assert more.merge > need.merge and more.answers == need.answers
        # no faster than reading the weights once a token, or than the link
        assert need.answers > load.answer * need.weights / H100.bandwidth
        assert need.merge > (load.models * shape.weights - H100.memory) / H100.link


def test_a_model_that_does_not_fit() -> None:
    assert estimate(SHAPES["70B"], Load(), H100, 1).workers == 0
    assert "does not fit" in table([SHAPES["70B"]], Load())


def test_check_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = quick_config(tmp_path / "run", "optimizer=random", "optimizer.batch=2")
    lines = list(described(config | {"executor": config["executor"] | {
        "name": "ray", "workers": 3}}))  # fmt: skip
    assert any("optimizer.batch=2" in line and "1 of 3 workers are idle" in line for line in lines)
    assert any(f"{config['task']['search']['limit']} items a candidate" in line for line in lines)
    arguments = ["check", "+experiment=jp_math", f"run_dir={tmp_path / 'run'}"]
    assert run([*arguments, f"models.base={tmp_path}/nowhere"]) == 2  # says so, and goes on
    assert "models.base" in capsys.readouterr().err


def test_a_terminal_gets_the_figures_in_plain_columns(tmp_path: Path) -> None:
    """The same cells as the Markdown table of the same study has, turned on its side."""
    config = quick_config(tmp_path / "run", "optimizer=random")
    base = Merger(threads=1).checkpoint(config["models"]["base"])
    shown = list(described(config))[-1 - len(FIGURES) :]
    rows = table([shape_of(base)], load_of(config, base)).splitlines()
    head, _, *lines = ([cell.strip() for cell in row.strip("|").split("|")][1:] for row in rows)
    turned = [list(column) for column in zip(head, *lines, strict=True)]
    assert [re.split(r"\s{2,}", line.strip()) for line in shown[1:]] == turned[1:]
    assert re.split(r"\s{2,}", shown[0].strip()) == turned[0][1:]
    assert len(set(map(len, shown))) == 1 and len(shown[0]) <= 80


def test_an_elastic_cluster_has_no_number_of_workers(tmp_path: Path) -> None:
    config = quick_config(tmp_path / "run", "optimizer=random")
    elastic = {**config["executor"], "name": "ray", "address": "auto", "workers": None}
    for most, said in ((None, "workers: as many as have room with"), (4, "room (at most 4) with")):
        config["executor"] = elastic | {"max_workers": most}
        lines: list[str] = []
        list(check_resources(config, Merger(threads=1), lines.append))
        assert any(said in line for line in lines), lines
    assert any("  each worker on the CPU" in line for line in described(config))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_worker_on_the_cpu_takes_what_the_model_says(tmp_path: Path) -> None:
    """A Llama of 77 M parameters that is made up; the page cache is not counted."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=7,
        num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=64,
        tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    folders = [tmp_path / name for name in ("base", "one", "two", "three")]
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    for folder in folders:
        model.save_pretrained(folder)
        for file in zoo_path("models/base").glob("tok*"):
            shutil.copy(file, folder)
        with torch.no_grad():
            next(model.parameters()).add_(0.01)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, folders)], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    started, peak = json.loads(done.stdout.splitlines()[-1])
    weights = 2 * sum(p.numel() for p in model.parameters())
    said = cpu_worker(weights, config.vocab_size * config.hidden_size)
    print(f"weights {weights / 1e6:.0f} MB, started {started / 1e6:.0f}, peak {peak / 1e6:.0f}, "
          f"model {said / 1e6:.0f}")  # fmt: skip
    assert started > weights
    assert 0.4 * said < peak <= said  # an upper bound, but not an empty one
