"""Harness tasks as a user sets them up: splits, metrics, refusals, and what their digests cover."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from lm_eval_family import TASKS, write_task, write_tasks

from evomerge.engines.tokens import Codec
from evomerge.errors import NotFiniteError, TaskError
from evomerge.ledger import item_digest
from evomerge.tasks import lm_eval_index
from evomerge.tasks.lm_eval_metric import Metric
from evomerge.tasks.lm_eval_task import LmEvalTask
from evomerge.types import SPLITS, Answering, Sampling

pytest.importorskip("lm_eval")

CHOICE = TASKS["sums_choice"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("lm_eval") / "tasks")


@pytest.fixture(scope="module")
def only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks whose data have a test split only."""
    return write_tasks(tmp_path_factory.mktemp("lm_eval") / "only", 0, 0, 50)


def refused(task: LmEvalTask, *said: str) -> None:
    problems = task.validate()
    with pytest.raises(TaskError) as error:
        task.items("search")
    assert [str(p) for p in error.value.problems] == [str(p) for p in problems]
    for text in said:
        assert text in str(error.value)


def copied(folder: Path, tmp_path: Path, **texts: str) -> Path:
    """Tasks on the same data, in a folder of their own."""
    files = {s: str(folder / f"{s}.json") for s in ("train", "validation", "test")}
    for name, text in texts.items():
        write_task(tmp_path, name, text, files)
    return tmp_path


def test_validation_documents_are_searched_on_and_test_documents_tested_on(folder: Path) -> None:
    task = LmEvalTask("own", "sums_choice", str(folder))
    assert isinstance(task, Answering) and task.validate() == []
    ids = {split: [item.id for item in task.items(split)] for split in SPLITS}
    assert ids["test"] == [f"test/{i}" for i in range(12)]
    assert sorted(ids["search"] + ids["validation"]) == sorted(f"validation/{i}" for i in range(20))
    assert len(ids["validation"]) == 4
    again = LmEvalTask("own", "sums_choice", str(folder))
    assert {split: [item.id for item in again.items(split)] for split in SPLITS} == ids


def test_one_split_of_data_is_divided(only: Path) -> None:
    task = LmEvalTask("own", "sums_choice", str(only))
    ids = [{item.id for item in task.items(split)} for split in SPLITS]
    assert [len(part) for part in ids] == [24, 6, 20]
    assert set.union(*ids) == {f"test/{i}" for i in range(50)}


def test_splits_are_chosen_by_role_or_name_and_cut(folder: Path) -> None:
    task = LmEvalTask(
        "own", "sums_choice", str(folder), search="training",
        validation={"split": "validation", "limit": 5, "exclude": ["validation/3"]}, test="test",
    )  # fmt: skip
    assert [item.id for item in task.items("search")] == [f"train/{i}" for i in range(8)]
    chosen = [item.id for item in task.items("validation")]
    assert len(chosen) == 5 and "validation/3" not in chosen
    assert chosen == sorted(chosen, key=lambda id: int(id.split("/")[1]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"search": "test"}, "10 of the 12 items of test in search too, by id"),
        ({"search": "dev"}, "one of training, validation, test, train"),
        ({"search": {"split": "test", "part": 1}}, "task.search.part"),
        ({"search": {"split": "test", "limit": 0}}, "task.search.limit"),
        ({"test": {"split_from": "test", "fraction": 0.5}}, "task.test.split_from"),
        ({"metric": "mcc"}, "not the mean of the items' values"),
        ({"metric": "mcc"}, "of every task: acc, acc_norm"),
        ({"metric": "rouge"}, "task.metric: found 'rouge'"),
        ({"filter": "number"}, "task.filter: found 'number'; expected one of none"),
        ({"metric_range": [1, 0]}, "task.metric_range"),
        ({"group_weighting": "tasks"}, "task.group_weighting"),
        ({"generation_kwargs": {"until": ["x"]}}, "none, as it generates nothing"),
        ({"include_path": "nowhere"}, "task.include_path"),
        ({"task": "sums_choise"}, "Did you mean sums_choice"),
    ],
)
def test_what_cannot_be_is_said(folder: Path, settings: dict[str, object], said: str) -> None:
    task = LmEvalTask(
        **{"name": "o", "task": "sums_choice", "include_path": str(folder)} | settings
    )  # type: ignore[arg-type]
    problems = task.validate()
    assert any(said in str(p) for p in problems), [str(p) for p in problems]


