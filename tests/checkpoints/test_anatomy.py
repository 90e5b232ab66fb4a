"""What of a block is norm, attention output and MLP output, told from names."""

import dataclasses
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.checkpoints.anatomy import anatomy, ends, gain_is_one_plus
from evomerge.checkpoints.layout import layout_of
from evomerge.errors import SourceError

LLAMA = [
    *(f"self_attn.{n}_proj.weight" for n in "qkvo"),
    *(f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
]


@dataclasses.dataclass
class Names:
    """A model of which nothing is known but names and config."""

    shapes: dict
    config: dict
    ref: str = "somewhere"
    field: str = "model"
    path: Path = Path()

    @property
    def names(self):
        return tuple(self.shapes)

    @property
    def layout(self):
        return layout_of(self.shapes)


def model_of(block, prefix="model.layers", outside=(), config=None):
    outside = outside or ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    names = [*outside, *(f"{prefix}.{i}.{n}" for i in range(2) for n in block)]
    shapes = {n: (4,) if "norm" in n or n.endswith("bias") else (4, 4) for n in names}
    return Names(shapes, {"num_hidden_layers": 2, **(config or {})})


def short(names):
    return {n.split(".1.", 1)[1] for n in names}


BLOCKS = {
    "llama": (LLAMA, {"input_layernorm", "post_attention_layernorm"}, set(), set()),
    "gemma2": (
        [*LLAMA, "pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"],
        {"input_layernorm", "pre_feedforward_layernorm"},
        {"post_attention_layernorm"},
        {"post_feedforward_layernorm"},
    ),
    "glm4": (
        [*LLAMA, "post_self_attn_layernorm.weight", "post_mlp_layernorm.weight"],
        {"input_layernorm", "post_attention_layernorm"},
        {"post_self_attn_layernorm"},
        {"post_mlp_layernorm"},
    ),
    "olmo2": (
        [*(n for n in LLAMA if n[0] != "i"), "post_feedforward_layernorm.weight"],
        set(),
        {"post_attention_layernorm"},
        {"post_feedforward_layernorm"},
    ),
    "cohere": ([n for n in LLAMA if n[:4] != "post"], {"input_layernorm"}, set(), set()),
    "meta": (
        [*(n for n in LLAMA if "norm" not in n), "attention_norm.weight", "ffn_norm.weight"],
        {"attention_norm", "ffn_norm"},
        set(),
        set(),
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_places_of_norms(name):
    block, reads, after_attention, after_mlp = BLOCKS[name]
    found = anatomy(model_of(block), 1)
    assert short(found.norms) == {f"{n}.weight" for n in reads}
    assert short(found.attention_norm) == {f"{n}.weight" for n in after_attention}
    assert short(found.mlp_norm) == {f"{n}.weight" for n in after_mlp}
    assert short(found.attention) == {"self_attn.o_proj.weight"}
    assert short(found.mlp) == {"mlp.down_proj.weight"}
    raw = {n for n in LLAMA if "norm" not in n and "o_proj" not in n and "down" not in n}
    assert short(found.raw) == (raw if name == "olmo2" else set())
    assert not found.layer_norm


def names_of(model_type, **settings):
    """Tensor names as transformers builds them, without weights."""
    import torch

    config = AutoConfig.for_model(model_type, **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {n: tuple(p.shape) for n, p in model.state_dict().items()}
    return Names(shapes, {**config.to_dict(), "model_type": model_type})


SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "pad_token_id": 0,
}
OUTPUTS = [
    ("phi", {}, {"self_attn.dense"}, {"mlp.fc2"}),
    ("falcon", {}, {"self_attention.dense"}, {"mlp.dense_4h_to_h"}),
    ("bloom", {"n_layer": 2, "n_head": 2}, {"self_attention.dense"}, {"mlp.dense_4h_to_h"}),
    ("starcoder2", {}, {"self_attn.o_proj"}, {"mlp.c_proj"}),
    (
        "gptj",
        {"n_embd": 16, "n_head": 2, "n_layer": 2, "rotary_dim": 4},
        {"attn.out_proj"},
        {"mlp.fc_out"},
    ),
    ("opt", {"ffn_dim": 16, "word_embed_proj_dim": 16}, {"self_attn.out_proj"}, {"fc2"}),
    (
        "qwen2_moe",
        {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8},
        {"self_attn.o_proj"},
        {"mlp.experts.down_proj", "mlp.shared_expert.down_proj"},
    ),
    ("gpt_oss", {"num_local_experts": 2}, {"self_attn.o_proj"}, {"mlp.experts.down_proj"}),
    ("qwen3", {}, {"self_attn.o_proj"}, {"mlp.down_proj"}),
    ("granite", {}, {"self_attn.o_proj"}, {"mlp.down_proj"}),
    ("cohere", {}, {"self_attn.o_proj"}, {"mlp.down_proj"}),
]


@pytest.mark.parametrize(("kind", "settings", "attention", "mlp"), OUTPUTS)
def test_outputs_are_found_in_other_architectures(kind, settings, attention, mlp):
    own_names = kind in ("bloom", "gptj")
    model = names_of(kind, **({"vocab_size": 32} if own_names else SMALL), **settings)
    block = anatomy(model, 1)

    def stems(names):
        return {n.removesuffix(".weight").removesuffix("bias").rstrip("._") for n in short(names)}

    assert stems(block.attention) == attention
    assert stems(block.mlp) == mlp
    assert block.norms and not block.attention_norm and not block.raw
    assert ends(model).final_norm in model.names


def test_biases_go_with_their_weights():
    biased = [*LLAMA, "self_attn.o_proj.bias", "mlp.down_proj.bias", "input_layernorm.bias"]
    block = anatomy(model_of(biased), 1)
    assert short(block.attention) == {"self_attn.o_proj.weight", "self_attn.o_proj.bias"}
    assert short(block.mlp) == {"mlp.down_proj.weight", "mlp.down_proj.bias"}
    assert "input_layernorm.bias" not in short(block.norms)
    assert block.layer_norm
    assert [n for n in biased if block.is_gain(f"model.layers.1.{n}")] == LLAMA[-2:]


@pytest.mark.parametrize(
    ("block", "config", "message"),
    [
        ([*LLAMA, "layer_scalar"], {}, "layer_scalar"),
        ([*LLAMA, "mixer.in_proj.weight"], {}, r"mixer\.in_proj\.weight"),
        ([*LLAMA, "mlp.mystery.weight"], {}, r"mlp\.mystery\.weight"),
        ([*LLAMA, "residual_layernorm.weight"], {}, "residual_layernorm"),
        ([*LLAMA, "post_mlp_layernorm.weight"], {}, "post_attention_layernorm beside"),
        (LLAMA[:-2], {}, "no norm before the attention"),
        ([n for n in LLAMA if "o_proj" not in n], {}, "output projection of the attention"),
        ([n for n in LLAMA if "down" not in n], {}, "no output projection of an MLP"),
        ([*LLAMA, "mlp.down_proj.qweight"], {}, r"down_proj\.qweight"),
        (LLAMA, {"do_layer_norm_before": False}, "do_layer_norm_before: false"),
        (LLAMA, {"apply_residual_connection_post_layernorm": True}, "post_layernorm: true"),
    ],
)
def test_what_is_not_understood_is_refused(block, config, message):
    with pytest.raises(SourceError, match=message) as error:
        anatomy(model_of(block, config=config), 1)
    assert "somewhere" in str(error.value)


@pytest.mark.parametrize(
    ("outside", "tied", "head"),
    [
        (("model.embed_tokens.weight", "model.norm.weight"), True, "lm_head.weight"),
        (
            ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
            False,
            "lm_head.weight",
        ),
        (
            ("model.embed_in.weight", "model.final_layer_norm.weight", "embed_out.weight"),
            False,
            "embed_out.weight",
        ),
    ],
)
def test_head(outside, tied, head):
    found = ends(model_of(LLAMA, outside=outside))
    assert (found.tied, found.head) == (tied, head)


def test_a_stored_head_may_be_tied_by_the_config():
    assert ends(model_of(LLAMA, config={"tie_word_embeddings": True})).tied
    assert not ends(model_of(LLAMA, config={"tie_word_embeddings": False})).tied


def test_ends_of_a_model_with_a_vision_tower():
    names = ("language_model.model.embed_tokens.weight", "language_model.model.norm.weight")
    tower = "vision_tower.encoder.weight"
    found = ends(
        model_of(LLAMA, "language_model.model.layers", outside=(*names, "projector.weight", tower))
    )
    assert found.foreign == ("projector.weight", tower)
    assert found.head == "language_model.lm_head.weight"


@pytest.mark.parametrize(
    ("outside", "message"),
    [
        (("model.embed_tokens.weight",), "0 norms after the last block"),
        (("model.norm.weight",), "0 token embeddings"),
        (
            ("model.embed_tokens.weight", "model.norm.weight", "model.altup.weight"),
            r"model\.altup\.weight",
        ),
    ],
)
def test_ends_that_are_not_understood(outside, message):
    with pytest.raises(SourceError, match=message):
        ends(model_of(LLAMA, outside=outside))


@pytest.mark.parametrize(
    ("kind", "settings", "answer"),
    [
        ("llama", {}, False),
        ("gemma2", {"head_dim": 8}, True),
        ("cohere", {}, False),
        ("nemotron", {"head_dim": 8}, True),
        ("gpt_neox", {}, False),
        ("olmo2", {}, False),
    ],
)
def test_form_of_gains(kind, settings, answer):
    model = Names({}, {"model_type": kind, **SMALL, **settings})
    assert gain_is_one_plus(model) is answer


def test_form_of_gains_of_unknown_code_is_not_guessed():
    with pytest.raises(SourceError, match="'homemade'"):
        gain_is_one_plus(Names({}, {"model_type": "homemade"}))
