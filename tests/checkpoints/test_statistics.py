"""Statistics are gathered once, shared through their folder, and never change a merge."""

import multiprocessing
import os
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_models import random_tensors, write_folder

from evomerge.checkpoints import statistics
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.statistics import Statistics
from evomerge.kernels.view import View
from evomerge.recipe import Recipe, Source

MEMBERS = ("print1:a.weight", "print2:b/c|d.weight")


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(3, 2)), "y": rng.integers(9, size=4, dtype=np.int64)}


class Counted:
    """Computes `arrays` and counts how often."""

    def __init__(self, seed=0):
        self.seed, self.calls = seed, 0

    def __call__(self):
        self.calls += 1
        return arrays(self.seed)


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and np.array_equal(found[key], value)


def test_computed_once_and_read_back(tmp_path):
    one, compute = Statistics(tmp_path), Counted()
    same(one.recall("gram", MEMBERS, compute), arrays())
    same(one.recall("gram", MEMBERS, compute), arrays())
    one.flush()
    same(one.recall("gram", MEMBERS, compute), arrays())
    same(Statistics(tmp_path).recall("gram", MEMBERS, compute), arrays())
    assert compute.calls == 1


@pytest.mark.parametrize(
    ("kind", "members"),
    [
        ("gram_deltas", MEMBERS),
        ("gram", MEMBERS[::-1]),
        ("gram", MEMBERS[:1]),
        ("gram", ("print1:a.weight", "print3:b/c|d.weight")),
        ("gram", ("print1:a.weight", "print2:b/c|d.weight[:5]")),
    ],
)
def test_other_weights_or_kinds_are_others(tmp_path, kind, members):
    one, compute = Statistics(tmp_path), Counted(1)
    one.recall("gram", MEMBERS, Counted())
    one.flush()
    same(one.recall(kind, members, compute), arrays(1))
    assert compute.calls == 1


def test_what_one_writes_the_other_finds_later(tmp_path):
    """Also after it has looked in vain."""
    one, two, compute = Statistics(tmp_path), Statistics(tmp_path), Counted()
    two.recall("gram", ("print1:other", MEMBERS[1]), Counted(1))
    one.recall("gram", MEMBERS, compute)
    one.flush()
    same(two.recall("gram", MEMBERS, compute), arrays())
    assert compute.calls == 1


@pytest.mark.parametrize("damage", [b"", b"\x08\0\0\0\0\0\0\0{not json", b"\xff" * 64, None])
def test_a_damaged_file_is_passed_over(tmp_path, damage):
    one = Statistics(tmp_path)
    one.recall("gram", MEMBERS, Counted())
    one.flush()
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-8] if damage is None else damage)
    compute, two = Counted(), Statistics(tmp_path)
    same(two.recall("gram", MEMBERS, compute), arrays())
    two.flush()
    assert compute.calls == 1
    same(Statistics(tmp_path).recall("gram", MEMBERS, compute), arrays())
    assert compute.calls == 1


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("in the way")
    one, compute = Statistics(tmp_path / "file" / "below"), Counted()
    same(one.recall("gram", MEMBERS, compute), arrays())
    one.flush()
    same(one.recall("gram", MEMBERS, compute), arrays())


def test_a_disk_that_fills_is_done_without(tmp_path, monkeypatch):
    def full(*_):
        raise statistics.SafetensorError("No space left on device")

    one = Statistics(tmp_path)
    monkeypatch.setattr(statistics, "save_file", full)
    same(one.recall("gram", MEMBERS, Counted()), arrays())
    one.flush()
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]


def test_many_are_written_before_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "_WAITING", 100)
    one = Statistics(tmp_path)
    for i in range(4):
        one.recall("gram", (f"print:{i}",), Counted(i))
    assert list(tmp_path.rglob("*.safetensors"))
    for i in range(4):
        same(one.recall("gram", (f"print:{i}",), Counted(9)), arrays(i))


