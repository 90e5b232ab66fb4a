"""The ledger: nothing is lost, one key one answer, readers always read, writers take turns."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError, EvomergeError, JournalError
from evomerge.ledger import (
    Answer,
    Ledger,
    check_folder,
    item_digest,
    read_ledger,
    segment_rows,
    store,
)
from evomerge.types import Item

COLUMNS = ["digest", "task", "item", "settings", "score", "loglik", "text", "tokens"]


def answer(item: int, loglik: float = math.nan, task: str = "sums", score: float = 0.5) -> Answer:
    return Answer(task, f"{item:016x}", "greedy", score, loglik, f"答え {item}", item)


def same(found: dict[str, Answer], expected: dict[str, Answer]) -> bool:
    """Equal in content and order; NaN counts as itself."""
    return repr(found) == repr(expected)


@st.composite
def appends(draw: st.DrawFn) -> tuple[str, list[Answer]]:
    digest = draw(st.sampled_from(["x" * 64, "y" * 64]))
    rows = st.builds(
        answer, st.integers(0, 30), st.sampled_from([math.nan, -0.5]),
        st.sampled_from(["sums", "words"]), st.floats(0, 1),
    )  # fmt: skip
    return digest, draw(st.lists(rows, max_size=40))


@given(
    all_of=st.lists(appends(), max_size=12), full=st.sampled_from([1, 2000, 1 << 22]),
    many=st.sampled_from([2, 3, 64]), small=st.sampled_from([8, 40, 1 << 16]),
    reopen=st.booleans(), settle=st.booleans(),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_what_is_appended_is_known(
    tmp_path_factory: pytest.TempPathFactory, all_of, full, many, small, reopen, settle
) -> None:
    """Against a plain dictionary; however tails end, segments are united and row groups fall."""
    folder = tmp_path_factory.mktemp("ledger") / "ledger"
    expected: dict[tuple[str, str], dict[str, Answer]] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, number in (("_FULL", full), ("_MANY", many), ("_SMALL", small)):
            patch.setattr(store, name, number)
        for module in (store, sys.modules["evomerge.ledger.segments"]):
            patch.setattr(module, "GROUP", 8)
        ledger = Ledger(folder)
        for digest, rows in all_of:
            ledger.append(digest, rows)
            if reopen:
                ledger = Ledger(folder)
            for row in rows:
                own = expected.setdefault((digest, row.task), {})
                if row.item not in own or (math.isnan(own[row.item].loglik) and row.loglik == -0.5):
                    own[row.item] = row
        if settle:
            ledger.settle()
            assert not list(folder.glob("*.jsonl"))
        for opened in (ledger, Ledger(folder)):
            for (digest, task), rows in expected.items():
                found = opened.known(digest, task, "greedy")
                assert same(dict(sorted(found.items())), dict(sorted(rows.items())))
                assert opened.answers(digest, task, "greedy") == {
                    item: a.score for item, a in rows.items()
                }
                assert opened.known(digest, task, "another") == {}
        table = read_ledger(folder)
        assert table.column_names == COLUMNS
        keys = list(zip(*(table.column(c).to_pylist() for c in COLUMNS[:3]), strict=True))
        assert sorted(keys) == sorted(
            (digest, task, item) for (digest, task), rows in expected.items() for item in rows
        )
        for row in table.to_pylist():
            own = expected[row["digest"], row["task"]][row["item"]]
            assert (row["score"], row["text"], row["tokens"]) == (own.score, own.text, own.tokens)


def test_pandas_reads_the_folder(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append("x", [answer(1), answer(2, -1.5)])
    ledger.append("y", [answer(1)])
    ledger.settle()
    ledger.settle()
    ledger.append("z", [answer(1)])  # in a tail, which does not disturb
    frame = pd.read_parquet(tmp_path)
    assert list(frame.columns) == COLUMNS
    assert frame["digest"].tolist() == ["x", "x", "y"]
    assert frame["text"].tolist() == ["答え 1", "答え 2", "答え 1"]
    assert frame["loglik"].isna().tolist() == [True, False, True]
    assert read_ledger(tmp_path, ["item", "score"]).to_pandas()["score"].tolist() == [0.5] * 4


def test_an_empty_ledger_is_a_table_without_rows(tmp_path: Path) -> None:
    assert len(Ledger(tmp_path / "new")) == 0
    assert read_ledger(tmp_path / "new").num_rows == 0
    with pytest.raises(JournalError, match="no folder"):
        read_ledger(tmp_path / "none")


def test_many_appends_leave_few_files(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(store, "_FULL", 1)
    ledger = Ledger(tmp_path)
    for i in range(150):
        ledger.append(f"{i:064x}", [answer(i), answer(i + 1)])
    ledger.settle()
    assert len(segment_rows(tmp_path)) < 64
    assert len(ledger) == len(Ledger(tmp_path)) == len(pd.read_parquet(tmp_path)) == 300
    assert ledger.answers(f"{7:064x}", "sums", "greedy") == {f"{7:016x}": 0.5, f"{8:016x}": 0.5}
    assert ledger.holds(["other", "greedy"])
    assert not ledger.holds(["other"])


@pytest.mark.parametrize("full", [1, 1000, 1 << 22])
def test_two_studies_share_a_folder_at_once(tmp_path: Path, monkeypatch, full: int) -> None:
    """Each sees its own answers, those of the other at the next opening; uniting harms neither."""
    monkeypatch.setattr(store, "_MANY", 4)
    monkeypatch.setattr(store, "_FULL", full)
    one, two = Ledger(tmp_path), Ledger(tmp_path)
    for i in range(20):
        one.append("one", [answer(i)])
        two.append("two", [answer(i), answer(100 + i)])
    assert len(one.known("one", "sums", "greedy")) == 20
    assert len(two.known("two", "sums", "greedy")) == 40
    one.settle()
    assert len(one.known("one", "sums", "greedy")) == 20
    assert len(two.known("two", "sums", "greedy")) == 40
    third = Ledger(tmp_path)
    assert len(third.known("one", "sums", "greedy")) == 20
    assert len(third.known("two", "sums", "greedy")) == 40
    assert len(pd.read_parquet(tmp_path)) == 60


def test_a_writer_that_hangs_is_named_and_readers_read(tmp_path: Path) -> None:
    from filelock import FileLock

    ledger = Ledger(tmp_path, wait=0.2)
    ledger.append("x", [answer(1)])
    with FileLock(tmp_path / ".lock"):
        with pytest.raises(JournalError, match=f"ledger={tmp_path}.*another writer"):
            ledger.append("x", [answer(2)])
        assert list(Ledger(tmp_path).known("x", "sums", "greedy")) == [answer(1).item]
        assert read_ledger(tmp_path).num_rows == 1
    ledger.append("x", [answer(2)])
    assert len(ledger) == 2


def test_a_crash_while_uniting_leaves_every_row_once(tmp_path: Path, monkeypatch) -> None:
    """The new segment is in place, the old ones and the tail are still there."""
    monkeypatch.setattr(store, "_MANY", 3)
    ledger = Ledger(tmp_path)
    for i in (1, 2):
        ledger.append("x", [answer(i)])
        ledger.settle()
    ledger.append("x", [answer(3)])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        ledger.settle()
    assert len(list(tmp_path.glob("*.parquet"))) == 4
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    again = Ledger(tmp_path)
    assert len(again) == 3 == read_ledger(tmp_path).num_rows
    (tmp_path / f".{time.time_ns():020d}-0.parquet.tmp").write_bytes(b"torn")
    again.append("x", [answer(4)])
    again.settle()
    assert [p.suffix for p in tmp_path.iterdir() if p.name != ".lock"] == [".parquet"] * 2
    assert len(pd.read_parquet(tmp_path)) == 4


def test_a_crash_before_the_tail_is_a_segment_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    """It is closed, and its segment was never written; others begin a new one."""
    ledger, other = Ledger(tmp_path), Ledger(tmp_path)
    ledger.append("x", [answer(1)])
    other.append("x", [answer(2)])

    def killed(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "unite", killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.settle()
    assert len(Ledger(tmp_path)) == 2 == read_ledger(tmp_path).num_rows
    copy = tmp_path.with_name("copy")
    shutil.copytree(tmp_path, copy)
    Ledger(copy).settle()
    assert len(pd.read_parquet(copy)) == 2
    other.append("x", [answer(3)])
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    other.settle()
    assert [len(one.known("x", "sums", "greedy")) for one in (other, Ledger(tmp_path))] == [3, 3]
    assert len(pd.read_parquet(tmp_path)) == 3


def test_a_torn_end_of_a_tail_does_not_count_and_is_cut(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append("x", [answer(1), answer(2, -1.0)])
    [tail] = tmp_path.glob("*.jsonl")
    whole = tail.read_bytes()
    tail.write_bytes(whole + whole[:40])
    assert len(Ledger(tmp_path)) == 2 == read_ledger(tmp_path).num_rows
    ledger.append("x", [answer(3)])
    assert tail.read_bytes().startswith(whole + b"{")
    assert list(Ledger(tmp_path).known("x", "sums", "greedy")) == [
        answer(i).item for i in (1, 2, 3)
    ]


@pytest.mark.parametrize("damage", ["{}", "torn {", '{"digest": 1'])
def test_a_damaged_line_of_a_tail_is_named(tmp_path: Path, damage: str) -> None:
    Ledger(tmp_path).append("x", [answer(1)])
    [tail] = tmp_path.glob("*.jsonl")
    tail.write_bytes(damage.encode() + b"\n" + tail.read_bytes())
    for read in (Ledger, read_ledger):
        with pytest.raises(JournalError, match=f"{tail.name}.*damaged line"):
            read(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flipped", "other columns"])
def test_a_damaged_segment_is_named(tmp_path: Path, damage: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.append("x", [answer(i) for i in range(500)])
    ledger.settle()
    [path] = tmp_path.glob("*.parquet")
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 3] ^= 0xFF
        path.write_bytes(data)
    else:
        pq.write_table(pq.read_table(path).select(["digest", "item"]), path)
    with pytest.raises(JournalError, match=f"{path.name}.*damaged segment"):
        Ledger(tmp_path).known("x", "sums", "greedy")
    with pytest.raises(JournalError, match=path.name):
        read_ledger(tmp_path)


def test_a_full_disk_adds_nothing(tmp_path: Path, monkeypatch) -> None:
    ledger = Ledger(tmp_path)
    ledger.append("x", [answer(1)])

    def full(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(EvomergeError, match="No space left"):
            ledger.append("x", [answer(2)])
    assert len(ledger) == len(Ledger(tmp_path)) == 1
    ledger.append("x", [answer(2)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(EvomergeError, match="No space left"):
            ledger.settle()
    assert len(ledger) == len(Ledger(tmp_path)) == 2
    ledger.settle()
    assert len(pd.read_parquet(tmp_path)) == 2


def test_folders_that_are_no_ledger_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    other = tmp_path / "other"
    other.mkdir()
    (other / "data.parquet").write_text("")
    for folder, text in ((file, "the file"), (file / "below", "the file"), (other, "data.parquet")):
        for use in (check_folder, Ledger):
            with pytest.raises(ConfigError, match=text) as caught:
                use(folder)
            assert caught.value.problems[0].field == "ledger"
    check_folder(tmp_path / "a" / "new" / "one")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("kill", range(6))
def test_kill_9_while_writing_leaves_a_readable_ledger(tmp_path: Path, kill: int) -> None:
    """What a writer said was written is there; a next writer goes on."""
    code = """
        import sys
        from pathlib import Path
        from evomerge.ledger import Answer, Ledger, store
        store._MANY = 5
        store._FULL = 1 if sys.argv[2] == "0" else 10_000
        ledger = Ledger(Path(sys.argv[1]))
        for i in range(10_000):
            rows = [Answer("sums", f"{i * 50 + j:016x}", "greedy", 1.0, -1.0, "text", j)
                    for j in range(50)]
            ledger.append("x", rows)
            print(i, flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), str(kill % 2)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.04 + 0.0137 * kill)
    process.send_signal(signal.SIGKILL)
    written = 1 + len(process.communicate()[0].split())
    found = read_ledger(tmp_path)
    assert found.num_rows % 50 == 0
    assert found.num_rows in (50 * written, 50 * (written + 1))
    assert len(set(found.column("item").to_pylist())) == found.num_rows
    ledger = Ledger(tmp_path)
    assert len(ledger.known("x", "sums", "greedy")) == len(ledger) == found.num_rows
    ledger.append("y", [answer(1)])
    ledger.settle()
    assert len(pd.read_parquet(tmp_path)) == found.num_rows + 1


class TestItemDigest:
    ITEM = Item("7", {"number": "7", "question": "1+1"}, "2", "It is 2.")

    def test_the_id_does_not_count(self):
        other = replace(self.ITEM, id="8", fields=self.ITEM.fields | {"number": "8"})
        assert item_digest(self.ITEM, "1+1=") == item_digest(other, "1+1=")

    @pytest.mark.parametrize(
        "change",
        [{"target": "3"}, {"gold": "2."}, {"fields": {"number": "7", "question": "1 + 1"}}],
    )
    def test_everything_else_does(self, change):
        digests = {item_digest(i, "1+1=") for i in (self.ITEM, replace(self.ITEM, **change))}
        assert len(digests) == 2
        assert item_digest(self.ITEM, "1+1") not in digests

    def test_it_never_changes(self):
        """Written down once: ledgers outlive processes and releases."""
        digest = item_digest(self.ITEM, "1+1=")
        assert len(digest) == 16
        assert digest == "74114edf096e6abf"
