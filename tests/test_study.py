"""Whole studies: what they leave, and that they resume to the same result."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file
from studies import items, journal, quick_arguments, quick_config, results

from evomerge.errors import JournalError
from evomerge.journal import locked
from evomerge.progress import Progress
from evomerge.setup import make_setup, model_identities
from evomerge.study import run_study
from evomerge.zoo import zoo_path

REPOSITORY = Path(__file__).parents[1]


def run(run_dir: Path, *overrides: str) -> dict:
    return run_study(make_setup(quick_config(run_dir, *overrides)), Progress(quiet=True))


def start(run_dir: Path, *overrides: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "evomerge", *quick_arguments(run_dir, *overrides)],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
        # a test run in the background of a shell ignores the signal, and its children with it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted study with controls."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    run(run_dir, "budget.candidates=30", "controls=default")
    return run_dir


def test_what_a_study_leaves(reference: Path) -> None:
    found = results(reference)
    assert set(found) >= {"schema", "experiment", "seed", "best", "models", "paired_test", "cost"}
    roles = {name: model["role"] for name, model in found["models"].items()}
    assert roles.pop(found["best"]) == "merge"
    assert {n for n, r in roles.items() if r == "source"} == {"base", "math", "japanese", "sorter"}
    assert {n for n, r in roles.items() if r == "control"} == {
        "uniform average", "uniform average with base", "task arithmetic", "TIES", "DARE-TIES",
        "random search", "random parents", "greedy soup", "selective merging",
    }  # fmt: skip
    for model in found["models"].values():
        for split, count in (("search", 12), ("test", 10)):
            score = model["scores"]["jp_math_tiny"][split]
            assert score["items"] == count
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    assert found["cost"] == {
        "candidates": 30, "failed": 0, "infeasible": 0, "item_evaluations": 30 * 12,
    }  # fmt: skip
    assert found["paired_test"]["against"] in roles
    assert (reference / "report.html").stat().st_size > 10_000


def test_written_model_is_the_recipe(reference: Path) -> None:
    """The checkpoint holds base + sum of weight x (source - base), computed here in float64."""
    recipe = yaml.safe_load((reference / "best/recipe.yaml").read_text())
    written = load_file(reference / "best/model/model.safetensors")
    base = load_file(Path(recipe["base_model"]) / "model.safetensors")
    assert set(written) == set(base)
    for name, tensor in written.items():
        expected = base[name].double().numpy().copy()
        for entry in recipe["models"]:
            source = load_file(Path(entry["model"]) / "model.safetensors")[name]
            cases = entry["parameters"]["weight"]
            weight = next(c["value"] for c in cases if c.get("filter", "") in name)
            expected += weight * (source.double() - base[name].double()).numpy()
        np.testing.assert_allclose(tensor.double().numpy(), expected, rtol=2**-7, atol=1e-6)


def test_test_items_are_answered_after_the_search_only(reference: Path) -> None:
    events = journal(reference)
    last_search = max(i for i, e in enumerate(events) if e["event"] == "result")
    for i, event in enumerate(events):
        splits = {s for by_split in event.get("scores", {}).values() for s in by_split}
        if event["event"] == "measure" and "test" in splits:
            assert i > last_search
    assert events[-1]["event"] == "end"


def test_same_seed_same_journal_and_other_seed_another(reference: Path, tmp_path: Path) -> None:
    run(tmp_path / "again", "budget.candidates=30", "controls=default")
    assert journal(tmp_path / "again") == journal(reference)
    assert items(tmp_path / "again") == items(reference)
    run(tmp_path / "other", "budget.candidates=8", "seed=1")
    genomes = [e["candidates"] for e in journal(tmp_path / "other") if e["event"] == "ask"]
    assert genomes[0] != next(e["candidates"] for e in journal(reference) if e["event"] == "ask")


@pytest.mark.slow
def test_two_ray_workers_write_the_same_journal(reference: Path, tmp_path: Path) -> None:
    run(
        tmp_path / "ray", "budget.candidates=30", "controls=default",
        "executor=ray", "executor.workers=2", "executor.threads=1",
    )  # fmt: skip
    assert journal(tmp_path / "ray") == journal(reference)
    assert items(tmp_path / "ray") == items(reference)
    assert results(tmp_path / "ray") == results(reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("executor", "kills"), [(("executor=serial",), 7), (("executor=ray", "executor.workers=2"), 3)]
)
def test_killed_at_random_points_ends_the_same(
    reference: Path, tmp_path: Path, executor: tuple[str, ...], kills: int
) -> None:
    """SIGKILL at random points of the study's life, ten in all; then it is left to end."""
    dice = random.Random(f"kill {executor}")
    overrides = ("budget.candidates=30", "controls=default", "executor.threads=1", *executor)
    final = (reference / "journal.jsonl").stat().st_size
    run_dir = tmp_path / "run"
    done = 0
    for i in range(kills):
        process = start(run_dir, *overrides)
        target = done + dice.uniform(0, (final - done) / (kills - i))
        while process.poll() is None and _size(run_dir) < target:
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done = _size(run_dir)
    process = start(run_dir, *overrides)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert journal(run_dir) == journal(reference)
    assert items(run_dir) == items(reference)
    assert results(run_dir) == results(reference)
    recipes = [(d / "best/recipe.yaml").read_text() for d in (run_dir, reference)]
    assert recipes[0] == recipes[1]


