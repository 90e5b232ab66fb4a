"""Merges within merges, routes and pieces through the merger."""

import threading

import numpy as np
import pytest
import torch
from checkpoint_models import random_tensors, real_model, write_folder

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.routing import fold
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.errors import RecipeError, SourceError
from evomerge.kernels.masks import MaskKey, uniform
from evomerge.recipe import Pieces, Recipe, Route, Slot, Source


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Three models of random tensors in bfloat16, with two runs of a million elements each."""
    root = tmp_path_factory.mktemp("nested")
    refs, tensors = [], []
    for seed in range(3):
        own = random_tensors(seed, blocks=3, dtype=torch.bfloat16)
        rng = torch.Generator().manual_seed(100 + seed)
        own["model.extra.weight"] = torch.randn(1100, 1001, generator=rng).bfloat16()
        refs.append(str(write_folder(root / str(seed), own)))
        tensors.append({n: t.double().numpy() for n, t in own.items()})
    return refs, tensors


def deltas(refs, method, **parameters):
    """A merge of the second and third model on the first."""
    weights = parameters.pop("weights", (0.7, -0.4))
    sources = tuple(Source(r, {"weight": w}) for r, w in zip(refs[1:], weights, strict=True))
    return Recipe(method, sources, refs[0], parameters, "bfloat16")


def merge(recipe, threads=1):
    return {n: t.double().numpy() for n, t in Merger(threads).merge(recipe)}


def close(found, expected, atol=2e-6):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-6, atol=atol, err_msg=name)


def test_an_inner_merge_is_not_rounded(pool):
    """In bfloat16 the inner sum would be off by up to 1/256."""
    refs, tensors = pool
    inner = deltas(refs, "task_arithmetic")
    sources = (Source(inner, {"weight": 0.3}), Source(refs[2], {"weight": 0.9}))
    found = merge(Recipe("linear", sources, None, {"normalize": False}, "float32"))
    base, x, y = tensors
    expected = {}
    for name in base:
        middle = base[name] + 0.7 * (x[name] - base[name]) - 0.4 * (y[name] - base[name])
        expected[name] = 0.3 * middle + 0.9 * y[name]
    close(found, expected)


def dare(pool, merger, name, seed, density=0.5):
    """float64: base + the sum of task vectors thinned by their masks, l1 norms kept."""
    refs, tensors = pool
    out = tensors[0][name].copy()
    for i, w in ((1, 0.7), (2, -0.4)):
        delta = (tensors[i][name] - tensors[0][name]).astype(np.float32).astype(np.float64)
        key = MaskKey(seed, merger.checkpoint(refs[i]).fingerprint, name)
        kept = delta * (uniform(key, delta.size) < density).view(delta.shape).numpy()
        out += w * kept * (abs(delta).sum() / abs(kept).sum() if kept.any() else 1)
    return out


@pytest.mark.parametrize("outer", ["ties", "slerp", "nearswap"])
@pytest.mark.parametrize("threads", [1, 2])
def test_inner_random_masks_under_outer_statistics(pool, outer, threads):
    """Thinned, combined and blockwise plans read the inner merge in runs of their own."""
    refs, tensors = pool
    inner = deltas(refs, "dare_linear", density=0.5, seed=7)
    given = {"ties": {"weight": 1.0, "density": 0.3}, "slerp": {"t": 0.25}, "nearswap": {"t": 0.1}}
    recipe = Recipe(outer, (Source(inner),), refs[0], given[outer], "float32")
    merger = Merger(threads)
    found = {n: t.double().numpy() for n, t in merger.merge(recipe)}
    for name, base in tensors[0].items():
        middle = dare(pool, merger, name, 7)
        delta = middle - base
        if outer == "ties":
            keep = max(1, int(0.3 * delta.size))
            least = np.sort(abs(delta).ravel())[::-1][keep - 1]
            exact = base + np.where(abs(delta) >= least, delta, 0)
            # those within a bin of the boundary are kept as draws have it
            off = ~np.isclose(found[name], exact, rtol=1e-5, atol=1e-5)
            assert (abs(abs(delta[off]) / least - 1) < 2**-8).all()
            assert (abs(found[name] - base) > 1e-5).sum() <= keep + 0.005 * delta.size
            continue
        if outer == "nearswap":
            exact = base + np.clip(delta, -0.1, 0.1)
        else:
            a, b = base.ravel(), middle.ravel()
            angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            exact = np.sin(0.75 * angle) * base + np.sin(0.25 * angle) * middle
            exact = exact / np.sin(angle)
        np.testing.assert_allclose(found[name], exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("method", ["ram", "sce", "della", "breadcrumbs", "nuslerp"])
def test_two_levels_make_the_same_bits_on_two_threads(pool, method):
    """And end: the inner statistics are gathered while the outer threads wait."""
    refs, _ = pool
    given = {
        "ram": {"epsilon": 0.1}, "sce": {"select_topk": 0.5},
        "della": {"density": 0.5, "epsilon": 0.2}, "breadcrumbs": {"density": 0.5}, "nuslerp": {},
    }[method]  # fmt: skip
    innermost = deltas(refs, "ties", density=0.5)
    weights = {"weight": 0.6} if method not in ("ram", "sce") else {}
    inner = Recipe(method, (Source(innermost, weights), Source(refs[1], weights)), refs[0], given)
    outer = Recipe("task_arithmetic", (Source(inner, {"weight": 0.5}),), refs[0], {}, "float32")
    results: list[dict] = []

    def work():
        for threads in (1, 2):
            results.append(dict(Merger(threads).merge(outer)))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(120)
    assert not worker.is_alive(), "two threads wait for each other"
    one, two = results
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert all(torch.isfinite(t).all() for t in one.values())


def test_an_inner_merge_in_slices(pool):
    refs, tensors = pool
    inner = deltas(refs, "task_arithmetic", weights=(0.5, 0.25))
    data = {
        "merge_method": "passthrough", "dtype": "float32",
        "slices": [
            {"sources": [{"model": inner.to_dict(), "layer_range": [1, 2]}]},
            {"sources": [{"model": refs[2], "layer_range": [0, 1]}]},
            {"sources": [{"model": inner.to_dict(), "layer_range": [1, 2]}]},
        ],
    }  # fmt: skip
    for ref in refs:  # a config that says how many blocks there are
        write_config(ref)
    found = merge(Recipe.from_dict(data))
    base, x, y = tensors

    def middle(name):
        return base[name] + 0.5 * (x[name] - base[name]) + 0.25 * (y[name] - base[name])

    norm = "model.layers.{}.norm.weight"
    close(found, {norm.format(0): middle(norm.format(1)), norm.format(2): middle(norm.format(1))})
    close(found, {norm.format(1): y[norm.format(0)], "lm_head.weight": middle("lm_head.weight")})
    assert len([n for n in found if "norm" in n]) == 4


def write_config(ref):
    config = Checkpoint(ref).path / "config.json"
    config.write_text('{"vocab_size": 6, "num_hidden_layers": 3}')


def test_the_digest_knows_the_content_not_the_names(pool, tmp_path):
    refs, _ = pool
    inner = deltas(refs, "ties", density=0.5)
    outer = Recipe("linear", (Source(inner, {"weight": 1}), Source(refs[1], {"weight": 1})))
    copies = [str(write_folder(tmp_path / str(i), tensors_of(r))) for i, r in enumerate(refs)]
    other = Recipe(
        "linear",
        (
            Source(deltas(copies, "ties", density=0.5), {"weight": 1}),
            Source(copies[1], {"weight": 1}),
        ),
    )
    merger = Merger()
    digests = [r.digest(merger.identities(r)) for r in (outer, other)]
    assert digests[0] == digests[1]
    again = Recipe.from_dict(outer.to_dict())
    assert again.digest(merger.identities(again)) == digests[0]
    fingerprints = [
        merger.model(deltas(r, "ties", density=0.5)).fingerprint for r in (refs, copies)
    ]
    assert fingerprints[0] == fingerprints[1]
    assert merger.model(deltas(refs, "ties", density=0.4)).fingerprint != fingerprints[0]


def tensors_of(ref):
    model = Checkpoint(ref)
    return {n: model.tensor(n).clone() for n in model.names}


def test_errors_of_inner_merges_come_first(pool):
    refs, _ = pool
    bad = deltas(refs, "ties", density=1.5)
    with pytest.raises(RecipeError, match="density"):
        Merger().stream(Recipe("linear", (Source(bad, {"weight": 1}),)))
    odd = Recipe("ties", (Source(refs[1], {"weight": 1}),))
    with pytest.raises(RecipeError, match="base_model"):
        Merger().stream(Recipe("linear", (Source(odd, {"weight": 1}),)))
    slices = {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": refs[0], "layer_range": [0, 9]}]}],
    }
    with pytest.raises(RecipeError, match="layer_range"):
        Merger().stream(Recipe("linear", (Source(Recipe.from_dict(slices), {"weight": 1}),)))


# -- routes ---------------------------------------------------------------------------------


def materialised(recipe, merger):
    """What `fold` says, computed here in float64."""
    route = recipe.route
    models = {t: merger.model(s.model) for t, s in enumerate(route.slots) if s.model is not None}
    first = merger.model(recipe.base) if recipe.base else models[min(models)]
    out = {}
    for tensor in fold(route, models, first).tensors:
        model = first if tensor.slot is None else models[tensor.slot]
        value = model.tensor(tensor.source_name).double().numpy()
        out[tensor.name] = tensor.gain * value + tensor.offset if tensor.gain else 0 * value
    return out


@pytest.mark.parametrize("scale", ["block_output", "stream"])
def test_a_route_is_what_fold_says(tmp_path, scale):
    refs = []
    for seed in range(2):
        real_model("Llama", seed=seed, num_hidden_layers=3).save_pretrained(tmp_path / str(seed))
        refs.append(str(tmp_path / str(seed)))
    a, b = refs
    inner = Recipe("linear", (Source(a, {"weight": 1}), Source(b, {"weight": 3})))
    slots = (
        Slot(b, 2, 0.5), Slot(inner, 0, -1.5), Slot(None), Slot(inner, 1), Slot(a, 1, 2.0),
        Slot(b, 2),
    )  # fmt: skip
    recipe = Recipe("passthrough", base=a, route=Route(slots, scale, 7), dtype="float32")
    merger = Merger()
    assembly = merger.assemble(recipe)
    assert assembly.config["num_hidden_layers"] == 7
    found = {n: t.double().numpy() for n, t in merger.merge(assembly)}
    expected = materialised(recipe, merger)
    assert found.keys() == expected.keys()
    close(found, expected, atol=1e-7)
    name = "model.layers.0.mlp.up_proj.weight"
    one, other = (merger.model(r).tensor(name).double() for r in (a, b))
    merged = (one + 3 * other) / 4
    np.testing.assert_allclose(
        found["model.layers.1.mlp.up_proj.weight"], merged, rtol=1e-5, atol=1e-7
    )


def test_a_route_of_whole_blocks_copies_bits(tmp_path):
    real_model("Llama", num_hidden_layers=3).save_pretrained(tmp_path / "m")
    ref = str(tmp_path / "m")
    recipe = Recipe("passthrough", route=Route((Slot(ref, 2), Slot(ref, 0))), dtype=None)
    write_checkpoint(recipe, Merger(), tmp_path / "out")
    one, other = Checkpoint(ref), Checkpoint(str(tmp_path / "out"))
    for name in other.names:
        source = name.replace(".layers.1.", ".layers.X.").replace(".layers.0.", ".layers.2.")
        source = source.replace(".layers.X.", ".layers.0.")
        assert other.tensor(name).numpy().tobytes() == one.tensor(source).numpy().tobytes()


# -- pieces ---------------------------------------------------------------------------------


def test_pieces_are_a_loop_over_the_flattened_parameters(tmp_path):
    pools = [{**random_tensors(i, blocks=2), "ids": torch.arange(3)} for i in range(3)]
    refs = [str(write_folder(tmp_path / str(i), p)) for i, p in enumerate(pools)]
    names = [n for n in Checkpoint(refs[0]).names if n != "ids"]
    flat = np.stack([np.concatenate([p[n].double().numpy().ravel() for n in names]) for p in pools])
    total = flat.shape[1]
    stops = (5, 6, 31, total - 1, total)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(len(stops), 3)).round(3)
    rows[1] = 0, 1, 0
    sources = tuple(Source(r) for r in refs)
    pieces = Pieces(stops, tuple(map(tuple, rows.tolist())))
    recipe = Recipe("pieces", sources, pieces=pieces, dtype="float32")
    expected = np.empty(total)
    start = 0
    for stop, row in zip(stops, rows, strict=True):
        expected[start:stop] = row @ flat[:, start:stop]
        start = stop
    found = dict(Merger().merge(recipe))
    assert torch.equal(found.pop("ids"), torch.arange(3))
    got = np.concatenate([found[n].double().numpy().ravel() for n in names])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    wrong = Recipe("pieces", sources, pieces=Pieces((total + 1,), ((1.0, 0.0, 0.0),)))
    with pytest.raises(RecipeError, match=f"{total}, the number of parameters"):
        Merger().assemble(wrong)


def test_pieces_with_tied_heads_and_rows_to_spare(tmp_path):
    """The second model has two rows more, the third no head of its own."""
    pools = [random_tensors(i, rows=6 + 2 * (i == 1), blocks=2) for i in range(3)]
    pools[2].pop("lm_head.weight")
    refs = [str(write_folder(tmp_path / str(i), p)) for i, p in enumerate(pools)]
    order = Checkpoint(refs[0])
    total = sum(order.tensor(n).numel() for n in order.names)
    pieces = Pieces((total,), ((0.5, 0.25, -1.0),))
    sources = tuple(Source(r) for r in refs)
    for name, tensor in Merger().merge(Recipe("pieces", sources, pieces=pieces, dtype="float32")):
        x, y = (p[name].double()[: len(pools[0][name])] for p in pools[:2])
        z = pools[2].get(name, pools[2]["model.embed_tokens.weight"]).double()
        exact = 0.5 * x + 0.25 * y - z
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["route", "pieces"])
@pytest.mark.parametrize("extra", ["tokenizer", "scope"])
def test_what_would_have_no_effect_is_refused(form, extra):
    data = {"merge_method": "passthrough", "route": {"slots": [{"model": "m", "layer": 0}]}}
    if form == "pieces":
        pieces = {"breakpoints": [3], "coefficients": [[1.0]]}
        data = {"merge_method": "pieces", "models": [{"model": "m"}], "pieces": pieces}
    more = {"tokenizer_source": "union"} if extra == "tokenizer" else {"scope": {"prefix": "x."}}
    with pytest.raises(RecipeError, match=f"{extra}: found a {extra} beside {form}"):
        Merger().assemble(Recipe.from_dict({**data, **more}))


def test_quantised_models_are_refused_everywhere(tmp_path):
    config = {
        "vocab_size": 6,
        "quantization_config": {"quant_method": "fp8"},
        "num_hidden_layers": 2,
    }
    ref = str(write_folder(tmp_path / "q", random_tensors(0, blocks=2), 1, config))
    total = sum(t.numel() for t in random_tensors(0, blocks=2).values())
    plain = {**config, "quantization_config": None}
    good = str(write_folder(tmp_path / "p", random_tensors(1, blocks=2), 1, plain))
    recipes = [
        Recipe("linear", (Source(good, {"weight": 1}), Source(ref, {"weight": 1}))),
        Recipe("passthrough", base=good, route=Route((Slot(ref, 0),))),
        Recipe("pieces", (Source(ref),), pieces=Pieces((total,), ((1.0,),))),
        Recipe("ties", (Source(good, {"weight": 1}),), ref),
    ]
    for recipe in recipes:
        with pytest.raises(SourceError, match="quantised by fp8"):
            Merger().assemble(recipe)
