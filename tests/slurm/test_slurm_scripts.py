"""The Slurm scripts without Slurm: their form, and what they do with stubs in its place."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from studies import quick_arguments

from evomerge.journal import JOURNAL, read_events

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sbatch"))
SHELL = [*sorted((ROOT / "slurm").glob("*.sh")), *SCRIPTS, *sorted((HERE / "stubs").iterdir())]
STUDY = ("optimizer=random", "pool.check=false", "finalists=1")

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a script of `slurm/` as Slurm would, with stubs; what it noted is in `scontrol`."""
    started = []

    def begin(script: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        path = f"{tmp_path / 'bin'}:{HERE / 'stubs'}:{os.environ['PATH']}"
        environment = os.environ | {
            "PATH": path, "STUB_LOG": str(tmp_path / "scontrol"), "SLURM_JOB_ID": "77",
            "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NUM_NODES": "1", "OMP_NUM_THREADS": "1",
            "EVOMERGE_VENV": str(tmp_path / "none"), "EVOMERGE_TMP": "/tmp",
            "EVOMERGE_HEAD": "127.0.0.1",
        } | variables  # fmt: skip
        (tmp_path / "bin").mkdir(exist_ok=True)
        for name in ("python", "ray"):  # env.sh finds no environment to activate
            link, real = tmp_path / "bin" / name, Path(sys.executable).with_name(name)
            if not link.exists():
                link.write_text(f'#!/bin/bash\nexec "{real}" "$@"\n')
                link.chmod(0o755)
        process = subprocess.Popen(
            ["bash", str(ROOT / "slurm" / script), *arguments], env=environment, text=True,
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=120)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=1800)
    return process.returncode, said


