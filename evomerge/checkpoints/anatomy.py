"""Which tensors of a decoder write to its residual stream, and which norms read it.

Told from tensor names and the config alone. Whatever is not understood is refused by name, since
a route that scales only part of what a block adds would compute something else without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from evomerge.checkpoints.model import Model
from evomerge.errors import SourceError

_NORM = re.compile(r"norm|^ln")
_AMBIGUOUS = re.compile(r"^post_attention_(layer_?)?norm$")
_POST_MLP = re.compile(r"^post_(feed_?forward|mlp|ffn?)_(layer_?)?norm$")
_POST_ATTENTION = re.compile(r"^post_self_attn_(layer_?)?norm$")
_PRE_MLP = re.compile(r"^(pre_(feed_?forward|mlp|ffn?)|ffn|feed_?forward|mlp|ff)_(layer_?)?norm$")
_PRE = re.compile(
    r"^((input|attention|attn|self_attn|self_attention|final)_(layer_?)?norm|input_norm"
    r"|layer_?norm|norm|(ln|norm)_?[12]|ln_attn|ln_mlp|layer_?norm_?[12])$"
)
_ATTENTION = re.compile(r"attn|attention")
_MLP = re.compile(r"mlp|ffn|feed_?forward|moe|experts|^fc_?(1|2|in|out)$")
_ATTENTION_OUT = {"o_proj", "out_proj", "c_proj", "dense", "wo", "output_proj"}
_ATTENTION_IN = {"q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value"}
_MLP_OUT = {"down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "w2", "output_linear"}
_MLP_IN = {
    *("gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "fc1", "fc_in", "c_fc"),
    *("dense_h_to_4h", "input_linear", "gate", "router", "shared_expert_gate"),
}
_MLP_INSIDE = {"ffn_sub_norm", "ffn_layernorm", "e_score_correction"}
_FINAL_NORM = re.compile(
    r"^(norm|ln_f|norm_f|final_norm|final_layer_?norm|ln_out)\.(weight|bias)$", re.IGNORECASE
)
_EMBEDDING_NORM = re.compile(
    r"^(word_embeddings_layernorm|embed_norm|emb_norm|embed_layer_?norm)\.(weight|bias)$"
)
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|head)\.(weight|bias)$")
_POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings?)\.weight$")
_BUFFER = re.compile(r"rotary|inv_freq|position_ids|attn_mask|causal_mask")
_TIE = "tie_word_embeddings"
_NORMED_STREAM = {"do_layer_norm_before": False, "apply_residual_connection_post_layernorm": True}
"""Config keys, and the values with which a block normalises the stream itself."""


@dataclass(frozen=True)
class BlockAnatomy:
    """The tensors of one block that a route has to scale, under their names in the file.

    A block whose attention and MLP run side by side (GPT-NeoX, GPT-J, Phi, Falcon, Cohere) needs
    no case of its own: both still read normed streams, and both outputs are still added to it.

    Attributes:
        block: its number.
        norms: gains of the norms that read the stream.
        attention: output projection of the attention, weight and bias.
        attention_norm: gain and bias of a norm between that and the stream; mostly empty.
        mlp: output projections of the MLP, or of all its experts, weights and biases.
        mlp_norm: gain and bias of a norm between those and the stream; mostly empty.
        raw: projections that read the stream without a norm (OLMo 2); mostly empty.
        layer_norm: whether its norms have a bias, hence subtract a mean, too.
    """

    block: int
    norms: tuple[str, ...]
    attention: tuple[str, ...]
    attention_norm: tuple[str, ...]
    mlp: tuple[str, ...]
    mlp_norm: tuple[str, ...]
    raw: tuple[str, ...]
    layer_norm: bool

    @property
    def adds(self) -> tuple[str, ...]:
        """What scales all that the block adds to the stream."""
        return (*(self.attention_norm or self.attention), *self.adds_last)

    @property
    def adds_last(self) -> tuple[str, ...]:
        """What scales the output of its MLP."""
        return self.mlp_norm or self.mlp

    def is_gain(self, name: str) -> bool:
        """Whether a tensor is the gain of a norm, which some models store as 1 + w."""
        norms = (*self.norms, *self.attention_norm, *self.mlp_norm)
        return name in norms and name.endswith(".weight")


@dataclass(frozen=True)
class Ends:
    """What lies before the first and after the last block.

    Attributes:
        embeddings: all that is summed up to the first stream: of tokens, of positions.
        tokens: the token embedding among them.
        embedding_norm: gain and bias of a norm after the embedding; mostly empty.
        final_norm: gain of the last norm.
        head: weight of the head; where it is tied, the name that an untied one gets.
        tied: whether the head is the token embedding.
        foreign: tensors outside the language model, such as a vision tower's.
    """

    embeddings: tuple[str, ...]
    tokens: str
    embedding_norm: tuple[str, ...]
    final_norm: str
    head: str
    tied: bool
    foreign: tuple[str, ...]


def anatomy(model: Model, block: int) -> BlockAnatomy:
    """Tells a block's norms and output projections from their names.

    Raises:
        SourceError: naming the tensor that is not understood, or what is missing.
    """
    start = f"{model.layout.prefix}.{block}."
    return read_block(model, block, [n for n in model.names if n.startswith(start)])


def read_block(model: Model, block: int, names: Iterable[str]) -> BlockAnatomy:
    """`anatomy` for a caller that has the names of the block's tensors at hand."""
    for key, value in _NORMED_STREAM.items():
        if text_config(model.config).get(key) == value:
            raise _refuse(model, f"{key}: {str(value).lower()}", "blocks that add to the stream")
    start = f"{model.layout.prefix}.{block}."
    norms: dict[str, list[str]] = {}
    attention: list[str] = []
    mlp: list[str] = []
    for name in names:
        part, _, rest = name.removeprefix(start).partition(".")
        if _NORM.search(part) and rest in ("weight", "bias"):
            norms.setdefault(part, []).append(name)
        elif _ATTENTION.search(part):
            attention.append(name)
        elif _MLP.search(part):
            mlp.append(name)
        else:
            raise _refuse(model, f"the tensor {name}", "norms, an attention and an MLP")
    reads, after_attention, after_mlp = _roles(model, start, norms)
    out = [n for n in attention if _module(n) in _ATTENTION_OUT]
    if len({n.rpartition(".")[0] for n in out}) != 1:
        found = ", ".join(out) or f"none of {', '.join(sorted(_ATTENTION_OUT))}"
        raise _refuse(model, f"{found} in {start}*", "one output projection of the attention")
    down = [n for n in mlp if _module(n) in _MLP_OUT]
    for name in mlp:
        if name not in down and _module(name) not in _MLP_IN | _MLP_INSIDE:
            raise _refuse(model, f"the tensor {name}", "an MLP of known projections")
    if not down:
        raise _refuse(model, f"no output projection of an MLP in {start}*", "one or more")
    for name in (*out, *down):
        if name.rpartition(".")[2] not in (
            "weight",
            "bias",
            _module(name),
            f"{_module(name)}_bias",
        ):
            raise _refuse(model, f"the tensor {name}", "plain weights and biases, not packed ones")
    return BlockAnatomy(
        block=block,
        norms=tuple(f"{start}{n}.weight" for n in reads),
        attention=tuple(out),
        attention_norm=tuple(n for p in after_attention for n in norms[p]),
        mlp=tuple(down),
        mlp_norm=tuple(n for p in after_mlp for n in norms[p]),
        raw=() if reads else _raw(model, [n for n in (*attention, *mlp) if n not in (*out, *down)]),
        layer_norm=any(n.endswith(".bias") for group in norms.values() for n in group),
    )


