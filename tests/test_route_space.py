"""Routes as genomes: the layout, what a genome means, the fixed depth, engines."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.checking import check_recipe
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.domain import Domain
from evomerge.errors import ConfigError
from evomerge.recipe import Recipe, Route, Slot
from evomerge.spaces.route_space import RouteSpace
from evomerge.types import Sampling
from evomerge.zoo import zoo_path

BASE = str(zoo_path("models/base"))
SOURCES = {n: str(zoo_path(f"models/{n}")) for n in ("math", "japanese")}
MATH, JAPANESE = SOURCES.values()
MERGER = Merger(threads=1)
LAYOUT = MERGER.checkpoint(BASE).layout
GROUPS = {group: LAYOUT.filters(group) for group in LAYOUT.groups()}
SCALE = {"low": 0.5, "high": 1.5}


def space(**changes):
    return RouteSpace(**{"base": BASE, "sources": SOURCES, "groups": GROUPS, **changes})


def genome_of(spaces, kept, scale=1.0):
    genome = np.zeros(len(spaces.dimensions))
    genome[list(kept)] = 1.0
    genome[len(spaces.slots) :] = scale
    return genome


def merged(recipe):
    return dict(MERGER.merge(Recipe.from_dict(recipe.to_dict())))


def test_the_layout_is_every_source_in_order_and_again():
    found = space(repeats=2, scale=SCALE)
    assert found.slots == (*((MATH, i) for i in range(4)), *((JAPANESE, i) for i in range(4))) * 2
    names = [d.name for d in found.dimensions]
    assert len(names) == len(set(names)) == 32
    assert names[:5] == [*(f"keep/math/block.{i}" for i in range(4)), "keep/japanese/block.0"]
    assert names[8] == "keep/math@2/block.0"
    assert names[31] == "scale/japanese@2/block.3"
    indicators, scales = found.dimensions[:16], found.dimensions[16:]
    assert [d.start for d in indicators] == [1.0] * 4 + [0.0] * 12
    assert {(d.kind, d.low, d.high, d.step) for d in indicators} == {("integer", 0.0, 1.0, 1 / 3)}
    assert {(d.kind, d.low, d.high, d.start) for d in scales} == {("real", 0.5, 1.5, 1.0)}
    assert len(space().dimensions) == 8


@pytest.mark.parametrize("changes", [{}, {"repeats": 2, "scale": SCALE}, {"depth": 6}])
def test_the_start_is_the_first_source_exactly(changes):
    found = space(dtype="bfloat16", **changes)
    tensors = merged(found.decode(Domain(found.dimensions).start))
    own = MERGER.checkpoint(MATH)
    for name in own.names:
        assert torch.equal(tensors.pop(name), own.tensor(name))
    zeros = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    assert {n.split(".")[2] for n in tensors} == ({"4", "5"} if "depth" in changes else set())
    assert all(not tensor.any() for name, tensor in tensors.items() if name.endswith(zeros))


def test_the_anchors_are_the_sources_own_routes():
    found = space(repeats=2, scale={"low": 1.1, "high": 2.0, "start": 1.5})
    anchors = found.anchors()
    kept = [np.flatnonzero(a[:16]).tolist() for a in anchors]
    assert kept == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]
    assert [set(a[16:]) for a in anchors] == [{1.1}, {1.1}, {1.5}]
    plain = space().anchors()
    assert len(plain) == 2
    for genome, (_, ref) in zip(plain, SOURCES.items(), strict=True):
        slots = found_slots(space().decode(genome))
        assert slots == [(ref, i, 1.0) for i in range(4)]


def found_slots(recipe):
    return [(s.model, s.layer, s.scale) for s in recipe.route.slots]


@pytest.mark.parametrize("reading", ["block_output", "stream"])
def test_a_route_with_repeats_and_scales_is_that_of_the_recipe(reading):
    found = space(repeats=2, scale=SCALE, reading=reading, depth=7, dtype="float32")
    genome = genome_of(found, [0, 1, 9, 10, 13])
    genome[16:] = np.linspace(0.5, 1.5, 16)
    scales = [float(genome[16 + t]) for t in (0, 1, 9, 10, 13)]
    if reading == "block_output":
        scales[0] = 1.0  # that of the embedding
    blocks = [(MATH, 0), (MATH, 1), (MATH, 1), (MATH, 2), (JAPANESE, 1)]
    slots = tuple(Slot(*block, s) for block, s in zip(blocks, scales, strict=True))
    by_hand = Recipe(
        "passthrough", base=MATH, dtype="float32", route=Route(slots, reading, 7)
    )  # fmt: skip
    recipe = found.decode(genome)
    assert recipe == by_hand
    check_recipe(recipe, strict=True)
    tensors, own = merged(recipe), MERGER.checkpoint(MATH)
    place = "model.layers.{}.self_attn.q_proj.weight"
    assert torch.equal(tensors[place.format(1)].abs(), tensors[place.format(2)].abs())
    down = "model.layers.{}.mlp.down_proj.weight"
    gain = scales[1] if reading == "block_output" else 1 / scales[0]
    wanted = own.tensor(down.format(0)).float() * gain
    torch.testing.assert_close(tensors[down.format(0)], wanted, rtol=1e-6, atol=0)
    assert len({n.split(".")[2] for n in tensors if ".layers." in n}) == 7


def test_slots_beyond_the_depth_are_left_out():
    found = space(scale=SCALE)
    genome = genome_of(found, range(8), 0.9)
    recipe = found.decode(genome)
    assert [s[:2] for s in found_slots(recipe)] == [(MATH, i) for i in range(4)]
    other = genome_of(found, range(4), 0.9)
    assert found.decode(other).digest() == recipe.digest()
    assert found.sparsity(genome) == found.sparsity(other) == 0.5


def test_scales_of_dropped_slots_and_of_the_embedding_have_no_effect():
    found = space(scale=SCALE)
    genome = genome_of(found, [2, 5], 0.8)
    other = genome.copy()
    other[[8, 9, 10, 11, 12, 14, 15]] = 1.2
    assert found.decode(genome).digest() == found.decode(other).digest()
    assert [s[2] for s in found_slots(found.decode(genome))] == [1.0, 0.8]
    other[13] = 1.2
    assert found.decode(genome).digest() != found.decode(other).digest()


def test_the_embedding_is_scaled_where_that_is_wanted():
    found = space(scale=SCALE, scale_embedding=True, dtype="float32")
    tensors = merged(found.decode(genome_of(found, range(4), 0.5)))
    own = MERGER.checkpoint(MATH).tensor("model.embed_tokens.weight").float()
    assert torch.equal(tensors["model.embed_tokens.weight"], 0.5 * own)
    assert torch.equal(tensors["lm_head.weight"], own)


def test_a_genome_that_keeps_nothing_is_a_model_of_identities():
    found = space(scale=SCALE)
    recipe = found.decode(genome_of(found, []))
    tensors = merged(recipe)
    own = MERGER.checkpoint(MATH)
    assert tensors.keys() == set(own.names)
    zeros = [n for n in tensors if n.endswith(("o_proj.weight", "down_proj.weight"))]
    assert len(zeros) == 8 and not any(tensors[n].any() for n in zeros)
    assert torch.equal(tensors["model.norm.weight"], own.tensor("model.norm.weight"))
    assert not found.encode(recipe)[:8].any()
    assert found.sparsity(genome_of(found, [])) == 1.0


@pytest.mark.parametrize(
    "changes",
    [{}, {"repeats": 3, "scale": SCALE, "depth": 9}, {"scale": SCALE, "reading": "stream"},
     {"sources": {"a": MATH, "b": MATH}, "repeats": 2, "depth": 16}],
)  # fmt: skip
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_decode_and_encode(changes, data):
    found = space(**changes)
    kinds = [st.integers(0, 1) if d.kind == "integer" else st.floats(d.low, d.high)
             for d in found.dimensions]  # fmt: skip
    genome = np.array(data.draw(st.tuples(*kinds)), dtype=np.float64)
    recipe = found.decode(genome)
    again = found.encode(Recipe.from_dict(recipe.to_dict()))
    assert found.decode(again) == recipe
    assert np.array_equal(Domain(found.dimensions).snap(again), again)
    assert 0.0 <= found.sparsity(genome) <= 1.0
    assert found.sparsity(again) == found.sparsity(genome)


def test_a_foreign_route_is_refused():
    foreign = Recipe("passthrough", base=MATH, route=Route((Slot(MATH, 1), Slot(MATH, 0))))
    with pytest.raises(ValueError, match="slot 1: no such block in the layout after slot 1"):
        space().encode(foreign)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"repeats": 0}, "repeats"),
        ({"repeats": 1.5}, "repeats"),
        ({"repeats": True}, "repeats"),
        ({"depth": 0}, "depth"),
        ({"groups": {"all": (None,)}}, "depth"),
        ({"step": 0}, "step"),
        ({"reading": "both"}, "reading"),
        ({"scale": {"low": 2, "high": 1}}, "scale"),
        ({"scale": {"low": 0.5, "high": 1.5, "start": 2}}, "scale"),
        ({"scale": {"low": 0, "high": 2, "kind": "integer"}}, "scale"),
        ({"scale": {"choices": [1, 2]}}, "scale"),
        ({"scale": {"low": 0.0, "high": 1.5}, "reading": "stream"}, "scale"),
        ({"scale": 1}, "scale"),
    ],
)
def test_wrong_spaces_name_the_key(changes, key):
    with pytest.raises(ConfigError) as raised:
        space(**changes)
    assert raised.value.problems[0].field == f"space.{key}"


@pytest.mark.parametrize("bad", [np.zeros(7), np.full(8, np.inf)])
def test_wrong_genomes_are_refused(bad):
    with pytest.raises(ValueError, match="genome"):
        space().decode(bad)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [4, 6])
def test_one_engine_takes_every_route_in_place(depth, tmp_path):
    """What it then says is what an engine says that loads the written route itself."""
    from evomerge.engines.transformers import TransformersEngine

    found = space(repeats=2, scale=SCALE, depth=depth, dtype="float32")
    template = BASE
    if depth != 4:
        template = str(tmp_path / "template")
        write_checkpoint(
            found.decode(Domain(found.dimensions).start), MERGER, tmp_path / "template"
        )
    engine = TransformersEngine(template)
    pairs = [("1 + 2 =", " 3"), ("7 - 4 =", " 3")]
    for i, kept in enumerate(([0, 1, 2, 7], [1, 5, 9, 10, 11, 15], [6], [])):
        recipe = found.decode(genome_of(found, kept, 0.9))
        engine.load(Recipe.from_dict(recipe.to_dict()))
        write_checkpoint(recipe, MERGER, tmp_path / str(i))
        alone = TransformersEngine(tmp_path / str(i))
        assert np.array_equal(engine.loglikelihood(pairs), alone.loglikelihood(pairs))
        texts = [g.text for g in engine.generate(["1 + 2 ="], Sampling(4))]
        assert texts == [g.text for g in alone.generate(["1 + 2 ="], Sampling(4))]
