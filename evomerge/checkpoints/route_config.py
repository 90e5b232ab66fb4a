"""What a route changes in a config: the depth, and all that is said layer by layer.

Refuses what a config says by a layer's number alone, where the route moves the layer.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from evomerge.checkpoints.model import Model
from evomerge.errors import SourceError

DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers")
_TEXT_KEYS = ("text_config", "llm_config", "language_config")
_NUMBERS = ("mlp_only_layers", "moe_layers", "cross_attention_layers", "full_attn_idxs")
"""Lists of the numbers of some layers."""
_NO_LAYERS = ("architectures", *_NUMBERS)
_LEADING = ("first_k_dense_replace", "num_dense_layers")
"""How many of the first layers are of the other kind."""
_BY_PLACE = (
    "scale_attn_by_inverse_layer_idx",
    "num_kv_shared_layers",
    "attention_types",
    "lambda_std_dev",
)
"""What makes a layer depend on its number with no trace in its tensors."""
_PERIODS = ("_pattern", "_interval", "_period", "_step")
_SEEN_BY_BLOCKS = (
    *("num_attention_heads", "n_head", "num_heads", "n_heads", "num_key_value_heads"),
    *("num_kv_heads", "multi_query", "head_dim", "hidden_act", "hidden_activation"),
    *("activation_function", "rope_theta", "rope_scaling", "rope_parameters", "rotary_dim"),
    *("partial_rotary_factor", "rotary_pct", "alibi", "num_experts_per_tok", "norm_topk_prob"),
    *("routed_scaling_factor", "use_parallel_residual", "parallel_attn", "clip_qkv"),
    *("attn_logit_softcapping", "query_pre_attn_scalar", "attention_multiplier"),
    *("residual_multiplier", "new_decoder_architecture"),
)
"""Settings that a block's tensors were trained with; the written config holds one of each."""
_NEARLY = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "sliding_window")