def test_threads_may_recall_and_flush_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "_WAITING", 300)
    one, problems = Statistics(tmp_path), []

    def work(start):
        try:
            for i in range(60):
                number = (start + i) % 60
                same(
                    one.recall("gram", (f"print{number % 3}:{number}",), Counted(number)),
                    arrays(number),
                )
        except Exception as error:
            problems.append(error)

    workers = [threading.Thread(target=work, args=(s,)) for s in (0, 7, 30, 59)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems


def _worker(folder, number):
    one = Statistics(Path(folder))
    for i in range(20):
        same(one.recall("gram", (f"print:{i}",), Counted(i)), arrays(i))
        if i % 5 == number:
            one.flush()
    one.flush()


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_two_processes_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_worker, args=(str(tmp_path), n)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    compute = Counted(99)
    for i in range(20):
        same(Statistics(tmp_path).recall("gram", (f"print:{i}",), compute), arrays(i))
    assert compute.calls == 0
    assert not [f for f in os.listdir(next(tmp_path.iterdir())) if f.startswith(".new")]


# -- in merges ------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of its own, with the compiled loops of the usual one."""
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch):
    """How many times base and sources are read for statistics: runs of `over_runs` and blocks."""
    counts = Counter()
    plain = Statistics.recall

    def recall(self, kind, members, compute):
        def counted():
            counts[kind] += 1
            return compute()

        return plain(self, kind, members, counted)

    monkeypatch.setattr(Statistics, "recall", recall)
    return counts


def recipe_of(tmp_path, method, **parameters):
    refs = [
        str(write_folder(tmp_path / f"m{i}", random_tensors(i, rows=6 + 2 * (i == 1), blocks=3)))
        for i in range(3)
    ]
    own = {"weight": 0.5} if method not in ("slerp", "karcher", "model_stock") else {}
    sources = tuple(Source(r, own) for r in refs[1 : 2 if method == "slerp" else 3])
    base = None if method == "karcher" else refs[0]
    if method == "karcher":
        sources = (Source(refs[0]), *sources)
    return Recipe(method, sources, base, parameters, "float32")


CASES = [
    ("ties", {"density": 0.4}, "histogram", 2),
    ("breadcrumbs", {"density": 0.5, "gamma": 0.1}, "histogram", 2),
    ("della", {"density": 0.5, "epsilon": 0.2, "seed": 1}, "row_table", 2),
    ("slerp", {"t": 0.3}, "gram", 1),
    ("karcher", {}, "gram", 1),
    ("model_stock", {}, "gram_deltas", 1),
]


@pytest.mark.parametrize(("method", "parameters", "kind", "each"), CASES)
def test_a_search_gathers_each_statistic_once(
    tmp_path, cache, reads, method, parameters, kind, each
):
    """A second recipe with other parameters, a second merger: nothing new is gathered."""
    recipe = recipe_of(tmp_path, method, **parameters)
    merger = Merger(1)
    first = dict(merger.merge(recipe))
    assert reads == {kind: each * len(first)}
    again = dict(merger.merge(recipe))
    other = dict(Merger(1).merge(recipe))
    assert reads == {kind: each * len(first)}
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]) and torch.equal(tensor, other[name])
    assert list((cache / "statistics").rglob("*.safetensors"))


@pytest.mark.parametrize(("method", "parameters", "kind", "each"), CASES)
def test_what_is_cached_never_changes_a_bit(
    tmp_path, cache, monkeypatch, method, parameters, kind, each
):
    recipe = recipe_of(tmp_path, method, **parameters)
    plain = View.__init__

    def forgetful(self, base, sources, keys=(), names=(), memory=None, pool=None):
        plain(self, base, sources, keys, (), None, pool)

    with monkeypatch.context() as without:
        without.setattr(View, "__init__", forgetful)
        expected = dict(Merger(1).merge(recipe))
    assert not list(cache.rglob("*.safetensors"))
    for _ in range(2):
        for name, tensor in Merger(1).merge(recipe):
            assert torch.equal(tensor, expected[name])


def test_rows_that_are_cut_off_do_not_enter(tmp_path, cache):
    """The same tensor of the same file with 6 and with 8 rows has statistics of its own."""
    pools = [random_tensors(i, rows=r, blocks=1) for i, r in enumerate((6, 8, 8))]
    refs = [str(write_folder(tmp_path / str(i), p)) for i, p in enumerate(pools)]
    merger = Merger(1)
    whole = Recipe("karcher", (Source(refs[1]), Source(refs[2])), None, {}, "float32")
    cut = Recipe("karcher", (Source(refs[1]), Source(refs[2])), refs[0], {}, "float32")
    found = [dict(merger.merge(r))["lm_head.weight"] for r in (whole, cut)]
    for tensor, rows in zip(found, (8, 6), strict=True):
        x, y = (p["lm_head.weight"][:rows].double() for p in pools[1:])
        middle = x / x.norm() + y / y.norm()
        exact = middle / middle.norm() * (x.norm() + y.norm()) / 2
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-5, atol=1e-6)
