"""A Ray cluster of several nodes on this machine, in a process of its own, for the tests.

Run as a script it starts a head without a core of its own, and then obeys lines on its standard
input: `add {"num_cpus": 1, ...}` starts a node, `kill 0` ends the first node (`kill head` the
head) as a power cut would: every process of it gets SIGKILL. Each line is answered with one
line of JSON. At the end of its input it ends everything.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_STORE = 80 << 20


class LocalCluster:
    """Starts and kills nodes of a cluster that it owns.

    Attributes:
        address: of the head.
    """

    def __init__(self, *nodes: dict[str, Any]) -> None:
        """Starts a head and nodes; each is told what `Cluster.add_node` takes."""
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, start_new_session=True, env=_environment(),
        )  # fmt: skip
        self.address = str(self._answer()["address"])
        for node in nodes:
            self.add(**node)

    def add(self, **node: Any) -> None:
        """Starts a node and waits until it is in the cluster."""
        self._say(f"add {json.dumps(node)}")

    def kill(self, node: int | str) -> None:
        """Kills all processes of a node (by number, in the order they came) or of the head."""
        self._say(f"kill {node}")

    def close(self) -> None:
        """Ends everything that it started."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise RuntimeError("the cluster did not start")


@contextlib.contextmanager
def with_token() -> Iterator[None]:
    """Has this process show Ray's token, as a user does by RAY_AUTH_MODE=token."""
    from ray._raylet import Config

    before = os.environ.get("RAY_AUTH_MODE")
    os.environ["RAY_AUTH_MODE"] = "token"
    Config.initialize("")  # read when ray was imported
    yield
    if before is None:
        del os.environ["RAY_AUTH_MODE"]
    else:
        os.environ["RAY_AUTH_MODE"] = before
    Config.initialize("")


def _environment() -> dict[str, str]:
    """With a token to be asked for, and with the tests' own workers to be found."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    # A worker in this process hides the GPUs from it; nodes may say that they have some.
    kept = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    return {**kept, "RAY_AUTH_MODE": "token", "PYTHONPATH": os.pathsep.join(paths)}


def _pids(node: Any) -> list[int]:
    import psutil

    own = [p.process.pid for ps in node.all_processes.values() for p in ps]
    below = []
    for pid in own:
        with contextlib.suppress(psutil.Error):
            below += [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return [*own, *below]


def _kill(node: Any) -> None:
    for pid in _pids(node):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _serve() -> None:
    from ray.cluster_utils import Cluster

    common: dict[str, Any] = {"object_store_memory": _STORE, "include_log_monitor": False}
    cluster = Cluster(shutdown_at_exit=False)
    head = cluster.add_node(num_cpus=0, include_dashboard=False, **common)
    nodes: list[Any] = []
    print(json.dumps({"address": cluster.address}), flush=True)
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        if verb == "add":
            nodes.append(cluster.add_node(**{**common, **json.loads(rest)}))
        else:
            _kill(head if rest == "head" else nodes[int(rest)])
        print(json.dumps({"done": verb}), flush=True)
    for node in [*nodes, head]:
        _kill(node)


if __name__ == "__main__":
    _serve()
