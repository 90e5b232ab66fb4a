"""Two nodes of a cluster on this machine, each in namespaces of its own, for the tests.

A node has its own network (an address on a wire to the other node, and no way out), processes,
host name and `/dev/shm`; the files are shared, as on a cluster. Run as a script this is the machine
around them: it lays the wire, and starts on a node what it is asked to through a socket, as
`slurmd` does. It ends with the test that started it, and with it all that is on the nodes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")
_UNSHARE = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
_WIRE = "link add name left type veth peer name right"
_NODE = """
read -r pid rest </proc/self/stat && echo "$pid" # as it is called outside
mount -t proc proc /proc && mount -t tmpfs tmpfs /dev/shm && hostname "$0" || exit 1
exec env --ignore-signal=CHLD sleep infinity # the kernel buries orphans
"""
_ENTER = """
read -r pid rest </proc/self/stat && echo "$pid" >&0 # a pipe to whoever started this
node=$1 folder=$2 && shift 2
exec </dev/null nsenter --target "$node" --net --mount --uts \
  sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
"""


def why_not() -> str:
    """What is missing here for the nodes; empty if nothing is."""
    for tool in ("unshare", "nsenter", "ip", "hostname"):
        if shutil.which(tool) is None:
            return f"needs the command {tool}"
    tried = f"mount -t tmpfs tmpfs /dev/shm && ip {_WIRE}"
    command = [*_outermost(), "sh", "-c", tried]
    done = subprocess.run(command, capture_output=True, text=True)
    return f"needs namespaces: {done.stderr.strip()}" if done.returncode else ""


class Process:
    """A command on a node; it ends with this object's process."""

    def __init__(
        self, path: Path, node: int, command: Sequence[str], environment: Mapping[str, str],
        output: int,
    ) -> None:  # fmt: skip
        """Starts it.

        Args:
            path: of the nodes' socket.
            node: 0 or 1.
            command: and its arguments.
            environment: all of its variables.
            output: descriptor of the file that it writes to.
        """
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        asked = {
            "node": node, "command": [*command], "environment": {**environment},
            "folder": os.getcwd(),
        }  # fmt: skip
        socket.send_fds(self._socket, [b"\n"], [output])
        self._socket.sendall(json.dumps(asked).encode() + b"\n")

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        self._socket.sendall(bytes([number]))

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its exit code: 128 and the signal, if one killed it."""
        self._socket.settimeout(timeout)
        code = self._socket.recv(1)
        self._socket.close()
        return code[0] if code else 255


class Nodes:
    """Two nodes, until they are closed.

    Attributes:
        path: of the socket through which commands are started.
    """

    def __init__(self, folder: Path) -> None:
        """Starts them; the socket is in `folder`."""
        self.path = folder / "nodes"
        self._process = subprocess.Popen(
            [*_outermost(), sys.executable, __file__, str(self.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the nodes did not start")

    def start(
        self, node: int, command: Sequence[str], environment: Mapping[str, str], output: int
    ) -> Process:
        """Starts a command on a node; see `Process`."""
        return Process(self.path, node, command, environment, output)

    def ask(self, node: int, script: str) -> str:
        """What a shell on a node answers."""
        with tempfile.TemporaryFile("w+") as file:
            self.start(node, ["sh", "-c", script], os.environ, file.fileno()).wait(60)
            file.seek(0)
            return file.read()

    def close(self) -> None:
        """Ends them and all that runs on them."""
        self._process.kill()
        self._process.communicate()


def _outermost() -> list[str]:
    root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return [*_UNSHARE, *root, "--mount-proc"]


# -- the machine around them --------------------------------------------------------------


def _boot(name: str) -> int:
    """Starts a node; its first process."""
    process = subprocess.Popen(
        [*_UNSHARE, "--uts", "sh", "-c", _NODE, name], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return int(process.stdout.readline())


def _ip(line: str, node: int | None = None) -> None:
    enter = [] if node is None else ["nsenter", "--target", str(node), "--net"]
    subprocess.run([*enter, "ip", *line.split()], check=True)


def _connect(nodes: Sequence[int]) -> None:
    _ip(_WIRE)
    for end, address, node in zip(("left", "right"), ADDRESSES, nodes, strict=True):
        _ip(f"link set {end} netns {node} name eth0")
        _ip(f"address add {address}/24 dev eth0", node)
        _ip("link set eth0 up", node)
        _ip("link set lo up", node)


def _serve(connection: socket.socket, nodes: Sequence[int]) -> None:
    """Starts a command, hands it signals, and kills it when nobody waits for it any more."""
    _, (output,), _, _ = socket.recv_fds(connection, 1, 1)
    asked = json.loads(connection.makefile("rb", buffering=0).readline())
    node = str(nodes[asked["node"]])
    told, tell = os.pipe()
    process = subprocess.Popen(
        ["nsenter", "--target", node, "--pid", "sh", "-c", _ENTER, "sh", node, asked["folder"],
         *asked["command"]],
        env=asked["environment"], stdin=tell, stdout=output, stderr=output,
        start_new_session=True,
    )  # fmt: skip
    os.close(output)
    os.close(tell)
    with os.fdopen(told) as pipe:
        pid = int(pipe.readline())

    def finish() -> None:
        code = process.wait()
        with contextlib.suppress(OSError):  # nobody may wait for it any more
            connection.sendall(bytes([code if code >= 0 else 128 - code]))
            connection.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=finish).start()
    while number := connection.recv(1):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number[0])
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _manage(path: str) -> None:
    nodes = [_boot(f"node{i}") for i in range(len(ADDRESSES))]
    _connect(nodes)
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    print("ready", flush=True)
    threading.Thread(target=_accept, args=(server, nodes), daemon=True).start()
    sys.stdin.read()  # until the test is over
    os._exit(0)


def _accept(server: socket.socket, nodes: Sequence[int]) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_serve, args=(connection, nodes)).start()


def _srun(path: str, command: Sequence[str]) -> int:
    """Runs a command once on each node, as `srun` would; its largest exit code."""
    tasks = []
    for i in range(len(ADDRESSES)):
        environment = os.environ | {"SLURM_PROCID": str(i), "SLURM_NODEID": str(i)}
        tasks.append(Process(Path(path), i, command, environment, 1))

    def forward(number: int, _: object) -> None:
        for task in tasks:
            task.signal(number)

    signal.signal(signal.SIGTERM, forward)
    return max(task.wait() for task in tasks)


if __name__ == "__main__":
    if sys.argv[1] == "srun":
        sys.exit(_srun(os.environ["STUB_NODES"], sys.argv[2:]))
    _manage(sys.argv[1])
