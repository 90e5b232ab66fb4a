"""The Ray cluster that workers live in: started here, or the user's own."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import ConfigError

_LOG = logging.getLogger(__name__)
_LOOPBACK = "127.0.0.1"
_MANY_MACHINES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@dataclass(frozen=True)
class Needs:
    """What one worker takes of a node.

    Attributes:
        cpus: processor cores.
        gpus: GPUs; below 1, a share of one. Several are all on one node.
    """

    cpus: int
    gpus: float = 0.0

    def resources(self) -> dict[str, float]:
        """By the names that Ray has for them, without those that are not needed."""
        return {"CPU": float(self.cpus)} | ({"GPU": self.gpus} if self.gpus else {})

    def fit(self, offered: Mapping[str, float]) -> int:
        """How many workers have room in what a node or a cluster offers."""
        share = 1 / int(1 / self.gpus) if 0 < self.gpus < 1 else self.gpus
        counts = [int(offered.get("CPU", 0.0) / self.cpus + 1e-9)]
        if self.gpus:
            counts.append(int(offered.get("GPU", 0.0) / share + 1e-9))
        return min(counts)


class Cluster:
    """Joins a cluster by its address, or starts one on this machine.

    What is started here listens on the loopback interface only, has no dashboard and asks every
    client for Ray's token. A cluster of the user's is taken as it is: `RAY_AUTH_MODE` and the
    token are the user's, and are handed on untouched.

    Attributes:
        owned: whether it was started here.
        address: of its head, `host:port`.
    """

    def __init__(self, address: str | None, cpus: int) -> None:
        """Connects this process, unless it is connected already.

        Args:
            address: of a running cluster; None starts one.
            cpus: cores of the one that is started.

        Raises:
            ConfigError: if it cannot be started or reached.
        """
        import ray

        self._connected = not ray.is_initialized()
        self.owned = self._connected and address is None
        if self._connected:
            _connect(address, cpus)
        self.address = str(ray.get_runtime_context().gcs_address)

    def alive(self) -> bool:
        """Whether the head answers a connection within a second."""
        host, _, port = self.address.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=1.0):
                return True
        except OSError:
            return False

    def places(self, needs: Needs) -> dict[str, int]:
        """Node id to the workers that it has room for when nothing else runs there."""
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"]]
        return {node["NodeID"]: needs.fit(node["Resources"]) for node in nodes}

    def free(self, needs: Needs) -> int:
        """Workers that have room in what nobody uses now, nodes taken together."""
        import ray

        return needs.fit(ray.available_resources())

    def close(self) -> None:
        """Disconnects, and ends the cluster if it was started here."""
        import ray

        if self._connected:
            ray.shutdown()


@contextlib.contextmanager
def _at_home() -> Iterator[None]:
    """Has a cluster that is started within listen on the loopback interface.

    `ray.init` turns any local address into the one that other machines see, except where Ray
    is told that it runs on one machine only.
    """
    from ray._private import ray_constants

    before, told = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(_MANY_MACHINES)
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[_MANY_MACHINES] = "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if told is None:
            del os.environ[_MANY_MACHINES]
        else:
            os.environ[_MANY_MACHINES] = told


def _quieten() -> None:
    """Has the log told of dead workers; Ray prints it to standard output, with pages of advice."""
    from ray._private import worker

    def to_log(data: Mapping[str, Any], *_: Any, **__: Any) -> None:
        for line in data.get("lines", ()):
            _LOG.info("ray: %s", line)

    worker.print_to_stdstream = to_log


@contextlib.contextmanager
def _own_end() -> Iterator[None]:
    """Keeps what SIGTERM does: Ray would print a trace, and abort the process 3 s after it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        ours = before not in (None, signal.SIG_DFL)
        if ours and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _connect(address: str | None, cpus: int) -> None:
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    _quieten()
    try:
        with _own_end():
            if address is None:
                with _at_home():
                    ray.init(
                        address="local", num_cpus=cpus, include_dashboard=False,
                        _node_ip_address=_LOOPBACK, **common,
                    )  # fmt: skip
            else:
                ray.init(address=address, **common)
    except Exception as error:  # Ray raises many types, plain Exception among them
        with contextlib.suppress(Exception):
            ray.shutdown()
        raise ConfigError.of(
            "executor.address", f"{address or 'a local cluster'}: {error}",
            "a Ray cluster that starts or can be reached",
            "Start one with `ray start --head`, or leave executor.address empty. If it asks for "
            "a token, set RAY_AUTH_MODE=token here, too.",
        ) from error  # fmt: skip
