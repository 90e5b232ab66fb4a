"""Layer groups of real architectures, from the names that transformers writes."""

import pytest
from checkpoint_models import SMALL, real_model
from safetensors import safe_open

from evomerge.checkpoints.layout import layout_of

EXPECTED = {  # prefix of the blocks, embeddings
    "Llama": ("model.layers", {"model.embed_tokens.weight"}),
    "Qwen2": ("model.layers", {"model.embed_tokens.weight"}),
    "Gemma2": ("model.layers", {"model.embed_tokens.weight"}),
    "Phi3": ("model.layers", {"model.embed_tokens.weight"}),
    "Mixtral": ("model.layers", {"model.embed_tokens.weight"}),
    "GPTNeoX": ("gpt_neox.layers", {"gpt_neox.embed_in.weight"}),
    "GPT2": ("transformer.h", {"transformer.wte.weight", "transformer.wpe.weight"}),
    "Llava": ("language_model.model.layers", {"language_model.model.embed_tokens.weight"}),
}


@pytest.fixture(scope="module", params=list(EXPECTED))
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    real_model(request.param).save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        return request.param, list(file.keys())


def group_by_hand(name, prefix, embeddings):
    if name in embeddings:
        return "embedding"
    if name.startswith(prefix + "."):
        return f"block.{name[len(prefix) + 1 :].split('.')[0]}"
    return "head"


def check(names, prefix, embeddings):
    layout = layout_of(names)
    assert layout.prefix == prefix
    assert layout.blocks == SMALL["num_hidden_layers"]
    assert set(layout.embeddings) == embeddings
    assert layout.groups() == ("embedding", *(f"block.{i}" for i in range(12)), "head")
    for name in names:
        group = group_by_hand(name, prefix, embeddings)
        assert layout.group_of(name) == group
        first_hit = next(
            g for g in layout.groups() for f in layout.filters(g) if f is None or f in name
        )
        assert first_hit == group


def test_groups_of_real_architectures(written):
    kind, names = written
    check(names, *EXPECTED[kind])


def test_names_without_the_outer_room(written):
    """The hub's first GPT-2 files are named without `transformer.`"""
    kind, names = written
    if kind == "GPT2":
        bare = [n.removeprefix("transformer.") for n in names]
        check(bare, "h", {"wte.weight", "wpe.weight"})


def test_a_tower_with_more_tensors_is_not_taken_for_the_language_model():
    for text, tower in [
        ("model", "visual.blocks"),
        ("model.language_model", "model.visual.blocks"),
    ]:
        names = [f"{text}.embed_tokens.weight", f"{text}.norm.weight", "lm_head.weight"]
        names += [f"{text}.layers.{i}.{p}" for i in range(12) for p in "abc"]
        names += [f"{tower}.{i}.{p}.weight" for i in range(32) for p in "abcdef"]
        names += ["visual.patch_embed.proj.weight", "visual.embeddings.position_embedding.weight"]
        check(names, f"{text}.layers", {f"{text}.embed_tokens.weight"})


def test_a_model_without_blocks_has_two_groups():
    layout = layout_of(["embeddings.weight", "out.weight"])
    assert layout.groups() == ("embedding", "head")
    assert layout.group_of("out.weight") == "head"
    assert layout_of([]).groups() == ("head",)
