"""What would have to be downloaded: the real hub client against a small server on localhost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

MODELS = {
    "/api/models/org/good": ["config.json", "model-1.safetensors", "model-2.safetensors"],
    "/api/models/org/pickled": ["config.json", "pytorch_model.bin"],
}
ASK = """
import sys
from evomerge.checkpoints.remote import download_size
from evomerge.errors import SourceError
try:
    print(download_size(sys.argv[1], "models.base"))
except SourceError as error:
    print(error.problems[0])
"""


class Hub(BaseHTTPRequestHandler):
    """Answers like the hub's API, for two models."""

    def do_GET(self) -> None:
        files = MODELS.get(self.path.split("?")[0])
        siblings = [{"rfilename": name, "size": 1000, "blobId": "0"} for name in files or []]
        body = json.dumps({"id": "org/x", "_id": "0", "siblings": siblings}).encode()
        self.send_response(404 if files is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.mark.parametrize(
    ("ref", "part"),
    [
        ("org/good", "2000"),  # two weight files of 1000 bytes
        ("org/pickled", "models.base: found no safetensors files in org/pickled"),
        ("org/absent", "models.base: found org/absent is not on this machine"),
        (".", "0"),
    ],
)
def test_size_of_a_download(tmp_path: Path, endpoint: str, ref: str, part: str) -> None:
    environment = {
        **os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path),
        "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", ASK, ref], env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith(part), done.stdout + done.stderr
