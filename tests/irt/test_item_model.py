"""Probabilities, information, files and names of fitted items."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.irt.model import ItemModel


def make(items=4, dimensions=2, seed=0, **settings):
    rng = np.random.default_rng(seed)
    return ItemModel(
        tuple(f"item {i}" for i in range(items)),
        rng.standard_normal((items, dimensions)),
        rng.standard_normal(items),
        rng.random((items, dimensions)),
        rng.random(items),
        settings,
    )


def test_beta_is_subtracted_once():
    model = make(dimensions=3)
    theta = np.array([0.3, -1.0, 2.0])
    z = [sum(a * t for a, t in zip(row, theta, strict=True)) - b
         for row, b in zip(model.discrimination, model.difficulty, strict=True)]  # fmt: skip
    np.testing.assert_allclose(model.logits(theta), z)
    np.testing.assert_allclose(model.probability(theta), 1 / (1 + np.exp(-np.array(z))))


def test_abilities_may_have_any_leading_shape():
    model = make()
    theta = np.random.default_rng(1).standard_normal((5, 3, 2))
    assert model.probability(theta).shape == (5, 3, 4)
    assert model.information(theta).shape == (5, 3, 4, 2, 2)
    assert make(dimensions=1).information(theta[..., :1]).shape == (5, 3, 4)
    with pytest.raises(ValueError, match=r"expected \(\.\.\., 2\)"):
        model.logits(np.zeros(3))


@pytest.mark.parametrize("dimensions", [1, 2])
def test_information_is_the_expected_square_of_the_score(dimensions):
    model = make(dimensions=dimensions)
    theta = np.full(dimensions, 0.4)
    step = 1e-6 * np.eye(dimensions)
    slopes = np.array([
        (model.probability(theta + s) - model.probability(theta - s)) / 2e-6 for s in step
    ])  # fmt: skip
    p = model.probability(theta)
    expected = np.einsum("dn,en->nde", slopes, slopes) / (p * (1 - p))[:, None, None]
    np.testing.assert_allclose(
        model.information(theta).reshape(4, dimensions, dimensions), expected, rtol=1e-6
    )


@pytest.mark.parametrize("suffix", [".npz", ".json"])
@given(names=st.lists(st.text(max_size=8), min_size=1, max_size=6, unique=True))
def test_a_file_holds_the_model_to_the_last_bit(suffix, names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = make(len(names), source="π", priors={"difficulty_sd": 3.0}, constant=names[:1])
    names = [n.encode("utf-8", "replace").decode() for n in names]
    model = ItemModel(
        tuple(dict.fromkeys(names)), *(
            getattr(model, k)[: len(set(names))]
            for k in ("discrimination", "difficulty", "discrimination_error", "difficulty_error")
        ), {"source": "π", "priors": {"difficulty_sd": 3.0}},
    )  # fmt: skip
    model.save(folder / f"items{suffix}")
    again = ItemModel.load(folder / f"items{suffix}")
    assert again.items == model.items and again.settings == model.settings
    for name in ("discrimination", "difficulty", "discrimination_error", "difficulty_error"):
        assert np.array_equal(getattr(again, name), getattr(model, name))
    assert [p.name for p in folder.iterdir()] == [f"items{suffix}"]


def test_a_pickle_in_a_file_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return print, ("opened",)

    buffer = io.BytesIO()
    np.savez(buffer, schema=np.array([Trap()], dtype=object), discrimination=np.zeros((1, 1)))
    (tmp_path / "trap.npz").write_bytes(buffer.getvalue())
    with pytest.raises(ConfigError, match="missing or damaged"):
        ItemModel.load(tmp_path / "trap.npz")


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_damaged_files_are_errors(tmp_path, suffix):
    path = tmp_path / f"items{suffix}"
    with pytest.raises(ConfigError, match="missing or damaged"):
        ItemModel.load(path)
    make().save(path)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match="missing or damaged"):
            ItemModel.load(path)


def test_another_schema_and_values_that_are_none_are_errors(tmp_path):
    path = tmp_path / "items.json"
    make().save(path)
    content = json.loads(path.read_text())
    for change, says in (
        ({"schema": 2}, "schema 2"),
        ({"difficulty": [0.0, 1.0, 2.0]}, "arrays of N x D"),
        ({"difficulty": [0.0, 1.0, 2.0, float("nan")]}, "NaN"),
        ({"items": ["a", "a", "b", "c"]}, "twice"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(ConfigError, match=says):
            ItemModel.load(path)


def test_other_suffixes_are_refused(tmp_path):
    for path in (tmp_path / "items.pkl", tmp_path / "items"):
        with pytest.raises(ConfigError, match=r"\.npz or \.json"):
            make().save(path)
        with pytest.raises(ConfigError, match=r"\.npz or \.json"):
            ItemModel.load(path)


def test_items_are_found_by_name_in_the_order_asked():
    model = make()
    assert model.index(["item 3", "item 0"]).tolist() == [3, 0]
    part = model.at([3, 0])
    assert part.items == ("item 3", "item 0")
    np.testing.assert_array_equal(part.difficulty, model.difficulty[[3, 0]])
    with pytest.raises(ConfigError, match=r"2 of 3 .*: other, item 9"):
        model.index(["other", "item 1", "item 9"])
