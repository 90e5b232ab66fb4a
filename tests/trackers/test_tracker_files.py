"""What trackers wrote, read back with the tools' own readers; nothing is there twice."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tracked import CONFIG, DIMENSIONS, HELD_OUT, SECRET, events, write

from evomerge.trackers.choice import make_trackers
from evomerge.trackers.feed import Feed
from evomerge.trackers.story import Story


def follow(run_dir: Path, settings: dict[str, Any], written: list[dict[str, Any]]) -> None:
    write(run_dir, written)
    trackers = make_trackers({"trackers": settings, "run_dir": str(run_dir)})
    said: list[str] = []
    feed = Feed(trackers, Story(run_dir, CONFIG), said.append)
    feed.hear_all(written)
    feed.close()
    assert [line for line in said if not line.startswith("waiting for")] == []  # it may be slow


def resumed(run_dir: Path, settings: dict[str, Any], written: list[dict[str, Any]]) -> None:
    """A study that was interrupted once, resumed to its end, and run again."""
    for upto in (len(written) // 2, len(written), len(written)):
        follow(run_dir, settings, written[:upto])


def values(written: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Step and value of the study's own candidates that were answered."""
    results = [e for e in written if e["event"] == "result"]
    return [
        (step, e["values"]["math"])
        for step, e in enumerate(results)
        if e["status"] == "ok" and e["search"] == "search"
    ]


def no_secret(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file


@pytest.mark.slow
def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = events()
    resumed(tmp_path, {"tensorboard": None}, written)
    folder = tmp_path / "trackers" / "tensorboard"
    assert len(list(folder.iterdir())) == 1
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found = read.Scalars("search/math")
    assert [(s.step, s.value) for s in found] == [
        (step, pytest.approx(value)) for step, value in values(written)
    ]
    times = {e["time"] for e in written if e["event"] == "result"}
    assert {s.wall_time for s in found} <= times
    for name, value in HELD_OUT.items():
        [scalar] = read.Scalars(name)
        assert scalar.value == pytest.approx(value)
    assert "config/text_summary" in read.Tags()["tensors"]
    no_secret(folder)


@pytest.mark.parametrize("where", ["trackers/optuna.log", "sqlite"])
def test_optuna_of_one_objective(tmp_path: Path, where: str) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    address = f"sqlite:///{tmp_path}/studies.db"
    written = events(several=False)
    settings = {"storage": address} if where == "sqlite" else None
    resumed(tmp_path / "run", {"optuna": settings}, written)
    storage: Any = address
    if where != "sqlite":
        storage = JournalStorage(JournalFileBackend(str(tmp_path / "run" / where)))
    [name] = optuna.get_all_study_names(storage)
    assert name.startswith("demo-seed3-")
    study = optuna.load_study(study_name=name, storage=storage)
    check_trials(study, written)
    assert study.best_value == max(
        e["values"]["math"]
        for e in written
        if e["event"] == "result" and e.get("complete") and e["search"] == "search"
    )
    assert study.user_attrs["held-out"] == HELD_OUT
    assert SECRET not in json.dumps(study.user_attrs)


def check_trials(study: Any, written: list[dict[str, Any]]) -> None:
    """Every candidate of the search is a trial with its parameters, state and times."""
    results = [e for e in written if e["event"] == "result" and e["search"] == "search"]
    asked = {c["id"]: (c, e["time"]) for e in written if e["event"] == "ask"
             for c in e["candidates"]}  # fmt: skip
    assert [t.user_attrs["candidate"] for t in study.trials] == [e["id"] for e in results]
    for trial, event in zip(study.trials, results, strict=True):
        wanted = "FAIL" if event["status"] == "failed" else (
            "COMPLETE" if event["complete"] else "PRUNED")  # fmt: skip
        assert trial.state.name == wanted
        genome, began = asked[event["id"]]
        x, layers, method = genome["genome"]
        assert trial.params == {
            "weight/math/all": x, "layers": layers, "method": DIMENSIONS[2]["choices"][int(method)]
        }  # fmt: skip
        assert trial.user_attrs["digest"] == genome["digest"]
        assert began <= trial.datetime_start.timestamp() <= trial.datetime_complete.timestamp()
        assert trial.datetime_complete.timestamp() == pytest.approx(event["time"])
        if event["status"] == "ok":
            assert trial.values == list(event["values"].values())


def test_optuna_of_several_objectives(tmp_path: Path) -> None:
    import optuna

    address = f"sqlite:///{tmp_path}/studies.db"
    written = events(several=True)
    resumed(tmp_path / "run", {"optuna": {"storage": address, "name": "mine"}}, written)
    study = optuna.load_study(study_name="mine", storage=address)
    check_trials(study, written)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["math", "cost"]
    broken = [t.user_attrs["candidate"] for t in study.trials if t.constraints.get("safety", 0) > 0]
    assert broken == [i for i in range(12) if i % 4 == 3 and i % 5 != 4]
    assert {t.user_attrs["candidate"] for t in study.best_trials}.isdisjoint(broken)


def test_two_studies_in_one_optuna_storage_stay_apart(tmp_path: Path) -> None:
    import optuna

    address = f"sqlite:///{tmp_path}/studies.db"
    for seed in (0, 1):
        follow(tmp_path / str(seed), {"optuna": {"storage": address}}, events(5, seed=seed))
    assert len(optuna.get_all_study_names(address)) == 2


@pytest.mark.slow
def test_mlflow(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    written = events()
    resumed(tmp_path, {"mlflow": {"experiment": "merges"}}, written)
    client = MlflowClient(f"sqlite:///{tmp_path}/trackers/mlflow.db")
    experiment = client.get_experiment_by_name("merges")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    found = client.get_metric_history(run.info.run_id, "search/math")
    assert sorted((m.step, m.value) for m in found) == values(written)
    for name, value in HELD_OUT.items():
        [metric] = client.get_metric_history(run.info.run_id, name)
        assert metric.value == value
    assert run.data.params["models.base"] == "zoo/base"
    assert SECRET not in str(run.data.params)
    no_secret(tmp_path / "trackers")


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    written = events()
    resumed(tmp_path, {"wandb": {"project": "merges"}}, written)
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    runs = set()
    for record in wandb_records(tmp_path / "trackers" / "wandb"):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            runs.add((record.run.run_id, record.run.project))
        elif kind == "history":
            rows.append({_key(i): json.loads(i.value_json) for i in record.history.item})
        elif kind == "summary":
            summary |= {_key(i): json.loads(i.value_json) for i in record.summary.update}
    assert len(runs) == 1 and next(iter(runs))[1] == "merges"
    seen = sorted((r["_step"], r["search/math"]) for r in rows if "search/math" in r)
    assert seen == values(written)
    assert {k: summary[k] for k in HELD_OUT} == HELD_OUT
    no_secret(tmp_path / "trackers")


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def wandb_records(folder: Path) -> list[Any]:
    """All records of the offline runs in a folder, in W&B's own messages.

    A file has a header of seven bytes and then LevelDB's log format: blocks of 32 KiB that hold
    pieces of records, each with a checksum, a length and whether it is whole, a first, a middle
    or a last one.
    """
    from wandb.proto import wandb_internal_pb2

    out = []
    for file in sorted(folder.glob("offline-run-*/*.wandb")):
        data, place, whole = file.read_bytes(), 7, b""
        assert data[:4] == b":W&B"
        while place + 7 <= len(data):
            left = 32768 - place % 32768
            if left < 7:
                place += left
                continue
            length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
            whole += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last piece
                record = wandb_internal_pb2.Record()
                record.ParseFromString(whole)
                out.append(record)
                whole = b""
    return out