def test_equal_documents_in_two_splits_are_refused(folder: Path, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        shutil.copy(folder / f"{split}.json", tmp_path)
    first = (tmp_path / "test.json").read_text().splitlines()[0]
    with (tmp_path / "validation.json").open("a") as file:
        file.write("\n" + first)
    files = {s: str(tmp_path / f"{s}.json") for s in ("train", "validation", "test")}
    write_task(tmp_path, "sums_choice", CHOICE, files)
    (problem,) = LmEvalTask("own", "sums_choice", str(tmp_path)).validate()
    assert "by content, for example 'test/0'" in problem.found


def test_the_first_metric_that_can_be_used_is_taken(folder: Path) -> None:
    found = {n: LmEvalTask("own", n, str(folder)).metric for n in TASKS}
    assert found["sums_generate"] == Metric("exact_match", "number")
    assert found["sums_likely"].name == "acc"
    assert found["sums_rolling"].name == "token_probability"


def test_values_become_scores() -> None:
    assert Metric("a", "none", 0.0, 100.0).score(25, "task") == 0.25
    assert Metric("a", "none", higher_is_better=False).score(0.25, "task") == 0.75
    with pytest.raises(TaskError, match="metric_range"):
        Metric("a", "none").score(25.0, "task")
    with pytest.raises(TaskError, match="tuple"):
        Metric("a", "none").score((1, 2), "task")
    with pytest.raises(NotFiniteError, match="nan"):
        Metric("a", "none").score(float("nan"), "task")


def test_examples_are_the_same_whatever_is_asked_and_never_the_item_itself(folder: Path) -> None:
    task = LmEvalTask("own", "sums_choice", str(folder), search="training", num_fewshot=3)
    items = task.items("search")
    for item in items:
        question = json.loads(item.fields["doc"])["question"]
        assert task.prompt(item).count(question) == 1 and task.prompt(item).endswith(question)
    other = LmEvalTask("own", "sums_choice", str(folder), search="training", num_fewshot=3)
    other.items("test")
    assert [other.prompt(i) for i in other.items("search")] == [task.prompt(i) for i in items]
    assert task.prompt(items[0]).count("\n") == 2 * 3


def test_examples_out_of_the_test_items_are_refused(only: Path) -> None:
    refused(
        LmEvalTask("own", "sums_choice", str(only), num_fewshot=2),
        "task.num_fewshot: found 2 examples of sums_choice out of test",
    )


def test_a_generated_answer_is_scored_by_the_harness(folder: Path) -> None:
    task = LmEvalTask("own", "sums_generate", str(folder))
    item = task.items("test")[3]
    assert task.score(item, f"There are {item.target} balls") == 1.0
    assert task.score(item, "There are none") == 0.0
    choice = LmEvalTask("own", "sums_choice", str(folder))
    with pytest.raises(TaskError, match="log-likelihoods"):
        choice.score(choice.items("test")[0], "14")


def test_sampling_is_what_the_task_says(folder: Path) -> None:
    task = LmEvalTask("own", "sums_generate", str(folder))
    assert task.sampling == Sampling(20, (".",), 0.0)
    warm = {"do_sample": True, "temperature": 0.5, "max_gen_toks": 3, "top_p": 0.9, "top_k": -1}
    task = LmEvalTask("own", "sums_generate", str(folder), generation_kwargs=warm)
    assert task.sampling == Sampling(3, (".",), 0.5, top_p=0.9)
    assert [p.field for p in task.check_length(3)] == ["engine.max_model_len"]
    assert list(task.check_length(4)) == []


@pytest.mark.parametrize(
    "settings", [{"num_beams": 4}, {"do_sample": True, "temperature": 0.7, "top_p": 1.9},
                 {"do_sample": True}, {"typical_p": 0.5}, {"max_length": 12}],
)  # fmt: skip
def test_what_engines_cannot_generate_is_refused(folder: Path, settings: dict[str, object]) -> None:
    task = LmEvalTask("own", "sums_generate", str(folder), generation_kwargs=settings)
    refused(task, "task.generation_kwargs", "in sums_generate")


def test_settings_without_effect_are_no_mistake(folder: Path) -> None:
    idle = {"num_beams": 1, "top_p": 0.9, "do_sample": False, "repetition_penalty": 1.0}
    assert LmEvalTask("o", "sums_generate", str(folder), generation_kwargs=idle).validate() == []


def test_code_runs_only_where_it_is_allowed(folder: Path, tmp_path: Path) -> None:
    own = copied(folder, tmp_path, sums_code=CHOICE + "process_docs: !function mine.docs\n")
    mark = tmp_path / "ran"
    (own / "mine.py").write_text(
        f"open({str(mark)!r}, 'w').close()\ndef docs(data):\n    return data.select(range(6))\n"
    )
    (own / "sums_heir.yaml").write_text("task: sums_heir\ninclude: sums_code.yaml\n")
    for name in ("sums_code", "sums_heir"):
        refused(LmEvalTask("own", name, str(own)), "Python code (!function) in sums_code.yaml")
    assert not mark.exists()
    task = LmEvalTask("own", "sums_heir", str(own), allow_code=True)
    assert len(task.items("test")) == 6 and mark.exists()


def test_templates_cannot_reach_python(folder: Path, tmp_path: Path) -> None:
    text = CHOICE.replace("{{question}}", "{{question.__class__.__mro__}}")
    refused(LmEvalTask("own", "sums_bad", str(copied(folder, tmp_path, sums_bad=text))), "unsafe")


def test_models_code_and_downloaded_metrics_are_refused(folder: Path, tmp_path: Path) -> None:
    metric = CHOICE.replace("{metric: mcc, aggregation: matthews_corrcoef", "{metric: squad")
    own = copied(folder, tmp_path, unsafe=CHOICE + "unsafe_code: true\n", metric=metric)
    refused(LmEvalTask("own", "unsafe", str(own)), "runs the code that a model writes")
    refused(LmEvalTask("own", "metric", str(own)), "metric 'squad' is code")


def test_data_that_are_not_there_are_named(tmp_path: Path) -> None:
    files = {"test": str(tmp_path / "gone.json")}
    write_task(tmp_path, "sums_gone", CHOICE, files)
    refused(LmEvalTask("own", "sums_gone", str(tmp_path)), "cannot be built", "HF_HOME")


@pytest.mark.parametrize("release", ["0.4.9", ""])
def test_an_absent_or_old_harness_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    def version(name: str) -> str:
        if not release:
            raise lm_eval_index.PackageNotFoundError(name)
        return release

    monkeypatch.setattr(lm_eval_index, "version", version)
    refused(LmEvalTask("own", "sums_choice", str(folder)), "pip install 'evomerge[lm-eval]'")


def test_groups_that_count_tasks_alike_need_as_many_items(folder: Path, tmp_path: Path) -> None:
    own = copied(folder, tmp_path, one=CHOICE)
    files = {s: str(folder / f"{s}.json") for s in ("train", "validation")}
    write_task(own, "two", CHOICE, {**files, "test": str(folder / "train.json")})
    (own / "both.yaml").write_text(
        "group: both\ntask: [one, two]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: false}]\n"
    )
    refused(LmEvalTask("own", "both", str(own)), "a group that counts its tasks alike")
    even = {"split": "test", "per_task": 8}
    task = LmEvalTask("own", "both", str(own), group_weighting="items", test=even)
    assert [item.id.split("/")[0] for item in task.items("test")] == ["one"] * 8 + ["two"] * 8


def test_digests_cover_content_not_places(folder: Path, tmp_path: Path) -> None:
    def digests(where: Path, **settings: object) -> tuple[object, ...]:
        task = LmEvalTask("own", "sums_generate", str(where), **settings)  # type: ignore[arg-type]
        item = task.items("test")[0]
        return task.contents(), item_digest(item, task.prompt(item))

    here = digests(folder)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    moved = copied(folder, tmp_path / "a", sums_generate=TASKS["sums_generate"])
    assert digests(moved) == here
    changed = TASKS["sums_generate"].replace("[0-9]+", "[0-9]{1,2}")
    for other in (
        digests(copied(folder, tmp_path / "b", sums_generate=changed)),
        digests(folder, filter="whole"),
        digests(folder, generation_kwargs={"max_gen_toks": 9}),
        digests(folder, num_fewshot=1),
        digests(folder, apply_chat_template=True),
    ):
        assert other[0] != here[0] and other[1] != here[1]


@pytest.mark.slow
def test_the_harness_own_tasks_are_found_without_reading_all_of_them() -> None:
    manager = lm_eval_index.find_manager("arc_easy", None, "task")
    assert [e.name for e in lm_eval_index.entries(manager, "arc_easy")] == ["arc_easy"]
    assert len(manager.all_tasks) < 100
    manager = lm_eval_index.find_manager("mmlu", None, "task")
    leaves = [e for e in lm_eval_index.entries(manager, "mmlu") if e.kind.name == "TASK"]
    assert len(leaves) == 57
    with pytest.raises(TaskError, match=r"Did you mean .*hellaswag"):
        lm_eval_index.find_manager("helaswag", None, "task")


def test_prompts_of_token_ids_stay_as_they_are() -> None:
    codec = Codec.__new__(Codec)
    codec.max_len = 4
    assert codec.prompts([[1, 2], (3,)]) == [[1, 2], [3]]
