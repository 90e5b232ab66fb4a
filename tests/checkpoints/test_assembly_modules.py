"""Modules and scopes of a vision-language model."""

import numpy as np
import pytest
import torch
from checkpoint_models import real_model, write_folder
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.errors import RecipeError, SourceError
from evomerge.recipe import Recipe

SMALL = {"num_hidden_layers": 3}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Two Llavas, and two text-only Llamas of the shape of their language model."""
    root = tmp_path_factory.mktemp("vlm")
    out = {}
    for seed, kind in enumerate(("Llava", "Llava", "Llama", "Llama")):
        name = f"{kind}{seed}"
        real_model(kind, seed=seed, **SMALL).save_pretrained(root / name)
        out[name] = str(root / name)
    return out


def tensors_of(ref):
    model = Checkpoint(ref)
    return {n: model.tensor(n) for n in model.names}


def is_text(name):
    return name.startswith("language_model.")


def merge(data):
    return dict(Merger().merge(Recipe.from_dict({"dtype": "float32", **data})))


def modules_of(pool, keys):
    """The first key's module is averaged, the others are those of the first model."""
    both = [
        {"model": pool[m], "parameters": {"weight": w}} for m, w in (("Llava0", 1), ("Llava1", 3))
    ]
    alone = [{"model": pool["Llava0"], "parameters": {"weight": 1}}]
    return {
        "merge_method": "linear",
        "modules": {k: {"models": alone if i else both} for i, k in enumerate(keys)},
    }


@pytest.mark.parametrize(
    "keys",
    [
        ("language_model", "vision_tower", "multi_modal_projector"),
        ("text_decoder", "vision_tower", "multi_modal_projector"),
        ("language_model", "default"),
        ("language_model",),
    ],
)
def test_the_text_module_is_merged_and_the_rest_stays(pool, keys):
    x, y = tensors_of(pool["Llava0"]), tensors_of(pool["Llava1"])
    found = merge(modules_of(pool, keys))
    assert list(found) == list(x)
    for name, tensor in found.items():
        if is_text(name):
            exact = 0.25 * x[name].double() + 0.75 * y[name].double()
            torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(tensor, x[name])


def test_the_vision_module_may_be_merged_alone(pool):
    x, y = tensors_of(pool["Llava0"]), tensors_of(pool["Llava1"])
    for name, tensor in merge(modules_of(pool, ("vision_tower",))).items():
        exact = x[name].double()
        if name.startswith("vision_tower."):
            exact = 0.25 * exact + 0.75 * y[name].double()
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-7)


def test_written_modules_load(pool, tmp_path):
    recipe = Recipe.from_dict({"dtype": "float32", **modules_of(pool, ("text_decoder", "default"))})
    write_checkpoint(recipe, Merger(), tmp_path / "out")
    model, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    vision = real_model("Llava", seed=0, **SMALL).model.vision_tower.state_dict()
    for name, tensor in model.model.vision_tower.state_dict().items():
        assert torch.equal(tensor, vision[name])


def test_gradients_and_depth_are_a_module_s_own(pool):
    """Slices of the text module change its depth; the gradient runs over them alone."""
    ranges = [(0, 3), (1, 3)]
    pair = ("Llava0", "Llava1")
    slices = [
        {"sources": [{"model": pool[m], "layer_range": list(r)} for m in pair]} for r in ranges
    ]
    whole = [{"model": pool["Llava0"]}, {"model": pool["Llava1"]}]
    data = {
        "merge_method": "task_arithmetic", "base_model": pool["Llava0"], "dtype": "float32",
        "modules": {
            "language_model": {"slices": slices, "parameters": {"weight": [0, 1]}},
            "default": {"models": whole, "parameters": {"weight": 0.5}},
        },
    }  # fmt: skip
    merger, recipe = Merger(), Recipe.from_dict(data)
    assembly = merger.assemble(recipe)
    assert assembly.config["text_config"]["num_hidden_layers"] == 5
    x, y = tensors_of(pool["Llava0"]), tensors_of(pool["Llava1"])
    found = dict(merger.merge(assembly))
    name = "language_model.model.layers.{}.self_attn.q_proj.weight"
    for number, (block, weight) in enumerate([(0, 0), (1, 0.5), (2, 1), (1, 0), (2, 1)]):
        a, b = x[name.format(block)].double(), y[name.format(block)].double()
        exact = a + weight * (b - a)
        torch.testing.assert_close(found[name.format(number)].double(), exact, rtol=1e-6, atol=1e-7)
    name = "multi_modal_projector.linear_1.weight"
    torch.testing.assert_close(found[name], (x[name] + y[name]) / 2)


