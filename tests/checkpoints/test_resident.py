"""Weights brought to a device; on a CPU the same code makes plain copies."""

import weakref

import pytest
import torch
from checkpoint_models import random_tensors, write_folder

from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.resident import Resident, Wanted
from evomerge.kernels.weight import Stored
from evomerge.recipe import Recipe, Source


class Weight:
    """A bfloat16 tensor that counts how often it is read."""

    dtype = torch.bfloat16

    def __init__(self, value, shape=(10, 10)):
        self.shape, self.tensor, self.reads = shape, torch.full(shape, value).bfloat16(), 0

    def read(self, start, stop):
        self.reads += 1
        return self.tensor.view(-1)[start:stop]


def groups_of(weights):
    return [[Wanted(w, str(i))] for i, w in enumerate(weights)]


def test_what_fits_is_read_once():
    """200 bytes each: two stay on the device, two in the host's memory, one is read again."""
    resident = Resident("cpu", device_bytes=500, host_bytes=400)
    weights = [Weight(i) for i in range(5)]
    seen = []
    for _ in range(3):
        loaded = [one for [one] in resident.load(groups_of(weights))]
        assert [one.key for one in loaded] == list("01234")
        for weight, one in zip(weights, loaded, strict=True):
            assert torch.equal(one.weight.tensor, weight.tensor)
            assert one.weight.tensor.data_ptr() != weight.tensor.data_ptr()
        seen.append([one.weight.tensor.data_ptr() for one in loaded])
    assert [w.reads for w in weights] == [1, 1, 1, 1, 3]
    assert (resident.device_left, resident.host_left) == (100, 0)
    assert seen[0][:2] == seen[1][:2] == seen[2][:2]


def test_weights_without_a_key_are_never_kept():
    resident = Resident("cpu", device_bytes=1000, host_bytes=1000)
    weight = Weight(1)
    for _ in range(2):
        [[one]] = resident.load([[Wanted(weight)]])
        assert torch.equal(one.weight.tensor, weight.tensor)
    assert weight.reads == 2
    assert (resident.device_left, resident.host_left) == (1000, 1000)


def test_one_group_is_fetched_ahead():
    asked = []

    def groups():
        for i in range(4):
            asked.append(i)
            yield [Wanted(Weight(i))]

    loaded = Resident("cpu", 0, 0).load(groups())
    counts = []
    for _ in loaded:
        counts.append(len(asked))
    assert counts == [2, 3, 4, 4]


def test_two_groups_are_there_at_a_time():
    loaded = Resident("cpu", 0, 0).load([Wanted(Weight(i)), Wanted(Weight(i))] for i in range(6))
    earlier = []
    for _ in range(6):
        group = next(loaded)
        assert all(ref() is None for ref in earlier)
        earlier = [weakref.ref(one.weight.tensor) for one in group]
        del group
    assert list(loaded) == []
    assert all(ref() is None for ref in earlier)


def test_a_merge_that_is_left_off_does_no_harm():
    resident = Resident("cpu", 1000, 0)
    weights = [Weight(i) for i in range(4)]
    next(resident.load(groups_of(weights)))
    for i, [one] in enumerate(resident.load(groups_of(weights))):
        assert torch.equal(one.weight.tensor, weights[i].tensor)


def test_slabs_hold_tensors_of_any_dtype_and_size(monkeypatch):
    monkeypatch.setattr("evomerge.checkpoints.resident._SLAB", 2048)
    resident = Resident("cpu", 0, 1 << 20)
    rng = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(shape, generator=rng).to(dtype)
        for shape in ((), (0,), (3,), (7, 5), (40, 41))
        for dtype in (torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn)
    ]
    groups = [[Wanted(Stored(t), str(i))] for i, t in enumerate(tensors)]
    for _ in range(2):
        for t, [one] in zip(tensors, resident.load(groups), strict=True):
            found = one.weight.tensor
            assert found.shape == t.shape and found.dtype == t.dtype
            assert found.double().tolist() == t.double().tolist()


@pytest.fixture(scope="module")
def refs(tmp_path_factory):
    root = tmp_path_factory.mktemp("resident")
    ids = {"ids": torch.arange(3)}
    return [
        str(write_folder(root / str(i), {**ids, **random_tensors(i, dtype=torch.bfloat16)}))
        for i in range(3)
    ]


@pytest.mark.parametrize("room", [0, 300, 1 << 20])
@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
def test_a_merge_of_them_is_the_same(refs, method, room, monkeypatch, tmp_path):
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    given = {"weight": 0.5} | ({"density": 0.5} if method != "linear" else {})
    base = None if method == "linear" else refs[0]
    recipe = Recipe(method, tuple(Source(r, given) for r in refs[1:]), base)
    merger = Merger(threads=1)
    merger._resident = Resident("cpu", device_bytes=room, host_bytes=room)
    plain = dict(Merger(threads=1).merge(recipe))
    for _ in range(2):
        merged = dict(merger.merge(recipe))
        assert list(merged) == list(plain)
        assert all(torch.equal(merged[n], t) for n, t in plain.items())
