"""Folded routes against a plain loop over the sources' own layers."""

import dataclasses

import pytest
import routing_models as tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.routing import fixed_depth, fold, to_slices
from evomerge.errors import RecipeError, SourceError
from evomerge.recipe.data import Recipe, Route, Scope, Slot

IDS = torch.tensor([[3, 7, 1, 20, 11, 5, 9, 2], [4, 4, 19, 0, 8, 13, 22, 6]])
MIXED = [("a", 0), ("b", 1), ("a", 1), ("b", 1), ("a", 1), ("b", 2), ("a", 2), ("b", 0)]
"""Two models in turns, with layers repeated, left out and in another order."""
POWERS = [0.5, -2.0, 1.0, -0.25, 4.0, -1.0, 0.5, 2.0]
SCALES = [1.3, -0.7, 0.9, 1.1, -1.4, 0.6, -1.2, 0.8]


class Pair:
    """Two checkpoints of a kind, with their networks."""

    def __init__(self, kind, folder):
        self.kind, self.folder, self.count = kind, folder, 0
        self.source = {n: tiny.build(kind, folder / n, i) for i, n in enumerate("ab")}
        self.network = {n: tiny.load(folder / n) for n in "ab"}

    def models(self, route):
        return {t: self.source[s.model] for t, s in enumerate(route.slots) if s.model is not None}

    def fold(self, route):
        return fold(route, self.models(route), self.source["a"])

    def folded(self, route):
        """Logits of the written checkpoint, loaded like any other."""
        self.count += 1
        folder = self.folder / f"out{self.count}"
        tiny.write(self.fold(route), self.models(route), self.source["a"], folder)
        return tiny.logits(tiny.load(folder), IDS)

    def loop(self, route):
        networks = {t: self.network[s.model] for t, s in enumerate(route.slots) if s.model}
        return tiny.run_route(route, networks, self.network["a"], IDS)


