"""Routes as genomes: the layout, what a genome means, the fixed depth, engines."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.checking import check_recipe
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.domain import Domain
from evomerge.errors import ConfigError, RecipeError, SourceError
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


@pytest.mark.parametrize(("least", "kept"), [(1, []), (3, [2, 5])])
def test_a_genome_that_keeps_too_little_has_no_route(least, kept):
    found = space(scale=SCALE, min_blocks=least)
    recipe = found.decode(genome_of(found, kept))
    assert recipe.route.slots == ()
    with pytest.raises(RecipeError, match="found none; expected at least one block of a model"):
        MERGER.assemble(recipe)
    with pytest.raises(RecipeError, match=r"route\.slots"):
        Recipe.from_dict(recipe.to_dict())
    assert not found.encode(recipe)[:8].any()
    assert found.sparsity(genome_of(found, [])) == 1.0
    assert found.blocks(genome_of(found, [])) == 0
    enough = found.decode(genome_of(found, range(least)))
    assert len(enough.route.slots) == least


def test_limits_leave_slots_out_from_the_end():
    found = space(repeats=3, max_blocks=5, max_uses=2, depth=7)
    genome = genome_of(found, [0, 1, 8, 9, 16, 17, 18])
    assert [s[:2] for s in found_slots(found.decode(genome))] == [
        (MATH, 0), (MATH, 1), (MATH, 0), (MATH, 1), (MATH, 2),
    ]  # fmt: skip
    assert found.blocks(genome) == 5
    full = genome_of(found, range(24))
    slots = found_slots(found.decode(full))
    assert [s[1] for s in slots] == [0, 1, 2, 3, 0] and found.decode(full).route.depth == 7
    twice = space(sources={"a": MATH, "b": MATH}, max_uses=1, depth=8)
    assert found_slots(twice.decode(genome_of(twice, [1, 2, 5, 6, 7]))) == [
        (MATH, 1, 1.0), (MATH, 2, 1.0), (MATH, 3, 1.0),
    ]  # fmt: skip


def test_real_indicators_keep_what_is_above_zero():
    whole, real = space(repeats=2), space(repeats=2, indicators="real")
    assert {(d.kind, d.low, d.high) for d in real.dimensions} == {("real", -1.0, 1.0)}
    assert [d.start for d in real.dimensions] == [0.5] * 4 + [-0.5] * 12
    genome = np.full(16, -1e-9)
    genome[[1, 4, 9]] = 1e-9
    assert real.decode(genome) == whole.decode(genome_of(whole, [1, 4, 9]))
    assert real.blocks(np.zeros(16)) == 0
    again = real.encode(real.decode(genome))
    assert real.decode(again) == real.decode(genome) and set(again) == {0.5, -0.5}
    assert len(real.anchors()) == len(whole.anchors()) == 2


def test_without_identities_the_model_has_as_many_blocks_as_its_route():
    found = space(identities=False, depth=6)
    recipe = found.decode(genome_of(found, [0, 3, 5]))
    assert recipe.route.depth is None
    assembly = MERGER.assemble(recipe)
    assert assembly.config["num_hidden_layers"] == 3
    assert len({p.name.split(".")[2] for p in assembly.parts if ".layers." in p.name}) == 3


# -- scales of transitions and of a network ---------------------------------------------------


def test_a_transition_has_one_scale_wherever_it_occurs():
    found = space(repeats=2, scale=SCALE, scales="transition", depth=9)
    assert len(found.dimensions) == 16 + 8 * 8
    names = [d.name for d in found.dimensions]
    assert len(set(names)) == len(names)
    assert names[16] == "scale/math.0>math/block.0" and names[-1] == (
        "scale/japanese.3>japanese/block.3"
    )
    genome = genome_of(found, [0, 1, 4, 8, 9, 15])
    matrix = np.arange(64).reshape(8, 8) / 100 + 0.6
    genome[16:] = matrix.ravel()
    wanted = [1.0, matrix[0, 1], matrix[1, 4], matrix[4, 0], matrix[0, 1], matrix[1, 7]]
    assert [s[2] for s in found_slots(found.decode(genome))] == pytest.approx(wanted)
    again = found.encode(found.decode(genome))
    assert found.decode(again) == found.decode(genome)
    slots = list(found.decode(genome).route.slots)
    slots[4] = replace(slots[4], scale=1.25)
    torn = Recipe("passthrough", base=MATH, route=Route(tuple(slots)))
    with pytest.raises(ValueError, match="for one transition"):
        found.encode(torn)


def test_the_start_has_a_scale_where_it_counts():
    found = space(scale=SCALE, scales="transition", reading="stream")
    assert len(found.dimensions) == 8 + 64 + 1
    genome = genome_of(found, [2, 3], 0.7)
    genome[-1] = 1.3
    assert [s[2] for s in found_slots(found.decode(genome))] == [1.3, 0.7]


@pytest.mark.parametrize("start", [None, 0.7])
def test_a_network_of_zeros_says_the_start_everywhere(start):
    scale = {"low": 0.4, "high": 1.5, "start": start}
    found = space(repeats=2, scale=scale, scales="network", hidden=3, depth=16, reading="stream")
    assert len(found.dimensions) == 16 + 5 * 3 + 1
    zeros = genome_of(found, range(16), 0.0)
    assert {s[2] for s in found_slots(found.decode(zeros))} == {start or 1.0}
    assert np.array_equal(found.encode(found.decode(zeros)), zeros)
    neutral = [s[2] for s in found_slots(found.decode(found.anchors()[0]))]
    assert neutral == pytest.approx([1.0] * 4)
    other = zeros.copy()
    other[-1] = 0.5
    with pytest.raises(ValueError, match="network"):
        found.encode(found.decode(other))


def test_a_network_is_what_its_formula_says():
    """Against a loop in plain Python; scales stay within their bounds."""
    found = space(repeats=3, scale={"low": 0.2, "high": 1.4}, scales="network", hidden=2,
                  depth=24, scale_embedding=True)  # fmt: skip
    genome = genome_of(found, [1, 5, 8, 23])
    genes = genome[24:] = np.random.default_rng(0).uniform(-3, 3, 11)
    wanted = []
    for before, t in zip([None, 1, 5, 8], [1, 5, 8, 23], strict=True):
        i = -1 if before is None else before % 8
        x = [2 * i / 7 - 1, 2 * (t % 8) / 7 - 1, 2 * t / 23 - 1]
        out = genes[10]
        for k in range(2):
            a = genes[5 * k : 5 * k + 5]
            out += a[4] * math.tanh(a[0] * x[0] + a[1] * x[1] + a[2] * x[2] + a[3])
        wanted.append(0.8 + 0.6 * math.tanh(out + math.atanh((1.0 - 0.8) / 0.6)))
    assert [s[2] for s in found_slots(found.decode(genome))] == pytest.approx(wanted)
    assert len(set(wanted)) == 4 and all(0.2 < s < 1.4 for s in wanted)


def test_anchors_end_with_all_blocks_where_a_route_may_have_them():
    assert len(space(depth=7).anchors()) == 2
    all_of_them = space(depth=8, scale=SCALE).anchors()[2]
    assert all_of_them[:8].all() and set(all_of_them[8:]) == {1.0}


def test_the_start_has_as_many_blocks_as_a_route_must_have():
    found = space(min_blocks=6, depth=8, max_uses=1, repeats=2)
    starts = [found.decode(np.array([d.start for d in found.dimensions]))]
    starts += [found.decode(g) for g in found.anchors()]
    assert [[s[:2] for s in found_slots(r)] for r in starts[:3]] == [
        [*((MATH, i) for i in range(4)), (JAPANESE, 0), (JAPANESE, 1)]
    ] * 2 + [[*((JAPANESE, i) for i in range(4)), (MATH, 0), (MATH, 1)]]


def test_extremes_have_every_block_and_the_bounds():
    found = space(repeats=2, scale=SCALE)
    extremes = found.extremes()
    blocks = {s[:2] for g in extremes for s in found_slots(found.decode(g))}
    assert blocks == {(ref, i) for ref in (MATH, JAPANESE) for i in range(4)}
    assert [set(g[16:]) for g in extremes] == [{0.5}, {1.5}] * 2


def test_models_of_another_width_are_refused(tmp_path):
    """Before any weight is merged, with the reason."""
    other = tmp_path / "narrow"
    shutil.copytree(MATH, other)
    tensors = load_file(other / "model.safetensors")
    cut = {n: t[tuple(slice(0, 64 if s == 128 else s) for s in t.shape)].contiguous()
           for n, t in tensors.items()}  # fmt: skip
    save_file(cut, other / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    found = space(sources={"math": MATH, "narrow": str(other)})
    with pytest.raises(SourceError, match=r"hidden size of 64 .* expected 128.*one stream"):
        MERGER.assemble(found.decode(found.extremes()[-1]))


def test_a_block_that_is_not_there_is_named():
    route = Route((Slot(MATH, 0), Slot(JAPANESE, 9)))
    with pytest.raises(RecipeError, match=r"slots\[1\]\.layer: found 9 .*expected 0 to 3"):
        MERGER.assemble(Recipe("passthrough", base=MATH, route=route))
    with pytest.raises(RecipeError, match=r"route\.depth: found 1; expected at least .* 2"):
        short = Route((Slot(MATH, 0), Slot(MATH, 1)), depth=1)
        MERGER.assemble(Recipe("passthrough", base=MATH, route=short))
    identities = Route((Slot(None),), depth=2)
    with pytest.raises(RecipeError, match=r"route\.slots: found identities only"):
        MERGER.assemble(Recipe("passthrough", base=MATH, route=identities))


@pytest.mark.parametrize(
    "changes",
    [{}, {"repeats": 3, "scale": SCALE, "depth": 9}, {"scale": SCALE, "reading": "stream"},
     {"sources": {"a": MATH, "b": MATH}, "repeats": 2, "depth": 16},
     {"repeats": 2, "scale": SCALE, "scales": "transition", "indicators": "real", "max_uses": 1},
     {"scale": SCALE, "scales": "transition", "reading": "stream", "identities": False},
     {"repeats": 2, "max_blocks": 3, "min_blocks": 2, "depth": 5}],
)  # fmt: skip
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_decode_and_encode(changes, data):
    found = space(**changes)
    kinds = [st.integers(0, 1) if d.kind == "integer" else st.floats(d.low, d.high)
             for d in found.dimensions]  # fmt: skip
    genome = np.array(data.draw(st.tuples(*kinds)), dtype=np.float64)
    recipe = found.decode(genome)
    if not recipe.route.slots:
        assert found.blocks(genome) < found.min_blocks
        return
    again = found.encode(Recipe.from_dict(recipe.to_dict()))
    assert found.decode(again) == recipe
    assert np.array_equal(Domain(found.dimensions).snap(again), again)
    assert 0.0 <= found.sparsity(genome) <= 1.0
    assert found.blocks(genome) == found.blocks(again) == len(recipe.route.slots)
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
        ({"scales": "matrix"}, "scales"),
        ({"scales": "network", "hidden": 0, "scale": SCALE}, "hidden"),
        ({"scales": "network", "scale": {**SCALE, "step": 0.1}}, "scale"),
        ({"scales": "network", "scale": {"low": 1.0, "high": 2.0}}, "scale"),
        ({"indicators": "binary"}, "indicators"),
        ({"identities": "no"}, "identities"),
        ({"max_blocks": 5}, "max_blocks"),
        ({"max_blocks": 3, "min_blocks": 4}, "min_blocks"),
        ({"min_blocks": 0}, "min_blocks"),
        ({"max_uses": 0}, "max_uses"),
        ({"repeats": 2, "depth": 16, "max_uses": 1, "min_blocks": 9}, "min_blocks"),
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
    for i, kept in enumerate(([0, 1, 2, 7], [1, 5, 9, 10, 11, 15], [6])):
        recipe = found.decode(genome_of(found, kept, 0.9))
        engine.load(Recipe.from_dict(recipe.to_dict()))
        write_checkpoint(recipe, MERGER, tmp_path / str(i))
        alone = TransformersEngine(tmp_path / str(i))
        # Not to the bit: matrices lie differently in memory, which a product's rounding depends on.
        measured = engine.loglikelihood(pairs)
        np.testing.assert_allclose(measured, alone.loglikelihood(pairs), rtol=1e-5)
        texts = [g.text for g in engine.generate(["1 + 2 ="], Sampling(4))]
        assert texts == [g.text for g in alone.generate(["1 + 2 ="], Sampling(4))]
