"""Whole checkpoints merged, against float64 arithmetic on each tensor."""

import types
import weakref

import numpy as np
import pytest
import torch
from checkpoint_models import random_tensors, write_folder

from evomerge import operators
from evomerge.checkpoints.checking import check_recipe
from evomerge.checkpoints.merger import Merger
from evomerge.errors import RecipeError, SourceError
from evomerge.kernels.masks import MaskKey, uniform
from evomerge.recipe import Case, Recipe, Source

WEIGHTS, DENSITY = (0.7, 0.4), 0.5
METHODS = ("linear", "task_arithmetic", "ties", "dare_ties")
"""What `expected` can compute; the operators have tests of their own."""


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A base and two sources; the second is sharded and has two rows more."""
    root = tmp_path_factory.mktemp("pool")
    tensors = [random_tensors(0), random_tensors(1), random_tensors(2, rows=8)]
    names = ("base", "a", "b")
    paths = [
        write_folder(root / name, t, shards)
        for name, t, shards in zip(names, tensors, (1, 1, 3), strict=True)
    ]
    return [str(p) for p in paths], tensors


def recipe_of(pool, method, dtype="float32", parameters=None, weights=WEIGHTS):
    base, *refs = pool[0]
    sources = tuple(Source(r, {"weight": w}) for r, w in zip(refs, weights, strict=True))
    fixed = dict(parameters or {})
    if "density" in operators.get(method).parameters:
        fixed["density"] = DENSITY
    return Recipe(method, sources, base, fixed, dtype)


def wide(tensor, rows):
    return tensor[:rows].double().numpy()


def expected(method, pool, merger, name, weights=WEIGHTS):
    base = wide(pool[1][0][name], 6)
    sources = [wide(t[name], len(base)) for t in pool[1][1:]]
    if method == "linear":
        return sum(w * x for w, x in zip(weights, sources, strict=True)) / sum(weights)
    deltas = [x - base for x in sources]
    if method == "task_arithmetic":
        return base + sum(w * d for w, d in zip(weights, deltas, strict=True))
    for i, delta in enumerate(deltas):
        if method == "ties":
            least = sorted(abs(delta).ravel())[::-1][int(DENSITY * delta.size) - 1]
            deltas[i] = np.where(abs(delta) >= least, delta, 0.0)
        else:
            key = MaskKey(5, merger.checkpoint(pool[0][i + 1]).fingerprint, name)
            kept = delta * (uniform(key, delta.size) < DENSITY).view(delta.shape).numpy()
            deltas[i] = kept * (abs(delta).sum() / abs(kept).sum()) if kept.any() else kept
    terms = np.array([w * d for w, d in zip(weights, deltas, strict=True)])
    agrees = np.sign(terms) == np.where(terms.sum(0) >= 0, 1, -1)
    total = (terms * agrees).sum(0)
    if method == "ties":
        divisor = (np.array(weights).reshape(-1, *[1] * base.ndim) * agrees).sum(0)
        total = total / np.where(divisor == 0, 1, divisor)
    return base + total


@pytest.mark.parametrize("method", METHODS)
def test_equals_float64_arithmetic(pool, method):
    merger = Merger()
    recipe = recipe_of(pool, method, parameters={"seed": 5})
    merged = dict(merger.merge(recipe))
    assert list(merged) == list(merger.checkpoint(pool[0][0]).names)
    for name, tensor in merged.items():
        assert tensor.shape == pool[1][0][name].shape
        np.testing.assert_allclose(
            tensor.double().numpy(), expected(method, pool, merger, name), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounds_once_at_the_end(pool, method, dtype):
    """Half an ulp from the exact result; rounding at each step would be several."""
    merger = Merger()
    merged = dict(merger.merge(recipe_of(pool, method, dtype, {"seed": 5})))
    bits = 8 if dtype == "bfloat16" else 11
    for name, tensor in merged.items():
        assert tensor.dtype == getattr(torch, dtype)
        exact = expected(method, pool, merger, name)
        half_ulp = np.exp2(np.floor(np.log2(np.abs(exact))) - bits)
        error = np.abs(tensor.double().numpy() - exact)
        assert (error <= half_ulp * 1.001 + 2e-6).all()


def test_bfloat16_sources_are_summed_in_float32(tmp_path):
    """1 + 1/256 is not a bfloat16; ten of them summed there would stay at 8."""
    tensors = {"w": torch.full((4,), 1.0078125, dtype=torch.bfloat16)}
    refs = []
    for i in range(10):
        refs.append(str(write_folder(tmp_path / str(i), tensors)))
    sources = tuple(Source(r, {"weight": 0.1}) for r in refs)
    merged = dict(Merger().merge(Recipe("linear", sources, dtype="float32")))
    assert torch.allclose(merged["w"], torch.full((4,), 1.0078125), rtol=1e-6)


def test_filters_choose_by_layer(pool):
    """Block 1 alone gets source a, block 11 and all else source b."""
    base, a, b = pool[0]
    cases = (Case("model.layers.1.", 1.0), Case(None, 0.0))
    other = (Case("model.layers.1.", 0.0), Case(None, 1.0))
    sources = (Source(a, {"weight": cases}), Source(b, {"weight": other}))
    for name, tensor in Merger().merge(Recipe("task_arithmetic", sources, base, {}, "float32")):
        chosen = pool[1][1] if name.startswith("model.layers.1.") else pool[1][2]
        torch.testing.assert_close(tensor, chosen[name][: len(tensor)], rtol=1e-6, atol=1e-6)


def test_a_source_value_stands_before_the_common_one(pool):
    base, a, b = pool[0]
    sources = (Source(a, {"weight": (Case("norm", 0.0),)}), Source(b))
    recipe = Recipe("task_arithmetic", sources, base, {"weight": 0.5}, "float32")
    for name, tensor in Merger().merge(recipe):
        first = 0.0 if "norm" in name else 0.5
        t0, t1, t2 = (t[name][: len(tensor)] for t in pool[1])
        torch.testing.assert_close(tensor, t0 + first * (t1 - t0) + 0.5 * (t2 - t0))


def test_masks_depend_on_seed_and_content_not_on_place(pool, tmp_path):
    merger = Merger()

    def merged(seed, refs=pool[0]):
        recipe = recipe_of((refs, pool[1]), "dare_ties", parameters={"seed": seed})
        return torch.cat([t.flatten() for _, t in merger.merge(recipe)])

    copies = [
        str(write_folder(tmp_path / "x", pool[1][0])),
        str(write_folder(tmp_path / "y", pool[1][1])),
    ]
    again = merged(1, [*copies, pool[0][2]])
    assert torch.equal(merged(1), again)
    assert not torch.equal(merged(1), merged(2))


def test_integers_are_passed_on_as_they_are(tmp_path):
    """In bfloat16 the position 257 would become 256."""
    ids = {"position_ids": torch.arange(300), "mask": torch.tensor([True, False])}
    refs = [
        str(write_folder(tmp_path / n, {**ids, "w": torch.full((2,), v)}))
        for n, v in (("a", 1.0), ("b", 3.0))
    ]
    recipe = Recipe("linear", tuple(Source(r, {"weight": 0.5}) for r in refs))
    merged = dict(Merger().merge(recipe))
    assert torch.equal(merged["w"], torch.full((2,), 2.0, dtype=torch.bfloat16))
    for name, tensor in ids.items():
        assert merged[name].dtype == tensor.dtype
        assert torch.equal(merged[name], tensor)
    other = {**ids, "position_ids": torch.arange(300) + 1, "w": torch.ones(2)}
    sources = (recipe.sources[0], Source(str(write_folder(tmp_path / "c", other)), {"weight": 1}))
    with pytest.raises(SourceError, match="position_ids"):
        list(Merger().merge(Recipe("linear", sources)))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: t.pop("model.norm.weight"), "no tensor model.norm.weight"),
        (lambda t: t.update(extra=torch.ones(1)), "unknown tensor extra"),
        (lambda t: t.update({"model.norm.weight": torch.ones(5)}), "model.norm.weight of shape"),
        (lambda t: t.update({"model.layers.3.mlp.weight": torch.ones(4, 5)}), "layers.3.mlp"),
        (lambda t: t.update({"lm_head.weight": torch.ones(5, 4)}), "lm_head.weight of shape"),
        (lambda t: t.update({"lm_head.weight": torch.ones(8, 5)}), "lm_head.weight of shape"),
    ],
)
def test_sources_that_do_not_fit_name_the_tensor(pool, tmp_path, change, part):
    tensors = random_tensors(3)
    change(tensors)
    source = Source(str(write_folder(tmp_path / "odd", tensors)), {"weight": 1.0})
    with pytest.raises(SourceError) as raised:
        list(Merger().merge(Recipe("task_arithmetic", (source,), pool[0][0])))
    assert part in str(raised.value)


def test_grown_vocabulary_below_text_config(tmp_path):
    config = {"text_config": {"vocab_size": 6}}
    base, grown = random_tensors(0), random_tensors(1, rows=8)
    refs = [str(write_folder(tmp_path / n, t, 1, config)) for n, t in (("b", base), ("g", grown))]
    recipe = Recipe("task_arithmetic", (Source(refs[1], {"weight": 1}),), refs[0], {}, "float32")
    for name, tensor in Merger().merge(recipe):
        torch.testing.assert_close(tensor, grown[name][: len(base[name])])


@pytest.mark.parametrize(
    ("method", "common", "own", "key"),
    [
        ("ties", {}, {}, "models[0].parameters.weight"),
        ("ties", {"densty": 1}, {"weight": 1}, "parameters.densty"),
        ("linear", {"density": 1}, {"weight": 1}, "parameters.density"),
        ("ties", {}, {"weight": 1, "lambda": 0.5}, "models[0].parameters.lambda"),
        ("ties", {}, {"weight": 1, "seed": 5}, "models[0].parameters.seed"),
        ("ties", {"density": 1.1}, {"weight": 1}, "parameters.density"),
        ("ties", {"density": -0.1}, {"weight": 1}, "parameters.density"),
        ("ties", {}, {"weight": "1e-3"}, "models[0].parameters.weight"),
        ("ties", {}, {"weight": True}, "models[0].parameters.weight"),
        ("ties", {}, {"weight": (Case("x", 1), Case(None, 101))}, "models[0].parameters.weight"),
        ("ties", {"normalize": "yes"}, {"weight": 1}, "parameters.normalize"),
        ("dare_ties", {"rescale_norm": "l2"}, {"weight": 1}, "parameters.rescale_norm"),
        ("dare_ties", {"seed": 1.5}, {"weight": 1}, "parameters.seed"),
        ("dare_ties", {"seed": "x"}, {"weight": 1}, "parameters.seed"),
        ("dare_ties", {"seed": -1}, {"weight": 1}, "parameters.seed"),
    ],
)
def test_wrong_parameters_are_named(method, common, own, key):
    recipe = Recipe(method, (Source("a", own),), "base", common)
    if (method, common) == ("linear", {"density": 1}):  # mergekit passes over it
        check_recipe(recipe)
    with pytest.raises(RecipeError) as raised:
        check_recipe(recipe, strict=True)
    assert raised.value.problems[0].field == key


def test_a_tensor_that_no_case_matches_is_named(pool):
    base, a, _ = pool[0]
    source = Source(a, {"weight": (Case("model", 1.0),)})
    with pytest.raises(RecipeError, match=r"no value for tensor lm_head\.weight"):
        list(Merger().merge(Recipe("task_arithmetic", (source,), base)))


def test_task_vectors_need_a_base(pool):
    with pytest.raises(RecipeError, match="base_model"):
        list(Merger().merge(Recipe("ties", (Source(pool[0][1], {"weight": 1}),))))


def test_one_tensor_lives_at_a_time(pool):
    stream = Merger().merge(recipe_of(pool, "ties"))
    assert isinstance(stream, types.GeneratorType)
    earlier = None
    for _, tensor in stream:
        assert earlier is None or earlier() is None
        earlier = weakref.ref(tensor)
        del tensor


def test_identities_are_the_fingerprints(pool):
    merger = Merger()
    recipe = recipe_of(pool, "ties")
    identities = merger.identities(recipe)
    assert list(identities) == pool[0]
    assert len(set(identities.values())) == 3
    assert merger.checkpoint(pool[0][0]) is merger.checkpoint(pool[0][0])
