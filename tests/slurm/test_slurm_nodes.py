"""`multi_node.sbatch` with two nodes, each in namespaces of its own, and a real Ray on both."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_nodes import ADDRESSES, Nodes, Process, why_not
from studies import quick_arguments, quick_config

from evomerge import study
from evomerge.journal import read_events
from evomerge.progress import Progress
from evomerge.setup import make_setup

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STUDY = ("optimizer=random", "pool.check=false", "finalists=1", "budget.candidates=24")
RAY = "/dev/shm/ray-77"  # `/dev/shm` is each node's own


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    missing = why_not()
    if missing:
        pytest.skip(missing)
    made = Nodes(tmp_path)
    yield made
    made.close()


class Job:
    """The script, on the first node as Slurm has it; what it says is in a file."""

    def __init__(self, nodes: Nodes, folder: Path, *arguments: str) -> None:
        binaries = folder / "bin"
        binaries.mkdir()
        for name in ("python", "ray"):  # env.sh finds no environment to activate
            real = Path(sys.executable).with_name(name)
            (binaries / name).write_text(f'#!/bin/bash\nexec "{real}" "$@"\n')
            (binaries / name).chmod(0o755)
        environment = os.environ | {
            "PATH": f"{binaries}:{HERE / 'stubs'}:{os.environ['PATH']}",
            "STUB_LOG": str(folder / "scontrol"), "STUB_NODES": str(nodes.path),
            "SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "1",
            "SLURM_SUBMIT_DIR": str(ROOT), "EVOMERGE_VENV": str(folder / "none"),
            "EVOMERGE_TMP": "/dev/shm", "OMP_NUM_THREADS": "1",
            "RAY_event_stats_print_interval_ms": "1000", "EVOMERGE_KERNELS": "torch",
        }  # fmt: skip
        self._said = folder / "said"
        with self._said.open("w") as file:
            command = ["bash", str(ROOT / "slurm/multi_node.sbatch"), *arguments]
            self._process: Process = nodes.start(0, command, environment, file.fileno())

    def signal(self, number: int) -> None:
        self._process.signal(number)

    def wait(self) -> int:
        return self._process.wait(900)

    @property
    def said(self) -> str:
        return self._said.read_text()


def evaluated(nodes: Nodes, node: int) -> int:
    """Candidates that a node has answered, by Ray's count of what its actor was asked for."""
    told = nodes.ask(node, f"grep -h HandlePushTaskActor {RAY}/ray/session_*/logs/*core-worker*")
    counts = re.findall(r"HandlePushTaskActor - (\d+) total \((\d+) active", told)
    calls = max((int(total) - int(active) for total, active in counts), default=0)
    return max(0, calls - 2)  # of which one asked where it is, and one started the engine


def test_both_nodes_evaluate_and_a_preempted_study_goes_on(nodes: Nodes, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = quick_arguments(run_dir, *STUDY, "executor=ray")
    job = Job(nodes, tmp_path, *arguments)
    limit = time.monotonic() + 900
    while not all(evaluated(nodes, i) for i in (0, 1)):
        assert time.monotonic() < limit and "not finished" not in job.said, job.said
        time.sleep(0.5)
    job.signal(signal.SIGUSR1)
    assert job.wait() == 75, job.said
    assert f"Connecting to Ray cluster at {ADDRESSES[0]}:20077" in job.said
    assert "interrupted; the same command goes on" in job.said
    assert "Command failed with return code 130" in job.said
    assert (tmp_path / "scontrol").read_text() == "requeue 77\n"
    for node in (0, 1):
        ports = re.findall(
            r"server started, listening on port (\d+)",
            nodes.ask(node, f"grep -h 'listening on port' {RAY}/ray/session_*/logs/*"),
        )
        assert len(ports) >= 3 and all(20000 <= int(port) < 30000 for port in ports)
        left = nodes.ask(node, "ps -A -o args=")
        assert "raylet" not in left and "gcs_server" not in left

    before = [e for e in read_events(run_dir) if e["event"] == "result"]
    assert 2 <= len(before) < 24
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "write_report", lambda *_, **__: None)  # it takes long
        patch.setenv("EVOMERGE_KERNELS", "torch")
        study.run_study(make_setup(quick_config(run_dir, *STUDY)), Progress(quiet=True))
    after = [e for e in read_events(run_dir) if e["event"] == "result"]
    assert after[: len(before)] == before
    assert sorted(e["id"] for e in after) == list(range(24))
    assert read_events(run_dir)[-1]["event"] == "end"
