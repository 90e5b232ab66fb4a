"""Configs of mergekit-evolve as experiments: what they search, and that they compose and check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from evomerge.checkpoints.merger import Merger
from evomerge.cli import compose_config
from evomerge.cli import run as command
from evomerge.setup import make_space
from evomerge.zoo import zoo_path

TASKS = Path(__file__).parents[1] / "experiments" / "lm_eval_tiny" / "tasks"
BASE, MATH, JAPANESE = (str(zoo_path(f"models/{n}")) for n in ("base", "math", "japanese"))
GENOME: dict[str, Any] = {
    "models": [MATH, JAPANESE], "merge_method": "dare_ties", "base_model": BASE,
    "layer_granularity": 2,
}  # fmt: skip


def imported(
    folder: Path, capsys: pytest.CaptureFixture[str], data: object, *flags: str
) -> tuple[int, str, str]:
    (folder / "config.yml").write_text(yaml.safe_dump(data))
    code = command(["import", "mergekit-evolve", str(folder / "config.yml"), "--out", str(folder),
                    *flags])  # fmt: skip
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def composed(folder: Path) -> dict[str, Any]:
    return compose_config(["+experiment=config"], folder)


def searched(folder: Path) -> tuple[Any, Any]:
    config = composed(folder)
    space = make_space({**config, "run_dir": str(folder)}, Merger())
    return space, space.decode(np.array([d.start for d in space.dimensions]))


def test_the_space_is_that_of_the_genome(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"genome": GENOME, "tasks": ["my_task"]}
    assert imported(tmp_path, capsys, data)[0] == 0
    space, recipe = searched(tmp_path)
    # 2 groups of layers x 2 models x (weight, density), as mergekit's genotype tensor
    assert len(space.dimensions) == 8
    assert {d.step for d in space.dimensions} == {round(1 / 6, 6)}
    starts = {d.name.split("/")[0]: d.start for d in space.dimensions}
    assert starts == {"weight": 0.5, "density": 1.0}
    assert recipe.method == "dare_ties" and recipe.base == BASE and recipe.dtype == "bfloat16"
    assert recipe.parameters["normalize"] is True
    config = composed(tmp_path)
    assert config["models"]["sources"] == {"math": MATH, "japanese": JAPANESE}
    assert config["budget"]["candidates"] == 100 and config["objectives"] == {}
    task = config["task"]
    assert (task["task"], task["metric"], task["filter"]) == ("my_task", "acc", "none")
    assert task["apply_chat_template"] is True


@pytest.mark.parametrize(
    ("genome", "dimensions", "method", "note"),
    [
        ({"merge_method": "linear", "base_model": None}, 4, "linear", "the first model"),
        ({"merge_method": "task_arithmetic"}, 4, "task_arithmetic", "no bounds"),
        ({"merge_method": "ties", "layer_granularity": 0}, 4, "ties", "no bounds"),
        ({"merge_method": "slerp", "base_model": None}, 2, "slerp", "t goes from the first model"),
        ({"merge_method": "slerp", "models": [BASE, MATH, JAPANESE]}, 6, "multislerp", "of more"),
        ({"models": [BASE, MATH, JAPANESE]}, 8, "dare_ties", "the base is left out"),
        ({"filters": ["mlp"], "smooth": True}, 8, "dare_ties", "filters: there are no parameters"),
        ({"tokenizer_source": "union"}, 8, "dare_ties", "tokenizer_source: 'union'"),
    ],
)
def test_every_kind_of_genome_has_a_space(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    genome: dict[str, Any],
    dimensions: int,
    method: str,
    note: str,
) -> None:
    data = {"genome": {**GENOME, **genome}, "tasks": ["my_task"]}
    code, out, _ = imported(tmp_path, capsys, data)
    assert code == 0 and note in out
    assert note in (tmp_path / "experiment" / "config.yaml").read_text()
    space, recipe = searched(tmp_path)
    assert len(space.dimensions) == dimensions and recipe.method == method


def test_negative_weights_widen_the_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"genome": {**GENOME, "allow_negative_weights": True}, "tasks": ["my_task"]}
    assert imported(tmp_path, capsys, data, "--sigma0", "0.1", "--max-fevals", "7")[0] == 0
    space, _ = searched(tmp_path)
    assert {(d.low, d.step) for d in space.dimensions if "weight" in d.name} == {(-1.5, 0.1)}
    assert composed(tmp_path)["budget"]["candidates"] == 7


def test_weights_of_tasks_are_those_of_a_sum(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [
        {"name": "sums-ja", "weight": 2.0, "metric": "exact_match,strict-match"}, "other",
        {"name": "odd", "weight": -1}, {"name": "ppl", "weight": -3, "metric": "brier_score,none"},
    ]  # fmt: skip
    data = {"genome": GENOME, "tasks": tasks, "limit": 50, "num_fewshot": 3}
    code, out, _ = imported(tmp_path, capsys, data)
    assert code == 0 and "a weight below 0 became goal: minimize" in out
    config = composed(tmp_path)
    goals = {n: (o["weight"], o.get("goal")) for n, o in config["objectives"].items()}
    assert goals == {
        "sums_ja": (2.0, None), "other": (1.0, None), "odd": (1.0, "minimize"), "ppl": (3.0, None)
    }  # fmt: skip
    assert config["scalarize"] == "weighted_sum" and config["estimator"]["items"] == 50
    assert config["task"]["filter"] == "strict-match"
    assert [t["num_fewshot"] for t in config["tasks"].values()] == [3, 3, 3]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "no genome"),
        ({"merge_method": "ties", "models": []}, "no genome"),
        ({"genome": GENOME}, "no tasks"),
        ({"genome": {**GENOME, "granularity": 2}, "tasks": ["a"]}, "genome.granularity"),
        ({"genome": {**GENOME, "merge_method": "della"}, "tasks": ["a"]}, "genome.merge_method"),
        ({"genome": {**GENOME, "base_model": None}, "tasks": ["a"]}, "a base, for dare_ties"),
        ({"genome": {**GENOME, "models": []}, "tasks": ["a"]}, "genome.models"),
        ({"genome": GENOME, "tasks": [{"weight": 1}]}, "tasks[0]"),
        ({"genome": GENOME, "tasks": [{"name": "a", "weight": "x"}]}, "tasks[0].weight"),
        ({"genome": {**GENOME, "layer_granularity": "x"}, "tasks": ["a"]}, "layer_granularity"),
        ({"genome": GENOME, "tasks": ["a"], "num_fewshot": "x"}, "num_fewshot"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: object, said: str
) -> None:
    code, _, err = imported(tmp_path, capsys, data)
    assert code == 2 and said in err and not (tmp_path / "experiment").exists()


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"genome": GENOME, "tasks": ["a"]}
    assert imported(tmp_path, capsys, data)[0] == 0
    code, _, err = imported(tmp_path, capsys, data)
    assert code == 2 and "which exists" in err
    assert imported(tmp_path, capsys, data, "--name", "other")[0] == 0


@pytest.mark.slow
def test_an_imported_study_passes_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(TASKS.parents[2])  # the tasks name data relative to the repository
    tasks = [{"name": "zoo_sums_ja", "metric": "exact_match,number", "weight": 2}]
    data = {"genome": GENOME, "tasks": tasks, "limit": 10, "apply_chat_template": False}
    assert imported(tmp_path, capsys, data, "--task-search-path", str(TASKS))[0] == 0
    arguments = [
        "--config-dir", str(tmp_path), "+experiment=config", "executor=serial",
        "engine=transformers", "engine.max_model_len=128", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    code = command(["check", *arguments])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert "nothing is wrong" in shown.out
