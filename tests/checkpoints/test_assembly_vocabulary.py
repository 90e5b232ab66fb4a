"""Vocabularies, tied heads, buffers and adapters from recipe to loaded checkpoint."""

import json

import numpy as np
import pytest
import torch
from adapter_folders import random_factors, write_adapter
from checkpoint_models import random_tensors, real_model, write_folder
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Fast
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.errors import SourceError
from evomerge.recipe import Recipe, Source

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WORDS = {
    "base": "<unk> <s> </s> a b c d",
    "x": "<unk> <s> </s> a b c d e f",
    "y": "<unk> </s> <s> d c b a g e",
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Llamas with word tokenizers: x has two words more, y another order."""
    root = tmp_path_factory.mktemp("words")
    for seed, (name, text) in enumerate(WORDS.items()):
        ids = {w: i for i, w in enumerate(text.split())}
        tokenizer = Fast(models.WordLevel(ids, "<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.add_tokens([AddedToken(w, special=True) for w in ("<s>", "</s>")])
        special = {"bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"], "pad_token_id": None}
        model = real_model("Llama", seed=seed, num_hidden_layers=2, vocab_size=len(ids), **special)
        model.generation_config.eos_token_id = ids["</s>"]
        model.save_pretrained(root / name)
        tokenizer.save(str(root / name / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>",
            "eos_token": "</s>",
        }  # fmt: skip
        (root / name / "tokenizer_config.json").write_text(json.dumps(settings))
    return {name: str(root / name) for name in WORDS}


def tensors_of(ref):
    model = Checkpoint(ref)
    return {n: model.tensor(n).double().numpy() for n in model.names}


def row(pool, names, word, tensor, base):
    """A word's row in each model: its own, else the base's, else the mean of the others."""
    own = {
        n: pool[n][tensor][WORDS[n].split().index(word)] for n in names if word in WORDS[n].split()
    }
    fallback = own[base] if base in own else np.mean(list(own.values()), axis=0)
    return [own.get(n, fallback) for n in names]


def recipe_of(zoo, method, spec, base="base", dtype="float32", **parameters):
    models_ = [{"model": zoo[n], "parameters": {"weight": w}} for n, w in (("x", 0.5), ("y", 0.25))]
    data = {"merge_method": method, "models": models_, "dtype": dtype, "parameters": parameters}
    if base:
        data["base_model"] = zoo[base]
    return Recipe.from_dict({**data, **spec(zoo)})


SPECS = {
    "union": (lambda z: {"tokenizer_source": "union"}, "<unk> <s> </s> a b c d e f g", 10),
    "base": (lambda z: {"tokenizer_source": "base"}, WORDS["base"], 7),
    "model": (lambda z: {"tokenizer_source": z["y"]}, WORDS["y"], 9),
    "padded": (
        lambda z: {"tokenizer": {"source": "union", "pad_to_multiple_of": 8}},
        "<unk> <s> </s> a b c d e f g", 16,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_rows_follow_their_tokens(zoo, tmp_path, kind, method):
    spec, text, rows = SPECS[kind]
    base = "base" if method == "task_arithmetic" else None
    if base is None and kind == "base":  # the first model stands in for it
        text, rows = WORDS["x"], 9
    write_checkpoint(recipe_of(zoo, method, spec, base), Merger(), tmp_path / "out")
    pool = {n: tensors_of(r) for n, r in zoo.items()}
    written = load_file(tmp_path / "out" / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    vocabulary = tokenizer.get_vocab()
    assert vocabulary.keys() == set(text.split())
    assert tokenizer.decode(tokenizer("a d c b").input_ids) == "a d c b"
    names = ["base", "x", "y"] if base else ["x", "y"]
    for tensor in (EMBED, HEAD):
        assert written[tensor].shape == (rows, 16)
        for word, i in vocabulary.items():
            own = row(pool, names, word, tensor, base or "x")
            if base:
                exact = own[0] + 0.5 * (own[1] - own[0]) + 0.25 * (own[2] - own[0])
            else:
                exact = (0.5 * own[0] + 0.25 * own[1]) / 0.75
            np.testing.assert_allclose(
                written[tensor][i], exact, rtol=1e-5, atol=1e-6, err_msg=word
            )
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.vocab_size == rows
    assert model.config.eos_token_id == vocabulary["</s>"]
    assert model.generation_config.eos_token_id == vocabulary["</s>"]


def test_a_tokenizer_from_within(zoo, tmp_path):
    """The inner merge has the union; without a word the outer one takes it over."""
    inner = recipe_of(zoo, "task_arithmetic", SPECS["union"][0])
    outer = Recipe("linear", (Source(inner, {"weight": 1}),), dtype="float32")
    for name, recipe in (("inner", inner), ("outer", outer)):
        write_checkpoint(recipe, Merger(), tmp_path / name)
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("inner", "outer"))
    assert all(torch.equal(one[n], other[n]) for n in one)
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / n) for n in ("inner", "outer")]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert len(tokenizers[1]) == 10


def test_slices_with_another_vocabulary(zoo, tmp_path):
    slices = [
        {"sources": [{"model": zoo["x"], "layer_range": [0, 2]}]},
        {"sources": [{"model": zoo["y"], "layer_range": [1, 2]}]},
    ]
    data = {"merge_method": "passthrough", "slices": slices, "dtype": "float32"}
    data["tokenizer_source"] = "union"
    write_checkpoint(Recipe.from_dict(data), Merger(), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    vocabulary = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    x, y = tensors_of(zoo["x"]), tensors_of(zoo["y"])
    for word, i in vocabulary.items():
        for tensor, pool, name in ((EMBED, x, "x"), (HEAD, y, "y")):
            words = WORDS[name].split()
            if word in words:
                assert (
                    written[tensor][i].double().numpy() == pool[tensor][words.index(word)]
                ).all()
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and model.config.num_hidden_layers == 3


def test_different_vocabularies_without_a_tokenizer_are_named(zoo):
    recipe = recipe_of({**zoo, "base": zoo["x"], "x": zoo["base"]}, "task_arithmetic", lambda z: {})
    with pytest.raises(SourceError, match=r"tokenizer_source: union"):
        Merger().assemble(recipe)


# -- tied heads -----------------------------------------------------------------------------


def folder(path, seed, head, rows=6, config=None):
    """A model whose head is `stored`, `equal` to the embedding, or left out (`tied`)."""
    tensors = random_tensors(seed, rows=rows, blocks=2)
    if head == "tied":
        tensors.pop(HEAD)
    elif head == "equal":
        tensors[HEAD] = tensors[EMBED].clone()
    write_folder(path, tensors, 1, {"vocab_size": 6, **(config or {})})
    return str(path), {n: t.double() for n, t in tensors.items()}


@pytest.mark.parametrize(
    "heads", [("stored", "tied"), ("equal", "tied"), ("tied", "equal"), ("tied", "tied")]
)
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_heads_that_only_some_store(tmp_path, heads, method):
    models_ = [folder(tmp_path / str(i), i, h) for i, h in enumerate(heads)]
    (first, a), (second, b) = models_
    data = {"merge_method": method, "models": [{"model": second, "parameters": {"weight": 0.5}}]}
    if method == "linear":
        data["models"].insert(0, {"model": first, "parameters": {"weight": 0.5}})
    else:
        data["base_model"] = first
    found = dict(Merger().merge(Recipe.from_dict({**data, "dtype": "float32"})))
    assert found.keys() == a.keys()
    for name, tensor in found.items():
        other = b.get(name, b[EMBED])
        torch.testing.assert_close(tensor.double(), (a[name] + other) / 2, rtol=1e-6, atol=1e-6)


def test_a_head_that_the_base_lacks_and_that_is_no_copy_is_named(tmp_path):
    base, _ = folder(tmp_path / "base", 0, "tied")
    other, _ = folder(tmp_path / "other", 1, "stored")
    recipe = Recipe("task_arithmetic", (Source(other, {"weight": 1}),), base)
    with pytest.raises(SourceError, match=rf"unknown tensor {HEAD}"):
        Merger().assemble(recipe)


def test_a_head_that_is_missing_though_nothing_is_tied_is_named(tmp_path):
    base, _ = folder(tmp_path / "base", 0, "stored")
    other, _ = folder(tmp_path / "other", 1, "tied", config={"tie_word_embeddings": False})
    recipe = Recipe("task_arithmetic", (Source(other, {"weight": 1}),), base)
    with pytest.raises(SourceError, match=rf"no tensor {HEAD}"):
        Merger().assemble(recipe)


def test_the_tied_embedding_is_that_of_tokens(tmp_path):
    """GPT-2 has positions before tokens; its files lack the head."""
    model = real_model("GPT2")
    model.save_pretrained(tmp_path / "tied")
    tensors = load_file(tmp_path / "tied" / "model.safetensors")
    prefix = "transformer." if any(n.startswith("transformer.") for n in tensors) else ""
    stored = {**tensors, HEAD: torch.ones(32, 16)}
    (tmp_path / "stored").mkdir()
    save_file(stored, tmp_path / "stored" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "tied" / "config.json").read_text())
    (tmp_path / "stored" / "config.json").write_text(json.dumps(config))
    sources = tuple(Source(str(tmp_path / n), {"weight": 1}) for n in ("stored", "tied"))
    found = dict(Merger().merge(Recipe("linear", sources, dtype="float32")))
    torch.testing.assert_close(found[HEAD], (1 + tensors[f"{prefix}wte.weight"]) / 2)


def test_grown_vocabularies_are_cut(tmp_path):
    base, a = folder(tmp_path / "base", 0, "stored")
    other, b = folder(tmp_path / "other", 1, "stored", rows=9)
    recipe = Recipe("task_arithmetic", (Source(other, {"weight": 0.5}),), base, {}, "float32")
    for name, tensor in Merger().merge(recipe):
        exact = (a[name] + b[name][: len(a[name])]) / 2
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-6)


# -- buffers --------------------------------------------------------------------------------

INSIDE = "model.layers.1.self_attn.rotary_emb.inv_freq"
OUTSIDE = "model.rotary_emb.inv_freq"


@pytest.mark.parametrize("name", [INSIDE, OUTSIDE])
@pytest.mark.parametrize("where", [(0,), (1,), (0, 1)])
def test_buffers_are_the_base_s_and_never_merged(tmp_path, name, where):
    refs = []
    for i in range(2):
        tensors = random_tensors(i, blocks=2)
        if i in where:
            tensors[name] = torch.full((3,), 1.0 + i / 3)
        refs.append(str(write_folder(tmp_path / str(i), tensors)))
    recipe = Recipe("task_arithmetic", (Source(refs[1], {"weight": 1}),), refs[0])
    found = dict(Merger().merge(recipe))
    assert (name in found) == (0 in where)
    if 0 in where:
        assert torch.equal(found[name], torch.full((3,), 1.0))
    assert found["model.norm.weight"].dtype == torch.bfloat16


# -- adapters -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_adapters_as_sources(tmp_path, method):
    base_tensors = random_tensors(0, blocks=4)
    base = str(write_folder(tmp_path / "base", base_tensors))
    refs, deltas = [], []
    for seed in (1, 2):
        factors = random_factors(seed, blocks=4)
        adapter = write_adapter(tmp_path / f"lora{seed}", factors)
        refs.append(f"{base}+{adapter}")
        deltas.append(
            {
                f"model.layers.{i}.mlp.weight": 3.0
                * factors[f"base_model.model.model.layers.{i}.mlp.lora_B.weight"].double()
                @ factors[f"base_model.model.model.layers.{i}.mlp.lora_A.weight"].double()
                for i in range(4)
            }
        )
    weights = (0.6, 0.8)
    sources = tuple(Source(r, {"weight": w}) for r, w in zip(refs, weights, strict=True))
    given = {} if method == "linear" else {"density": 1.0}
    recipe = Recipe(method, sources, None if method == "linear" else base, given, "float32")
    for name, tensor in Merger().merge(recipe):
        exact, own = base_tensors[name].double(), [d.get(name) for d in deltas]
        if own[0] is not None:
            terms = torch.stack([w * d for w, d in zip(weights, own, strict=True)])
            if method == "ties":
                agrees = terms.sign() == torch.where(terms.sum(0) >= 0, 1.0, -1.0)
                divisor = sum(w * a for w, a in zip(weights, agrees, strict=True))
                exact = exact + (terms * agrees).sum(0) / torch.where(divisor == 0, 1.0, divisor)
            else:
                exact = exact + terms.sum(0) / (sum(weights) if method == "linear" else 1)
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-5, atol=1e-5)


def test_adapters_in_slices_and_in_the_place_of_the_base(tmp_path):
    base_tensors = random_tensors(0, blocks=4)
    config = {"vocab_size": 6, "num_hidden_layers": 4}
    base = str(write_folder(tmp_path / "base", base_tensors, 1, config))
    adapter = f"{base}+{write_adapter(tmp_path / 'lora', random_factors(1, blocks=4))}"
    slices = [
        {"sources": [{"model": adapter, "layer_range": [1, 3]}]},
        {"sources": [{"model": base, "layer_range": [3, 4]}]},
    ]
    merger = Merger()
    found = dict(
        merger.merge(
            Recipe.from_dict({"merge_method": "passthrough", "slices": slices, "dtype": "float32"})
        )
    )
    name = "model.layers.{}.mlp.weight"
    assert torch.equal(found[name.format(2)], base_tensors[name.format(3)])
    assert torch.equal(found[name.format(0)], merger.model(adapter).tensor(name.format(1)))
    assert not torch.equal(found[name.format(0)], base_tensors[name.format(1)])
    recipe = Recipe("slerp", (Source(base),), adapter, {"t": 1.0}, "float32")
    for name, tensor in merger.merge(recipe):
        torch.testing.assert_close(tensor, base_tensors[name])
