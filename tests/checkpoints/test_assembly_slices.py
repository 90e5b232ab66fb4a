"""Slices and whole models assembled into merges, against loops over float64 copies."""

import json
import math

import numpy as np
import pytest
import torch
from checkpoint_models import random_tensors, real_model, write_folder
from transformers import AutoModelForCausalLM

from evomerge import operators
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.errors import RecipeError
from evomerge.kernels.masks import MaskKey
from evomerge.recipe import Recipe

DEPTH = 12
IDS = torch.tensor([[1, 5, 9, 30, 2], [3, 3, 7, 8, 31]])


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """Three real Llamas of 12 blocks on disk; c has 4 blocks."""
    root = tmp_path_factory.mktemp("llamas")
    out = {}
    for seed, (name, blocks) in enumerate((("a", DEPTH), ("b", DEPTH), ("c", 4))):
        real_model("Llama", seed=seed, num_hidden_layers=blocks).save_pretrained(root / name)
        out[name] = str(root / name)
    return out


def tensors_of(ref):
    model = Checkpoint(ref)
    return {n: model.tensor(n).double().numpy() for n in model.names}


def read(data):
    return Recipe.from_dict({"dtype": "float32", **data})


def merged(data, **options):
    return {n: t.double().numpy() for n, t in Merger(**options).merge(read(data))}


def block_of(name):
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else None


def at_block(name, block):
    parts = name.split(".")
    return ".".join([*parts[:2], str(block), *parts[3:]])


def slerp(a, b, t):
    x, y = a.ravel(), b.ravel()
    cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=2e-6, err_msg=name)


# -- passthrough ----------------------------------------------------------------------------


FRANKEN = [("a", 0, 5), ("b", 3, 7), ("c", 1, 3), ("b", 3, 5)]
"""13 blocks: some of b twice, some left out."""


def franken(llamas):
    scale = [{"filter": "o_proj", "value": -0.5}, {"filter": "down_proj", "value": 2}, {"value": 1}]
    slices = [{"sources": [{"model": llamas[m], "layer_range": [i, j]}]} for m, i, j in FRANKEN]
    slices[1]["sources"][0]["parameters"] = {"scale": scale}
    return {"merge_method": "passthrough", "slices": slices}


def franken_tensors(llamas):
    pools = {m: tensors_of(ref) for m, ref in llamas.items()}
    out = {"model.embed_tokens.weight": pools["a"]["model.embed_tokens.weight"]}
    number = 0
    for where, (model, first, last) in enumerate(FRANKEN):
        for block in range(first, last):
            for name, value in pools[model].items():
                if block_of(name) == block:
                    gain = 1.0
                    if where == 1:
                        gain = -0.5 if "o_proj" in name else 2.0 if "down_proj" in name else 1.0
                    out[at_block(name, number)] = gain * value
            number += 1
    for name in ("model.norm.weight", "lm_head.weight"):
        out[name] = pools["b"][name]
    return out


def test_frankenmerge_is_a_list_of_blocks(llamas):
    expected = franken_tensors(llamas)
    found = merged(franken(llamas))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] == value).all(), name


def test_written_frankenmerge_computes_what_its_tensors_say(llamas, tmp_path):
    merger, recipe = Merger(), read(franken(llamas))
    write_checkpoint(recipe, merger, tmp_path / "out", shard_bytes=20_000)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 13
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    plain = real_model("Llama", num_hidden_layers=13)
    state = {n: torch.from_numpy(t).float() for n, t in franken_tensors(llamas).items()}
    plain.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(model.eval()(IDS).logits, plain.eval()(IDS).logits)


def test_per_layer_lists_of_the_config_follow_the_blocks(tmp_path):
    real_model("Gemma2").save_pretrained(tmp_path / "g")
    types = json.loads((tmp_path / "g" / "config.json").read_text())["layer_types"]
    ranges = [(0, 3), (6, 12), (1, 2)]
    slices = [{"sources": [{"model": str(tmp_path / "g"), "layer_range": list(r)}]} for r in ranges]
    assembly = Merger().assemble(read({"merge_method": "passthrough", "slices": slices}))
    assert assembly.config["num_hidden_layers"] == 10
    wanted = [types[i] for first, last in ranges for i in range(first, last)]
    assert assembly.config["layer_types"] == wanted


