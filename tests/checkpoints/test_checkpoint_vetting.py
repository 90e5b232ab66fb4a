"""A damaged, unsafe or incomplete source is refused by name before anything runs."""

import json
import pickle
import re
import struct
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from checkpoint_models import random_tensors, write_folder, write_index

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.locate import cached, locate
from evomerge.errors import SourceError


def refused(ref, *parts):
    with pytest.raises(SourceError) as raised:
        Checkpoint(str(ref), "models.base")
    [problem] = raised.value.problems
    assert problem.field == "models.base"
    for part in parts:
        assert part in str(problem)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "model", random_tensors(0))


@pytest.fixture
def sharded(tmp_path):
    return write_folder(tmp_path / "sharded", random_tensors(0), shards=3)


@pytest.mark.parametrize("shards", [1, 3])
def test_opens_single_and_sharded(tmp_path, shards):
    tensors = random_tensors(1, dtype=torch.bfloat16)
    checkpoint = Checkpoint(str(write_folder(tmp_path / "m", tensors, shards)))
    assert set(checkpoint.names) == set(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.shapes[name] == tuple(tensor.shape)
        assert checkpoint.dtype(name) == "BF16"
        assert torch.equal(checkpoint.tensor(name), tensor)
    assert checkpoint.bytes() > sum(2 * t.numel() for t in tensors.values())
    assert list(checkpoint.non_finite()) == []


def test_missing_folder_and_file(tmp_path, folder):
    refused(tmp_path / "nothing", "no directory", str(tmp_path / "nothing"))
    refused(folder / "config.json", "the file", "config.json")
    refused("", "no directory")
    refused("~nobody-of-this-name/model", "~nobody")
    refused("a" * 5000, "aaa")
    refused("nul\0byte")


def test_config(folder):
    config = folder / "config.json"
    for text, part in [("{", "damaged"), ("[]", "not a mapping"), ("[" * 100_000, "damaged")]:
        config.write_text(text)
        refused(folder, "config.json", part)
    config.write_bytes(b"\xff\xfe{}")
    refused(folder, "config.json", "damaged")
    config.unlink()
    refused(folder, "no config.json")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_and_not_opened(folder, tmp_path, name):
    witness = tmp_path / "witness"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(witness)))
    refused(folder, "only pickled weights", name, "safetensors")
    assert not witness.exists()
    pickle.loads((folder / name).read_bytes()).close()
    assert witness.exists(), "the bomb of this test is a dud"


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "no weight files")
    write_folder(folder, {})
    refused(folder, "no tensors")


def lying(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        b"\x80\x04K\x01." * 10,
        lying({"a": ENTRY}, b"\0" * 12),
        lying({"a": ENTRY}, b"\0" * 20),
        lying({"a": {**ENTRY, "shape": [5]}}, b"\0" * 16),
        lying({"a": {**ENTRY, "shape": [2**40, 2**40]}}, b"\0" * 16),
        lying({"a": {**ENTRY, "dtype": "PICKLE"}}, b"\0" * 16),
        lying({"a": {**ENTRY, "data_offsets": [8, 24]}}, b"\0" * 24),
        lying({"a": ENTRY, "b": ENTRY}, b"\0" * 16),
        lying({"a": ENTRY, "b": {**ENTRY, "data_offsets": [8, 24]}}, b"\0" * 24),
        lying({"a": ENTRY, "b": {**ENTRY, "data_offsets": [24, 40]}}, b"\0" * 40),
        lying({"a": {**ENTRY, "data_offsets": [16, 0]}}, b"\0" * 16),
        lying({"a": {**ENTRY, "data_offsets": [-16, 0]}}, b"\0" * 16),
        lying({"a": {**ENTRY, "data_offsets": [0, 2**63]}}, b"\0" * 16),
        lying({"a": {**ENTRY, "shape": [-4]}}, b"\0" * 16),
        lying({"a": {**ENTRY, "shape": [4.0]}}, b"\0" * 16),
        lying({"a": ENTRY, "__metadata__": {"x": 5}}, b"\0" * 16),
        struct.pack("<Q", 5000) + lying({"a": ENTRY}, b"\0" * 16)[8:],
        struct.pack("<Q", 20) + lying({"a": ENTRY}, b"\0" * 16)[8:],
        struct.pack("<Q", 100_000) + b"[" * 100_000,
    ],
)
def test_damaged_files_and_lying_headers(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "model.safetensors is damaged")


