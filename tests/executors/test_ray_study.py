"""A study on a Ray cluster whose driver, disk and head fail one after the other."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_cluster import LocalCluster, with_token
from studies import items, journal, quick_arguments, quick_config, results

from evomerge import study
from evomerge.progress import Progress
from evomerge.setup import make_setup

pytestmark = pytest.mark.slow

OVERRIDES = ("budget.candidates=16", "finalists=1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with with_token():
        made = LocalCluster({"num_cpus": 1})
        yield made
        made.close()


def start(run_dir: Path, cluster: LocalCluster, largest: int | None = None) -> subprocess.Popen:
    """The command; `largest` is the size in bytes at which a file of its is full."""
    arguments = quick_arguments(
        run_dir, *OVERRIDES, "executor=ray", f"executor.address={cluster.address}",
    )  # fmt: skip

    def limit() -> None:
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    return subprocess.Popen(
        [sys.executable, "-m", "evomerge", *arguments], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, preexec_fn=limit,
    )  # fmt: skip


def recorded(run_dir: Path) -> int:
    path = run_dir / "journal.jsonl"
    return path.read_text().count('"event": "result"') if path.exists() else 0


def wait(process: subprocess.Popen, run_dir: Path, count: int) -> None:
    """Until so many results are recorded."""
    while recorded(run_dir) < count:
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.05)


def check_whole(run_dir: Path) -> None:
    text = (run_dir / "journal.jsonl").read_text()
    assert text.endswith("\n")
    assert all(json.loads(line)["event"] for line in text.splitlines())


def test_driver_killed_then_disk_full_then_head_lost_then_done(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "write_report", lambda *_, **__: None)  # it takes long
    run_dir, reference = tmp_path / "run", tmp_path / "reference"
    process = start(run_dir, cluster)
    wait(process, run_dir, 3)
    process.send_signal(signal.SIGKILL)
    process.wait()

    process = start(run_dir, cluster, (run_dir / "journal.jsonl").stat().st_size + 2000)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert "could not be written" in output
    assert "free some space and run the same command again" in output
    assert "Traceback" not in output
    check_whole(run_dir)
    done = recorded(run_dir)
    assert done >= 3

    process = start(run_dir, cluster)
    wait(process, run_dir, done + 2)
    process.send_signal(signal.SIGSTOP)  # or it would be done before the head is gone
    cluster.kill("head")
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert "error: the head of the Ray cluster at" in output
    assert "Traceback" not in output
    check_whole(run_dir)
    assert recorded(run_dir) < 16

    for folder in (run_dir, reference):
        study.run_study(make_setup(quick_config(folder, *OVERRIDES)), Progress(quiet=True))
    assert journal(run_dir) == journal(reference)
    assert items(run_dir) == items(reference)
    assert results(run_dir) == results(reference)
