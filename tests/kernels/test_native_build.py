"""Machines without a compiler, and folders that hold what was compiled before."""

import os
import shutil
import subprocess
import sys

import pytest

from evomerge.kernels.loops import native_available

PROGRAM = """
import torch
from evomerge import operators
from evomerge.kernels.loops import native_available
base, x = (torch.arange(40.0) * s for s in (0.1, 0.3))
merged = operators.merge("ties", base, [x], weight=[0.5], density=[0.5])
print(native_available(), float(merged.double().sum()))
"""


def run(tmp_path, **environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("CC", "EVOMERGE_KERNELS")}
    kept |= {"EVOMERGE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=kept, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def compiler(tmp_path, text):
    """A script that is called in the compiler's place."""
    file = tmp_path / "fake-cc"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


def expected():
    base = [i * 0.1 for i in range(40)]
    return sum(base) + sum(0.2 * i for i in range(20, 40))  # normalised: weight of one is 1


@pytest.mark.parametrize("how", ["torch", "none", "missing", "broken", "silent", "rubbish"])
def test_without_a_compiler_torch_does_it(tmp_path, how):
    environment = {
        "torch": {"EVOMERGE_KERNELS": "torch"},
        "none": {"PATH": str(tmp_path)},
        "missing": {"CC": "/nonexistent/cc"},
        "broken": {"CC": compiler(tmp_path, "echo no >&2; exit 1")},
        "silent": {"CC": compiler(tmp_path, "exit 0")},  # says it worked, and made nothing
        "rubbish": {
            "CC": compiler(tmp_path, 'for last; do :; done; echo rubbish > "$last"; exit 0')
        },
    }[how]
    available, total = run(tmp_path, **environment)
    assert available == "False"
    assert float(total) == pytest.approx(expected(), rel=1e-6)


@pytest.mark.skipif(not native_available(), reason="no C compiler")
def test_it_is_compiled_once_and_kept(tmp_path):
    available, total = run(tmp_path)
    assert available == "True"
    assert float(total) == pytest.approx(expected(), rel=1e-6)
    [made] = (tmp_path / "cache" / "kernels").iterdir()
    before = made.stat().st_mtime_ns
    assert run(tmp_path)[0] == "True"
    assert [f.stat().st_mtime_ns for f in (tmp_path / "cache" / "kernels").iterdir()] == [before]


@pytest.mark.skipif(not native_available(), reason="no C compiler")
def test_a_compiler_that_takes_few_flags_is_asked_again(tmp_path):
    real = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    script = f'case "$*" in *native*) exit 1;; esac; exec {real} "$@"'
    assert run(tmp_path, CC=compiler(tmp_path, script))[0] == "True"


def test_a_cache_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    available, total = run(tmp_path, EVOMERGE_CACHE=str(tmp_path / "file"))
    assert available == "False"
    assert float(total) == pytest.approx(expected(), rel=1e-6)
