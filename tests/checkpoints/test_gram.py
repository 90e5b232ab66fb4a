"""Gram matrices of intervals against brute force, and descent by them against real vectors."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from checkpoint_models import random_tensors, real_model, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.flat import FlatOrder
from evomerge.checkpoints.gram import PrefixGram
from evomerge.errors import EvomergeError, SourceError
from evomerge.pieces import ANGLES, INTERPOLATIONS, Piecewise, combine, weights_at

N, BLOCK = 103, 10
VECTORS = np.random.default_rng(0).normal(size=(3, N)).astype(np.float32)
GRAM = PrefixGram.of_vectors(VECTORS, block=BLOCK)
POSITIONS = st.integers(0, N) | st.sampled_from([*range(0, N, BLOCK), N])


def exact(vectors, start, stop):
    """Gram matrix with sums rounded once."""
    rows = [[float(v) for v in vector[start:stop]] for vector in vectors]
    return np.array(
        [[math.fsum(a * b for a, b in zip(x, y, strict=True)) for y in rows] for x in rows]
    )


def flattened(tensors, names):
    """Float64 vector of a folder's floating-point tensors in the order of `names`."""
    return np.concatenate([tensors[n].double().numpy().ravel() for n in names])


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Three models that differ in dtype and sharding, with a buffer of integers."""
    root = tmp_path_factory.mktemp("seeds")
    folders = [random_tensors(i, dtype=d) for i, d in enumerate((torch.float32, torch.bfloat16))]
    folders.append(random_tensors(2, rows=8))
    for tensors in folders:
        tensors["model.positions"] = torch.arange(5)
        tensors["model.scale"] = torch.tensor(0.5)
        tensors["model.nothing"] = torch.zeros(0, 4)
    paths = [
        write_folder(root / str(i), tensors, shards)
        for i, (tensors, shards) in enumerate(zip(folders, (1, 1, 3), strict=True))
    ]
    models = [Checkpoint(str(p)) for p in paths]
    names = [n for n in models[0].names if n != "model.positions"]
    rows = {"model.embed_tokens.weight", "lm_head.weight"}
    folders[2] = {n: t[:6] if n in rows else t for n, t in folders[2].items()}
    return models, names, np.stack([flattened(t, names) for t in folders])


def test_order_is_the_file_s_floating_tensors_end_to_end(seeds):
    models, names, vectors = seeds
    order = FlatOrder.of(models[0])
    assert list(order.names) == names
    assert order.total == vectors.shape[1]
    at = 0
    for name in names:
        size = math.prod(models[0].shapes[name])
        assert order.offset(name) == at
        assert order.span(name) == (at, at + size)
        at += size


@given(st.lists(st.lists(st.integers(0, 4), max_size=2), max_size=6), st.data())
@settings(max_examples=100, deadline=None)
def test_runs_cover_every_parameter_of_an_interval_once(shapes, data):
    named = {f"t{i}": tuple(shape) for i, shape in enumerate(shapes)}
    order = FlatOrder(list(named), named)
    places = [(n, i) for n, shape in named.items() for i in range(math.prod(shape))]
    assert order.total == len(places)
    start = data.draw(st.integers(0, order.total))
    stop = data.draw(st.integers(start, order.total))
    runs = list(order.runs(start, stop))
    assert [(n, i) for n, a, b in runs for i in range(a, b)] == places[start:stop]
    assert all(a < b for _, a, b in runs)
    assert len({n for n, _, _ in runs}) == len(runs)


def test_order_refuses_what_cannot_be():
    order = FlatOrder(["a"], {"a": (2, 3)})
    for start, stop in ((-1, 2), (3, 2), (0, 7)):
        with pytest.raises(ValueError, match="expected"):
            list(order.runs(start, stop))
    with pytest.raises(ValueError, match="once"):
        FlatOrder(["a", "a"], {"a": (2,)})
    assert order.digest != FlatOrder(["a"], {"a": (3, 2)}).digest
    assert order.digest == FlatOrder(["a"], {"a": (2, 3), "b": (1,)}).digest


@given(POSITIONS, POSITIONS)
@settings(max_examples=200, deadline=None)
def test_interval_is_the_gram_matrix_of_the_slices(one, other):
    start, stop = sorted((one, other))
    found = GRAM.interval(start, stop)
    np.testing.assert_allclose(found, exact(VECTORS, start, stop), rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("block", [1, 7, N - 1, N, N + 1, 10 * N])
def test_any_block_size_gives_the_same_intervals(block):
    gram = PrefixGram.of_vectors(VECTORS, block)
    edges = [0, 1, 6, 7, 8, 21, 102, N]
    expected = [exact(VECTORS, a, b) for a, b in pairwise(edges)]
    np.testing.assert_allclose(gram.intervals(edges), expected, rtol=1e-13, atol=1e-13)
    assert gram.intervals([4]).shape == (0, 3, 3)


def test_blocks_larger_than_a_read_are_summed_in_parts():
    vectors = np.random.default_rng(1).normal(size=(2, 150_001))
    gram = PrefixGram.of_vectors(vectors, block=100_000)
    for start, stop in ((0, 150_001), (3, 99_000), (99_999, 100_001)):
        found = gram.interval(start, stop)
        np.testing.assert_allclose(found, exact(vectors, start, stop), rtol=1e-12, atol=1e-10)


def test_what_is_returned_is_the_caller_s():
    for start, stop in ((1, 4), (0, 20), (3, 47)):
        before = GRAM.interval(start, stop)
        GRAM.interval(start, stop)[:] = 7.0
        np.testing.assert_array_equal(GRAM.interval(start, stop), before)


def test_models_of_any_dtype_sharding_and_padding_are_read_exactly(seeds):
    models, _, vectors = seeds
    told = []
    gram = PrefixGram.build(models, block=16, report=lambda done, total: told.append((done, total)))
    n = vectors.shape[1]
    assert (gram.seeds, gram.total, gram.block) == (3, n, 16)
    assert told == [(min(b + 16, n), n) for b in range(0, n, 16)]
    for start, stop in ((0, n), (0, 0), (5, 9), (16, 32), (15, 33), (17, n - 1), (n - 1, n)):
        np.testing.assert_allclose(
            gram.interval(start, stop), exact(vectors, start, stop), rtol=1e-13, atol=1e-13
        )


def test_an_order_of_some_tensors_leaves_out_the_others(seeds):
    models, names, vectors = seeds
    order = FlatOrder.of(models[0])
    name = "model.layers.3.mlp.weight"
    assert name in names
    gram = PrefixGram.build(models, FlatOrder([name], models[0].shapes), block=4)
    start, stop = order.span(name)
    np.testing.assert_allclose(gram.interval(0, 15), exact(vectors, start, stop), rtol=1e-13)


def test_partial_blocks_are_read_once(seeds, monkeypatch):
    models, _, vectors = seeds
    gram = PrefixGram.build(models, block=16)
    first = gram.interval(5, 40)
    monkeypatch.setattr(Checkpoint, "weight", None)  # a further read would fail
    np.testing.assert_array_equal(gram.interval(5, 40), first)
    for start, stop in ((16, 48), (0, gram.total), (gram.total, gram.total)):  # whole blocks
        found = gram.interval(start, stop)
        np.testing.assert_allclose(found, exact(vectors, start, stop), rtol=1e-13)


def test_memory_is_what_the_sums_take():
    assert GRAM.bytes == (math.ceil(N / BLOCK) + 1) * 9 * 8


def test_saved_sums_are_the_same_when_loaded(seeds, tmp_path):
    models, _, _ = seeds
    gram = PrefixGram.build(models, block=16)
    gram.save(tmp_path / "gram.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["gram.npz"]
    again = PrefixGram.load(tmp_path / "gram.npz", models, block=16)
    assert again.key == gram.key
    for start, stop in ((0, gram.total), (5, 60)):
        np.testing.assert_array_equal(again.interval(start, stop), gram.interval(start, stop))


def test_sums_of_something_else_are_refused(seeds, tmp_path):
    models, names, _ = seeds
    path = tmp_path / "gram.npz"
    PrefixGram.build(models, block=16).save(path)
    others = [
        {"seeds": [models[0], models[2], models[1]]},
        {"seeds": models[:2]},
        {"block": 17},
        {"order": FlatOrder(names[::-1], models[0].shapes)},
    ]
    for changes in others:
        with pytest.raises(SourceError, match="of other models, order or blocks"):
            PrefixGram.load(path, **{"seeds": models, "block": 16, **changes})


def test_damaged_files_are_refused(seeds, tmp_path):
    models, _, _ = seeds
    gram = PrefixGram.build(models, block=16)
    path = tmp_path / "gram.npz"
    gram.save(path)
    whole = path.read_bytes()
    np.save(tmp_path / "plain.npy", np.zeros(3))
    contents = [b"", b"no zip", whole[:-30], whole[: len(whole) // 2],
                (tmp_path / "plain.npy").read_bytes()]  # fmt: skip
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(SourceError, match=r"gram\.npz"):
            PrefixGram.load(path, models, block=16)
    good = np.zeros((3, 3))
    key = np.array(gram.key)
    for arrays in (
        {"prefix": good},
        {"key": key},
        {"key": key, "prefix": good},
        {"key": key, "prefix": np.array([None])},
        {"key": key, "prefix": np.full((-(-gram.total // 16) + 1, 3, 3), np.nan)},
        {"key": np.array([{"a": 1}], dtype=object), "prefix": good},
    ):
        np.savez(path, **arrays)
        with pytest.raises(SourceError, match=r"gram\.npz"):
            PrefixGram.load(path, models, block=16)
    with pytest.raises(SourceError, match=r"absent\.npz"):
        PrefixGram.load(tmp_path / "absent.npz", models, block=16)


def test_no_single_wrong_bit_in_a_zip_header_goes_unnoticed(seeds, tmp_path):
    models, _, _ = seeds
    gram = PrefixGram.build(models, block=64)
    path = tmp_path / "gram.npz"
    gram.save(path)
    whole = path.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    refused = 0
    for bit in range(8 * 50):
        content = bytearray(whole)
        content[directory + bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            again = PrefixGram.load(path, models, block=64)
        except SourceError:
            refused += 1
        else:  # a date, say
            np.testing.assert_array_equal(again.interval(0, 200), gram.interval(0, 200))
    assert refused > 100


def test_a_file_that_cannot_be_written_is_an_error_of_ours(tmp_path):
    with pytest.raises(EvomergeError, match="could not be written"):
        GRAM.save(tmp_path / "absent" / "gram.npz")


def test_models_that_do_not_fit_are_named(seeds, tmp_path):
    models, _, _ = seeds
    lacking = random_tensors(4)
    del lacking["model.norm.weight"]
    short = random_tensors(4, rows=5)
    wide = random_tensors(4)
    wide["model.norm.weight"] = torch.zeros(4, 1)
    for i, (tensors, tensor) in enumerate(
        ((lacking, "model.norm"), (short, "(embed_tokens|lm_head)"), (wide, "model.norm"))
    ):
        for name in ("model.scale", "model.nothing"):
            tensors[name] = torch.tensor(0.5) if name == "model.scale" else torch.zeros(0, 4)
        other = Checkpoint(str(write_folder(tmp_path / str(i), tensors)), field=f"models.{i}")
        with pytest.raises(SourceError, match=rf"models\.{i}: found .*{tensor}"):
            PrefixGram.build([models[0], other])


def test_not_a_number_is_refused_with_tensor_and_count(tmp_path):
    tensors = random_tensors(5)
    good = Checkpoint(str(write_folder(tmp_path / "good", tensors)))
    tensors["model.layers.7.mlp.weight"][1, 2:] = torch.tensor([math.nan, math.inf, 0.0])
    bad = Checkpoint(str(write_folder(tmp_path / "bad", tensors)), field="models.1")
    with pytest.raises(SourceError, match=r"models\.1: found 2 values of model\.layers\.7\.mlp"):
        PrefixGram.build([good, bad], block=50)


@pytest.mark.parametrize(
    "vectors",
    [np.zeros(3), np.zeros((0, 3)), np.zeros((2, 3), dtype=int), np.full((2, 3), np.inf)],
)
def test_vectors_that_are_not_are_refused(vectors):
    with pytest.raises(ValueError, match="expected"):
        PrefixGram.of_vectors(vectors)


def test_intervals_and_blocks_out_of_range_are_refused():
    for start, stop in ((-1, 2), (3, 2), (0, N + 1)):
        with pytest.raises(ValueError, match="expected"):
            GRAM.interval(start, stop)
    with pytest.raises(ValueError, match="block"):
        PrefixGram.of_vectors(VECTORS, block=0)
    with pytest.raises(ValueError, match="seed"):
        PrefixGram.build([])


# -- descent: the population's coefficients against its real weights ---------------------------


def slerp(t, x, y):
    """Slerp as everyone writes it, on the weights themselves."""
    norms = np.linalg.norm(x), np.linalg.norm(y)
    if min(norms, default=0) == 0:
        return (1 - t) * x + t * y
    cosine = float(x @ y / norms[0] / norms[1])
    if abs(cosine) > 0.9995:
        return (1 - t) * x + t * y
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)


def real_child(x, y, weight, split, angle, interpolation):
    def between(t, a, b):
        return slerp(t, a, b) if interpolation == "slerp" else (1 - t) * a + t * b

    if angle == "global":
        return np.concatenate([between(weight, x, y)[:split], between(1 - weight, x, y)[split:]])
    before = between(weight, x[:split], y[:split])
    return np.concatenate([before, between(1 - weight, x[split:], y[split:])])


def expand(piecewise, vectors):
    out = np.empty(piecewise.total)
    for start, stop, row in weights_at(piecewise, [(0, piecewise.total)]):
        out[start:stop] = row @ vectors[:, start:stop]
    return out


def descend(gram, vectors, splits, angle, interpolation):
    """Ten generations of an archive that keeps everybody; largest relative error of a child."""
    rng = np.random.default_rng(7)
    count, n = vectors.shape
    archive = [(Piecewise.seed(i, count, n), vectors[i]) for i in range(count)]
    seen, worst = set(), 0.0
    for generation in range(10):
        newest = archive[-4:]
        for _ in range(4):
            one = newest[rng.integers(len(newest))]  # so that lines grow ten generations long
            other = archive[rng.integers(len(archive))]
            weight = rng.uniform()
            chosen = splits[rng.integers(len(splits))]
            split = int(rng.integers(n + 1)) if generation % 2 else chosen
            seen.add(split)
            child = combine(one[0], other[0], weight, split, gram, angle, interpolation)
            real = real_child(one[1], other[1], weight, split, angle, interpolation)
            error = np.linalg.norm(expand(child, vectors) - real) / np.linalg.norm(real)
            worst = max(worst, float(error))
            assert len(child) <= len(seen - {0, n}) + 1
            archive.append((child, real))
    return worst


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_ten_generations_of_raw_vectors(angle, interpolation):
    rng = np.random.default_rng(3)
    scale = np.repeat(rng.lognormal(0, 2, size=100), 50)  # parts as unlike as tensors are
    vectors = rng.normal(size=(3, 5000)) * scale + 0.5 * scale
    gram = PrefixGram.of_vectors(vectors, block=256)
    splits = [0, 5000, 256, 2560, 255, 257]
    assert descend(gram, vectors, splits, angle, interpolation) < 1e-10


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    root = tmp_path_factory.mktemp("llamas")
    for i in range(3):
        model = real_model("Llama", seed=i)
        if i == 2:
            model = model.to(torch.bfloat16)
        model.save_pretrained(root / str(i))
    return [Checkpoint(str(root / str(i))) for i in range(3)]


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_ten_generations_of_real_checkpoints(llamas, angle, interpolation):
    order = FlatOrder.of(llamas[0])
    vectors = np.stack([flattened({n: m.tensor(n) for n in m.names}, order.names) for m in llamas])
    gram = PrefixGram.build(llamas, block=1024)
    boundary = order.offset("model.layers.4.mlp.up_proj.weight")
    splits = [0, order.total, 1024, 5 * 1024, boundary, boundary + 77]
    assert descend(gram, vectors, splits, angle, interpolation) < 1e-10


def test_a_whole_member_survives_the_journal(llamas):
    """Through JSON, as a recipe's digest needs it, not a bit of a coefficient is lost."""
    gram = PrefixGram.build(llamas, block=4096)
    one, other = (Piecewise.seed(i, 3, gram.total) for i in (0, 2))
    child = combine(one, other, 0.3, 12_345, gram)
    pieces = child.to_pieces()
    text = json.dumps([pieces.breakpoints, pieces.coefficients])
    ends, rows = json.loads(text)
    assert Piecewise(np.array(ends), np.array(rows)) == child
