"""Whether models can be merged with one another."""

from __future__ import annotations

import torch

from evomerge.checkpoints.model import Model
from evomerge.checkpoints.region import is_derived, is_head, may_be_tied, whole
from evomerge.checkpoints.remapped import vocabulary_tensors
from evomerge.errors import SourceError


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
