"""watch: a report on this machine only, kept fresh without touching the run."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import report_runs as runs

from evomerge.cli import run as command
from evomerge.journal import read_events
from evomerge.watching import Watched, WatchServer

COUNT = 128  # candidates of the whole study
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study."""
    events = runs.events()
    for number, event in enumerate(events):
        event.setdefault("time", 1_750_000_000.0 + number)
        if event["event"] == "result" and event["status"] == "ok":
            event.setdefault("values", {"jp_math": event["fitness"][0]})
    config = "experiment: jp_math_tiny\nseed: 0\nbudget: {candidates: 128}\n"
    folder = tmp_path_factory.mktemp("watch") / "whole"
    return runs.write_run(folder, events, runs.results(), runs.RECIPE, config)


@pytest.fixture
def growing(whole: Path, tmp_path: Path) -> Path:
    """The study as it was after twenty candidates."""
    run_dir = tmp_path / "growing"
    shutil.copytree(whole, run_dir, ignore=shutil.ignore_patterns("report*", "best", "results*"))
    grow(whole, run_dir, results=20)
    return run_dir


def grow(whole: Path, run_dir: Path, results: int) -> None:
    """Lets the journal have so many results of candidates, and a line that is being written."""
    kept, seen = "", 0
    for line in (whole / "journal.jsonl").read_text().splitlines(keepends=True):
        if seen == results:
            kept += line[:20]
            break
        kept += line
        seen += json.loads(line)["event"] == "result"
    (run_dir / "journal.jsonl").write_text(kept)


def finish(whole: Path, run_dir: Path) -> None:
    for name in ("journal.jsonl", "results.json"):
        shutil.copy(whole / name, run_dir / name)


@pytest.fixture
def server(growing: Path) -> Iterator[WatchServer]:
    made = WatchServer(Watched(growing, 1.0))
    made.watched.look()
    thread = threading.Thread(target=made.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def ask(
    server: WatchServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), dict(answer.getheaders())


def test_it_listens_on_this_machine_only(server: WatchServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_the_page_and_its_report(server: WatchServer) -> None:
    status, body, headers = ask(server, "/")
    assert status == 200 and "<iframe" not in body and "/state" in body
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    status, body, headers = ask(server, "/report?1")
    assert status == 200 and "jp_math" in body
    assert headers["Cache-Control"] == "no-store"
    status, body, headers = ask(server, "/report", "HEAD")
    assert status == 200 and body == "" and int(headers["Content-Length"]) > 10_000


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "0.0.0.0:{port}"]
)
def test_another_host_is_refused(server: WatchServer, host: str) -> None:
    """A name elsewhere that resolves to this machine (DNS rebinding) reads nothing."""
    for path in ("/", "/report", "/state"):
        status, body, _ = ask(server, path, Host=host.format(port=server.server_port))
        assert status == 403 and "jp_math" not in body


def test_another_origin_is_refused_and_own_names_are_not(server: WatchServer) -> None:
    port = server.server_port
    assert ask(server, "/state", Origin="http://evil.example")[0] == 403
    assert ask(server, "/state", Host=f"localhost:{port}")[0] == 200
    assert ask(server, "/state", Origin=f"http://127.0.0.1:{port}")[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/journal.jsonl", "/..", "/../whole/journal.jsonl", "/items/", "/report/", "/%2e%2e/"],
)
def test_nothing_else_is_served(server: WatchServer, path: str) -> None:
    status, body, _ = ask(server, path)
    assert status == 404 and body == "there is nothing here"


def test_nothing_can_be_sent(server: WatchServer) -> None:
    assert ask(server, "/", "POST")[0] == 501
    assert ask(server, "/report", "DELETE")[0] == 501


def state(watched: Watched) -> dict[str, Any]:
    watched._next = 0.0  # without the pause between pages
    watched.look()
    return watched.news.__dict__


