"""Scores of harness tasks against `lm_eval` itself on the written checkpoint."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval_family import CHAT, ZOO, write_tasks

from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.engines.transformers import TransformersEngine
from evomerge.executors.worker import Job, Request, Worker, WorkerSpec
from evomerge.recipe import Recipe, Source
from evomerge.tasks.lm_eval_task import LmEvalTask

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow

NAMES = ["sums_generate", "sums_choice", "sums_likely", "sums_rolling"]
RECIPE = Recipe(
    "linear",
    tuple(
        Source(str(ZOO / "models" / n), {"weight": w}) for n, w in (("math", 0.6), ("base", 0.4))
    ),
    dtype="bfloat16",
)

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("lm_eval") / "tasks")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with a chat template."""
    path = tmp_path_factory.mktemp("lm_eval_start") / "base"
    shutil.copytree(ZOO / "models" / "base", path)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHAT}))
    return path


@pytest.fixture(scope="module")
def engine(start: Path) -> TransformersEngine:
    engine = TransformersEngine(start)
    engine.load(RECIPE)
    return engine


@pytest.fixture(scope="module")
def run(start: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the harness by itself, with its own `hf` model, on the written merge."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    written = tmp_path_factory.mktemp("lm_eval_written") / "merge"
    write_checkpoint(RECIPE, Merger(), written)

    def run(names: list[str], max_length: int | None = None, **settings: Any) -> dict[str, Any]:
        model = HFLM(
            pretrained=str(written), tokenizer=str(start), dtype="float32", device="cpu",
            batch_size=4, max_length=max_length,
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluator, "add_env_info", lambda results: None)  # seconds, no score
            manager = TaskManager(include_path=str(folder), include_defaults=False)
            found = evaluator.simple_evaluate(
                model=model, tasks=names, task_manager=manager, log_samples=True,
                bootstrap_iters=0, **settings,
            )  # fmt: skip
        assert found is not None
        return dict(found)

    return run


def samples(found: dict[str, Any], name: str, filter: str) -> list[dict[str, Any]]:
    rows = [row for row in found["samples"][name] if row["filter"] == filter]
    assert [row["doc_id"] for row in rows] == list(range(len(rows)))
    return rows


@pytest.fixture(scope="module")
def plain(run: Run) -> dict[str, Any]:
    """What the harness finds, of `sums_likely` in a run of its own.

    Release 0.4.13 takes wrong tokens' log-likelihoods in one run with `sums_choice`: its `hf` model
    shares logits between requests of the same tokens, also where continuations begin elsewhere.
    """
    most, likely = run([n for n in NAMES if n != "sums_likely"]), run(["sums_likely"])
    return {key: {**most[key], **likely[key]} for key in ("results", "samples")}


@pytest.mark.parametrize(
    ("name", "metric", "filter"),
    [
        ("sums_generate", "exact_match", "number"),
        ("sums_generate", "exact_match", "whole"),
        ("sums_choice", "acc", "none"),
        ("sums_choice", "acc_norm", "none"),
        ("sums_likely", "acc", "none"),
    ],
)
def test_scores_are_the_harness_own(
    engine: TransformersEngine, folder: Path, plain: dict[str, Any],
    name: str, metric: str, filter: str,
) -> None:  # fmt: skip
    task = LmEvalTask("own", name, str(folder), metric=metric, filter=filter)
    found = task.answer(engine, "test", None, loglik=False)
    rows = samples(plain, name, filter)
    assert found.scores.tolist() == [float(row[metric]) for row in rows]
    assert found.scores.mean() == pytest.approx(plain["results"][name][f"{metric},{filter}"])
    assert np.isnan(found.logliks).all()
    if name == "sums_generate":
        assert list(found.texts) == [row["resps"][0][0] for row in rows]
        assert (found.tokens > 0).all()
    some = task.answer(engine, "test", (7, 0, 10), loglik=False)
    assert some.ids == tuple(found.ids[i] for i in (7, 0, 10))
    assert some.scores.tolist() == found.scores[[7, 0, 10]].tolist()


def test_the_scores_tell_items_apart(plain: dict[str, Any]) -> None:
    """Otherwise equal scores would show nothing."""
    for name, metric in (
        ("sums_generate", "exact_match"), ("sums_choice", "acc"), ("sums_likely", "acc"),
    ):  # fmt: skip
        values = [row[metric] for row in plain["samples"][name]]
        assert 0.0 < np.mean(values) < 1.0


def test_log_likelihoods_are_the_harness_own(
    engine: TransformersEngine, folder: Path, plain: dict[str, Any]
) -> None:
    tokenizer = engine.codec.tokenizer
    for name in ("sums_choice", "sums_likely", "sums_rolling"):
        found = LmEvalTask("own", name, str(folder)).answer(engine, "test", None, loglik=True)
        for row, value, score in zip(
            samples(plain, name, "none"), found.logliks, found.scores, strict=True
        ):
            if name == "sums_rolling":
                total, text = row["resps"][0][0], row["arguments"][0][0]
                count = len(tokenizer.encode(text))
                assert score == pytest.approx(math.exp(total / count), rel=1e-4)
            else:
                at = row["target"] if name == "sums_choice" else 0
                total, (context, text) = row["resps"][at][0][0], row["arguments"][at]
                bare = context.rstrip()
                whole = tokenizer.encode(context + text)
                count = len(whole) - len(tokenizer.encode(bare))
            assert value == pytest.approx(total / count, abs=1e-4)


@pytest.mark.parametrize("chat", [False, True])
def test_few_shot_prompts_and_scores_are_the_harness_own(
    engine: TransformersEngine, folder: Path, run: Run, chat: bool
) -> None:
    names = ["sums_generate", "sums_choice"]
    settings: dict[str, Any] = {"apply_chat_template": chat, "fewshot_as_multiturn": chat}
    told = run(names, num_fewshot=2, system_instruction="Count.", **settings)
    for name in names:
        task = LmEvalTask(
            "own", name, str(folder), num_fewshot=2, system_instruction="Count.", **settings
        )
        found = task.answer(engine, "test", (3, 1, 8), loglik=False)
        rows = samples(told, name, task.metric.filter)
        rows = [rows[i] for i in (3, 1, 8)]
        assert found.scores.tolist() == [float(row[task.metric.name]) for row in rows]
        if name == "sums_generate":
            assert list(found.texts) == [row["resps"][0][0] for row in rows]
        if not chat:
            items = task.items("test")
            assert [task.prompt(items[i]) for i in (3, 1, 8)] == [
                row["arguments"][0][0] for row in rows
            ]


def test_too_long_prompts_lose_their_beginning_as_in_the_harness(
    start: Path, folder: Path, run: Run
) -> None:
    told = run(NAMES, max_length=36, num_fewshot=2)
    short = TransformersEngine(start, max_model_len=36)
    short.load(RECIPE)
    for name in NAMES:
        task = LmEvalTask("own", name, str(folder), num_fewshot=2)
        found = task.answer(short, "test", None, loglik=True)
        rows = samples(told, name, task.metric.filter)
        if name == "sums_rolling":
            counts = [len(short.codec.encode(row["arguments"][0][0])) for row in rows]
            assert max(counts) > 36  # several windows
            totals = found.logliks * np.array(counts)
            np.testing.assert_allclose(totals, [row["resps"][0][0] for row in rows], rtol=1e-4)
        else:
            assert found.scores.tolist() == [float(row[task.metric.name]) for row in rows]
        if name == "sums_generate":
            assert list(found.texts) == [row["resps"][0][0] for row in rows]


def test_a_group_is_the_mean_of_its_items(
    engine: TransformersEngine, folder: Path, run: Run
) -> None:
    told = run(["sums"])
    task = LmEvalTask("own", "sums", str(folder))
    found = task.answer(engine, "test", None, loglik=False)
    assert found.ids[0] == "sums_choice/test/0" and found.ids[-1] == "sums_likely/test/11"
    assert found.scores.mean() == pytest.approx(told["results"]["sums"]["acc,none"])


def test_a_worker_lets_the_task_answer(
    engine: TransformersEngine, folder: Path, start: Path
) -> None:
    node = {
        "_target_": "evomerge.tasks.lm_eval_task.LmEvalTask", "name": "own",
        "task": "sums_choice", "include_path": str(folder),
    }  # fmt: skip
    worker = Worker(WorkerSpec({"name": "transformers"}, str(start), {"own": node}, 1, 0))
    request = Request("own", "search", (4, 2), loglik=True)
    outcome = worker.evaluate(Job(1, RECIPE.to_dict(), (request,)))
    assert outcome.scores is not None, outcome.reason
    wanted = LmEvalTask("own", "sums_choice", str(folder)).answer(engine, "search", (4, 2), True)
    assert outcome.scores[0].ids == wanted.ids
    np.testing.assert_array_equal(outcome.scores[0].scores, wanted.scores)
    np.testing.assert_array_equal(outcome.scores[0].logliks, wanted.logliks)
