"""A real study with trackers: resumed it logs nothing twice, and a broken one does not stop it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies import quick_config

from evomerge.progress import Progress
from evomerge.setup import make_setup
from evomerge.study import run_study

SMALL = (
    "finalists=1", "++task.search.limit=4", "++task.validation.limit=2", "++task.test.limit=4",
    "task.sampling.max_new_tokens=4",
)  # fmt: skip


@pytest.mark.slow
def test_a_study_that_is_resumed_with_one_tracker_that_breaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import optuna

    run_dir, address = tmp_path / "run", f"sqlite:///{tmp_path}/studies.db"
    trackers = f"trackers={{optuna:{{storage:'{address}'}},tensorboard:{{folder:/dev/null/x}}}}"
    for budget in (2, 4):
        config = quick_config(run_dir, *SMALL, f"budget.candidates={budget}", trackers)
        with Progress(log="json") as progress:
            results = run_study(make_setup(config), progress)
        said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        warned = [s["text"] for s in said if "switched off" in s.get("text", "")]
        assert len(warned) == 1 and warned[0].startswith("warning: tracker tensorboard")
        [name] = optuna.get_all_study_names(address)
        trials = optuna.load_study(study_name=name, storage=address)
        events = [json.loads(x) for x in (run_dir / "journal.jsonl").read_text().splitlines()]
        found = {e["id"]: e["values"]["jp_math_tiny"] for e in events if e["event"] == "result"}
        assert {t.user_attrs["candidate"]: t.value for t in trials.trials} == found
        assert len(trials.trials) == len(found) == budget
        told = trials.user_attrs["held-out"]["held-out/jp_math_tiny/best merge"]
        assert told == results["models"]["best merge"]["scores"]["jp_math_tiny"]["test"]["value"]
        phases = [s["phase"] for s in said if s["event"] == "phase"]
        assert phases[0] == "starting the engines" and "search" in phases
        ended = [s for s in said if s["event"] == "phase_end" and s["phase"] == "search"]
        assert ended[0]["done"] == ended[0]["budget"]["candidates"]["used"] == budget
        proof = [s for s in said if s["event"] == "phase_end" and s["phase"].startswith("proof")]
        assert proof[0]["done"] == proof[0]["total"] == 5