def test_the_page_follows_the_run_and_leaves_it_alone(whole: Path, growing: Path) -> None:
    watched = Watched(growing)
    files = {p: p.stat().st_mtime_ns for p in growing.rglob("*")}
    first = state(watched)
    assert (first["state"], first["candidates"]) == ("unfinished", 20) and first["version"]
    page = watched.page
    assert state(watched)["version"] == first["version"] and watched.page is page
    assert {p: p.stat().st_mtime_ns for p in growing.rglob("*")} == files
    grow(whole, growing, results=30)
    second = state(watched)
    assert second["candidates"] == 30 and second["version"] != first["version"]
    assert watched.page != page
    finish(whole, growing)
    last = state(watched)
    assert (last["state"], last["candidates"]) == ("finished", COUNT)
    assert not (growing / "report.html").exists()


def test_files_are_read_again_only_when_they_have_changed(
    whole: Path, growing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    monkeypatch.setattr(
        "evomerge.watching.read_events", lambda d: reads.append(d) or read_events(d)
    )
    watched = Watched(growing)
    watched.look()
    age, now = watched.news.age, time.time()
    monkeypatch.setattr("evomerge.status_command.time", SimpleNamespace(time=lambda: now + 1000))
    watched.look()
    assert age is not None and watched.news.age == pytest.approx(age + 1000, abs=5)
    assert reads == [growing]
    grow(whole, growing, results=30)
    watched.look()
    assert reads == [growing, growing] and watched.news.candidates == 30


def test_a_run_that_is_not_there_yet_and_one_that_is_damaged(growing: Path) -> None:
    watched = Watched(growing / "later")
    assert state(watched) | {"note": ""} == {
        "state": "waiting", "version": None, "candidates": None, "age": None, "note": ""
    }  # fmt: skip
    watched = Watched(growing)
    before = state(watched)["version"]
    text = (growing / "journal.jsonl").read_text()
    (growing / "journal.jsonl").write_text("{broken\n" + text)
    damaged = state(watched)
    assert damaged["state"] == "damaged" and "journal.jsonl:1" in damaged["note"]
    assert damaged["version"] == before and watched.page  # the last good page stays


def test_pages_are_not_made_more_often_than_the_machine_bears(whole: Path, growing: Path) -> None:
    watched = Watched(growing, every=1000.0)
    watched.look()
    first = watched.news.version
    grow(whole, growing, results=30)
    watched.look()
    assert watched.news.version == first and watched.news.candidates == 30


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--every", "0"], "--every: found 0"),
        (["--port", "99999"], "--port: found 99999"),
    ],
)
def test_mistakes_are_named(
    growing: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["watch", str(growing), "--no-browser", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken(server: WatchServer, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(server.watched.run_dir), "--no-browser", "--port", str(server.server_port)]
    assert command(["watch", *arguments]) == 2
    assert "a port that is free" in capsys.readouterr().err
    assert command(["watch", str(server.watched.run_dir / "config.yaml")]) == 2


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_sees_the_run_grow(whole: Path, tmp_path: Path, growing: Path) -> None:
    """From nothing to the end, with the place and the open panels of the reader kept."""
    from playwright.sync_api import sync_playwright

    run_dir = tmp_path / "later"
    process = subprocess.Popen(
        [sys.executable, "-m", "evomerge", "watch", str(run_dir), "--no-browser", "--every", "1"],
        stdout=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split(" at ")[1].split()[0]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 900, "height": 500})
            page.set_default_timeout(120_000)
            problems: list[str] = []
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
            page.goto(url)
            page.locator("#state.waiting").wait_for()
            growing.rename(run_dir)
            page.locator("body[data-version]").wait_for()
            version = page.locator("body").get_attribute("data-version")
            assert "20 candidates" in page.locator("#bar").inner_text()
            report = page.frames[-1]
            panel = report.locator("details", has_text="Configuration").last
            panel.evaluate("panel => { panel.open = true; }")
            report.evaluate("window.scrollTo(0, 400)")
            finish(whole, run_dir)
            page.locator(f"body[data-version]:not([data-version='{version}'])").wait_for()
            page.locator("#state.finished").wait_for()
            assert f"{COUNT} candidates" in page.locator("#bar").inner_text()
            report = page.frames[-1]
            assert len(page.frames) == 2
            assert report.evaluate("window.scrollY") == 400
            panels = report.locator("details", has_text="Configuration").last
            assert panels.evaluate("panel => panel.open") is True
            assert problems == []
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            page.locator("#state.lost").wait_for()
            browser.close()
    finally:
        process.kill()