def instead(tmp_path: Path, name: str, text: str) -> None:
    """A program of the test's own in the place of another."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    path = tmp_path / "bin" / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def results(run_dir: Path) -> list[int]:
    """Numbers of the candidates that have a result; the last line of a journal may be torn."""
    if not (run_dir / JOURNAL).is_file():
        return []
    return [e["id"] for e in read_events(run_dir) if e["event"] == "result"]


def test_shellcheck_finds_nothing() -> None:
    tool = Path(sys.executable).with_name("shellcheck")
    command = str(tool) if tool.exists() else shutil.which("shellcheck")
    if command is None:
        pytest.skip("needs shellcheck (extra `test`)")
    done = subprocess.run(
        [command, "--external-sources", *map(str, SHELL)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_form(script: Path) -> None:
    text = script.read_text()
    assert len(text.splitlines()) < 60
    assert text.startswith("#!/bin/bash\n")
    for line in ("--signal=B:USR1@120", "--requeue", "--open-mode=append", "--time="):
        assert f"#SBATCH {line}" in text
    assert 'python -m evomerge "$@"' in text and 'finish "$@"' in text


def test_all_scripts_are_there() -> None:
    assert {p.name for p in (ROOT / "slurm").iterdir()} >= {
        "README.md", "env.sh", "single_node.sbatch", "multi_node.sbatch", "array.sbatch",
        "smoke.sbatch",
    }  # fmt: skip
    assert all(len(p.read_text().splitlines()) < 60 for p in (ROOT / "slurm").glob("*.sh"))


@pytest.mark.slow
def test_preempted_study_is_requeued_and_ends_after_a_second_start(
    start: Start, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    arguments = quick_arguments(run_dir, *STUDY, "budget.candidates=16")
    first = start("single_node.sbatch", *arguments)
    limit = time.monotonic() + 1500
    while len(results(run_dir)) < 2:
        assert first.poll() is None and time.monotonic() < limit, ended(first)[1]
        time.sleep(0.2)
    first.send_signal(signal.SIGUSR1)
    code, said = ended(first)
    before = results(run_dir)
    assert code == 75, said
    assert "interrupted" in said and "requeued" in said
    assert (tmp_path / "scontrol").read_text() == "requeue 77\n"
    assert 2 <= len(before) < 16
    lines = (run_dir / JOURNAL).read_text().splitlines(keepends=True)
    assert all(json.loads(line) and line.endswith("\n") for line in lines)
    code, said = ended(start("single_node.sbatch", *arguments, SLURM_RESTART_COUNT="1"))
    assert code == 0, said
    assert "finished, 16 of 16 candidates" in said
    after = results(run_dir)
    assert after[: len(before)] == before and sorted(after) == list(range(16))


@pytest.mark.slow
def test_smoke_runs_for_real(start: Start, tmp_path: Path) -> None:
    arguments = quick_arguments(tmp_path / "run", *STUDY, "budget.candidates=2")
    kept = [a for a in arguments if not a.startswith("+experiment")]
    code, said = ended(start("smoke.sbatch", *kept))
    assert code == 0, said
    assert "finished, 2 of 2 candidates" in said


def test_a_study_that_was_never_started_is_a_failure(start: Start, tmp_path: Path) -> None:
    """`ray symmetric-run` exits with 0 where Ray does not start."""
    instead(tmp_path, "srun", "exit 0")
    instead(tmp_path, "ray", "exit 0")
    code, said = ended(start("multi_node.sbatch", *quick_arguments(tmp_path / "run")))
    assert code == 1
    assert "absent" in said and "not finished" in said


def test_what_the_scripts_start(start: Start, tmp_path: Path) -> None:
    """The study's own arguments come last, so that they win; the seed of an array is its task."""
    note = tmp_path / "said"
    instead(tmp_path, "python", f'echo "$*" >>"{note}"')
    instead(tmp_path, "ray", "exit 0")
    instead(tmp_path, "srun", f'echo "$*" >>"{note}"')
    assert ended(start("array.sbatch", "+experiment=x", SLURM_ARRAY_TASK_ID="3"))[0] == 0
    assert note.read_text().splitlines() == [
        "-m evomerge +experiment=x seed=3", "-m evomerge status +experiment=x seed=3",
    ]  # fmt: skip
    note.unlink()
    two = {
        "SLURM_JOB_NUM_NODES": "2", "EVOMERGE_WORKERS_PER_NODE": "8", "SLURM_CPUS_PER_TASK": "64",
    }  # fmt: skip
    assert ended(start("multi_node.sbatch", "+experiment=x", "a=b c", **two))[0] == 0
    ran, asked = note.read_text().splitlines()
    address = "127.0.0.1:20077"
    assert f"symmetric-run --address {address} --min-nodes 2" in ran
    assert "--cpus-per-task=64" in ran and "--num-cpus 64" in ran
    named = [word for word in ran.split(" -- ")[0].split() if word.endswith("-port")]
    assert {"--node-manager-port", "--object-manager-port", "--max-worker-port"} <= {*named}
    ends = f"executor.address={address} executor.workers=16 +experiment=x a=b c"
    assert ran.endswith(f"python -m evomerge {ends}")
    assert asked == f"-m evomerge status {ends}"


@pytest.mark.parametrize(("code", "marker", "expected"), [(0, 1, 1), (2, 1, 2), (1, 0, 1)])
def test_the_exit_code_needs_both(
    start: Start, tmp_path: Path, code: int, marker: int, expected: int
) -> None:
    instead(tmp_path, "python", f"[[ $3 == status ]] && exit {marker}; exit {code}")
    assert ended(start("single_node.sbatch", "+experiment=x"))[0] == expected


@pytest.mark.parametrize(
    ("number", "variables", "expected", "noted"),
    [
        (signal.SIGUSR1, {}, 75, "requeue 77\n"),
        (signal.SIGUSR1, {"SLURM_RESTART_COUNT": "100"}, 75, ""),
        (signal.SIGTERM, {}, 143, ""),
    ],
)
def test_signals(
    start: Start, tmp_path: Path, number: int, variables: dict[str, str], expected: int, noted: str
) -> None:
    """What is cancelled is not put back, nor what was often enough."""
    instead(tmp_path, "python", f'trap "touch {tmp_path}/stopped; exit 130" TERM\n'
            f"touch {tmp_path}/began\nwhile :; do sleep 0.1; done")  # fmt: skip
    process = start("single_node.sbatch", "+experiment=x", **variables)
    while not (tmp_path / "began").exists():
        time.sleep(0.05)
    process.send_signal(number)
    assert ended(process)[0] == expected
    assert (tmp_path / "stopped").exists()
    log = tmp_path / "scontrol"
    assert (log.read_text() if log.exists() else "") == noted