def _size(run_dir: Path) -> int:
    path = run_dir / "journal.jsonl"
    return path.stat().st_size if path.exists() else 0


def test_interrupt_keeps_the_journal_and_exits_130(tmp_path: Path) -> None:
    process = start(tmp_path / "run", "budget.candidates=5000")
    while _size(tmp_path / "run") < 8000 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in output
    assert "Traceback" not in output
    assert [e["event"] for e in journal(tmp_path / "run")][:2] == ["study", "ask"]


def test_changed_config_is_refused_with_a_diff(tmp_path: Path) -> None:
    run(tmp_path, "budget.candidates=8")
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(JournalError) as caught:
        run(tmp_path, "budget.candidates=8", "space.parameters.weight.high=2.0")
    assert "space.parameters.weight.high: 1.25 -> 2.0" in str(caught.value)
    with pytest.raises(JournalError, match=r"task\.search"):
        run(tmp_path, "budget.candidates=8", "++task.search.limit=11")
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_other_order_of_sources_is_refused(tmp_path: Path) -> None:
    """The order gives a genome its meaning."""
    run(tmp_path, "budget.candidates=8")
    config = quick_config(tmp_path, "budget.candidates=8")
    config["models"]["sources"] = dict(reversed(config["models"]["sources"].items()))
    with pytest.raises(JournalError, match="dimensions"):
        run_study(make_setup(config), Progress(quiet=True))


def test_a_study_without_a_result_may_begin_anew(tmp_path: Path) -> None:
    journal_path = tmp_path / "journal.jsonl"
    run(tmp_path, "budget.candidates=3", "finalists=1")
    lines = journal_path.read_text().splitlines(keepends=True)
    journal_path.write_text("".join(lines[:2]))  # the study and its first ask
    run(tmp_path, "budget.candidates=3", "finalists=1", "space.parameters.weight.high=2.0")
    assert journal(tmp_path)[0]["matter"]["space.parameters.weight.high"] == 2.0
    assert sum(e["event"] == "study" for e in journal(tmp_path)) == 1