def test_an_unknown_module_lists_what_there_is(pool):
    with pytest.raises(RecipeError) as raised:
        merge(modules_of(pool, ("speech_tower",)))
    text = str(raised.value)
    assert "modules.speech_tower" in text
    assert all(
        part in text for part in ("language_model.", "vision_tower.", "multi_modal_projector.")
    )


def test_modules_that_overlap_are_refused(pool):
    with pytest.raises(RecipeError, match=r"two modules with the tensor language_model\."):
        merge(modules_of(pool, ("language_model", "text_decoder")))


def test_another_depth_of_the_vision_tower_is_refused(pool):
    sources = [{"model": pool["Llava0"], "layer_range": [0, 5], "parameters": {"weight": 1}}]
    data = {
        "merge_method": "linear",
        "modules": {"vision_tower": {"slices": [{"sources": sources}]}},
    }
    with pytest.raises(RecipeError, match="the language model's depth only"):
        merge(data)


# -- scope ----------------------------------------------------------------------------------


def scoped(pool, **changes):
    """The VLM's language model and two Llamas; everything else is the VLM's."""
    return {
        "merge_method": "task_arithmetic", "base_model": pool["Llama2"], "dtype": None,
        "models": [
            {"model": pool["Llava0"], "parameters": {"weight": 0.5}},
            {"model": pool["Llama3"], "parameters": {"weight": 0.25}},
        ],
        "scope": {"prefix": "language_model.", "rest": pool["Llava0"]},
        **changes,
    }  # fmt: skip


def test_a_scope_merges_below_its_prefix_with_text_only_parents(pool, tmp_path):
    recipe = Recipe.from_dict(scoped(pool))
    write_checkpoint(recipe, Merger(), tmp_path / "out")
    written, vlm = load_file(tmp_path / "out" / "model.safetensors"), tensors_of(pool["Llava0"])
    base, other = tensors_of(pool["Llama2"]), tensors_of(pool["Llama3"])
    assert set(written) == set(vlm)
    for name, tensor in written.items():
        if not is_text(name):
            assert tensor.numpy().tobytes() == vlm[name].numpy().tobytes()
            continue
        short = name.removeprefix("language_model.")
        b = base[short].double()
        exact = b + 0.5 * (vlm[name].double() - b) + 0.25 * (other[short].double() - b)
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-7)
    model, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.text_config.num_hidden_layers == 3


def newer(folder, ref, outside_head=True):
    """The same VLM with the names of newer files: `model.language_model.` and `lm_head`."""
    tensors = {}
    for name, tensor in tensors_of(ref).items():
        new = name.replace("language_model.model.", "model.language_model.")
        new = new.replace("language_model.lm_head.", "lm_head.")
        new = f"model.{new}" if new.startswith(("vision_tower", "multi_modal")) else new
        tensors[new] = tensor
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((Checkpoint(ref).path / "config.json").read_text())
    return str(folder), tensors


def test_a_scope_below_newer_names(pool, tmp_path):
    """The head lies outside of `model.language_model.`, so that it stays the VLM's."""
    vlm, tensors = newer(tmp_path / "new", pool["Llava0"])
    data = scoped({**pool, "Llava0": vlm}, scope={"prefix": "model.language_model.", "rest": vlm})
    base, other = tensors_of(pool["Llama2"]), tensors_of(pool["Llama3"])
    found = dict(Merger().merge(Recipe.from_dict(data)))
    assert set(found) == set(tensors)
    for name, tensor in found.items():
        if not name.startswith("model.language_model."):
            assert torch.equal(tensor, tensors[name])
            continue
        short = name.replace("model.language_model.", "model.")
        b = base[short].double()
        exact = b + 0.5 * (tensors[name].double() - b) + 0.25 * (other[short].double() - b)
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-7)