@pytest.fixture(scope="module", params=tiny.KINDS)
def pair(request, tmp_path_factory):
    return Pair(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    return Pair("llama", tmp_path_factory.mktemp("llamas"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return Pair("llama-tied", tmp_path_factory.mktemp("tied"))


def route_of(layers, scales, reading="block_output", depth=None):
    slots = tuple(Slot(m, i, s) for (m, i), s in zip(layers, scales, strict=True))
    return Route(slots, reading, depth)


def test_the_loop_runs_a_model_as_it_is(pair):
    """The reference itself against transformers: all layers in order, no scales."""
    plain = route_of([("a", 0), ("a", 1), ("a", 2)], [1.0] * 3)
    assert torch.equal(pair.loop(plain), tiny.logits(pair.network["a"], IDS))


def test_block_output_is_bit_equal_for_powers_of_two(pair):
    route = route_of(MIXED, POWERS)
    assert torch.equal(pair.folded(route), pair.loop(route))


def test_block_output_for_any_scale(pair):
    """Not bit-equal: (sW)x rounds each sW before it sums, s(Wx) rounds the sum."""
    route = route_of(MIXED, SCALES)
    tolerance = 1e-6 if pair.kind == "mixtral" else 1e-12  # its router computes in float32
    assert tiny.largest_error(pair.folded(route), pair.loop(route)) < tolerance


@pytest.mark.parametrize("scales", [SCALES, POWERS, [-1.0] * 7 + [1.0]], ids=str)
def test_stream(pair, scales):
    """Exact up to the norms' epsilon, 1e-12 here, and for Mixtral its router's float32."""
    route = route_of(MIXED, scales, "stream")
    tolerance = 1e-5 if pair.kind == "mixtral" else 1e-9
    assert tiny.largest_error(pair.folded(route), pair.loop(route)) < tolerance


def test_stream_with_an_ordinary_epsilon_in_float32_accuracy(tmp_path):
    pair = Pair.__new__(Pair)
    pair.kind, pair.folder, pair.count = "llama", tmp_path, 0
    pair.source = {
        n: tiny.build("llama", tmp_path / n, i, rms_norm_eps=1e-6) for i, n in enumerate("ab")
    }
    pair.network = {n: tiny.load(tmp_path / n) for n in "ab"}
    route = route_of(MIXED, SCALES, "stream")
    assert tiny.largest_error(pair.folded(route), pair.loop(route)) < 1e-5


@pytest.mark.parametrize("reading", ["block_output", "stream"])
def test_readings_differ_where_they_should(llamas, reading):
    """A scale that the fold dropped would pass a comparison of two loops that drop it, too."""
    route = route_of(MIXED, SCALES, reading)
    other = dataclasses.replace(
        route, scale="stream" if reading == "block_output" else "block_output"
    )
    unscaled = route_of(MIXED, [1.0] * 8)
    assert tiny.largest_error(llamas.folded(route), llamas.folded(other)) > 1e-3
    assert tiny.largest_error(llamas.folded(route), llamas.folded(unscaled)) > 1e-3


@pytest.mark.parametrize("reading", ["block_output", "stream"])
def test_identities_change_nothing(pair, reading):
    scales = POWERS[:4] if reading == "block_output" else [1.0, -2.0, 0.5, -1.0]
    bare = route_of(MIXED[:4], scales, reading)
    nothing = Slot(None)
    s = bare.slots
    filled = Route((nothing, s[0], s[1], nothing, nothing, s[2], s[3]), reading, depth=9)
    folded = pair.fold(filled)
    assert 9 in folded.config.values()
    assert torch.equal(pair.folded(filled), pair.folded(bare))


def test_a_scale_on_an_identity_acts_on_what_enters_it(llamas):
    for reading in ("block_output", "stream"):
        slots = (Slot("a", 0, 2.0), Slot(None, 0, -0.5), Slot("b", 1, 4.0), Slot(None, 0, -2.0))
        route = Route(slots, reading)
        error = tiny.largest_error(llamas.folded(route), llamas.loop(route))
        assert error < (1e-9 if reading == "stream" else 1e-15)


@pytest.mark.parametrize("kind", tiny.OTHERS)
def test_other_architectures(kind, tmp_path):
    """Layers in order with scales, against hooks in the original model."""
    source = tiny.build(kind, tmp_path / "a", 3)
    models = dict.fromkeys(range(3), source)
    for reading, scales in (("block_output", [1.5, -0.6, 1.2]), ("stream", [0.8, -1.5, 1.2])):
        route = route_of([("a", 0), ("a", 1), ("a", 2)], scales, reading)
        folder = tiny.write(fold(route, models, source), models, source, tmp_path / reading)
        wanted = tiny.run_hooked(tmp_path / "a", scales, reading, IDS)
        plain = tiny.logits(tiny.load(tmp_path / "a"), IDS)
        assert tiny.largest_error(tiny.logits(tiny.load(folder), IDS), wanted) < 1e-5
        assert tiny.largest_error(plain, wanted) > 1e-2


def test_block_output_may_be_zero(llamas):
    route = route_of(MIXED[:3], [1.0, 0.0, -1.0])
    assert torch.equal(llamas.folded(route), llamas.loop(route))
    dark = route_of(MIXED[:3], [0.0, 1.0, 1.0])
    assert torch.equal(llamas.folded(dark), llamas.loop(dark))


@given(data=st.data())
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_route_of_powers_of_two(tied, data):
    slot = st.builds(
        Slot,
        st.sampled_from(["a", "b", None]),
        st.integers(0, 2),
        st.sampled_from([1.0, -1.0, 0.5, -2.0, 0.0]),
    )
    slots = tuple(data.draw(st.lists(slot, min_size=1, max_size=6)))
    depth = data.draw(st.sampled_from([None, 7]))
    route = Route(slots, "block_output", depth)
    assert torch.equal(tied.folded(route), tied.loop(route))


def test_head_is_untied_only_where_the_embedding_is_scaled(tied):
    scaled = tied.fold(route_of(MIXED[:2], [2.0, 1.0]))
    assert scaled.config["tie_word_embeddings"] is False
    head = next(t for t in scaled.tensors if t.name == "lm_head.weight")
    assert (head.source_name, head.gain) == ("model.embed_tokens.weight", 1.0)
    for other in (route_of(MIXED[:2], [1.0, 2.0]), route_of(MIXED[:2], [2.0, 1.0], "stream")):
        folded = tied.fold(other)
        assert "tie_word_embeddings" not in folded.config
        assert "lm_head.weight" not in [t.name for t in folded.tensors]


def test_a_stored_head_that_the_config_ties_is_replaced(tmp_path):
    """Such files hold a copy of the embedding under the head's name, which nobody reads."""
    source = tiny.build("llama", tmp_path, 0)
    source.config["tie_word_embeddings"] = True
    folded = fold(route_of([("a", 0)], [2.0]), {0: source}, source)
    heads = [t for t in folded.tensors if t.name == "lm_head.weight"]
    assert [(t.source_name, t.gain) for t in heads] == [("model.embed_tokens.weight", 1.0)]


@pytest.mark.parametrize("stored", [True, False])
def test_layer_lists_follow_the_route(tmp_path, stored):
    """Gemma 2 alternates; a config without `layer_types` leaves that to the layer's number."""
    model = tiny.build("gemma2", tmp_path / "a", 0)
    if not stored:
        del model.config["layer_types"]
    sliding, full = "sliding_attention", "full_attention"
    route = route_of([("a", 1), ("a", 1), ("a", 0), ("a", 2)], [1.0] * 4)
    folded = fold(route, dict.fromkeys(range(4), model), model)
    assert folded.config["layer_types"] == [full, full, sliding, sliding]
    assert folded.config["num_hidden_layers"] == 4


def test_depth_is_padded_and_never_cut(llamas):
    route = route_of(MIXED[:2], [1.0, 1.0])
    padded = fixed_depth(route, 5)
    assert padded.slots == (*route.slots, *[Slot(None)] * 3)
    assert padded.depth == 5
    assert torch.equal(llamas.folded(padded), llamas.folded(route))
    with pytest.raises(RecipeError, match=r"route\.depth: found 1"):
        fixed_depth(route, 1)


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (Route(()), r"route\.slots: found none"),
        (Route((), depth=3), r"route\.slots: found none"),
        (Route((Slot("a", 3),)), r"slots\[0\]\.layer: found 3 of .*expected 0 to 2"),
        (Route((Slot("a", 0), Slot("b", -1))), r"slots\[1\]\.layer: found -1"),
        (Route((Slot("a", 0, float("nan")),)), r"slots\[0\]\.scale: found nan"),
        (Route((Slot("a", 0), Slot("a", 1, 0.0)), "stream"), r"slots\[1\]\.scale: found 0"),
        (Route((Slot("a", 0, 1e-200),) * 2, "stream"), r"slots\[1\]\.scale: found scales whose"),
        (Route((Slot("a", 0),), "sideways"), r"route\.scale: found 'sideways'"),
        (Route((Slot("a", 0),) * 3, depth=2), r"route\.depth: found 2"),
    ],
)
def test_routes_that_cannot_be(llamas, route, message):
    with pytest.raises(RecipeError, match=message):
        llamas.fold(route)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": 32, "head_dim": 8},
            r"slots\[1\]\.model: found a hidden size of 32 .*expected 16",
        ),
        (
            {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4},
            r"num_attention_heads: 4 .*expected 2",
        ),
        ({"num_key_value_heads": 2}, r"k_proj.weight of shape"),
        ({"vocab_size": 30}, r"found 30 tokens .* the 24 tokens"),
        ({"attention_bias": True}, r"bias of shape .*no such tensor"),
        ({"hidden_act": "gelu"}, r"hidden_act: gelu"),
    ],
)
def test_models_that_do_not_fit(llamas, tmp_path, changes, message):
    other = tiny.build("llama", tmp_path, 5, **changes)
    route = Route((Slot("a", 0), Slot("x", 0)))
    with pytest.raises(SourceError, match=message):
        fold(route, {0: llamas.source["a"], 1: other}, llamas.source["a"])


