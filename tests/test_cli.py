"""The command line: verbs, messages and exit codes, as a user meets them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from studies import quick_arguments

from evomerge import __version__
from evomerge.cli import VERBS, run
from evomerge.zoo import zoo_path

REPOSITORY = Path(__file__).parents[1]


def evomerge(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evomerge", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def copy_model(name: str, out: Path) -> Path:
    """A writable copy of a zoo model."""
    shutil.copytree(zoo_path(f"models/{name}"), out)
    return out


def change_tensor(model: Path, change: object) -> None:
    tensors = load_file(model / "model.safetensors")
    name = next(n for n in tensors if n.endswith("layers.0.mlp.up_proj.weight"))
    tensors[name] = change(tensors[name])  # type: ignore[operator]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def test_help_lists_verbs_and_choices() -> None:
    done = evomerge("--help")
    assert done.returncode == 0
    for word in ("check", "merge", "report", "pick", "jp_math_tiny", "cma_es", "ties_dare", "vllm"):
        assert word in done.stdout
    for verb in VERBS:
        assert f"python -m evomerge {verb} " in done.stdout


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("buget.candidates=3", ("buget", "Did you mean budget?")),
        ("budget.candidats=3", ("budget.candidats", "Did you mean candidates?")),
        ("optimizer.popsize=3", ("optimizer.popsize", "+optimizer.popsize=VALUE")),
        ("optimizer.populaton=3", ("optimizer.populaton", "Did you mean optimizer.population?")),
        ("task.promt=x", ("task.promt", "Did you mean task.prompt?")),
        ("~finalists", ("~finalists: found", "every study has")),
        ("seed", ("seed: found a word without a value", "expected KEY=VALUE")),
        ("warm_strt.run=x", ("warm_strt", "Did you mean warm_start?")),
        ("budget.candidates=many", ("budget.candidates: found 'many'", "a whole number")),
        ("finalists.max=2", ("finalists: found a key below it, finalists.max", "finalists=VALUE")),
        ("log.level=3", ("log: found a key below it, log.level", "a text")),
        ("trust_remote_code=7.5", ("trust_remote_code: found '7.5'", "true or false")),
        ("task=jp_mth_tiny", ("task", "Did you mean jp_math_tiny?")),
        ("executor=raey", ("executor", "Did you mean ray?")),
        ("+space.granularty=global", ("space.granularty", "Did you mean space.granularity?")),
        ("space.granularity=tensor", ("space.granularity", "layer, global")),
        ("space.parameters.weight.low=9", ("space.parameters.weight", "low < high")),
        ("space.parameters.weight.high=1000", ("space (", "[-100, 100]")),
        ("space.method=tis", ("merge_method", "task_arithmetic")),
        ("budget.candidates=0", ("budget.candidates", "a positive number")),
        ("budget.candidates=null", ("budget", "no limit at all")),
        ("finalists=0", ("finalists", "a positive number")),
        ("stop.patience=-3", ("stop.patience", "a positive number")),
        ("engine.max_model_len=8", ("engine.max_model_len", "tokens in item")),
        ("engine.dtype=float99", ("engine.dtype", "bfloat16")),
        ("+engine.args.devise=cpu", ("engine.args.devise", "device")),
        ("executor.threads=1000", ("executor.threads", "at most")),
        ("+models.sources.TIES=x/y", ("models.sources.TIES",)),
        ("+controls.recipes.math={method: linear}", ("controls.recipes.math", "models.sources")),
        ("+controls.recipes.x={method: ties, weight: abc}", ("controls.recipes.x.weight", "abc")),
        ("+controls.recipes.x={method: ties, lambda: 9999}", ("controls.recipes.x", "lambda")),
        ("executor.workers=2", ("executor.workers", "executor=ray")),
        ("models.sources.math=no/such/dir/here", ("models.sources.math", "no directory")),
        ("task.search.path=nowhere.jsonl", ("task.search.path", "nowhere.jsonl")),
        ("optimizer._target_=os.system", ("optimizer._target_", "evomerge")),
    ],
)  # fmt: skip
def test_a_users_mistake_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argument: str, parts: tuple[str, str]
) -> None:
    run_dir = tmp_path / "run"
    code = run(quick_arguments(run_dir, argument))
    said = capsys.readouterr().err
    assert code == 2, said
    for part in parts:
        assert part in said
    assert not run_dir.exists()


def test_independent_mistakes_are_listed_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ("+estimator.foo=1", "+optimizer.bar=2", "+space.baz=3", "budget.hours=-1")
    assert run(["check", *quick_arguments(tmp_path / "run", *wrong)]) == 2
    said = capsys.readouterr().err
    for field in ("estimator.foo", "optimizer.bar", "space.baz", "budget.hours"):
        assert f"- {field}: " in said


def test_a_file_in_the_place_of_the_run_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("mine")
    assert run(quick_arguments(tmp_path / "run")) == 2
    assert "run_dir" in capsys.readouterr().err
    assert (tmp_path / "run").read_text() == "mine"


def test_damaged_sources_are_all_listed_at_once(tmp_path: Path) -> None:
    truncated = copy_model("math", tmp_path / "truncated")
    weights = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    poisoned = copy_model("math", tmp_path / "poisoned")
    change_tensor(poisoned, lambda t: t * torch.nan)
    other_shape = copy_model("math", tmp_path / "other_shape")
    change_tensor(other_shape, lambda t: t[:-1].contiguous())
    pickled = copy_model("math", tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    other_words = copy_model("math", tmp_path / "other_words")
    tokenizer = json.loads((other_words / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other_words / "tokenizer.json").write_text(json.dumps(tokenizer))
    other_kind = copy_model("math", tmp_path / "other_kind")
    config = json.loads((other_kind / "config.json").read_text())
    config["architectures"] = ["Qwen2ForCausalLM"]
    (other_kind / "config.json").write_text(json.dumps(config))
    names = ("truncated", "poisoned", "other_shape", "pickled", "other_words", "other_kind")
    sources = [f"+models.sources.{name}={tmp_path / name}" for name in names]
    done = evomerge("check", *quick_arguments(tmp_path / "run", *sources))
    assert done.returncode == 2
    for name, part in zip(
        names,
        ("damaged", "NaN", "up_proj.weight of shape", "pickled weights", "another vocabulary",
         "architecture"),
        strict=True,
    ):  # fmt: skip
        assert any(
            f"models.sources.{name}:" in line and part in line for line in done.stderr.splitlines()
        ), (name, done.stderr)
    assert not (REPOSITORY / "pwned").exists()


def test_bad_items_are_named(tmp_path: Path) -> None:
    rows = [json.loads(x) for x in zoo_path("data/jp_math.jsonl").read_text().splitlines()]
    twice = tmp_path / "twice.jsonl"
    twice.write_text("".join(json.dumps(r) + "\n" for r in [*rows[:20], rows[3]]))
    done = evomerge(
        "check", *quick_arguments(tmp_path / "run", "++task.search.limit=30"),
        f"task.search.path={twice}",
    )  # fmt: skip
    assert done.returncode == 2
    assert rows[3]["id"] in done.stderr and "task.search" in done.stderr
    done = evomerge(
        "check", *quick_arguments(tmp_path / "run"), "task.test.where.split=search",
    )  # fmt: skip
    assert done.returncode == 2
    assert "task.search and task.test" in done.stderr and "10 of the 10 items" in done.stderr
    done = evomerge(
        "check", *quick_arguments(tmp_path / "run"), "task.gold=''", "task.loglik_weight=0",
        "+objectives.sure={task: jp_math_tiny, metric: loglik}",
    )  # fmt: skip
    assert done.returncode == 2
    assert "task.gold: found items without" in done.stderr
    done = evomerge("check", *quick_arguments(tmp_path / "run"), "task.test.where.split=nothing")
    assert done.returncode == 2
    assert "task.test" in done.stderr


def test_check_finds_nothing_in_the_quickstart(tmp_path: Path) -> None:
    done = evomerge("check", "+experiment=jp_math_tiny", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0
    assert "nothing is wrong" in done.stdout
    assert not (tmp_path / "run").exists()


def test_check_of_jp_math_names_what_this_machine_lacks(tmp_path: Path) -> None:
    done = evomerge("check", "+experiment=jp_math", f"run_dir={tmp_path / 'run'}")
    if torch.cuda.is_available():
        pytest.skip("says what a machine without GPU and hub lacks; this one has a GPU")
    assert done.returncode == 2
    for field in (
        "models.base", "models.sources.shisa_gamma", "models.sources.wizard_math",
        "models.sources.abel", "task.search.path", "task.test.path", "executor.gpus_per_worker",
    ):  # fmt: skip
        assert f"- {field}: " in done.stderr


def test_merge_writes_a_checkpoint_once(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "merge_method: linear\nmodels:\n"
        f"  - {{model: {zoo_path('models/math')}, parameters: {{weight: 1}}}}\n"
        f"  - {{model: {zoo_path('models/base')}, parameters: {{weight: 3}}}}\n"
        "dtype: float32\n"
    )
    done = evomerge("merge", str(recipe), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    written = load_file(tmp_path / "out/model.safetensors")
    math = load_file(zoo_path("models/math") / "model.safetensors")
    base = load_file(zoo_path("models/base") / "model.safetensors")
    for name, tensor in written.items():
        expected = (math[name].double() + 3 * base[name].double()) / 4
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
    again = evomerge("merge", str(recipe), str(tmp_path / "out"))
    assert again.returncode == 2 and "existing" in again.stderr
    recipe.write_text("merge_method: linear\nmodels: 3\n")
    bad = evomerge("merge", str(recipe), str(tmp_path / "other"))
    assert bad.returncode == 2 and "models" in bad.stderr
    assert not (tmp_path / "other").exists()


def test_report_of_a_directory_without_a_study(tmp_path: Path) -> None:
    done = evomerge("report", str(tmp_path))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_unknown_verb(tmp_path: Path) -> None:
    done = evomerge("chek", "+experiment=jp_math_tiny")
    assert done.returncode == 2
    assert "Did you mean check?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run", "+experiment=jp_math_tiny"], ("run", "without a verb")),
        (["jp_math_tiny"], ("Did you mean +experiment=jp_math_tiny?",)),
        (["check", "jp_math_tiny"], ("Did you mean +experiment=jp_math_tiny?",)),
        (["my/experiment/mine.yaml"], ("--config-dir DIR +experiment=mine",)),
        (["experiment=jp_math_tiny"], ("experiment", "+experiment=NAME, with a plus")),
        (["+experiment=jp_math_tiny", "--hlep"], ("--hlep", "Did you mean --help?")),
        (["--confg-dir", "my"], ("--confg-dir", "Did you mean --config-dir?")),
    ],
)
def test_what_a_newcomer_types_is_answered_with_what_was_meant(
    capsys: pytest.CaptureFixture[str], arguments: list[str], parts: tuple[str, ...]
) -> None:
    assert run(arguments) == 2
    said = capsys.readouterr().err
    for part in parts:
        assert part in said
    assert "hydra" not in said.lower()


def test_a_misspelt_study_of_ones_own_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "polite_sums.yaml").write_text("# @package _global_\n")
    assert run(["check", "--config-dir", str(tmp_path), "+experiment=polite_sum"]) == 2
    assert "Did you mean polite_sums?" in capsys.readouterr().err


def test_version_and_help_are_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"evomerge {__version__}\n"
    assert run(["+experiment=jp_math_tiny", "--help"]) == 0
    assert "python -m evomerge check " in capsys.readouterr().out


@pytest.mark.slow
def test_jp_math_runs_end_to_end_on_local_models_and_data(tmp_path: Path) -> None:
    """The headline experiment's own file, with sources and data overridden to local paths."""
    data = REPOSITORY.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"needs the real problems of {data.name}/mgsm_ja.tsv and gsm8k_test.jsonl")
    zoo = {"shisa_gamma": "japanese", "wizard_math": "math", "abel": "sorter"}
    done = evomerge(
        "+experiment=jp_math", f"run_dir={tmp_path / 'run'}",
        f"models.base={zoo_path('models/base')}",
        *(f"models.sources.{k}={zoo_path(f'models/{v}')}" for k, v in zoo.items()),
        f"task.search.path={data / 'gsm8k_test.jsonl'}",
        f"task.search.exclude={{path: {data / 'mgsm_en.tsv'}, columns: [question, answer], "
        "key: question}",
        f"task.test.path={data / 'mgsm_ja.tsv'}",
        "task.sampling.max_new_tokens=4", "engine=transformers", "engine.max_model_len=128",
        "estimator.items=10", "executor=serial", "executor.gpus_per_worker=0",
        "budget.candidates=4", "finalists=1", "controls=none", "++task.test.limit=20",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run/results.json").read_text())
    assert found["splits"]["jp_math"] == {"search": 962, "validation": 107, "test": 20}
    assert found["models"][found["best"]]["scores"]["jp_math"]["test"]["items"] == 20


def test_a_mistake_in_a_sweep_is_named() -> None:
    done = evomerge("-m", "+experiment=jp_math_tiny", "buget.candidates=3", "seed=0,1")
    assert done.returncode == 2
    assert "Did you mean budget?" in done.stderr
    assert "Traceback" not in done.stderr


def test_sweep_makes_a_directory_a_seed(tmp_path: Path) -> None:
    done = evomerge(
        "-m", *[a for a in quick_arguments(tmp_path) if not a.startswith("run_dir=")],
        "budget.candidates=2", "seed=0,1", "finalists=1",
        f"run_dir='{tmp_path}/seed${{seed}}'", f"hydra.sweep.dir={tmp_path}/multirun",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for seed in (0, 1):
        found = json.loads((tmp_path / f"seed{seed}/results.json").read_text())
        assert found["seed"] == seed


def test_a_sweep_over_optimizers_makes_a_directory_each_and_compares_them(tmp_path: Path) -> None:
    """The same sweep again with a larger budget goes on in the same directories."""
    arguments = [
        "-m", *[a for a in quick_arguments(tmp_path) if not a.startswith("run_dir=")],
        "optimizer=random,sobol", "seed=0", "finalists=1", "pool.check=false",
    ]  # fmt: skip
    for budget in (2, 3):
        done = evomerge(*arguments, f"budget.candidates={budget}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "comparison.html" in done.stdout
        root = tmp_path / "runs" / "jp_math_tiny"
        for name in ("random", "sobol"):
            [folder] = root.glob(f"{name}*/seed0")
            found = json.loads((folder / "results.json").read_text())
            assert (found["optimizer"], found["seed"]) == (name, 0)
            assert found["cost"]["candidates"] == budget
    rows = (root / "comparison.csv").read_text().splitlines()
    assert len(rows) == 1 + 2
