"""Studies with a ledger: what answers depend on, and that nothing is asked twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from studies import items, journal, quick_config, results

from evomerge import answering
from evomerge.answering import answer_settings, ledger_folder
from evomerge.check import check
from evomerge.ledger import Ledger
from evomerge.progress import Progress
from evomerge.setup import make_setup
from evomerge.study import run_study
from evomerge.zoo import zoo_path

SMALL = ("budget.candidates=8", "task.scorer._target_=evomerge.tasks.scorers.number")


def run(run_dir: Path, *overrides: str) -> dict:
    return run_study(make_setup(quick_config(run_dir, *SMALL, *overrides)), Progress(quiet=True))


def events(run_dir: Path, kind: str) -> list[dict]:
    lines = (run_dir / "journal.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == kind]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study, and the ledger beside its run directory."""
    folder = tmp_path_factory.mktemp("first")
    run(folder / "run", f"ledger={folder / 'ledger'}")
    return folder


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "make_executor", lambda config: pytest.fail("started"))


def test_a_second_study_that_shares_the_ledger_answers_nothing(
    first: Path, tmp_path: Path, no_engine: None
) -> None:
    before = pd.read_parquet(first / "ledger")
    run(tmp_path / "run", f"ledger={first / 'ledger'}")
    assert journal(tmp_path / "run") == journal(first / "run")
    assert items(tmp_path / "run") == items(first / "run")
    assert results(tmp_path / "run") == results(first / "run")
    assert {e["answered"] for e in events(tmp_path / "run", "measure")} == {0}
    assert len(pd.read_parquet(first / "ledger")) == len(before)


def test_a_ledger_of_its_own_changes_no_result(first: Path, tmp_path: Path) -> None:
    run(tmp_path)
    assert journal(tmp_path) == journal(first / "run")
    assert items(tmp_path) == items(first / "run")
    own = pd.read_parquet(tmp_path / "ledger")
    shared = pd.read_parquet(first / "ledger")
    pd.testing.assert_frame_equal(own, shared)


def test_held_out_numbers_reuse_what_the_search_answered(first: Path) -> None:
    """Of 12 search and 10 test items, the winner is asked the test items only."""
    measured = {e["name"]: e for e in events(first / "run", "measure") if e["role"] != "finalist"}
    assert measured["best merge"]["answered"] == 10
    assert {e["answered"] for n, e in measured.items() if n != "best merge"} == {22}


def test_the_ledger_holds_every_answer_of_the_study_once(first: Path) -> None:
    frame = pd.read_parquet(first / "ledger")
    keys = ["digest", "task", "item", "settings"]
    assert not frame.duplicated(keys).any()
    digests = {c["digest"] for e in events(first / "run", "ask") for c in e["candidates"]}
    digests |= {e["digest"] for e in events(first / "run", "measure")}
    assert set(frame["digest"]) == digests
    files = [pd.read_parquet(p) for p in (first / "run" / "items").iterdir()]
    texts = pd.concat(files)["text"]
    assert set(frame["text"]) == set(texts)


def test_a_study_whose_journal_is_behind_its_ledger_goes_on_from_the_ledger(
    first: Path, tmp_path: Path, no_engine: None
) -> None:
    """As after a kill between an answer and its event."""
    shutil.copytree(first / "run", tmp_path / "run")
    path = tmp_path / "run" / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5]))
    run(tmp_path / "run", f"ledger={first / 'ledger'}")
    assert journal(tmp_path / "run") == journal(first / "run")
    assert items(tmp_path / "run") == items(first / "run")


def test_candidates_are_run_anew_where_their_time_counts(tmp_path: Path) -> None:
    timed = ("+objectives.score.metric=score", "+objectives.time.metric=seconds")
    timed += ("scalarize=weighted_sum", "budget.candidates=3", "finalists=1")
    for name in ("one", "two"):
        run(tmp_path / name, *timed, f"ledger={tmp_path / 'ledger'}")
        assert all(e["seconds"]["answer"] > 0 for e in events(tmp_path / name, "result"))
    assert {e["answered"] for e in events(tmp_path / "two", "measure")} <= {0, 8, 10, 22}
    frame = pd.read_parquet(tmp_path / "ledger")
    assert not frame.duplicated(["digest", "task", "item", "settings"]).any()


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return answer_settings(make_setup(quick_config(tmp_path_factory.mktemp("run"))))


@pytest.mark.parametrize(
    "override",
    [
        "task.sampling.max_new_tokens=9", "task.scorer._target_=evomerge.tasks.scorers.number",
        "engine.dtype=bfloat16", "engine.max_model_len=100",
    ],
)  # fmt: skip
def test_what_turns_answers_is_in_the_hash(usual, tmp_path, override):
    changed = answer_settings(make_setup(quick_config(tmp_path, override)))
    assert changed.keys() == usual.keys() == {"jp_math_tiny"}
    assert changed != usual


@pytest.mark.parametrize(
    "override",
    [
        "++task.search.limit=5", "seed=3", "task.loglik_weight=0", "engine.batch_tokens=512",
        "optimizer=random", "executor.threads=2", "dtype=float32",
    ],
)  # fmt: skip
def test_what_does_not_is_not(usual, tmp_path, override):
    assert answer_settings(make_setup(quick_config(tmp_path, override))) == usual


def test_the_seed_counts_where_sampling_is_random(usual, tmp_path):
    hot = "++task.sampling.temperature=0.7"
    one, two = (
        answer_settings(make_setup(quick_config(tmp_path, hot, f"seed={seed}"))) for seed in (0, 1)
    )
    assert one != two
    assert one != usual


def test_another_tokenizer_is_in_the_hash_and_another_place_is_not(usual, tmp_path):
    shutil.copytree(zoo_path("models/base"), tmp_path / "base")
    config = quick_config(tmp_path / "run", f"models.base={tmp_path / 'base'}")
    assert answer_settings(make_setup(config)) == usual
    path = tmp_path / "base" / "tokenizer.json"
    data = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(data | {"truncation": None}, indent=3), "utf-8")
    assert answer_settings(make_setup(config)) != usual


def test_check_names_a_folder_that_cannot_be_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    for name, text in (("file", "the file"), ("other", "notes.txt")):
        found = check(quick_config(tmp_path / "run", f"ledger={tmp_path / name}"))
        assert [(p.field, text in p.found) for p in found] == [("ledger", True)]
    Ledger(tmp_path / "new")
    told: list[str] = []
    config = quick_config(tmp_path / "run", f"ledger={tmp_path / 'new'}")
    assert check(config, told.append) == []
    assert f"ledger: 0 answers in {tmp_path / 'new'}" in told
    assert ledger_folder(quick_config(tmp_path / "run")) == tmp_path / "run" / "ledger"