def test_negative_zeros_stay(tmp_path):
    folder = write_folder(tmp_path / "m", {"w": torch.tensor([-0.0, 1.0, -2.0])})
    for method in ("passthrough", "linear"):
        data = {
            "merge_method": method,
            "models": [{"model": str(folder)}],
            "parameters": {"weight": 1.0},
        }
        assert np.signbit(merged(data)["w"]).tolist() == [True, False, True]


# -- slerp and gradients --------------------------------------------------------------------


def interpolated(values, t):
    return float(np.interp(t, np.linspace(0, 1, len(values)), values))


def test_slerp_with_gradients_by_filter(llamas):
    """The commonest of mergekit's recipes, in two slices and with one of a single block."""
    ranges = [(0, 7), (7, 8), (8, 12)]
    t = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0]},
        {"value": 0.4},
    ]
    slices = [
        {"sources": [{"model": llamas[m], "layer_range": list(r)} for m in "ab"]} for r in ranges
    ]
    data = {
        "merge_method": "slerp", "base_model": llamas["a"], "slices": slices,
        "parameters": {"t": t},
    }  # fmt: skip
    a, b = tensors_of(llamas["a"]), tensors_of(llamas["b"])
    expected = {}
    for name, value in a.items():
        block, depth = block_of(name), 0.0
        if block is not None:
            first, last = next(r for r in ranges if r[0] <= block < r[1])
            depth = (block - first) / (last - first - 1) if last - first > 1 else 1.0
        share = 0.4
        if "self_attn" in name:
            share = interpolated([0, 0.5, 0.3, 1], depth)
        elif "mlp" in name:
            share = interpolated([1, 0.5, 0], depth)
        expected[name] = slerp(value, b[name], share)
    close(merged(data), expected)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_slerp_starts_at_the_base_wherever_it_stands(llamas, order):
    models = [{"model": llamas[m]} for m in order]
    data = {
        "merge_method": "slerp",
        "base_model": llamas["a"],
        "models": models,
        "parameters": {"t": 0.2},
    }
    a, b = tensors_of(llamas["a"]), tensors_of(llamas["b"])
    close(merged(data), {n: slerp(a[n], b[n], 0.2) for n in a})


def test_slices_may_lay_different_blocks_on_each_other(llamas):
    """Blocks 2 to 4 of the base and 7 to 9 of the other; a gradient outside the blocks is at 0."""
    pair = [
        {"model": llamas["b"], "layer_range": [7, 10]},
        {"model": llamas["a"], "layer_range": [2, 5]},
    ]
    data = {
        "merge_method": "slerp", "base_model": llamas["a"], "slices": [{"sources": pair}],
        "parameters": {"t": [0.25, 0.75]},
    }  # fmt: skip
    a, b = tensors_of(llamas["a"]), tensors_of(llamas["b"])
    expected = {n: slerp(a[n], b[n], 0.25) for n in a if block_of(n) is None}
    for i in range(3):
        for name in a:
            if block_of(name) == i:
                x, y = a[at_block(name, 2 + i)], b[at_block(name, 7 + i)]
                expected[name] = slerp(x, y, 0.25 + 0.25 * i)
    close(merged(data), expected)


# -- task vectors ---------------------------------------------------------------------------


def trimmed(delta, density):
    keep = max(1, int(density * delta.size))
    order = np.argsort(-np.abs(delta.ravel()), kind="stable")[:keep]
    out = np.zeros(delta.size)
    out[order] = delta.ravel()[order]
    return out.reshape(delta.shape)


def ties(base, sources, weights, density):
    terms = np.stack(
        [w * trimmed(x - base, density) for w, x in zip(weights, sources, strict=True)]
    )
    sign = np.where(terms.sum(0) >= 0, 1.0, -1.0)
    agrees = np.sign(terms) == sign
    divisor = sum(w * m for w, m in zip(weights, agrees, strict=True))
    return base + (terms * agrees).sum(0) / np.where(divisor == 0, 1.0, divisor)


