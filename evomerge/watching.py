"""Serves the report of a run on this machine and keeps it fresh; writes nothing anywhere."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evomerge.errors import EvomergeError, UserError
from evomerge.journal import JOURNAL, read_events
from evomerge.status_command import ABSENT, Status, kept_config, status_of, study_status
from evomerge.watch_page import policy, shell

Events = Sequence[Mapping[str, Any]]

HOST = "127.0.0.1"
_FILES = (JOURNAL, "results.json", "config.yaml", "best/recipe.yaml")
_REST = 4.0  # seconds of rest after each second of work on a page


@dataclass(frozen=True)
class News:
    """What is known of a run at the moment.

    Attributes:
        state: waiting (nothing is there), running, finished, unfinished or damaged.
        version: of the page; None before there is one.
        candidates: that have a result; None before the study began.
        age: seconds since the journal's last event; None before the study began.
        note: why there is no newer page.
    """

    state: str
    version: str | None = None
    candidates: int | None = None
    age: float | None = None
    note: str = ""


@dataclass
class Watched:
    """The report of a run directory, made anew when its files have changed.

    A page is made at most every `every` seconds, and takes a fifth of a core at most over time,
    so that watching a large study leaves the machine to it.
    """

    run_dir: Path
    every: float = 5.0
    _page: bytes = b""
    _news: News = field(default_factory=lambda: News("waiting"))
    _mark: tuple[Any, ...] = ()
    _read: tuple[tuple[Any, ...], Events, Mapping[str, Any]] = ((), [], {})
    _next: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self) -> None:
        """Looks at the run, and makes the page anew if it is due."""
        mark = _mark(self.run_dir)
        note = self.news.note
        if mark and mark != self._mark and time.monotonic() >= self._next:
            note, work = self._make(mark)
            self._next = time.monotonic() + max(self.every, _REST * work)
        self._tell(note, mark)

    @property
    def news(self) -> News:
        """What was found at the last look."""
        with self._lock:
            return self._news

    @property
    def page(self) -> bytes:
        """The report; empty before there is one."""
        with self._lock:
            return self._page

    def _make(self, mark: tuple[Any, ...]) -> tuple[str, float]:
        """Makes the page; returns why it could not be made, and the processor's seconds."""
        from evomerge.report.content import prepare
        from evomerge.report.page import render_page
        from evomerge.report.reading import read_run

        begin, note = time.thread_time(), ""
        try:
            page = render_page(prepare(read_run(self.run_dir))).encode()
        except EvomergeError as error:
            note = str(error)
        except Exception as error:  # of a file that is just being written; the next look may do
            note = f"no new page ({type(error).__name__}: {error})"
        else:
            with self._lock:
                self._page, self._mark = page, mark
        return note, time.thread_time() - begin

    def _status(self, mark: tuple[Any, ...]) -> Status:
        """How far the study is; its files are read again only if they have changed."""
        if not (self.run_dir / JOURNAL).is_file():
            return study_status(self.run_dir)
        if not mark or mark != self._read[0]:
            self._read = mark, read_events(self.run_dir), kept_config(self.run_dir)
        return status_of(self.run_dir, *self._read[1:])

    def _tell(self, note: str, mark: tuple[Any, ...]) -> None:
        version = f"{hash(self._mark) & (1 << 64) - 1:x}" if self._page else None
        try:
            status = self._status(mark)
        except Exception as error:  # whatever is in the files, the watch goes on
            told = str(error) if isinstance(error, UserError) else repr(error)
            found = News("damaged", version, note=told)
        else:
            there = (self.run_dir / JOURNAL).is_file()
            found = News(
                "waiting" if status.state == ABSENT else status.state, version,
                status.candidates if there else None, status.age if there else None, note,
            )  # fmt: skip
        with self._lock:
            self._news = found


class WatchServer(ThreadingHTTPServer):
    """Answers on 127.0.0.1: the page around the report, the report and how the run stands."""

    daemon_threads = True

    def __init__(self, watched: Watched, port: int = 0) -> None:
        """Listens, and looks at the run once.

        Args:
            watched: the run.
            port: 0 for any that is free.

        Raises:
            OSError: if the port is taken.
        """
        super().__init__((HOST, port), _Handler)
        self.watched = watched
        self._ended = threading.Event()
        self._looking = threading.Thread(target=self._look, name="watch", daemon=True)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{HOST}:{self.server_port}/"

    def run(self) -> None:
        """Serves until `shutdown` is called or Ctrl-C is pressed."""
        self._looking.start()
        try:
            self.serve_forever(poll_interval=0.2)
        finally:
            self._ended.set()
            self.server_close()

    def _look(self) -> None:
        while not self._ended.is_set():
            self.watched.look()
            self._ended.wait(min(1.0, self.watched.every))


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of three paths, asked of this machine by name or address."""

    server: WatchServer
    server_version = "evomerge"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        """Answers with a page or a state."""
        if not self._is_own():
            self._answer("this address is for 127.0.0.1 only", "text/plain", HTTPStatus.FORBIDDEN)
            return
        path = urlsplit(self.path).path
        watched = self.server.watched
        if path == "/":
            self._answer(shell(watched.every), "text/html", policy=policy())
        elif path == "/state":
            self._answer(json.dumps(asdict(watched.news)), "application/json")
        elif path == "/report" and watched.page:
            self._answer(watched.page, "text/html", policy="frame-ancestors 'self'")
        else:
            self._answer("there is nothing here", "text/plain", HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests are not logged."""

    def _is_own(self) -> bool:
        """Whether it was asked by a name of this machine; a page elsewhere may have another."""
        port = self.server.server_port
        names = {f"{name}:{port}" for name in (HOST, "localhost")}
        hosts = self.headers.get_all("Host", [])
        origin = self.headers.get("Origin")
        own = origin is None or origin in {f"http://{name}" for name in names}
        return len(hosts) == 1 and hosts[0].lower() in names and own

    def _answer(
        self,
        body: str | bytes,
        kind: str,
        status: HTTPStatus = HTTPStatus.OK,
        policy: str = "default-src 'none'",
    ) -> None:
        data = body.encode() if isinstance(body, str) else body
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(data)),
            "Content-Security-Policy": policy,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the browser went away
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)


def _mark(run_dir: Path) -> tuple[Any, ...]:
    """Size and time of the files that a page is made of; empty if there is no journal."""
    found = []
    for name in _FILES:
        with contextlib.suppress(OSError):
            status = (run_dir / name).stat()
            found.append((name, status.st_size, status.st_mtime_ns))
    return tuple(found) if found and found[0][0] in (JOURNAL, "results.json") else ()