def routed_config(
    blocks: Sequence[tuple[Model, int]],
    kinds: Sequence[Hashable],
    first: Model,
    own: Sequence[Hashable],
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Changes of the first model's config, and notes on what the models disagree in.

    Args:
        blocks: model and layer of every slot.
        kinds: names and shapes of every slot's tensors, as something to compare.
        first: the model whose config is changed.
        own: the kinds of its own blocks.

    Raises:
        SourceError: if no config can describe the route.
    """
    models = {id(m): m for m in (first, *(m for m, _ in blocks))}
    full = {key: expanded(model) for key, model in models.items()}
    mine = full[id(first)]
    depth, blocks_of_first = len(blocks), first.layout.blocks
    for model in models.values():
        if not _depth_keys(full[id(model)], model.layout.blocks):
            raise _bad(
                model,
                f"{model.layout.blocks} blocks and {_depths(full[id(model)])}",
                "a config that says how many blocks there are",
            )
    notes = [n for m in models.values() for n in _compare(m, full[id(m)], first, mine)]
    owner = next((k for k in _TEXT_KEYS if isinstance(first.config.get(k), Mapping)), None)
    raw: Mapping[str, Any] = first.config[owner] if owner else first.config
    changes: dict[str, Any] = {}
    if depth != blocks_of_first:
        stated = _depth_keys(raw, blocks_of_first) or _depth_keys(mine, blocks_of_first)[:1]
        changes.update({key: depth for key in stated})
    lists = [k for k, v in mine.items() if _per_layer(k, v, blocks_of_first)]
    for key in lists:
        for model, _ in blocks:
            if not _per_layer(key, full[id(model)].get(key), model.layout.blocks):
                raise _bad(model, f"no {key} for each block", f"one, as in {first.ref}")
    implied = _expand({**{k: v for k, v in raw.items() if k not in lists}, **changes})
    for key in lists:
        values = [full[id(model)][key][layer] for model, layer in blocks]
        if raw.get(key) != values and (key in raw or implied.get(key) != values):
            changes[key] = values
    _renumber(blocks, full, mine, changes)
    told = [*lists, *(k for k in (*_NUMBERS, *_LEADING) if mine.get(k) is not None)]
    said = [repr([_said(full[id(model)], key, layer) for key in told]) for model, layer in blocks]
    own_said = [repr([_said(mine, key, layer) for key in told]) for layer in range(len(own))]
    if list(kinds) != list(own[: len(kinds)]):
        _check_kinds(blocks, [*zip(said, kinds, strict=True), *zip(own_said, own, strict=True)])
    _check_places(blocks, told, mine, first)
    if not owner:
        return changes, tuple(notes)
    outer = {key: depth for key in _depth_keys(first.config, blocks_of_first) if key in changes}
    return ({owner: {**raw, **changes}, **outer} if changes else {}), tuple(notes)


def layer_lists(model: Model) -> list[str]:
    """Config keys, given or implied, that hold one value for each block."""
    return list(layer_values(model.config, model.layout.blocks))


def layer_values(config: Mapping[str, Any], blocks: int) -> dict[str, list[Any]]:
    """The keys of a config, given or implied, that hold one value for each block."""
    return layer_entries(_expanded(config), blocks)


def layer_entries(full: Mapping[str, Any], blocks: int) -> dict[str, list[Any]]:
    """The entries of a whole config of a language model that hold one value for each block."""
    return {k: list(v) for k, v in full.items() if _per_layer(k, v, blocks)}


def expanded(model: Model) -> dict[str, Any]:
    """The language model's config with the defaults that its file leaves out.

    Defaults come from transformers where it knows the model: Gemma 2, say, may be stored
    without `layer_types`, though its layers alternate.
    """
    return _expanded(model.config)


def _expanded(config: Mapping[str, Any]) -> dict[str, Any]:
    owner = next((k for k in _TEXT_KEYS if isinstance(config.get(k), Mapping)), None)
    return _expand(config[owner] if owner else config)


def _expand(config: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig

    settings = {k: v for k, v in config.items() if k != "model_type"}
    try:
        full = AutoConfig.for_model(config.get("model_type", ""), **settings).to_dict()
    except Exception:  # unknown to transformers, or lists of another depth: the file as it is
        return dict(config)
    return {**settings, **full}


def _said(full: Mapping[str, Any], key: str, layer: int) -> Any:
    """What a config says about one layer under a key."""
    value = full.get(key)
    if key in _NUMBERS:
        return layer in (value or ())
    if key in _LEADING:
        return layer < (value or 0)
    return value[layer] if isinstance(value, list) else None


def _renumber(
    blocks: Sequence[tuple[Model, int]],
    full: Mapping[int, dict[str, Any]],
    mine: Mapping[str, Any],
    changes: dict[str, Any],
) -> None:
    """Renumbers lists of layers and counts of leading ones."""
    for key in _NUMBERS:
        inside = [_said(full[id(model)], key, layer) for model, layer in blocks]
        numbers = [t for t, yes in enumerate(inside) if yes]
        if mine.get(key) is not None and numbers != list(mine[key]):
            changes[key] = numbers
    for key in _LEADING:
        if not isinstance(mine.get(key), int):
            continue
        leading = [_said(full[id(model)], key, layer) for model, layer in blocks]
        count = sum(leading)
        if any(leading[count:]):
            raise _bad(
                blocks[leading.index(False)][0],
                f"{key} layers of the route after others",
                "these first, since the config holds no more than their number",
            )
        if count != mine[key]:
            changes[key] = count
    types = changes.get("layer_types")
    if types and mine.get("use_sliding_window") and mine.get("max_window_layers") is not None:
        sliding = (t for t, kind in enumerate(types) if kind == "sliding_attention")
        changes["max_window_layers"] = next(sliding, len(types))


def _check_kinds(blocks: Sequence[tuple[Model, int]], said: Sequence[tuple[str, Hashable]]) -> None:
    """Checks that what the config says of a block tells which tensors it has."""
    meaning: dict[str, Hashable] = {}
    for t, (words, kind) in enumerate(said):
        if meaning.setdefault(words, kind) != kind:
            model, layer = blocks[min(t, len(blocks) - 1)]
            raise _bad(
                model,
                f"block {layer}, with other tensors than others at no known places",
                "blocks whose kind the config says layer by layer, or each at its own place",
            )


def _check_places(
    blocks: Sequence[tuple[Model, int]],
    told: Sequence[str],
    mine: Mapping[str, Any],
    first: Model,
) -> None:
    """Refuses settings that depend on a layer's number, if the route changes numbers."""
    moved = any(layer != t for t, (_, layer) in enumerate(blocks))
    resized = len(blocks) != first.layout.blocks
    listed = any("type" in key for key in told)
    suspects = [k for k in _BY_PLACE if mine.get(k)] if moved or resized else []
    if moved and not listed:
        suspects += [
            k
            for k, v in mine.items()
            if k.endswith(_PERIODS) and isinstance(v, int) and not isinstance(v, bool) and v > 1
        ]
        if mine.get("use_sliding_window") and mine.get("max_window_layers") is not None:
            suspects.append("max_window_layers")
    if resized and mine.get("scale_depth"):
        suspects.append("scale_depth")
    if suspects:
        raise _bad(
            first,
            f"{suspects[0]}: {mine[suspects[0]]}",
            "layers that compute the same at any place, since the route moves them",
        )


def _compare(
    model: Model, theirs: Mapping[str, Any], first: Model, mine: Mapping[str, Any]
) -> list[str]:
    for key in _SEEN_BY_BLOCKS:
        if theirs.get(key) != mine.get(key) and not isinstance(mine.get(key), list):
            raise _bad(
                model,
                f"{key}: {theirs.get(key)}",
                f"{mine.get(key)}, as in {first.ref}: one config has to hold for all blocks",
            )
    return [
        f"{key} is {theirs.get(key)} in {model.ref}, {mine.get(key)} in what is written"
        for key in _NEARLY
        if theirs.get(key) != mine.get(key)
    ]


def _depth_keys(config: Mapping[str, Any], blocks: int) -> list[str]:
    return [k for k in DEPTH_KEYS if config.get(k) == blocks]


def _depths(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}: {config[k]}" for k in DEPTH_KEYS if k in config) or "no depth"


def _per_layer(key: str, value: Any, blocks: int) -> bool:
    named = key not in _NO_LAYERS and "token_id" not in key
    return named and isinstance(value, list) and len(value) == blocks


def _bad(model: Model, found: str, expected: str) -> SourceError:
    return SourceError.of(
        model.field,
        f"{found} ({model.ref})",
        expected,
        "Route layers of models that fit together, or leave these layers in place.",
    )