def test_ties_in_slices_with_the_base_among_the_sources(tmp_path):
    pools = [random_tensors(i, blocks=6) for i in range(4)]
    refs = [str(write_folder(tmp_path / str(i), p)) for i, p in enumerate(pools)]
    config = {"vocab_size": 6, "num_hidden_layers": 6}
    for i, pool in enumerate(pools):
        write_folder(tmp_path / str(i), pool, 1, config)
    base, *others = ({n: t.double().numpy() for n, t in p.items()} for p in pools)

    def piece(first, last, weights):
        sources = [{"model": refs[0], "layer_range": [first, last]}]
        for i, w in weights.items():
            parameters = {"weight": w}
            own = {"model": refs[i], "layer_range": [first, last], "parameters": parameters}
            sources.append(own)
        return {"sources": sources}

    data = {
        "merge_method": "ties", "base_model": refs[0], "parameters": {"density": 0.5},
        "slices": [piece(0, 2, {1: 1.0, 2: 0.5}), piece(2, 6, {2: 0.3, 3: 0.6})],
    }  # fmt: skip
    expected = {}
    for name, value in base.items():
        early = block_of(name) in (0, 1) or "embed" in name
        chosen, weights = ((0, 1), (1.0, 0.5)) if early else ((1, 2), (0.3, 0.6))
        expected[name] = ties(value, [others[i][name] for i in chosen], weights, 0.5)
    close(merged(data), expected)


def test_a_slice_may_have_a_base_of_its_own(llamas):
    sources = [{"model": llamas["b"], "layer_range": [0, 6], "parameters": {"weight": 0.5}}]
    late = [{"model": llamas["a"], "layer_range": [6, 12], "parameters": {"weight": 0.25}},
            {"model": llamas["b"], "layer_range": [6, 12]}]  # fmt: skip
    data = {
        "merge_method": "task_arithmetic", "base_model": llamas["a"],
        "slices": [{"sources": sources}, {"sources": late, "base_model": llamas["b"]}],
    }  # fmt: skip
    a, b = tensors_of(llamas["a"]), tensors_of(llamas["b"])
    expected = {}
    for name in a:
        early = "embed" in name or (block_of(name) or 99) < 6 or block_of(name) == 0
        expected[name] = (
            a[name] + 0.5 * (b[name] - a[name]) if early else b[name] + 0.25 * (a[name] - b[name])
        )
    close(merged(data), expected)


def test_the_nearest_value_counts(llamas):
    """Source before slice before merge; filters of sources look at the source's own blocks."""
    first = {
        "parameters": {"weight": [{"filter": "mlp", "value": 0.5}]},
        "sources": [
            {"model": llamas["a"], "layer_range": [0, 2]},
            {"model": llamas["b"], "layer_range": [3, 5],
             "parameters": {"weight": [{"filter": "layers.4.", "value": 0.7}]}},
        ],
    }  # fmt: skip
    second = {
        "sources": [
            {"model": llamas["a"], "layer_range": [2, 4], "parameters": {"weight": 9}},
            {"model": llamas["b"], "layer_range": [2, 4]},
        ]
    }
    data = {
        "merge_method": "linear", "slices": [first, second],
        "parameters": {"weight": 0.1, "normalize": False},
    }  # fmt: skip
    a, b = tensors_of(llamas["a"]), tensors_of(llamas["b"])
    expected = {}
    for name in a:
        block = block_of(name)
        if block is None:
            w = (0.1, 0.1) if "embed" in name else (9, 0.1)
            expected[name] = w[0] * a[name] + w[1] * b[name]
        elif block < 2:
            common = 0.5 if "mlp" in name else 0.1
            own = 0.7 if block == 1 else common
            expected[name] = common * a[name] + own * b[at_block(name, 3 + block)]
        elif block < 4:
            expected[name] = 9 * a[name] + 0.1 * b[name]
    close(merged(data), expected)


