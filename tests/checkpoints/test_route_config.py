"""What routes do to configs, and configs that routes must not be written with."""

import pytest
from test_anatomy import LLAMA, Names, model_of

from evomerge.checkpoints.routing import fold
from evomerge.errors import SourceError
from evomerge.recipe.data import Route, Slot


def dense_then_experts(config):
    """Block 0 with one MLP, blocks 1 and 2 with experts."""
    sparse = [n.replace("mlp.", "mlp.experts.0.") for n in LLAMA]
    model = model_of([])
    for i in range(3):
        model.shapes.update(
            {
                f"model.layers.{i}.{n}": (4,) if "norm" in n else (4, 4)
                for n in (sparse if i else LLAMA)
            }
        )
    model.config = {"model_type": "homemade", "num_hidden_layers": 3, **config}
    return model


def changes(model, layers):
    route = Route(tuple(Slot("m", i) for i in layers))
    return fold(route, dict.fromkeys(range(len(layers)), model), model).config


def test_leading_layers_are_counted_again():
    model = dense_then_experts({"first_k_dense_replace": 1})
    assert changes(model, [0, 0, 2, 1]) == {"num_hidden_layers": 4, "first_k_dense_replace": 2}
    assert changes(model, [2, 1]) == {"num_hidden_layers": 2, "first_k_dense_replace": 0}
    assert changes(model, [0, 2, 1]) == {}
    with pytest.raises(SourceError, match="first_k_dense_replace layers of the route after"):
        changes(model, [1, 0])


def test_lists_of_numbers_are_renumbered():
    model = dense_then_experts({"mlp_only_layers": [0]})
    assert changes(model, [1, 0, 0]) == {"mlp_only_layers": [1, 2]}


def test_kinds_that_the_config_does_not_tell_stay_in_place():
    model = dense_then_experts({})
    assert changes(model, [0, 1]) == {"num_hidden_layers": 2}
    for layers in ([1, 0], [1, 2], [0, 1, 2, 2]):
        with pytest.raises(SourceError, match="with other tensors than others"):
            changes(model, layers)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sliding_window_pattern": 2}, "sliding_window_pattern: 2"),
        ({"no_rope_layer_interval": 4}, "no_rope_layer_interval: 4"),
        ({"num_kv_shared_layers": 1}, "num_kv_shared_layers: 1"),
        ({"use_sliding_window": True, "max_window_layers": 1}, "max_window_layers: 1"),
    ],
)
def test_periods_without_a_list_are_refused(config, message):
    model = model_of(LLAMA, config={"model_type": "homemade", **config})
    assert changes(model, [0, 1]) == {}
    with pytest.raises(SourceError, match=message):
        changes(model, [1, 0])


def test_a_period_with_a_list_follows_the_list():
    config = {"sliding_window_pattern": 2, "layer_types": ["near", "far"]}
    model = model_of(LLAMA, config={"model_type": "homemade", **config})
    assert changes(model, [1, 0]) == {"layer_types": ["far", "near"]}


def test_qwen2_windows_follow_the_layers():
    config = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8}
    model = model_of(LLAMA, config={"model_type": "qwen2", **config})
    near, far = "sliding_attention", "full_attention"
    written = changes(model, [0, 0, 1])
    assert written["layer_types"] == [far, far, near]
    assert written["max_window_layers"] == 2


def test_implied_lists_that_stay_implied_are_not_written():
    model = model_of(LLAMA, config={"model_type": "qwen2"})
    assert changes(model, [1, 0, 0]) == {"num_hidden_layers": 3}


def test_residual_scales_by_depth_keep_the_depth():
    model = model_of(LLAMA, config={"model_type": "homemade", "scale_depth": 1.4})
    assert changes(model, [1, 0]) == {}
    with pytest.raises(SourceError, match=r"scale_depth: 1\.4"):
        changes(model, [1, 0, 1])


def test_depth_in_a_text_config():
    inner = {"model_type": "homemade", "num_hidden_layers": 2, "eos_token_id": [1, 2]}
    vision = {"num_hidden_layers": 2}
    model = model_of(LLAMA)
    model.config = {"text_config": inner, "vision_config": vision}
    assert changes(model, [0, 1, 1]) == {"text_config": {**inner, "num_hidden_layers": 3}}


def test_blocks_beyond_the_config_are_refused():
    model = model_of(LLAMA, config={"model_type": "homemade", "num_hidden_layers": 1})
    with pytest.raises(SourceError, match="2 blocks and num_hidden_layers: 1"):
        changes(model, [0, 0])


def test_copies_need_no_understanding_but_scales_do():
    """Layers of any kind can be put in another order; only scaling has to know what adds."""
    block = ["mixer.in_proj.weight", "mixer.A_log", "mixer.out_proj.weight", "norm.weight"]
    model = model_of(block, config={"model_type": "homemade"})
    assert changes(model, [1, 0, 1]) == {"num_hidden_layers": 3}
    for slots in ((Slot("m", 0), Slot("m", 1, 2.0)), (Slot("m", 0), Slot(None))):
        with pytest.raises(SourceError, match=r"mixer\.in_proj\.weight"):
            fold(Route(slots), {0: model, 1: model}, model)


def test_a_tower_beside_the_model_forbids_a_scaled_embedding():
    tower = "vision.encoder.weight"
    outside = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", tower)
    model = model_of(LLAMA, outside=outside, config={"model_type": "homemade"})
    slots = (Slot("m", 0, 2.0), Slot("m", 1))
    with pytest.raises(SourceError, match=r"vision\.encoder\.weight, as inputs may bypass"):
        fold(Route(slots), {0: model, 1: model}, model)
    kept = fold(Route(slots[::-1]), {0: model, 1: model}, model)
    assert tower in [t.name for t in kept.tensors]


def test_models_are_matched_by_names_within_blocks():
    """A checkpoint saved without its outer module has the same blocks under a shorter prefix."""
    config = {"model_type": "homemade"}
    first = model_of(LLAMA, config=config)
    bare = model_of(LLAMA, "layers", ("embed_tokens.weight", "norm.weight"), config)
    assert isinstance(bare, Names)
    folded = fold(Route((Slot("m", 0), Slot("b", 1))), {0: first, 1: bare}, first)
    moved = [t for t in folded.tensors if t.slot == 1]
    assert {(t.name, t.source_name) for t in moved} == {
        (f"model.layers.1.{n}", f"layers.1.{n}") for n in LLAMA
    }