def ends(model: Model) -> Ends:
    """Tells embedding, final norm and head from their names.

    Raises:
        SourceError: naming the tensor that is not understood, or what is missing.
    """
    layout = model.layout
    room = layout.prefix.rpartition(".")[0]
    final: list[str] = []
    embedding_norm: list[str] = []
    heads: list[str] = []
    foreign: list[str] = []
    for name in model.names:
        rest = name.removeprefix(f"{room}.") if room else name
        if name in layout.embeddings or layout.group_of(name).startswith("block."):
            continue
        if _HEAD.search(name):
            heads.append(name)
        elif room and rest == name:
            foreign.append(name)
        elif _FINAL_NORM.match(rest):
            final.append(name)
        elif _EMBEDDING_NORM.match(rest):
            embedding_norm.append(name)
        elif not _BUFFER.search(rest):
            raise _refuse(model, f"the tensor {name}", "embeddings, blocks, a norm and a head")
    gains = [n for n in final if n.endswith(".weight")]
    if len(gains) != 1:
        raise _refuse(model, f"{len(gains)} norms after the last block", "exactly one")
    tokens = [n for n in layout.embeddings if not _POSITIONS.search(n)]
    if len(tokens) != 1:
        raise _refuse(model, f"{len(tokens)} token embeddings", "exactly one")
    stored = [n for n in heads if n.endswith(".weight")]
    top = "language_model." if tokens[0].startswith("language_model.") else ""
    return Ends(
        embeddings=layout.embeddings,
        tokens=tokens[0],
        embedding_norm=tuple(embedding_norm),
        final_norm=gains[0],
        head=stored[0] if stored else f"{top}lm_head.weight",
        tied=not stored or bool({**text_config(model.config), **model.config}.get(_TIE)),
        foreign=tuple(foreign),
    )


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's part of a config: `text_config` over the rest where there is one."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), Mapping):
            return {**config, **config[key]}
    return dict(config)