def test_shared_values_look_at_the_output_names(llamas):
    """Block 7 of the source is block 1 of the output."""
    sources = [{"model": llamas[m], "layer_range": [6, 8]} for m in "ab"]
    t = [{"filter": "layers.1.", "value": 1.0}, {"value": 0.0}]
    data = {
        "merge_method": "slerp", "base_model": llamas["a"], "slices": [{"sources": sources}],
        "parameters": {"t": t},
    }  # fmt: skip
    found, a, b = merged(data), tensors_of(llamas["a"]), tensors_of(llamas["b"])
    name = "model.layers.{}.mlp.up_proj.weight"
    np.testing.assert_allclose(found[name.format(0)], a[name.format(6)], rtol=1e-6)
    np.testing.assert_allclose(found[name.format(1)], b[name.format(7)], rtol=1e-6)


# -- whole models ---------------------------------------------------------------------------


def test_a_listed_base_is_no_source_of_task_vectors_but_one_of_averages(llamas):
    a, b = tensors_of(llamas["a"]), tensors_of(llamas["b"])
    models = [{"model": llamas["a"]}, {"model": llamas["b"], "parameters": {"weight": 0.5}}]
    data = {"base_model": llamas["a"], "models": models}
    found = merged({"merge_method": "task_arithmetic", **data})
    close(found, {n: a[n] + 0.5 * (b[n] - a[n]) for n in a})
    models[0]["parameters"] = {"weight": 1.5}
    close(merged({"merge_method": "linear", **data}), {n: 0.75 * a[n] + 0.25 * b[n] for n in a})


def test_a_base_of_averages_that_is_not_listed_lends_its_form(tmp_path):
    """It gives config and tokenizer, hence the number of rows, but no values."""
    pools = [random_tensors(i, rows=r) for i, r in enumerate((6, 8, 8))]
    refs = [str(write_folder(tmp_path / str(i), p)) for i, p in enumerate(pools)]
    models = [{"model": r, "parameters": {"weight": 1}} for r in refs[1:]]
    data = {"merge_method": "linear", "base_model": refs[0], "models": models}
    found = merged(data)
    (note,) = Merger().assemble(read(data)).notes
    assert "linear takes no base" in note
    x, y = ({n: t.double().numpy() for n, t in p.items()} for p in pools[1:])
    rows = {n: len(t) for n, t in pools[0].items()}
    close(found, {n: (x[n] + y[n])[: rows[n]] / 2 for n in x})


def test_without_a_dtype_every_tensor_keeps_its_own(tmp_path):
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    pools = []
    for i, start in enumerate((0, 1)):
        tensors = random_tensors(i)
        pools.append({n: t.to(kinds[(k + start) % 4]) for k, (n, t) in enumerate(tensors.items())})
    refs = [str(write_folder(tmp_path / str(i), p)) for i, p in enumerate(pools)]
    models = [{"model": r, "parameters": {"weight": 0.5}} for r in refs]
    data = {"merge_method": "linear", "models": models}
    for name, tensor in Merger().merge(Recipe.from_dict(data)):
        assert tensor.dtype == pools[0][name].dtype
        exact = (pools[0][name].double() + pools[1][name].double()) / 2
        torch.testing.assert_close(
            tensor.double(), exact.to(tensor.dtype).double(), rtol=1e-2, atol=1e-2
        )
        if tensor.dtype in (torch.float16, torch.bfloat16):
            step = 2.0 ** (-11 if tensor.dtype == torch.float16 else -8)
            assert ((tensor.double() - exact).abs() <= exact.abs() * step * 1.01 + 1e-6).all()


@pytest.mark.parametrize("method", operators.names())
def test_every_operator_gets_its_models_arguments_and_keys(llamas, method):
    """And two threads make the same bits as one."""
    operator = operators.get(method)
    count = operator.least_sources if operator.most_sources else 2
    refs = [llamas["b"], llamas["a"]][:count]
    own = {"weight": 0.6, "density": 0.5, "gamma": 0.1, "epsilon": 0.2, "scale": 0.5, "t": 0.3}
    given = {k: v for k, v in own.items() if k in operator.parameters}
    if method in ("ram", "ramplus_tl"):
        given["epsilon"] = 1e-3
    per_source = {
        k for k, p in operator.parameters.items() if getattr(p, "per_source", False)
    }  # fmt: skip
    base = None if operator.takes_base == "never" else llamas["c"]
    data = {
        "merge_method": method,
        "slices": [{"sources": [{"model": r, "layer_range": [0, 4]} for r in refs]}],
        "parameters": {**given, "seed": 3},
        **({"base_model": base} if base else {}),
    }
    found = dict(Merger(1).merge(read(data)))
    again = dict(Merger(2).merge(read(data)))
    opened = [Checkpoint(r) for r in refs]
    for name, tensor in found.items():
        assert torch.equal(tensor, again[name])
        keys = [MaskKey(3, m.fingerprint, name) for m in opened]
        alone = operators.merge(
            method, Checkpoint(base).tensor(name) if base else None,
            [m.tensor(name) for m in opened], keys=keys,
            **{k: [v] * count if k in per_source else v for k, v in given.items()},
        )  # fmt: skip
        assert torch.equal(tensor, alone), name


