"""The pool's measurements against brute force, its clusters against linkage by the book."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_models import SIZE, Memory, model, partition, pool, zoo_models

from evomerge.checkpoints.flat import FlatOrder
from evomerge.checkpoints.gram import PrefixGram
from evomerge.checkpoints.merger import Merger
from evomerge.errors import SourceError
from evomerge.pool_geometry import clusters, distinct, measure
from evomerge.zoo import zoo_path

ROOM = 1e-12


def brute(base, sources, names):
    """Base norm, relative norms and cosines of whole flattened vectors in float64."""

    def flat(m):
        return np.concatenate([m.tensor(n).double().numpy().ravel() for n in names])

    start = flat(base)
    changes = np.stack([flat(m) - start for m in sources])
    norms = np.linalg.norm(changes, axis=1)
    return (
        np.linalg.norm(start),
        norms / np.linalg.norm(start),
        changes @ changes.T / np.outer(norms, norms),
    )


@pytest.fixture(scope="module")
def zoo():
    return zoo_models()


def test_the_zoo_is_measured_as_by_brute_force(zoo):
    base, sources = zoo
    seen = []
    found = measure(base, sources, lambda done, total: seen.append((done, total)))
    base_norm, norms, cosines = brute(base, sources.values(), base.names)
    assert found.base_norm == pytest.approx(base_norm, rel=ROOM)
    assert np.allclose(found.norms, norms, rtol=ROOM, atol=0)
    assert np.allclose(found.cosines, cosines, rtol=0, atol=ROOM)
    assert found.groups == base.layout.groups()
    for i, group in enumerate(found.groups):
        names = [n for n in base.names if base.layout.group_of(n) == group]
        _, norms, cosines = brute(base, sources.values(), names)
        assert np.allclose(found.group_norms[i], norms, rtol=ROOM, atol=0)
        assert np.allclose(found.group_cosines[i], cosines, rtol=0, atol=ROOM)
    total = sum(base.tensor(n).numel() for n in base.names)
    assert found.parameters == total and seen[-1] == (total, total)
    assert [d for d, _ in seen] == sorted({d for d, _ in seen})
    assert found.largest(1)[0] == "embedding"
    assert found.nearest(0) == ("sorter", pytest.approx(found.cosines[0, 2]))


def test_the_gram_matrix_of_pieces_says_the_same(zoo):
    base, sources = zoo
    gram = PrefixGram.build([base, *sources.values()], FlatOrder.of(base)).interval(
        0, FlatOrder.of(base).total
    )
    changes = np.hstack([-np.ones((3, 1)), np.eye(3)])
    expected = changes @ gram @ changes.T
    norms = np.sqrt(np.diagonal(expected))
    found = measure(base, sources)
    assert np.allclose(found.norms, norms / np.sqrt(gram[0, 0]), rtol=1e-9)
    assert np.allclose(found.cosines, expected / np.outer(norms, norms), atol=1e-9)


def test_an_adapter_is_measured_with_its_base(tmp_path):
    from safetensors.torch import save_file

    rng = torch.Generator().manual_seed(0)
    prefix = "base_model.model.model.layers.2.self_attn.q_proj"
    a, b = torch.randn(2, 128, generator=rng) / 10, torch.randn(128, 2, generator=rng) / 10
    save_file(
        {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b},
        tmp_path / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    merger = Merger(threads=1)
    path = str(zoo_path("models/base"))
    base, adapted = merger.checkpoint(path), merger.checkpoint(f"{path}+{tmp_path}")
    found = measure(base, {"adapter": adapted, "math": merger.checkpoint(path[:-4] + "math")})
    change = float(torch.linalg.norm(3.0 * (b.double() @ a.double())))
    assert found.norms[0] == pytest.approx(change / found.base_norm, rel=1e-5)
    assert [g for g, n in zip(found.groups, found.group_norms[:, 0], strict=True) if n > 0] == [
        "block.2"
    ]


def test_added_tokens_buffers_and_tied_heads_do_not_disturb():
    base, sources = pool({"a": np.ones(SIZE), "b": -2.0 * np.ones(SIZE)})
    plain = measure(base, sources)
    for made in (base, sources["a"]):
        made.tensors["model.positions"] = torch.arange(5)
        made.shapes["model.positions"] = (5,)
        made.names = tuple(made.shapes)
    for made in (sources["b"],):
        made.tensors["model.positions"] = torch.arange(5)
        made.shapes["model.positions"] = (5,)
        made.names = tuple(made.shapes)
        rows = torch.full((2, 4), 7.0, dtype=torch.float64)
        key = "model.embed_tokens.weight"
        made.tensors[key] = torch.cat([made.tensors[key], rows])
        made.shapes[key] = (8, 4)
    base.config["vocab_size"] = 6
    found = measure(base, sources)
    assert np.array_equal(found.norms, plain.norms)
    assert np.array_equal(found.cosines, plain.cosines)
    # The base stores a head; a source that ties it has the embedding in its place.
    base, sources = pool({"a": np.ones(SIZE)})
    base.tensors["lm_head.weight"] = base.tensors["model.embed_tokens.weight"].clone()
    base.shapes["lm_head.weight"] = (6, 4)
    base.names = tuple(base.shapes)
    found = measure(base, sources)
    start = np.concatenate([t.numpy().ravel() for t in base.tensors.values()])
    assert found.norms[0] == pytest.approx(np.sqrt(SIZE + 24) / np.linalg.norm(start), rel=ROOM)


def test_a_source_that_does_not_fit_or_is_not_finite_is_named():
    base, sources = pool({"a": np.ones(SIZE), "b": np.ones(SIZE)})
    sources["b"].tensors["model.norm.weight"][2] = float("nan")
    with pytest.raises(SourceError, match=r"models\.b.*model\.norm\.weight.*NaN"):
        measure(base, sources)
    with pytest.raises(SourceError, match=r"missing, 1 extra"):
        measure(base, {"c": Memory({"other.weight": torch.ones(2, dtype=torch.float64)}, "c")})
    with pytest.raises(SourceError, match=r"models\.zero.*all 0"):
        measure(model(np.zeros(SIZE), "zero"), sources_of("a"))
    with pytest.raises(ValueError, match="at least one source"):
        measure(base, {})


def sources_of(*names):
    return pool({n: np.ones(SIZE) for n in names})[1]


vectors = st.integers(0, 2**32 - 1).map(lambda s: np.random.default_rng(s))


@given(rng=vectors, scales=st.tuples(*[st.floats(1e-3, 30.0)] * 3))
@settings(deadline=None, max_examples=25)
def test_cosines_do_not_depend_on_the_size_of_changes(rng, scales):
    changes = rng.normal(size=(3, SIZE))
    names = ("a", "b", "c")
    plain = measure(*pool(dict(zip(names, changes, strict=True))))
    scaled = measure(*pool({n: s * c for n, s, c in zip(names, scales, changes, strict=True)}))
    assert np.allclose(scaled.cosines, plain.cosines, atol=1e-9)
    assert np.allclose(scaled.group_cosines, plain.group_cosines, atol=1e-9)
    assert np.allclose(scaled.norms, plain.norms * scales, rtol=1e-9)


def naive_linkage(cosines, threshold):
    """Average linkage by the book: join the nearest two until none are near enough."""
    found = [{i} for i in range(len(cosines))]
    while len(found) > 1:
        mean, i, j = max(
            (cosines[np.ix_(sorted(a), sorted(b))].mean(), i, j)
            for i, a in enumerate(found)
            for j, b in enumerate(found)
            if i < j
        )
        if mean <= threshold:
            break
        found[i] |= found.pop(j)
    return {frozenset(c) for c in found}


@given(rng=vectors, count=st.integers(1, 9), threshold=st.floats(-0.5, 0.99))
@settings(deadline=None, max_examples=60)
def test_clusters_are_those_of_average_linkage_in_any_order(rng, count, threshold):
    centres = rng.normal(size=(3, 4))
    points = centres[rng.integers(3, size=count)] + 0.5 * rng.normal(size=(count, 4))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    cosines = np.clip(points @ points.T, -1, 1)
    found = clusters(cosines, threshold)
    assert partition(found) == naive_linkage(cosines, threshold)
    assert list(dict.fromkeys(found)) == list(range(len(set(found))))
    order = rng.permutation(count)
    moved = clusters(cosines[np.ix_(order, order)], threshold)
    assert {frozenset(order[list(c)].tolist()) for c in partition(moved)} == partition(found)


def test_a_threshold_of_one_joins_nothing():
    assert clusters(np.ones((3, 3)), 1.0) == (0, 1, 2)
    assert clusters(np.ones((3, 3)), 0.999) == (0, 0, 0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_distinct_sources_of_known_pools(count):
    every = np.ones(count, dtype=bool)
    assert distinct(np.eye(count), every) == pytest.approx(count)
    assert distinct(np.ones((count, count)), every) == pytest.approx(1.0)
    pairs = np.kron(np.eye(count), np.ones((2, 2)))
    assert distinct(pairs, np.ones(2 * count, dtype=bool)) == pytest.approx(count)
    assert distinct(np.eye(count + 1), np.append(every, False)) == pytest.approx(count)
    assert distinct(np.eye(count), ~every) == 0.0
