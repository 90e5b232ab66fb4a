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


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study without any fault, in this process."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "write_report", lambda *_, **__: None)  # it takes long
        study.run_study(make_setup(quick_config(run_dir, *OVERRIDES)), Progress(quiet=True))
        yield run_dir


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
    return path.read_text().count('"event":"result"') if path.exists() else 0


def wait(process: subprocess.Popen, run_dir: Path, count: int) -> None:
    """Until so many results are recorded."""
    while recorded(run_dir) < count:
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.05)


def check_whole(run_dir: Path) -> None:
    text = (run_dir / "journal.jsonl").read_text()
    assert text.endswith("\n")
    assert all(json.loads(line)["event"] for line in text.splitlines())


def end_like(reference: Path, run_dir: Path) -> None:
    """The study goes on to the same end."""
    study.run_study(make_setup(quick_config(run_dir, *OVERRIDES)), Progress(quiet=True))
    assert journal(run_dir) == journal(reference)
    assert items(run_dir) == items(reference)
    assert results(run_dir) == results(reference)


def test_a_killed_driver_and_a_full_disk_leave_a_journal_that_goes_on(
    cluster: LocalCluster, reference: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
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
    assert 3 <= recorded(run_dir) < 16
    end_like(reference, run_dir)


def test_a_lost_cluster_stops_the_study_which_goes_on_elsewhere(
    cluster: LocalCluster, reference: Path, tmp_path: Path
) -> None:
    """The head dies, and the worker with it."""
    run_dir = tmp_path / "run"
    process = start(run_dir, cluster)
    wait(process, run_dir, 3)
    process.send_signal(signal.SIGSTOP)  # or it would be done before
    cluster.kill("head")
    cluster.kill(0)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert "error: the head of" in output, output
    assert "Traceback" not in output
    check_whole(run_dir)
    assert 3 <= recorded(run_dir) < 16
    end_like(reference, run_dir)
