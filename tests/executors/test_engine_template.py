"""Templates: written once, anew for another recipe, gone with the executor."""

from __future__ import annotations

from pathlib import Path

from studies import quick_config

from evomerge.checkpoints.merger import Merger
from evomerge.executors.template import TemplatedExecutor, remove_unfinished, write_template
from evomerge.executors.worker import Job, Outcome
from evomerge.recipe import Recipe, Route, Slot
from evomerge.workers import make_executor
from evomerge.zoo import zoo_path

MATH = str(zoo_path("models/math"))


class Idle:
    """An executor that notes what it is asked."""

    workers = 3

    def __init__(self) -> None:
        self.asked: list[object] = []

    def submit(self, job: Job) -> None:
        self.asked.append(job)

    def next(self) -> Outcome:
        return Outcome(len(self.asked), None, "idle")

    def close(self) -> None:
        self.asked.append("close")


def recipe(depth: int) -> Recipe:
    return Recipe("passthrough", route=Route((Slot(MATH, 0), Slot(MATH, 1)), depth=depth))


def test_a_template_is_written_once_for_a_recipe(tmp_path: Path) -> None:
    folder, merger = tmp_path / "run" / "template", Merger(threads=1)
    write_template(recipe(3), merger, folder)
    weights = folder / "model.safetensors"
    first = weights.stat().st_mtime_ns
    write_template(recipe(3), merger, folder)
    assert weights.stat().st_mtime_ns == first
    write_template(recipe(5), merger, folder)
    assert merger.checkpoint(str(folder)).layout.blocks == 5
    assert (folder / "tokenizer.json").is_file()


def test_the_folder_goes_with_the_executor(tmp_path: Path) -> None:
    (tmp_path / "template").mkdir()
    idle = Idle()
    executor = TemplatedExecutor(idle, tmp_path / "template")
    job = Job(0, {}, ())
    executor.submit(job)
    assert executor.workers == 3 and executor.next().id == 1
    assert (tmp_path / "template").is_dir()
    executor.close()
    assert idle.asked == [job, "close"]
    assert not (tmp_path / "template").exists()


def test_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    for name in (".template.x1", ".template.x2", "template", ".model.y", "templates"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    remove_unfinished(tmp_path / "template")
    assert {p.name for p in tmp_path.iterdir()} == {"template", ".model.y", "templates"}


def test_a_study_begins_without_the_templates_of_a_killed_one(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    for name in (".template.x", "template"):
        (run_dir / name).mkdir(parents=True)
    config = quick_config(run_dir)
    make_executor(config).close()
    assert not list(run_dir.iterdir())