def test_modules_take_text_only_parents_too(pool, tmp_path):
    """In files of both kinds; the head is the text module's."""
    for vlm, tensors in (
        (pool["Llava0"], tensors_of(pool["Llava0"])),
        newer(tmp_path / "new", pool["Llava0"]),
    ):
        models = [{"model": r, "parameters": {"weight": 0.5}} for r in (vlm, pool["Llama3"])]
        data = {
            "merge_method": "linear", "base_model": vlm,
            "modules": {"language_model": {"models": models}},
        }  # fmt: skip
        other = tensors_of(pool["Llama3"])
        found = merge(data)
        assert set(found) == set(tensors)
        for name, tensor in found.items():
            short = name.replace("model.language_model.", "model.").removeprefix("language_model.")
            exact = tensors[name].double()
            if short in other:
                exact = (exact + other[short].double()) / 2
            torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-7)


def test_a_scope_without_a_parent_is_the_base_s(pool):
    x, y = tensors_of(pool["Llava0"]), tensors_of(pool["Llava1"])
    models = [{"model": pool["Llava1"], "parameters": {"weight": 1}}]
    data = {
        "merge_method": "task_arithmetic", "base_model": pool["Llava0"], "models": models,
        "scope": {"prefix": "language_model.model.layers.1."},
    }  # fmt: skip
    for name, tensor in merge(data).items():
        assert torch.equal(tensor, (y if ".layers.1." in name and is_text(name) else x)[name])


def test_a_written_text_model_of_a_scope_is_the_language_model(pool, tmp_path):
    """What the VLM's language model computes is what the merged text models compute."""
    data = scoped(pool, models=[{"model": pool["Llama3"], "parameters": {"weight": 0.25}}])
    write_checkpoint(Recipe.from_dict(data), Merger(), tmp_path / "vlm")
    del data["scope"]
    write_checkpoint(Recipe.from_dict(data), Merger(), tmp_path / "text")
    ids = torch.tensor([[1, 5, 9, 30, 2]])
    with torch.no_grad():
        vlm = AutoModelForImageTextToText.from_pretrained(tmp_path / "vlm")(input_ids=ids).logits
        text = AutoModelForCausalLM.from_pretrained(tmp_path / "text")(ids).logits
    np.testing.assert_allclose(vlm.numpy(), text.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"scope": {"prefix": "langauge_model."}}, "scope.prefix: found 'langauge_model.'"),
        ({"tokenizer_source": "union"}, "tokenizer: found a tokenizer beside scope"),
    ],
)
def test_a_wrong_scope_is_named(pool, changes, part):
    with pytest.raises(RecipeError) as raised:
        Merger().assemble(Recipe.from_dict(scoped(pool, **changes)))
    assert part in str(raised.value)


def test_a_scope_whose_parents_lack_a_tensor_names_it(pool, tmp_path):
    tensors = tensors_of(pool["Llama2"])
    gone = "model.layers.1.mlp.up_proj.weight"
    tensors.pop(gone)
    (tmp_path / "less").mkdir()
    save_file(tensors, tmp_path / "less" / "model.safetensors")
    config = (Checkpoint(pool["Llama2"]).path / "config.json").read_text()
    (tmp_path / "less" / "config.json").write_text(config)
    models = [{"model": str(tmp_path / "less"), "parameters": {"weight": 1}}]
    data = scoped(pool, models=models, base_model=str(tmp_path / "less"))
    with pytest.raises(SourceError, match=rf"language_model\.{gone}"):
        Merger().assemble(Recipe.from_dict(data))


def test_a_model_that_no_one_knows_merges_tensor_by_tensor(tmp_path):
    """Without blocks, embeddings or a head."""
    tensors = {"x": torch.ones(3), "deep.y": torch.ones(2, 2)}
    refs = [
        str(write_folder(tmp_path / n, {k: v * f for k, v in tensors.items()}, 1, {"a": 1}))
        for n, f in (("m", 1.0), ("n", 3.0))
    ]
    models = [{"model": r, "parameters": {"weight": 1}} for r in refs]
    found = merge({"merge_method": "linear", "models": models})
    assert {n: t.tolist() for n, t in found.items()} == {
        n: (2 * t).tolist() for n, t in tensors.items()
    }