def test_what_depends_on_its_place_is_refused(tmp_path):
    model = tiny.build("gpt2", tmp_path, 0, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(SourceError, match="scale_attn_by_inverse_layer_idx"):
        fold(route_of([("a", 1), ("a", 0)], [1.0] * 2), dict.fromkeys(range(2), model), model)


def test_differing_epsilons_are_noted(llamas, tmp_path):
    other = tiny.build("llama", tmp_path, 5, rms_norm_eps=1e-5)
    route = Route((Slot("a", 0), Slot("x", 0)))
    folded = fold(route, {0: llamas.source["a"], 1: other}, llamas.source["a"])
    assert len(folded.notes) == 1
    assert "rms_norm_eps is 1e-05" in folded.notes[0]


def run_slices(recipe, sources):
    """What slices of passthrough with filters say, read as mergekit documents it."""
    tensors = {}

    def put(name, source, source_name):
        value = source.tensor(source_name)
        for case in source_settings:
            if case.filter is None or case.filter in name:
                value = value * case.value
                break
        tensors[name] = value

    number = 0
    for i, part in enumerate(recipe.slices):
        source = sources[part.sources[0].model]
        source_settings = part.sources[0].parameters.get("scale", ())
        outside = [n for n in source.names if not n.startswith("model.layers.")]
        if i == 0:
            put("model.embed_tokens.weight", source, "model.embed_tokens.weight")
        for layer in range(*part.sources[0].layer_range):
            for name in source.names:
                if name.startswith(f"model.layers.{layer}."):
                    rest = name.removeprefix(f"model.layers.{layer}.")
                    put(f"model.layers.{number}.{rest}", source, name)
            number += 1
    for name in outside:
        if name != "model.embed_tokens.weight":
            put(name, source, name)
    return tensors


@pytest.mark.parametrize("reading", ["block_output", "stream"])
@pytest.mark.parametrize("layers", [MIXED, MIXED[1:7], [("a", 0), ("a", 1), ("a", 2)] * 2])
def test_slices_say_the_same(llamas, reading, layers):
    slots = (*route_of(layers, SCALES[: len(layers)], reading).slots, Slot(None))
    route = Route(slots, reading)
    recipe = Recipe("passthrough", base="a", dtype=None, route=route)
    models = llamas.models(route)
    slices = to_slices(recipe, models, llamas.source["a"])
    found = run_slices(slices, llamas.source)
    wanted = tiny.materialise(fold(route, models, llamas.source["a"]), models, llamas.source["a"])
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)


