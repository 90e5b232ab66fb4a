"""Which models fit together, told from headers, configs and integers."""

import pytest
import torch
from checkpoint_models import random_tensors, write_folder

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.fit import check_common, check_fit, check_plain
from evomerge.checkpoints.region import is_derived, is_head, whole
from evomerge.errors import SourceError

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BUFFER = "model.layers.0.self_attn.rotary_emb.inv_freq"


def opened(folder, change=None, config=None, **options):
    tensors = random_tensors(0, blocks=2, **options)
    if change is not None:
        change(tensors)
    return Checkpoint(str(write_folder(folder, tensors, 1, {"vocab_size": 6, **(config or {})})))


@pytest.mark.parametrize(
    ("change", "config"),
    [
        (None, {}),
        (lambda t: t.pop(HEAD), {}),
        (lambda t: t.pop(HEAD), {"tie_word_embeddings": True}),
        (lambda t: t.update({BUFFER: torch.ones(3)}), {}),
        (lambda t: t.update({EMBED: torch.ones(9, 4), HEAD: torch.ones(9, 4)}), {}),
        (lambda t: t.update({n: v.half() for n, v in t.items()}), {}),
    ],
)
def test_models_that_fit(tmp_path, change, config):
    check_fit(opened(tmp_path / "base"), opened(tmp_path / "other", change, config))


@pytest.mark.parametrize("equal", [True, False])
def test_a_head_beside_a_tied_base(tmp_path, equal):
    base = opened(tmp_path / "base", lambda t: t.pop(HEAD))
    other = opened(
        tmp_path / "other", (lambda t: t.update({HEAD: t[EMBED].clone()})) if equal else None
    )
    if equal:
        check_fit(base, other)
        return
    with pytest.raises(SourceError, match=f"unknown tensor {HEAD}"):
        check_fit(base, other)


@pytest.mark.parametrize(
    ("change", "config", "part"),
    [
        (lambda t: t.pop(HEAD), {"tie_word_embeddings": False}, f"no tensor {HEAD}"),
        (
            lambda t: t.pop(HEAD),
            {"text_config": {"tie_word_embeddings": False}},
            f"no tensor {HEAD}",
        ),
        (lambda t: t.pop(EMBED), {}, f"no tensor {EMBED}"),
        (lambda t: t.pop("model.norm.weight"), {}, "(1 missing, 0 extra)"),
        (lambda t: t.update(a=torch.ones(1), b=torch.ones(1)), {}, "(0 missing, 2 extra)"),
        (lambda t: t.update({"model.norm.weight": torch.ones(9)}), {}, "expected shape [4]"),
        (lambda t: t.update({EMBED: torch.ones(9, 5)}), {}, f"{EMBED} of shape [9, 5]"),
        (lambda t: t.update({EMBED: torch.ones(5, 4)}), {}, "tokenizer_source"),
        (lambda t: t.update({"model.layers.1.mlp.weight": torch.ones(5, 5)}), {}, "layers.1.mlp"),
        (None, {"quantization_config": {"quant_method": "gptq"}}, "quantised by gptq"),
        (None, {"quantization_config": "odd"}, "quantised by unknown"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, config, part):
    with pytest.raises(SourceError) as raised:
        check_fit(opened(tmp_path / "base"), opened(tmp_path / "other", change, config))
    assert part in str(raised.value)


def test_fewer_rows_are_fine_where_a_vocabulary_is_planned(tmp_path):
    base, other = opened(tmp_path / "base"), opened(tmp_path / "other", rows=4)
    check_fit(base, other, vocabulary=False)
    with pytest.raises(SourceError, match="shape"):
        check_fit(base, other)


def test_integers_have_to_agree(tmp_path):
    refs = [
        opened(tmp_path / str(i), lambda t, i=i: t.update(ids=torch.arange(3) + i)) for i in (0, 1)
    ]
    check_common("ids", refs[0], refs[0], "ids")
    with pytest.raises(SourceError, match="integers cannot be merged"):
        check_common("ids", refs[0], refs[1], "ids")
    check_plain(refs[0])


def test_names_of_heads_and_buffers():
    heads = ["lm_head.weight", "language_model.lm_head.weight", "embed_out.weight", "output.weight"]
    others = ["h.0.attn.output.weight", "lm_head.bias", "model.norm.weight", "my_output.weight"]
    assert [is_head(n) for n in (*heads, *others)] == [True] * 4 + [False] * 4
    buffers = [BUFFER, "h.3.attn.bias", "h.3.attn.masked_bias", "gpt_neox.layers.1.attention.bias"]
    others = [
        "h.3.attn.c_attn.bias",
        "model.layers.0.self_attn.q_proj.bias",
        "x.attention.dense.bias",
    ]
    assert [is_derived(n) for n in (*buffers, *others)] == [True] * 4 + [False] * 3


def test_names_are_found_below_other_rooms(tmp_path):
    old = {f"language_model.{n}": t for n, t in random_tensors(0, blocks=2).items()}
    new = {
        n.replace("model.", "model.language_model.", 1): t
        for n, t in random_tensors(0, blocks=2).items()
    }
    folders = [
        whole(Checkpoint(str(write_folder(tmp_path / str(i), t))))
        for i, t in enumerate((random_tensors(0, blocks=2), old, new))
    ]
    plain = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    names = [
        plain,
        tuple(f"language_model.{n}" for n in plain),
        ("model.language_model.embed_tokens.weight", "model.language_model.norm.weight", HEAD),
    ]
    for one, mine in zip(folders, names, strict=True):
        for other, theirs in zip(folders, names, strict=True):
            assert tuple(one.named(n, other) for n in mine) == theirs
    assert folders[0].named("model.unknown", folders[1]) is None
