"""Pickled weights: on request only, without running them, and equal to the same safetensors."""

import json
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from adapter_folders import random_factors, write_adapter
from checkpoint_models import random_tensors, real_model, write_folder
from hypothesis import given
from hypothesis import strategies as st

from evomerge.checkpoints.adapted import open_model
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.pickled import Strided
from evomerge.errors import SourceError


def pickled_folder(path, tensors, shards=1, config=None, **settings):
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config or {"vocab_size": 6}))
    if shards == 1:
        torch.save(tensors, path / "pytorch_model.bin", **settings)
        return path
    weight_map = {}
    for i in range(shards):
        file = f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
        part = dict(list(tensors.items())[i::shards])
        torch.save(part, path / file)
        weight_map.update(dict.fromkeys(part, file))
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


def refused(path, *parts, allow=True):
    with pytest.raises(SourceError) as raised:
        open_model(str(path), "models.a", allow_pickled=allow)
    [problem] = raised.value.problems
    assert problem.field == "models.a"
    for part in (*parts, str(path)):
        assert part in str(problem)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_forms_are_the_same_model(tmp_path, shards, dtype):
    tensors = {**random_tensors(0, dtype=dtype), "steps": torch.arange(3)}
    folder = pickled_folder(tmp_path / "p", tensors, shards)
    refused(folder, "only pickled weights", "--allow-pickled", allow=False)
    ours = open_model(str(folder), allow_pickled=True)
    plain = Checkpoint(str(write_folder(tmp_path / "s", tensors, shards)))
    assert sorted(ours.names) == sorted(plain.names)
    for name in plain.names:
        assert ours.shapes[name] == plain.shapes[name]
        assert ours.dtype(name) == plain.dtype(name)
        assert torch.equal(ours.tensor(name), plain.tensor(name))
        one, other = ours.weight(name), plain.weight(name)
        assert one.shape == other.shape and one.dtype == other.dtype
        assert torch.equal(one.read(1, 3), other.read(1, 3))
    assert ours.layout == plain.layout
    assert ours.bytes() == sum(f.stat().st_size for f in folder.glob("*.bin"))
    assert len(ours.fingerprint) == 64 and list(ours.non_finite()) == []


def test_safetensors_come_first_and_the_pickle_stays_closed(tmp_path):
    witness = tmp_path / "witness"
    folder = write_folder(tmp_path / "m", random_tensors(0))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(witness)))
    assert len(open_model(str(folder), allow_pickled=True).names) == len(random_tensors(0))
    assert not witness.exists()


@pytest.mark.parametrize("form", ["plain", "zip", "among tensors"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, form):
    witness = tmp_path / "witness"
    folder = pickled_folder(tmp_path / "m", {"a": torch.ones(2)})
    if form == "plain":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(witness)))
    else:
        content = Bomb(witness) if form == "zip" else {"a": torch.ones(2), "b": Bomb(witness)}
        torch.save(content, folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin is refused by torch's weights-only loader")
    assert not witness.exists()
    if form == "plain":
        pickle.loads((folder / "pytorch_model.bin").read_bytes()).close()
    else:
        torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert witness.exists(), "the bomb of this test is a dud"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([torch.ones(2)], "a list"),
        (torch.ones(2), "a Tensor"),
        ({"a": 5}, "a int at 'a'"),
        ({3: torch.ones(2)}, "at 3"),
        ({"a": {"b": torch.ones(2)}}, "a dict at 'a'"),
        ({"a": torch.ones(2, 2).to_sparse()}, "sparse"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "complex64"),
        ({}, "no tensors"),
    ],
)
def test_anything_but_dense_tensors_is_refused(tmp_path, content, part):
    refused(pickled_folder(tmp_path / "m", content), part)


def test_damage_is_named(tmp_path):
    folder = pickled_folder(tmp_path / "m", random_tensors(0))
    file = folder / "pytorch_model.bin"
    whole = file.read_bytes()
    for broken in (b"", whole[:100], whole[:-30], b"\0" * 500):
        file.write_bytes(broken)
        refused(folder, "pytorch_model.bin is refused")
    old = tmp_path / "old"
    pickled_folder(old, random_tensors(0), _use_new_zipfile_serialization=False)
    refused(old, "pytorch_model.bin is refused", "torch 1.6")
    (old / "pytorch_model.bin").rename(old / "model.pt")
    refused(old, "only pickled weights (model.pt)", "pytorch_model.bin")


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    folder = pickled_folder(tmp_path / "m", OrderedDict(a=torch.arange(4.0)))
    file = folder / "pytorch_model.bin"
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            if name.endswith("data.pkl"):
                assert data.count(b"K\x04\x85") == 1  # the shape (4,)
                data = data.replace(b"K\x04\x85", b"K\x40\x85")
            archive.writestr(name, data)
    refused(folder, "pytorch_model.bin is refused")


