"""What is written tensor by tensor is what safetensors itself writes."""

import json
import struct

import pytest
import torch
from checkpoint_models import random_tensors, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.merger import Merger, Pending
from evomerge.checkpoints.tensor_file import INDEX, Entry, shards, write_shards
from evomerge.errors import EvomergeError, SourceError
from evomerge.recipe import Recipe, Source

TENSORS = {
    "f32": torch.randn(3, 5),
    "bf16": torch.randn(7).bfloat16(),
    "f16": torch.randn(2, 3, 4).half(),
    "f64": torch.randn(2).double(),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "ids": torch.arange(11),
    "mask": torch.tensor([[True], [False]]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "f8": torch.randn(6).to(torch.float8_e4m3fn),
    "日本": torch.ones(1),
}


def write(folder, tensors, shard_bytes=1 << 30):
    entries = [Entry(n, tuple(t.shape), t.dtype) for n, t in tensors.items()]
    stream = [Pending(n, tuple(t.shape), t.dtype, t) for n, t in tensors.items()]
    write_shards(folder, entries, iter(stream), shard_bytes)
    return entries


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        assert one[name].dtype == tensor.dtype and one[name].shape == tensor.shape
        raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one[name], tensor)]
        assert torch.equal(*raw)


def test_one_file_holds_what_save_file_writes(tmp_path):
    write(tmp_path, TENSORS)
    save_file(TENSORS, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    same(load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "theirs.safetensors"))
    assert not (tmp_path / INDEX).exists()


def header(file):
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), 8 + size, len(data)


def test_values_are_aligned_and_without_gaps(tmp_path):
    write(tmp_path, TENSORS)
    found, begin, end = header(tmp_path / "model.safetensors")
    assert found.pop("__metadata__") == {"format": "pt"}
    assert begin % 8 == 0
    at = 0
    for name, tensor in TENSORS.items():
        assert found[name]["data_offsets"] == [at, at + tensor.nbytes]
        at += tensor.nbytes
    assert begin + at == end


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 60))
def test_shards_are_as_full_as_they_may_be(sizes, most):
    entries = [Entry(str(i), (n,), torch.uint8) for i, n in enumerate(sizes)]
    parts = shards(entries, most)
    assert [e for part in parts for e in part] == entries
    totals = [sum(e.bytes for e in part) for part in parts]
    for part, total in zip(parts, totals, strict=True):
        assert total <= most or len(part) == 1
    for i in range(len(parts) - 1):
        assert totals[i] + parts[i + 1][0].bytes > most
    assert all(parts) or not entries


def test_sharded_files_and_their_index(tmp_path):
    tensors = {f"t{i}": torch.randn(10 + i) for i in range(9)}
    entries = write(tmp_path, tensors, 120)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    count = len(shards(entries, 120))
    assert files == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert set(index["weight_map"].values()) == set(files)
    found = {}
    for file in files:
        own = load_file(tmp_path / file)
        assert {n: index["weight_map"][n] for n in own} == dict.fromkeys(own, file)
        assert sum(t.nbytes for t in own.values()) <= 120
        found |= own
    same(found, tensors)


# -- values that are not finite -------------------------------------------------------------


def bad_recipe(tmp_path, method="linear", dtype="float32", base=False):
    good, bad = random_tensors(0, blocks=1), random_tensors(1, blocks=1)
    bad["model.norm.weight"][0] = float("nan")
    bad["model.norm.weight"][2] = float("inf")
    refs = [str(write_folder(tmp_path / n, t)) for n, t in (("good", good), ("bad", bad))]
    order = refs[::-1] if base else refs
    if method == "linear":
        return refs, Recipe(method, tuple(Source(r, {"weight": 1}) for r in refs), dtype=dtype)
    return refs, Recipe(method, (Source(order[1], {"weight": 1}),), order[0], {}, dtype)


@pytest.mark.parametrize(
    ("method", "base"), [("linear", False), ("task_arithmetic", False), ("ties", True)]
)
def test_the_source_of_a_nan_is_named(tmp_path, method, base):
    refs, recipe = bad_recipe(tmp_path, method, base=base)
    merger = Merger()
    entries = [Entry(p.name, p.shape, p.dtype) for p in merger.assemble(recipe).parts]
    with pytest.raises(SourceError) as raised:
        write_shards(tmp_path, entries, merger.stream(recipe), 1 << 30)
    text = str(raised.value)
    assert f"2 values of model.norm.weight in {refs[1]}" in text and refs[0] not in text


def test_sums_that_overflow_are_the_merge_s_own_fault(tmp_path):
    ref = str(write_folder(tmp_path / "m", {"w": torch.tensor([1.0, 5e4])}))
    recipe = Recipe("linear", (Source(ref, {"weight": 2}),), None, {"normalize": False}, "float16")
    merger = Merger()
    entries = [Entry(p.name, p.shape, p.dtype) for p in merger.assemble(recipe).parts]
    with pytest.raises(
        EvomergeError, match=r"w of the merged model .* float16 \(1 values\)"
    ) as raised:
        write_shards(tmp_path, entries, merger.stream(recipe), 1 << 30)
    assert not isinstance(raised.value, SourceError)
