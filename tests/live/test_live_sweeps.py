"""How a study is shown is no part of the name of its directory in a sweep."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from evomerge.sweeping import sweep_dir


def test_log_and_trackers_name_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(*given: str) -> str:
        node = SimpleNamespace(overrides=SimpleNamespace(task=given), mode=RunMode.MULTIRUN)
        monkeypatch.setattr(HydraConfig, "get", lambda: node)
        return sweep_dir({"experiment": "e", "seed": 1, "run_dir": "x"})

    plain = named("+experiment=e", "seed=1", "optimizer=gp")
    assert plain == "runs/e/gp/seed1"
    shown = ("log=json", "trackers=[optuna]", "+trackers.wandb.project=p")
    assert named("+experiment=e", "seed=1", *shown, "optimizer=gp") == plain