def test_a_base_too_short_for_a_slice_is_named(llamas):
    sources = [{"model": llamas["a"], "layer_range": [2, 6], "parameters": {"weight": 1}}]
    data = {"merge_method": "ties", "base_model": llamas["c"], "slices": [{"sources": sources}]}
    with pytest.raises(RecipeError, match=r"4 blocks .*at least 6"):
        Merger().assemble(read(data))


# -- ends of slices of tied models ----------------------------------------------------------


@pytest.mark.parametrize("tied", [(True, True), (True, False), (False, True)])
def test_a_head_of_another_model_than_the_embedding_stands_alone(tmp_path, tied):
    """Blocks of x, then of y: the embedding is x's and the head y's, whatever was tied."""
    states = []
    for seed, (name, tie) in enumerate(zip("xy", tied, strict=True)):
        model = real_model("Llama", seed=seed, num_hidden_layers=2, tie_word_embeddings=tie)
        model.save_pretrained(tmp_path / name)
        states.append(model.state_dict())
    slices = [
        {"sources": [{"model": str(tmp_path / "x"), "layer_range": [0, 1]}]},
        {"sources": [{"model": str(tmp_path / "y"), "layer_range": [1, 2]}]},
    ]
    recipe = read({"merge_method": "passthrough", "slices": slices})
    write_checkpoint(recipe, Merger(), tmp_path / "out")
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(model.get_input_embeddings().weight, states[0]["model.embed_tokens.weight"])
    assert torch.equal(model.get_output_embeddings().weight, states[1]["lm_head.weight"])


def test_slices_of_one_tied_model_stay_tied(tmp_path):
    real_model("Llama", num_hidden_layers=3, tie_word_embeddings=True).save_pretrained(
        tmp_path / "x"
    )
    slices = [
        {"sources": [{"model": str(tmp_path / "x"), "layer_range": list(r)}]}
        for r in ((0, 2), (1, 3))
    ]
    assembly = Merger().assemble(read({"merge_method": "passthrough", "slices": slices}))
    assert not any("lm_head" in p.name for p in assembly.parts)
    assert assembly.config["tie_word_embeddings"] is True
    assert assembly.config["num_hidden_layers"] == 4


def test_a_norm_of_the_embedding_is_the_first_slice_s(tmp_path):
    """As in BLOOM, where it is no block's and stands before them."""
    names = ("word_embeddings.weight", "word_embeddings_layernorm.bias", "ln_f.weight")
    for i, folder in enumerate("xy"):
        tensors = {
            f"transformer.{n}": torch.full((6, 4)[: 2 - (k > 0)], float(i))
            for k, n in enumerate(names)
        }
        tensors |= {f"transformer.h.{b}.mlp.weight": torch.full((3,), 10.0 * i + b) for b in (0, 1)}
        write_folder(tmp_path / folder, tensors, 1, {"vocab_size": 6, "n_layer": 2})
    slices = [
        {"sources": [{"model": str(tmp_path / f), "layer_range": [b, b + 1]}]}
        for f, b in (("x", 0), ("y", 1))
    ]
    found = merged({"merge_method": "passthrough", "slices": slices})
    values = {n.removeprefix("transformer."): float(t.ravel()[0]) for n, t in found.items()}
    assert values == {
        "word_embeddings.weight": 0.0, "word_embeddings_layernorm.bias": 0.0,
        "h.0.mlp.weight": 0.0, "h.1.mlp.weight": 11.0, "ln_f.weight": 1.0,
        "lm_head.weight": 1.0,
    }  # fmt: skip
