"""Soups: genomes to weighted averages and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.checkpoints.checking import check_recipe
from evomerge.checkpoints.merger import Merger
from evomerge.recipe import Recipe, Source
from evomerge.soups import SoupSpace
from evomerge.zoo import zoo_path

SOURCES = {"a": "/m/a", "b": "/m/b", "c": "/m/c"}
SPACE = SoupSpace("/m/base", SOURCES)
weights = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(any).map(np.array)


def test_dimensions_are_one_weight_a_source():
    assert [d.name for d in SPACE.dimensions] == ["weight/a/all", "weight/b/all", "weight/c/all"]
    assert {(d.low, d.high, d.kind, d.start) for d in SPACE.dimensions} == {(0, 1, "real", 1 / 3)}


@given(genome=weights)
def test_weights_are_normalised_and_come_back(genome):
    recipe = SPACE.decode(genome)
    found = [s.parameters["weight"] for s in recipe.sources]
    assert all(0 <= w <= 1 for w in found) and sum(found) == pytest.approx(1.0)
    encoded = SPACE.encode(recipe)
    assert np.allclose(encoded, genome / genome.sum(), atol=1e-12)
    assert SPACE.decode(encoded) == recipe
    assert SPACE.encode(Recipe.from_dict(recipe.to_dict())).tolist() == encoded.tolist()


def test_sources_of_weight_0_are_left_out():
    recipe = SPACE.decode(np.array([0.5, 0.0, 1.0]))
    assert recipe == Recipe(
        "linear", (Source("/m/a", {"weight": 1 / 3}), Source("/m/c", {"weight": 2 / 3}))
    )
    check_recipe(recipe, strict=True)


def test_one_hot_is_the_source_alone():
    """Whose recipe is that of the table of sources, so both have one digest."""
    for i, ref in enumerate(SOURCES.values()):
        alone = Recipe("linear", (Source(ref, {"weight": 1.0}),), dtype="bfloat16")
        assert SPACE.decode(np.eye(3)[i]).digest() == alone.digest()
        assert SPACE.decode(0.25 * np.eye(3)[i]).digest() == alone.digest()


@pytest.mark.parametrize(
    "genome", [[0, 0, 0], [1, 1], [1, np.nan, 0], [1, np.inf, 0], [1, -0.1, 0]]
)
def test_genomes_that_mean_nothing_are_refused(genome):
    with pytest.raises(ValueError, match="genome"):
        SPACE.decode(np.array(genome, dtype=float))


def test_foreign_recipes_are_refused():
    one = Source("/m/a", {"weight": 1.0})
    for recipe in (
        Recipe("ties", (one,)),
        Recipe("linear", ()),
        Recipe("linear", (Source("/m/z", {"weight": 1.0}),)),
        Recipe("linear", (Source("/m/b", {"weight": 0.5}), one)),
        Recipe("linear", (Source("/m/a"),)),
    ):
        with pytest.raises(ValueError, match="expected"):
            SPACE.encode(recipe)
    with pytest.raises(ValueError, match="at least one"):
        SoupSpace(None, {})


def test_anchors_and_what_they_leave_out():
    *alone, uniform = SPACE.anchors()
    assert np.array_equal(alone, np.eye(3)) and np.allclose(uniform, 1 / 3)
    assert [SPACE.sparsity(g) for g in (alone[0], uniform)] == pytest.approx([2 / 3, 0.0])


def test_a_soup_is_the_weighted_average_of_the_files():
    paths = {n: str(zoo_path(f"models/{n}")) for n in ("math", "sorter")}
    space = SoupSpace(str(zoo_path("models/base")), paths, dtype="float32")
    merger = Merger(threads=1)
    merged = dict(merger.merge(space.decode(np.array([0.2, 0.6]))))
    name = "model.layers.1.mlp.up_proj.weight"
    one, two = (merger.checkpoint(p).tensor(name).double() for p in paths.values())
    assert np.allclose(merged[name].double(), 0.25 * one + 0.75 * two, atol=1e-6)
