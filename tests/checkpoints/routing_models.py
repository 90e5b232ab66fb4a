"""Tiny random models in float64, and a plain loop that runs their own layers by a route."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.routing import Folded

logging.getLogger("transformers").setLevel(logging.ERROR)
COMMON = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-12,
    "layer_norm_eps": 1e-12,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
KINDS = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "mistral": ("mistral", {}),
    "gemma2": ("gemma2", {"tie_word_embeddings": True, "sliding_window": 3}),
    "olmo2": ("olmo2", {}),
    "phi3": ("phi3", {}),
    "mixtral": ("mixtral", {"num_local_experts": 3}),
    "gpt_neox": ("gpt_neox", {"use_parallel_residual": True}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt2": (
        "gpt2",
        {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32, "layer_norm_epsilon": 1e-12},
    ),
}
_GPT = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32, "layer_norm_epsilon": 1e-12}
_OPT = {"ffn_dim": 20, "word_embed_proj_dim": 16, "tie_word_embeddings": True}
_MOE = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
OTHERS = {
    "bloom": ("bloom", {"n_layer": 3, "n_head": 2, "layer_norm_epsilon": 1e-12}),
    "falcon": ("falcon", {"new_decoder_architecture": True, "layer_norm_epsilon": 1e-12}),
    "phi": ("phi", {}),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 4}),
    "starcoder2": ("starcoder2", {"norm_epsilon": 1e-12, "use_bias": True}),
    "opt": ("opt", _OPT),
    "qwen2_moe": ("qwen2_moe", {**_MOE, "shared_expert_intermediate_size": 8}),
    "qwen3": ("qwen3", {}),
    "cohere": ("cohere", {"tie_word_embeddings": True}),
    "glm4": ("glm4", {}),
    "granite": ("granite", {"residual_multiplier": 0.3, "embedding_multiplier": 2.0}),
    "gemma3_text": ("gemma3_text", {"tie_word_embeddings": True}),
    "exaone4": ("exaone4", {}),
    "stablelm": ("stablelm", {}),
}
"""Run by hooks in the original model instead of by the loop."""
ONE_PLUS = ("gemma2", "gemma3_text")
DOWN = ("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h")


def build(kind: str, folder: Path, seed: int, **changes) -> Checkpoint:
    """A random model on disk; weights large enough for every part to matter."""
    model_type, settings = {**KINDS, **OTHERS}[kind]
    common = {} if "n_layer" in settings else COMMON
    if kind == "bloom":
        settings = {**settings, "hidden_size": 16}
    if kind == "falcon":
        common = {k: v for k, v in common.items() if k != "head_dim"}
    short = {"vocab_size": 24, "bos_token_id": 0, "eos_token_id": 1}
    config = AutoConfig.for_model(model_type, **{**short, **common, **settings, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = (parameter.ndim == 1 and "norm" in name) or ".ln_" in name
            if norm and name.endswith("weight"):
                plus = 0.0 if kind in ONE_PLUS else 1.0
                # As short as in a real file: with 52 bits, 1 + w would already be rounded.
                parameter.copy_((plus + 0.3 * torch.randn_like(parameter)).float())
            else:
                scale = 1.0 if "emb" in name or "wte" in name else 0.3
                parameter.copy_(scale * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return Checkpoint(str(folder))


def load(folder: Path | str):
    """The model of a folder in float64, with norms that do not round to float32 inside."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    if getattr(model.config, "num_experts_per_tok", None):  # grouped products know no float64
        model.set_experts_implementation("eager")
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            plus = "Gemma" in type(module).__name__
            module.forward = _rms_norm(module, plus)
    return model


def _rms_norm(module, plus):
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon

    def forward(x):
        gain = 1 + module.weight if plus else module.weight
        return gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))

    return forward


@contextlib.contextmanager
def exact():
    """Attention softmax in float64, where the model code asks for float32."""
    softmax = torch.nn.functional.softmax

    def in_place(x, dim=None, _stacklevel=3, dtype=None):
        return softmax(x, dim=dim)

    with torch.no_grad(), mock.patch.object(torch.nn.functional, "softmax", in_place):
        yield


def logits(model, ids):
    with exact():
        return model(input_ids=ids, use_cache=False).logits


def materialise(folded: Folded, models, first: Checkpoint) -> dict[str, torch.Tensor]:
    """What a writer makes of the plan: ten lines of torch."""
    tensors = {}
    for t in folded.tensors:
        source = first if t.slot is None else models[t.slot]
        value = source.tensor(t.source_name)
        if t.gain == 0:
            value = torch.zeros_like(value)
        elif t.gain != 1:
            value = t.gain * value
        tensors[t.name] = (value + t.offset if t.offset else value).clone()
    return tensors