def test_values_at_an_odd_address_are_read(folder):
    """A header whose length is no multiple of 8 is allowed by the format."""
    text = json.dumps({"a": ENTRY}).encode()
    text += b" " * (1 - len(text) % 8 + 8)
    content = struct.pack("<Q", len(text)) + text + struct.pack("<4f", 1, 2, 3, 4)
    (folder / "model.safetensors").write_bytes(content)
    tensor = Checkpoint(str(folder)).tensor("a")
    assert tensor.data_ptr() % 4 == 1 and tensor.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_reading_a_block_loads_no_more_than_the_block(tmp_path, form):
    """The pages of the file that are in memory, counted by the kernel."""
    folder = write_folder(tmp_path / "m", {"a": torch.zeros(1)})
    tensors = {"a": torch.arange(1 << 24, dtype=torch.int32).view(torch.float32)}
    if form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        write_folder(folder, tensors)

    def resident():
        """MB of the weight file that this process has mapped and loaded."""
        size, found = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split()[0]:
                found = str(folder) in line
            elif found and line.startswith("Rss:"):
                size += int(line.split()[1]) / 1024
        return size

    def own():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(n.split()[1]) / 1024 for n in lines if n.startswith("RssAnon"))

    before = own()
    weight = Checkpoint(str(folder), allow_pickled=True).weight("a")
    start = 5 << 20
    block = weight.read(start, start + 1000)
    assert block.view(torch.int32).tolist() == list(range(start, start + 1000))
    assert 0 < resident() < 8
    assert own() - before < 8
    assert int(weight.read(0, 1 << 24).view(torch.int32)[-1]) == (1 << 24) - 1
    weight.read(0, 1 << 24).view(torch.int32).max()
    assert resident() > 60, "this test does not see the pages of the file"


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.999])
def test_truncated_weights(folder, fraction):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: int(len(weights) * fraction)])
    refused(folder, "model.safetensors is damaged")


@pytest.mark.parametrize(
    "entry", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", 5, None, ["x"]]
)
def test_an_index_stays_inside_its_folder(sharded, entry):
    write_folder(sharded.parent, {"x": torch.ones(1)})
    (sharded.parent / "model.safetensors").rename(sharded.parent / "x.safetensors")
    write_index(sharded, {"x": entry})
    refused(sharded, repr(entry) if entry != ".." else "..")


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_has_a_weight_map(sharded, weight_map):
    write_index(sharded, weight_map)
    refused(sharded, "without a weight_map")


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    refused(sharded, "no file 'model-00002-of-00003.safetensors'")


def test_an_index_agrees_with_its_files(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted(set(index.values()))
    name = "model.norm.weight"
    other = next(f for f in files if f != index[name])
    for change, file in [({name: other}, other), ({"model.extra": other}, other)]:
        write_index(sharded, {**index, **change})
        refused(sharded, next(iter(change)), file)
    write_index(sharded, {k: v for k, v in index.items() if k != name})
    refused(sharded, name, "does not list")


def test_a_tensor_in_two_shards_is_refused(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    first = (sharded / "model-00001-of-00003.safetensors").read_bytes()
    (sharded / "again.safetensors").write_bytes(first)
    write_index(sharded, {**index, "x": "again.safetensors"})
    refused(sharded, "both in")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_nan_and_infinity_are_counted(tmp_path, dtype):
    weights = torch.ones(10, 10)
    weights[2, 3] = weights[4, 5] = float("nan")
    if dtype != torch.float8_e4m3fn:
        weights[0, 0] = float("inf")
    tensors = {"fine": torch.ones(3), "sick": weights.to(dtype), "whole": torch.arange(3)}
    checkpoint = Checkpoint(str(write_folder(tmp_path / "m", tensors)))
    count = 2 if dtype == torch.float8_e4m3fn else 3
    assert list(checkpoint.non_finite()) == [("sick", count)]


def test_a_damaged_tokenizer_is_named(folder):
    assert Checkpoint(str(folder)).vocabulary == {}
    (folder / "tokenizer.json").write_text('{"model": 5')
    with pytest.raises(SourceError, match=r"tokenizer\.json is damaged"):
        _ = Checkpoint(str(folder)).vocabulary


@pytest.mark.parametrize("shards", [1, 3])
def test_fingerprint_follows_the_bytes_alone(tmp_path, shards):
    tensors = random_tensors(0)
    here = write_folder(tmp_path / "here", tensors, shards)
    there = write_folder(tmp_path / "deep" / "there", tensors, shards, {"other": "config"})
    value = Checkpoint(str(here)).fingerprint
    assert re.fullmatch("[0-9a-f]{64}", value)
    assert Checkpoint(str(there)).fingerprint == value
    file = sorted(there.glob("*.safetensors"))[-1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert Checkpoint(str(there)).fingerprint != value


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    revision = "0" * 40
    home = tmp_path / "hub" / "models--some--model"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(revision)
    return home / "snapshots" / revision


def test_a_cached_hub_model_is_found(hub):
    write_folder(hub, random_tensors(0), shards=3)
    assert locate("some/model") == hub
    assert locate("some/model@main") == hub
    assert locate(f"some/model@{hub.name}") == hub
    assert len(Checkpoint("some/model").names) == len(random_tensors(0))


@pytest.mark.parametrize("missing", ["*.safetensors", "model-00002*"])
def test_a_cache_with_a_part_of_the_files_is_not_enough(hub, missing):
    """As loading only the tokenizer, or an interrupted download, leaves it."""
    write_folder(hub, random_tensors(0), shards=3)
    for file in hub.glob(missing):
        file.unlink()
    assert cached("some/model") is None
    refused("some/model", "no file 'model-0000")


def test_an_unreachable_hub_is_told_soon(hub, monkeypatch):
    start = time.monotonic()
    refused("no/model", "no/model is not on this machine", "models.base=PATH")
    assert time.monotonic() - start < 10
    for ref in ("./no/model", "/no/model", "no/such/model", "no model", "model"):
        refused(ref, "no directory")
