"""Trackers cannot harm a study, and their settings are checked before it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from tracked import CONFIG, events, write

from evomerge.errors import UserError
from evomerge.trackers import base
from evomerge.trackers.base import Candidate, HeldOut, Study, Tracker
from evomerge.trackers.choice import make_trackers
from evomerge.trackers.feed import Feed
from evomerge.trackers.story import Story


class Noting(Tracker):
    def __init__(self, run_dir: Path, fails_at: int = -1) -> None:
        super().__init__(run_dir)
        self.fails_at = fails_at
        self.noted: list[object] = []
        self.threads: set[str] = set()
        self.closed = 0

    def begin(self, study: Study) -> None:
        self.noted.append("begin")

    def candidate(self, candidate: Candidate) -> None:
        self.threads.add(threading.current_thread().name)
        if candidate.step == self.fails_at:
            raise OSError("no space left on the device")
        self.noted.append(candidate.step)

    def held_out(self, results: HeldOut) -> None:
        self.noted.append("held out")

    def close(self) -> None:
        self.closed += 1


class Hanging(Noting):
    def candidate(self, candidate: Candidate) -> None:
        time.sleep(30)


def feed(run_dir: Path, trackers: dict[str, Tracker], patience: float = 10) -> list[str]:
    said: list[str] = []
    write(run_dir, [])
    own = Feed(trackers, Story(run_dir, CONFIG), said.append, patience)
    own.hear_all(events(10))
    own.close()
    return said


def test_one_that_fails_is_switched_off_with_one_warning(tmp_path: Path) -> None:
    good, bad = Noting(tmp_path), Noting(tmp_path, fails_at=4)
    said = feed(tmp_path, {"good": good, "bad": bad})
    assert said == ["warning: tracker bad is switched off: no space left on the device"]
    assert good.noted == ["begin", *range(13), "held out"]
    assert bad.noted == ["begin", *range(4)]
    assert (good.closed, bad.closed) == (1, 1)
    assert good.threads == {"tracker good"}


def test_one_that_hangs_holds_nothing_up_for_long(tmp_path: Path) -> None:
    good = Noting(tmp_path)
    begin = time.monotonic()
    said = feed(tmp_path, {"slow": Hanging(tmp_path), "good": good}, patience=0.3)
    assert time.monotonic() - begin < 10
    assert len(said) == 1 and said[0].startswith("warning: slow did not finish within 0.3 s")
    assert good.noted[-1] == "held out"


def test_an_event_that_cannot_be_read_ends_tracking_only(tmp_path: Path) -> None:
    said: list[str] = []
    own = Feed({"good": Noting(tmp_path)}, Story(tmp_path, CONFIG), said.append)
    own.hear({"event": "result", "id": 99})
    own.hear({"event": "result", "id": 100})
    own.close()
    assert len(said) == 1 and "switched off" in said[0]


def made(run_dir: Path, trackers: object) -> dict[str, Tracker]:
    return make_trackers({"trackers": trackers, "run_dir": str(run_dir)})


def test_names_or_settings(tmp_path: Path) -> None:
    assert made(tmp_path, None) == made(tmp_path, {}) == made(tmp_path, []) == {}
    assert list(made(tmp_path, ["optuna", "tensorboard"])) == ["optuna", "tensorboard"]
    assert list(made(tmp_path, {"wandb": None, "mlflow": {"uri": "file:x"}})) == ["wandb", "mlflow"]
    own = {"_target_": "evomerge.trackers.optuna.OptunaMirror", "storage": "sqlite:///x.db"}
    assert list(made(tmp_path, {"mine": own})) == ["mine"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("trackers", "field", "expected"),
    [
        (["tensorbord"], "trackers.tensorbord", "Did you mean tensorboard?"),
        ({"optuna": {"storge": "x"}}, "trackers.optuna.storge", "Did you mean"),
        ({"optuna": {"storage": "x.txt"}}, "trackers.optuna.storage", "sqlite:///FILE.db"),
        ({"optuna": {"storage": "mysql://a:b@c/d"}}, "trackers.optuna.storage", "without"),
        ({"wandb": {"mode": "on"}}, "trackers.wandb.mode", "offline, online"),
        ({"wandb": {"mode": "online"}}, "trackers.wandb.mode", "wandb login"),
        ({"wandb": 3}, "trackers.wandb", "settings by name"),
        (3, "trackers", "names"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, trackers: object, field: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError) as caught:
        made(tmp_path, trackers)
    [problem] = caught.value.problems
    assert problem.field == field and expected in str(problem)


def test_missing_packages_are_all_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        made(tmp_path, ["tensorboard", "mlflow", "wandb"])
    assert len(caught.value.problems) == 3
    assert all("evomerge[trackers]" in p.remedy for p in caught.value.problems)
    assert not list(tmp_path.iterdir())