def test_runs_without_scales_are_joined(llamas):
    route = route_of([("a", 0), ("a", 1), ("b", 1), ("b", 2), ("b", 2)], [1.0] * 5)
    recipe = Recipe("passthrough", route=route)
    slices = to_slices(recipe, llamas.models(route), llamas.source["a"]).slices
    runs = [(s.sources[0].model, s.sources[0].layer_range) for s in slices]
    assert runs == [("a", (0, 2)), ("b", (1, 3)), ("b", (2, 3)), ("a", (0, 0))]


def test_slices_cannot_say_everything(tied, llamas, tmp_path):
    scaled = route_of(MIXED[:2], [2.0, 1.0])
    recipe = Recipe("passthrough", route=scaled)
    assert to_slices(recipe, tied.models(scaled), tied.source["a"]) is None  # untied head
    assert to_slices(recipe, llamas.models(scaled), llamas.source["a"]) is not None
    scoped = dataclasses.replace(recipe, scope=Scope("model."))
    assert to_slices(scoped, llamas.models(scaled), llamas.source["a"]) is None
    nested = Route((Slot(Recipe("linear"), 0),))
    models = {0: llamas.source["a"]}
    assert (
        to_slices(Recipe("passthrough", base="a", route=nested), models, llamas.source["a"]) is None
    )
    gemma = tiny.build("gemma2", tmp_path, 0)
    models = {0: gemma, 1: gemma}
    assert to_slices(recipe, models, gemma) is None  # alternating layers, gains of 1 + w
    qwen = tiny.build("qwen2", tmp_path / "q", 0)
    three = Recipe("passthrough", route=route_of([("a", i) for i in range(3)], [1.0, 2.0, 0.5]))
    assert to_slices(recipe, {0: qwen, 1: qwen}, qwen) is None  # a list of layer types to cut
    assert to_slices(three, dict.fromkeys(range(3), qwen), qwen) is not None
    experts = tiny.build("mixtral", tmp_path / "m", 0)
    assert to_slices(three, dict.fromkeys(range(3), experts), experts) is None