def test_an_index_stays_inside_its_folder(tmp_path):
    folder = pickled_folder(tmp_path / "m", random_tensors(0), shards=2)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../y.bin"}}))
    refused(folder, "'../y.bin'")
    index.write_text(json.dumps({"weight_map": {"x": "pytorch_model-00001-of-00002.bin"}}))
    refused(folder, "no tensor x")


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_a_tied_head_has_one_name_in_both_forms(tmp_path, kind):
    small = {"num_hidden_layers": 1, "tie_word_embeddings": True} if kind == "Llama" else {}
    model = real_model(kind, **small)
    model.save_pretrained(tmp_path / "s")
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    folder = pickled_folder(tmp_path / "p", model.state_dict(), config=config)
    assert "lm_head.weight" in model.state_dict()
    ours, plain = Checkpoint(str(folder), allow_pickled=True), Checkpoint(str(tmp_path / "s"))
    assert sorted(ours.names) == sorted(plain.names)
    assert all(torch.equal(ours.tensor(n), plain.tensor(n)) for n in plain.names)


def test_shared_memory_is_kept_apart_where_the_model_is_not_tied(tmp_path):
    shared = torch.randn(6, 4)
    tensors = {"model.embed_tokens.weight": shared, "lm_head.weight": shared}
    tensors |= {"first": shared[:2], "second": shared[2:]}
    config = {"tie_word_embeddings": False}
    folder = pickled_folder(tmp_path / "p", tensors, config=config)
    ours = Checkpoint(str(folder), allow_pickled=True)
    assert set(ours.names) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(ours.tensor(name), tensor)
        assert torch.equal(ours.weight(name).read(1, 7), tensor.reshape(-1)[1:7])


def strided(rng):
    grid = torch.randn(4, 6, 5, generator=rng)
    return {
        "turned": grid[0].T, "middle": grid[:, 1:4], "steps": grid[:, ::2, ::2],
        "last": grid.permute(2, 0, 1), "line": grid[0, :, 0], "same": grid[0, 0].expand(3, 5),
        "one": grid[:1].permute(0, 2, 1), "scalar": grid[1, 2, 3], "empty": grid[:0],
    }  # fmt: skip


def test_strided_tensors_read_as_their_contiguous_copies(tmp_path):
    tensors = strided(torch.Generator().manual_seed(0))
    folder = pickled_folder(tmp_path / "p", tensors)
    ours = Checkpoint(str(folder), allow_pickled=True)
    for name, tensor in tensors.items():
        copy = tensor.contiguous()
        assert ours.tensor(name).is_contiguous() and torch.equal(ours.tensor(name), copy)
        weight = ours.weight(name)
        for start in range(0, copy.numel() + 1, 3):
            for stop in range(start, copy.numel() + 1, 7):
                part = weight.read(start, stop)
                assert part.is_contiguous()
                assert torch.equal(part, copy.reshape(-1)[start:stop])


@given(st.permutations([0, 1, 2]), st.tuples(*[st.integers(1, 5)] * 3), st.data())
def test_a_strided_tensor_copies_only_the_rows_it_reads(order, shape, data):
    tensor = torch.arange(float(torch.tensor(shape).prod())).reshape(shape).permute(order)
    count = tensor.numel()
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    part = Strided(tensor).read(start, stop)
    assert torch.equal(part, tensor.contiguous().reshape(-1)[start:stop])
    rows = [size for size in tensor.shape if size > 1]
    row = count // rows[0] if rows else 1
    view = part.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert view or part.untyped_storage().nbytes() <= 4 * (stop - start + 2 * row)


def test_pickled_adapters_are_under_the_same_rule(tmp_path):
    base = write_folder(tmp_path / "b", random_tensors(0))
    plain = write_adapter(tmp_path / "s", random_factors(1))
    bins = write_adapter(tmp_path / "p", random_factors(1))
    (bins / "adapter_model.safetensors").unlink()
    torch.save(random_factors(1), bins / "adapter_model.bin")
    with pytest.raises(SourceError, match="allow-pickled"):
        open_model(f"{base}+{bins}")
    one, other = open_model(f"{base}+{plain}"), open_model(f"{base}+{bins}", allow_pickled=True)
    assert all(torch.equal(one.tensor(n), other.tensor(n)) for n in one.names)
