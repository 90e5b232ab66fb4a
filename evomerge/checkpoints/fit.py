"""Whether models can be merged with one another."""

from __future__ import annotations

from typing import Any

import torch

from evomerge.checkpoints.model import Model
from evomerge.checkpoints.region import is_derived, is_head, may_be_tied, whole
from evomerge.checkpoints.remapped import text_parts, vocabulary_tensors
from evomerge.checkpoints.vocabulary import same_vocabulary
from evomerge.errors import SourceError

_HEADS = (
    "num_attention_heads", "n_head", "num_heads", "n_heads", "num_key_value_heads", "num_kv_heads",
    "head_dim",
)  # fmt: skip
"""Config keys that say which rows of a matrix are a head: merging other ones mixes them up."""

_COMPUTED = (
    "hidden_act", "hidden_activation", "activation_function", "rope_theta", "rope_scaling",
    "rope_parameters", "rotary_dim", "partial_rotary_factor", "rotary_pct", "alibi",
    "num_experts_per_tok", "norm_topk_prob", "routed_scaling_factor", "attn_logit_softcapping",
    "final_logit_softcapping", "query_pre_attn_scalar", "attention_multiplier",
    "residual_multiplier", "embedding_multiplier", "logits_scaling", "rms_norm_eps",
    "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "sliding_window",
)  # fmt: skip
"""Config keys that change what the same weights compute."""


def check_fit(template: Model, source: Model, vocabulary: bool = True) -> None:
    """Checks that a source has the template's tensors in the template's shapes.

    Extra rows at the end of embeddings and heads (tokens added by a fine-tuner) are allowed, a
    head that is tied in one and stored in the other, too, if it is the same matrix.

    Args:
        template: says what there should be.
        source: is held to it.
        vocabulary: whether rows of embeddings and heads have to be the template's.

    Raises:
        SourceError: naming the first tensor that does not fit.
    """
    check_plain(source)
    missing = [n for n in template.names if n not in source.shapes and not _absent(n, source)]
    extra = [n for n in source.names if n not in template.shapes and not _spare(n, source)]
    if extra and not missing and all(map(is_head, extra)):
        raise SourceError.of(
            source.field,
            f"an unknown tensor {extra[0]} in {source.ref}, a head of its own",
            f"a head that is tied to the embedding, as in {template.ref}",
            f"List {source.ref} first, or name it as base_model where the method has one: an "
            "untied model takes tied ones in.",
        )
    if missing or extra:
        found = f"no tensor {missing[0]}" if missing else f"an unknown tensor {extra[0]}"
        raise SourceError.of(
            source.field,
            f"{found} in {source.ref} ({len(missing)} missing, {len(extra)} extra)",
            f"the same tensors as {template.ref}",
            "Merge models of one architecture and depth.",
        )
    indexed = vocabulary_tensors(template)
    for name in template.names:
        if name not in source.shapes:
            continue
        check_shape(template, name, source, name, vocabulary, name in indexed)


def check_shape(
    template: Model, name: str, source: Model, source_name: str, vocabulary: bool, indexed: bool
) -> None:
    """Checks the shape of one tensor against the template's.

    Raises:
        SourceError: naming the tensor.
    """
    have, want = source.shapes[source_name], template.shapes[name]
    if have == want:
        return
    same_rows = have[1:] == want[1:] and len(have) == len(want)
    if indexed and same_rows and (have[0] > want[0] or not vocabulary):
        return
    less = indexed and same_rows
    raise SourceError.of(
        source.field,
        f"{source_name} of shape {list(have)} in {source.ref}",
        f"shape {list(want)} as in {template.ref}",
        "Say `tokenizer_source: union` or `base` in the recipe to merge different vocabularies."
        if less
        else "Merge models of one architecture and vocabulary.",
    )


def check_vocabulary(donor: Model, member: Model) -> str | None:
    """Checks that an id means one token in two models whose rows are merged by number.

    Args:
        donor: whose tokenizer is written.
        member: is held to it.

    Returns:
        A sentence if one has tokens that the other lacks, else None.

    Raises:
        SourceError: with the number of ids that mean something else, and an example.
    """
    if member is donor:
        return None
    found = same_vocabulary(donor, member)
    if found.clashing:
        ids = "1 id means" if found.clashing == 1 else f"{found.clashing} ids mean"
        raise SourceError.of(
            member.field,
            f"another vocabulary: {ids} another token in {member.ref} ({found.example})",
            f"the vocabulary of {donor.ref}, as rows are merged by their ids",
            "Add `tokenizer_source: base` to the recipe, or `tokenizer_source: union`.",
        )
    if found.differing:
        return (
            f"The vocabularies of {member.ref} and {donor.ref} differ in {found.differing} "
            f"token{'s' if found.differing != 1 else ''} ({found.example}): that of {donor.ref} "
            "is written."
        )
    return None


def check_config(donor: Model, member: Model) -> list[str]:
    """Compares what two models of one architecture compute with the same weights.

    Args:
        donor: whose config is written.
        member: is held to it; keys that one of both lacks say nothing.

    Returns:
        A sentence for each setting that a member was trained with and the merge is not run with.

    Raises:
        SourceError: if heads are cut in another way.
    """
    have, want = _settings(member), _settings(donor)
    differing = [
        key
        for key in (*_HEADS, *_COMPUTED)
        if None not in (have.get(key), want.get(key)) and have[key] != want[key]
    ]
    for key in differing:
        if key in _HEADS:
            raise SourceError.of(
                member.field, f"{key}: {have[key]} in {member.ref}",
                f"{want[key]}, as in {donor.ref}", "Merge models of one architecture.",
            )  # fmt: skip
    return [
        f"{member.ref} has {key} {have[key]}; the merge is run with {want[key]} of {donor.ref}."
        for key in differing
    ]


def _settings(model: Model) -> dict[str, Any]:
    """A config with that of its language model on one level."""
    config = model.config
    return {**config, **{k: v for key in text_parts(config) for k, v in config[key].items()}}


def check_plain(model: Model) -> None:
    """Refuses quantised weights, whose values mean something else than they say.

    Raises:
        SourceError: naming the kind of quantisation.
    """
    found = model.config.get("quantization_config")
    if found:
        kind = found.get("quant_method", "unknown") if isinstance(found, dict) else "unknown"
        raise SourceError.of(
            model.field, f"weights quantised by {kind} in {model.ref}", "plain weights",
            "Merge the unquantised models, and quantise the result.",
        )  # fmt: skip


def check_common(name: str, template: Model, source: Model, source_name: str) -> None:
    """Checks that a tensor of integers is the same in both.

    Raises:
        SourceError: naming the tensor.
    """
    if not torch.equal(source.tensor(source_name), template.tensor(name)):
        raise SourceError.of(
            source.field,
            f"{source_name} ({source.dtype(source_name)}) in {source.ref} with other values",
            f"those of {template.ref}, since integers cannot be merged",
            "Merge models that are not quantised.",
        )


def _absent(name: str, source: Model) -> bool:
    """Whether a source may lack a tensor: it is computed, or tied to the embedding."""
    if is_derived(name):
        return True
    return is_head(name) and may_be_tied(source) and bool(whole(source).tokens)


def _spare(name: str, source: Model) -> bool:
    """Whether a source may have a tensor that the template lacks."""
    if is_derived(name):
        return True
    if not is_head(name):
        return False
    head = source.tensor(name)
    return any(
        source.shapes[e] == source.shapes[name] and torch.equal(source.tensor(e), head)
        for e in whole(source).tokens
    )
