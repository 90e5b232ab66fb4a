"""The journal: nothing is lost, nothing is half-written, damage is told from a torn line."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.durable import write_atomic
from evomerge.errors import JournalError
from evomerge.journal import Journal, locked, read_events, read_items, write_items
from evomerge.types import ItemScores


def some_scores(texts: list[str], split: str = "search") -> ItemScores:
    n = len(texts)
    return ItemScores(
        task="sums", split=split, ids=tuple(f"i{i}" for i in range(n)),
        scores=np.linspace(0, 1, n), logliks=np.array([np.nan, *[-1.5] * (n - 1)]),
        texts=tuple(texts), tokens=np.arange(n),
    )  # fmt: skip


def begun(run_dir: Path) -> Journal:
    journal = Journal(run_dir)
    journal.append("study", schema=1)
    return journal


def test_events_come_back_in_order(tmp_path: Path) -> None:
    journal = begun(tmp_path)
    journal.append("ask", candidates=[{"genome": [0.1, 1 / 3, 5e-324]}], text="答え\u2028\r\n")
    again = Journal(tmp_path)
    assert again.events == journal.events == read_events(tmp_path)
    assert again.events[1]["candidates"][0]["genome"] == [0.1, 1 / 3, 5e-324]
    assert again.events[1]["text"] == "答え\u2028\r\n"


@given(cut=st.integers(1, 400))
@settings(max_examples=40, deadline=None)
def test_any_cut_of_the_last_line_loses_that_line_only(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("cut")
    journal = begun(tmp_path)
    journal.append("result", id=0)
    whole = journal.path.read_bytes()
    journal.append("result", id=1, reason="ü" * 150)
    last = len(journal.path.read_bytes()) - len(whole)
    journal.path.write_bytes(journal.path.read_bytes()[: -min(cut, last)])
    assert [e.get("id") for e in read_events(tmp_path)] == [None, 0]
    assert [e.get("id") for e in Journal(tmp_path).events] == [None, 0]
    assert journal.path.read_bytes() == whole


def test_damage_before_the_last_line_is_refused_and_kept(tmp_path: Path) -> None:
    journal = begun(tmp_path)
    journal.append("result", id=0)
    journal.append("result", id=1)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    damaged = lines[0] + b"{half\n" + lines[2]
    journal.path.write_bytes(damaged)
    with pytest.raises(JournalError, match=r"journal\.jsonl:2"):
        Journal(tmp_path)
    assert journal.path.read_bytes() == damaged


def test_other_schema_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path).append("study", schema=99)
    with pytest.raises(JournalError, match="schema 99"):
        Journal(tmp_path)


def test_nan_never_enters(tmp_path: Path) -> None:
    journal = begun(tmp_path)
    before = journal.path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        journal.append("result", fitness=[float("nan")])
    assert journal.path.read_bytes() == before


def test_item_files_come_back_and_unnamed_ones_go(tmp_path: Path) -> None:
    journal = begun(tmp_path)
    scores = [some_scores(["はい", "<script>", ""]), some_scores(["a", "b"], "test")]
    file = journal.write_items("candidate-000000", scores)
    journal.append("result", id=0, file=file)
    journal.write_items("candidate-000001", scores)
    (tmp_path / "items/.measure-00000.parquet.tmp").write_bytes(b"PAR1")
    (tmp_path / "items/notes.txt").write_text("a user's own file")
    Journal(tmp_path)
    names = sorted(p.name for p in (tmp_path / "items").iterdir())
    assert names == ["candidate-000000.parquet", "notes.txt"]
    for before, after in zip(scores, read_items(tmp_path / file), strict=True):
        assert (after.task, after.split, after.ids) == (before.task, before.split, before.ids)
        assert after.texts == before.texts
        np.testing.assert_array_equal(after.scores, before.scores)
        np.testing.assert_array_equal(after.logliks, before.logliks)
        np.testing.assert_array_equal(after.tokens, before.tokens)


@pytest.mark.parametrize("name", ["items/data.jsonl", "best/photo.png", "items"])
def test_a_directory_that_is_not_a_studys_is_refused_and_kept(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(JournalError, match="Choose another run_dir"):
        Journal(tmp_path)
    assert path.read_text() == "mine"
    assert not (tmp_path / "journal.jsonl").exists()


def test_damaged_item_file_is_named(tmp_path: Path) -> None:
    write_items(tmp_path / "x.parquet", [some_scores(["a", "b"])])
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:50])
    with pytest.raises(JournalError, match=r"x\.parquet"):
        read_items(tmp_path / "x.parquet")


def test_lock_is_free_after_its_holder_was_killed(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time; from evomerge.journal import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(JournalError, match="another run"), locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()


FULL_DISK = """
    import pathlib, resource, signal, sys
    import numpy as np
    from evomerge.errors import EvomergeError
    from evomerge.durable import write_atomic
    from evomerge.journal import Journal
    from evomerge.types import ItemScores
    run_dir = pathlib.Path(sys.argv[1])
    journal = Journal(run_dir)
    journal.append("study", schema=1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # no file may grow beyond
    n = 200
    scores = ItemScores("t", "search", tuple(map(str, range(n))), np.random.rand(n),
                        np.random.rand(n), tuple(map(str, range(n))), np.arange(n))
    failures = 0
    for attempt in (
        lambda: journal.append("result", text="x" * 5000),
        lambda: journal.write_items("big", [scores]),
        lambda: write_atomic(run_dir / "results.json", "x" * 5000),
    ):
        try:
            attempt()
        except EvomergeError as error:
            assert "journal is intact" in str(error), error
            failures += 1
    journal.append("result", id=7)
    print(failures)
"""


def test_full_disk_leaves_the_journal_intact(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: writes end part-way in the same way."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "3\n", done.stderr
    events = [json.loads(x) for x in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["study", "result"]
    assert events[1]["id"] == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["items", "journal.jsonl"]
    assert not list((tmp_path / "items").iterdir())


def test_write_atomic_replaces_whole(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", "one")
    write_atomic(tmp_path / "a.txt", "二")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "二"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