def gain_is_one_plus(model: Model) -> bool:
    """Whether the norms that read the stream multiply by 1 + w rather than by w.

    Asks the model's own code in transformers, on one norm of zeros, so that no list of
    architectures has to be kept. (Gemma 1 to 3 and Qwen3-Next do, Gemma 3n and 4 do not.)

    Raises:
        SourceError: if transformers does not know the model or its norms disagree.
    """
    config = text_config(model.config)
    try:
        answers = _probe(json.dumps(config, sort_keys=True))
    except Exception as error:  # whatever a model's code raises on a config it cannot build
        raise _refuse(
            model,
            f"model_type {config.get('model_type')!r}, which transformers cannot build ({error})",
            "norms whose gains are known to be stored as w or as 1 + w",
        ) from error
    if len(answers) != 1:
        raise _refuse(model, f"{len(answers)} kinds of norms on the stream", "one kind")
    return next(iter(answers))


@lru_cache(maxsize=64)
def _probe(config: str) -> frozenset[bool]:
    """Whether a norm with w = 0 lets anything through, for all norms of the hidden size."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = json.loads(config)
    built = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(built)
    width = int(built.hidden_size)
    answers = set()
    seen = set()
    for norm in network.modules():
        kind = type(norm)
        weight = getattr(norm, "weight", None)
        fits = isinstance(weight, torch.Tensor) and tuple(weight.shape) == (width,)
        if "Norm" not in kind.__name__ or "Gated" in kind.__name__ or kind in seen or not fits:
            continue
        seen.add(kind)
        norm.to_empty(device="cpu").float()
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.zero_()
            answers.add(bool(norm(torch.arange(1.0, width + 1)[None]).abs().sum() > 0))
    return frozenset(answers)


def _roles(
    model: Model, start: str, norms: Iterable[str]
) -> tuple[list[str], list[str], list[str]]:
    """Sorts a block's norms: those that read the stream, after the attention, after the MLP.

    `post_attention_layernorm` reads the stream in most models and stands before the MLP. It
    comes after the attention where another norm has that place (Gemma 2) or where no norm reads
    the stream at all (OLMo 2).
    """
    names = list(norms)
    after_mlp = [n for n in names if _POST_MLP.match(n)]
    after_attention = [n for n in names if _POST_ATTENTION.match(n)]
    pre_mlp = [n for n in names if _PRE_MLP.match(n)]
    pre = [n for n in names if _PRE.match(n)]
    ambiguous = [n for n in names if _AMBIGUOUS.match(n)]
    known = {*after_mlp, *after_attention, *pre_mlp, *pre, *ambiguous}
    for name in names:
        if name not in known:
            raise _refuse(model, f"the norm {start}{name}", "norms of known places")
    reads = [*pre, *pre_mlp]
    if ambiguous and after_mlp and not after_attention and (pre_mlp or not pre):
        after_attention = ambiguous
    elif ambiguous and not pre_mlp and pre and bool(after_mlp) == bool(after_attention):
        reads = [*reads, *ambiguous]
    elif ambiguous:
        raise _refuse(
            model,
            f"{start}{ambiguous[0]} beside {', '.join(n for n in names if n not in ambiguous)}",
            "a norm before the MLP or after the attention, and which of the two",
        )
    if (reads and not pre) or not names:
        raise _refuse(model, f"no norm before the attention in {start}*", "one")
    if not reads and not (after_attention and after_mlp):
        raise _refuse(model, f"only {', '.join(names)} in {start}*", "a norm before or after each")
    return reads, after_attention, after_mlp


def _raw(model: Model, inside: Iterable[str]) -> tuple[str, ...]:
    """Weights that read the stream as it is, in a block without norms before them."""
    found = []
    for name in inside:
        if len(model.shapes[name]) < 2 or _NORM.search(_module(name)):
            continue
        if _module(name) not in _ATTENTION_IN | _MLP_IN:
            raise _refuse(model, f"the tensor {name}", "known projections, as no norm precedes")
        found.append(name)
    return tuple(found)


def _module(name: str) -> str:
    """Last part of a tensor's name that says what it is: `down_proj` of `mlp.down_proj.weight`.

    Experts that are stored as one tensor have no `.weight`: `mlp.experts.down_proj_bias`.
    """
    *_, owner, leaf = name.split(".")
    stem = leaf.removesuffix("_bias")
    return stem if stem in _MLP_OUT | _MLP_IN | _MLP_INSIDE else owner


def _refuse(model: Model, found: str, expected: str) -> SourceError:
    return SourceError.of(
        model.field,
        f"{found} ({model.ref})",
        f"{expected}, to fold a route's scales into the weights",
        "Use scales of 1 and no identities, or leave the model out of the route.",
    )
