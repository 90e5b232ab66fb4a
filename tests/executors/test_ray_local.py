"""The Ray that is started here: who can reach it, and whether it lasts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from evomerge.executors.cluster import Needs
from evomerge.executors.ray import RayExecutor

pytestmark = pytest.mark.slow

SOAK = Path(__file__).parents[2] / "benchmarks/ray_soak.py"


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    from ray import cloudpickle

    made = importlib.util.spec_from_file_location("ray_soak", SOAK)
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    sys.modules["ray_soak"] = module
    made.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)  # workers do not have the file on their path
    return module


@pytest.fixture(scope="module")
def executor(soak: ModuleType) -> Iterator[RayExecutor]:
    spec = soak.WorkerSpec({}, "none", {}, threads=1, seed=0)
    made = RayExecutor(spec, 1, make=soak.SumWorker)
    yield made
    made.close()


def test_nobody_else_can_reach_it(executor: RayExecutor) -> None:
    """Every port of every process is on the loopback interface; there is no dashboard."""
    own = psutil.Process()
    open_ports, names = [], []
    for process in [own, *own.children(recursive=True)]:
        names.append(" ".join(process.cmdline()))
        for one in process.net_connections(kind="tcp"):
            if one.status == psutil.CONN_LISTEN:
                open_ports.append((process.name(), one.laddr.ip.removeprefix("::ffff:")))
    assert any("gcs_server" in name for name in names)
    assert len(open_ports) >= 3
    assert {ip for _, ip in open_ports} <= {"127.0.0.1", "::1"}, open_ports
    assert executor._cluster.address.startswith("127.0.0.1:")


def test_it_asks_for_a_token(executor: RayExecutor, tmp_path: Path) -> None:
    """A client without one, and one with another, are refused."""
    code = (
        "import ray, sys\n"
        "from ray._raylet import GcsClient\n"
        f"GcsClient(address={executor._cluster.address!r}).check_alive([], 5)\n"
    )
    base = {**os.environ, "HOME": str(tmp_path)}
    for more in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}):
        environment = base | {"RAY_AUTH_MODE": "token"} | more
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        assert done.returncode != 0
        assert "InvalidAuthToken" in done.stderr


def test_a_short_soak(executor: RayExecutor, soak: ModuleType) -> None:
    executor.close()
    found = soak.soak(candidates=60, every=20, workers=1)
    assert (found["candidates"], found["kills"]) == (60, 2)
    assert found["candidates_tried_again"] == 2
    assert found["memory_mb_at_the_end"] < found["memory_mb_after_a_tenth"] + 20


def test_needs_fit_as_often_as_they_do() -> None:
    assert Needs(2).fit({"CPU": 7.0}) == 3
    assert Needs(1, 0.3).fit({"CPU": 64.0, "GPU": 2.0}) == 6  # three a GPU, never across two
    assert Needs(4, 2.0).fit({"CPU": 12.0, "GPU": 8.0}) == 3
    assert Needs(1, 1.0).fit({"CPU": 12.0}) == 0


TERMINATED = """
import os, signal, sys, time
from evomerge.executors.cluster import Cluster

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, interrupt)
cluster = Cluster(None, 1)
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(4)  # candidates at work are waited for, a page is written
    cluster.close()
    print("tidied up")
    sys.exit(130)
"""


def test_a_study_that_is_asked_to_end_may_take_its_time() -> None:
    """Ray has a handler of SIGTERM of its own, which aborts the process 3 s later."""
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (130, "tidied up\n"), done.stderr
    assert "SIGTERM received" not in done.stderr