def write(folded: Folded, models, first: Checkpoint, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(materialise(folded, models, first), folder / "model.safetensors", {"format": "pt"})
    config = {**first.config, **folded.config}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run_route(route, networks, home, ids):
    """Runs layers one after the other with a scale on what enters each.

    `block_output` keeps the last MLP output h apart from the stream, as the released runtime
    does; `stream` multiplies everything.
    """
    with exact():
        base = home.base_model
        stream = home(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[0]
        h, rest = stream, None
        for t, slot in enumerate(route.slots):
            if slot.model is None:
                h = h * slot.scale
                if route.scale == "stream":
                    rest = [part * slot.scale for part in rest or ()]
                continue
            network = networks[t].base_model
            layers = network.layers if hasattr(network, "layers") else network.h
            x = _joined(h * slot.scale, rest, route.scale, slot.scale)
            h, rest = _layer(layers[slot.layer], x, base, ids)
        x = _joined(h, rest, "block_output", 1.0)
        norm = next(
            getattr(base, n) for n in ("norm", "final_layer_norm", "ln_f") if hasattr(base, n)
        )
        out = home.get_output_embeddings()(norm(x))
        cap = getattr(home.config, "final_logit_softcapping", None)
        return out if cap is None else cap * torch.tanh(out / cap)


def run_hooked(folder, scales, reading, ids):
    """A model's own forward pass with hooks that scale what enters its layers."""
    model = load(folder)
    base = model.base_model
    base = getattr(base, "decoder", base)
    layers = base.layers if hasattr(base, "layers") else base.h

    def scaled(scale):
        return lambda module, args, out: out * scale

    def enter(scale):
        def hook(module, args, kwargs):
            if args:
                return (args[0] * scale, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * scale}

        return hook

    for t, (layer, scale) in enumerate(zip(layers, scales, strict=True)):
        if reading == "stream" or t == 0:  # the embedding is the stream before the first layer
            layer.register_forward_pre_hook(enter(scale), with_kwargs=True)
            continue
        before = layers[t - 1]
        last = [
            n for n in ("post_feedforward_layernorm", "post_mlp_layernorm") if hasattr(before, n)
        ]
        if last:
            getattr(before, last[0]).register_forward_hook(scaled(scale))
        elif hasattr(before, "mlp") and hasattr(before.mlp, "experts"):
            before.mlp.register_forward_hook(scaled(scale))
        else:
            down = [m for n, m in before.named_modules() if n.rpartition(".")[2] in DOWN]
            down[-1].register_forward_hook(scaled(scale))
    return logits(model, ids)


def _joined(h, rest, reading, scale):
    """The stream; `rest` is one summand or, in a parallel block, two that are added in order."""
    for part in rest or ():
        h = h + (part if reading == "block_output" else part * scale)
    return h


def _layer(layer, x, base, ids):
    positions = torch.arange(ids.shape[1])[None]
    attention = next(
        getattr(layer, n) for n in ("self_attn", "attention", "attn") if hasattr(layer, n)
    )
    rope = {}
    if hasattr(base, "rotary_emb"):
        rope = {"position_embeddings": base.rotary_emb(x, positions)}
    distance = positions[0][:, None] - positions[0][None, :]
    hidden = distance < 0
    window = getattr(attention, "sliding_window", None)
    if window:
        hidden |= distance >= window
    mask = torch.zeros(1, 1, *hidden.shape, dtype=x.dtype)
    mask.masked_fill_(hidden, torch.finfo(x.dtype).min)

    def attend(y):
        return attention(y, attention_mask=mask, **rope)[0]

    def feed(y):
        out = layer.mlp(y)
        return out[0] if isinstance(out, tuple) else out

    kind = type(layer).__name__
    if kind == "GPTNeoXLayer" and layer.use_parallel_residual:
        added = attend(layer.input_layernorm(x))
        return feed(layer.post_attention_layernorm(x)), (added, x)
    if kind == "GPT2Block":
        x = attend(layer.ln_1(x)) + x
        return feed(layer.ln_2(x)), (x,)
    if kind == "Gemma2DecoderLayer":
        x = x + layer.post_attention_layernorm(attend(layer.input_layernorm(x)))
        return layer.post_feedforward_layernorm(feed(layer.pre_feedforward_layernorm(x))), (x,)
    if kind == "Olmo2DecoderLayer":
        x = x + layer.post_attention_layernorm(attend(x))
        return layer.post_feedforward_layernorm(feed(x)), (x,)
    x = x + attend(layer.input_layernorm(x))
    return feed(layer.post_attention_layernorm(x)), (x,)


def largest_error(a, b):
    assert a.dtype == b.dtype == torch.float64
    return float((a - b).abs().max() / b.abs().max()) if math.isfinite(float(b.sum())) else math.inf