def test_replay_on_a_processor_that_rounds_otherwise_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Recorded genomes differ in their last bits from what is proposed here."""
    run(tmp_path, "budget.candidates=24", "finalists=1")
    path = tmp_path / "journal.jsonl"
    events = [json.loads(x) for x in path.read_text().splitlines()]
    space = make_setup(quick_config(tmp_path)).space
    setup = make_setup(quick_config(tmp_path))
    identities = model_identities(setup)
    for candidate in events[1]["candidates"]:
        candidate["genome"] = [float(np.nextafter(x, 2)) for x in candidate["genome"]]
        recipe = space.decode(np.array(candidate["genome"]))
        candidate["digest"] = recipe.digest(identities)
    first = [e for e in events if e["event"] in ("study", "ask", "result")][:14]
    path.write_text("".join(json.dumps(e) + "\n" for e in first))
    run(tmp_path, "budget.candidates=24", "finalists=1")
    assert "to the last bit" in caplog.text
    asks = [e for e in journal(tmp_path) if e["event"] == "ask"]
    assert asks[0]["candidates"] == events[1]["candidates"]
    before = [e for e in events if e["event"] == "ask"][1]["candidates"]
    for old, new in zip(before, asks[1]["candidates"], strict=True):
        np.testing.assert_allclose(old["genome"], new["genome"], atol=1e-9)


def test_a_changed_report_task_is_measured_again(tmp_path: Path) -> None:
    """And nothing else is."""
    source = {"path": str(zoo_path("data/en_math.jsonl"))}
    for limit in (5, 9):
        config = quick_config(tmp_path, "budget.candidates=3", "finalists=1")
        config["report_tasks"] = {
            "en": {
                "_target_": "evomerge.tasks.item_task.ItemTask",
                "name": "en",
                "id": "id",
                "search": {**source, "where": {"split": "search"}, "limit": 2},
                "validation": {**source, "where": {"split": "validation"}, "limit": 2},
                "test": {**source, "where": {"split": "test"}, "limit": limit},
                "scorer": "number",
                "sampling": {"max_new_tokens": 4},
            }
        }
        run_study(make_setup(config), Progress(quiet=True))
        models = results(tmp_path)["models"].values()
        assert {m["scores"]["en"]["test"]["items"] for m in models} == {limit}
    again = [e for e in journal(tmp_path) if e["event"] == "measure"][-5:]
    assert all(list(e["scores"]) == ["en"] for e in again)


def test_a_finished_study_starts_no_engine_and_writes_no_event(tmp_path: Path) -> None:
    run(tmp_path, "budget.candidates=3", "finalists=1", "controls=default")
    before = (tmp_path / "journal.jsonl").read_bytes()
    config = quick_config(
        tmp_path,
        "budget.candidates=3",
        "finalists=1",
        "controls=default",
        "executor=ray",
        "executor.address=127.0.0.1:1",
    )  # an executor that could not start
    run_study(make_setup(config), Progress(quiet=True))
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_unfinished_writes_of_the_model_are_removed(tmp_path: Path) -> None:
    run(tmp_path, "budget.candidates=3", "finalists=1")
    (tmp_path / "best/.model.abc").mkdir()
    (tmp_path / "best/recipe.yaml").unlink()
    run(tmp_path, "budget.candidates=3", "finalists=1")
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == ["model", "recipe.yaml"]


def test_larger_budget_goes_on(tmp_path: Path) -> None:
    run(tmp_path, "budget.candidates=12")
    begin = journal(tmp_path)
    run(tmp_path, "budget.candidates=24")
    assert [e for e in journal(tmp_path) if e["event"] == "result"][:12] == [
        e for e in begin if e["event"] == "result"
    ]
    assert results(tmp_path)["cost"]["candidates"] == 24


def test_budget_in_items_and_stop_rules(tmp_path: Path) -> None:
    run(tmp_path / "items", "budget.candidates=null", "budget.item_evaluations=100")
    assert results(tmp_path / "items")["cost"]["item_evaluations"] == 96  # 8 x 12 items
    run(tmp_path / "score", "stop.score=0.0")
    assert results(tmp_path / "score")["cost"]["candidates"] == 12  # one generation
    run(tmp_path / "patience", "stop.patience=1", "task.loglik_weight=0", "budget.candidates=120")
    assert results(tmp_path / "patience")["cost"]["candidates"] < 120
    run(tmp_path / "hours", "budget.candidates=null", "budget.hours=1e-9")
    assert results(tmp_path / "hours")["cost"]["candidates"] == 12


def test_two_runs_in_one_directory_are_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(JournalError, match="another run at work"):
        run(tmp_path, "budget.candidates=8")


def test_torn_last_line_is_cut_and_the_study_goes_on(
    reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, "budget.candidates=30", "controls=default")
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:20]) + lines[20][:-7])
    run(tmp_path, "budget.candidates=30", "controls=default")
    assert "unfinished last line" in caplog.text
    assert journal(tmp_path) == journal(reference)


def test_candidates_that_fail_are_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    """One weight of a source is so large that every other merge overflows: those fail."""
    broken = tmp_path / "huge"
    broken.mkdir()
    for path in zoo_path("models/sorter").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    name = next(n for n in tensors if n.endswith("layers.0.mlp.up_proj.weight"))
    tensors[name][0, 0] = 3e38
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    run(
        tmp_path / "run", f"models.sources.sorter={broken}", "budget.candidates=24",
        "space.parameters.weight.high=2.5",
    )  # fmt: skip
    found = [e for e in journal(tmp_path / "run") if e["event"] == "result"]
    failed = [e for e in found if e["status"] == "failed"]
    assert 0 < len(failed) < 24
    assert all("finite" in e["reason"] or "nan" in e["reason"] for e in failed)
    assert results(tmp_path / "run")["cost"]["failed"] == len(failed)
