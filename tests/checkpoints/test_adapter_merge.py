"""Adapters merge into one adapter, exactly or as well as their rank allows, and PEFT reads it."""

import json
import math
import os

import pytest
import torch
from adapter_folders import PREFIX, factor_pair, peft_adapter, random_factors, write_adapter
from checkpoint_models import random_tensors, real_model, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.checkpoints import adapter_merge
from evomerge.checkpoints.adapted import open_model
from evomerge.checkpoints.adapter import Adapter
from evomerge.checkpoints.adapter_merge import deltas, low_rank, merge_adapters, module_shapes
from evomerge.errors import EvomergeError, RecipeError, SourceError, UserError

SIDE = {"model.layers.0.q": (9, 12), "model.layers.0.v": (6, 12), "model.layers.1.q": (9, 12)}


def sides(path, seed, modules=tuple(SIDE), rank=3, dtype=torch.float32, **changes):
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in modules:
        tensors |= factor_pair(module, *SIDE[module], rank, rng, dtype)
    changes = {"target_modules": sorted({m.rpartition(".")[2] for m in modules}), **changes}
    return Adapter(str(write_adapter(path, tensors, r=rank, **changes)), f"adapters.{seed}")


def dense(adapter, module):
    """What an adapter adds, by its formula in float64; 0 where it has no such module."""
    if module not in adapter.modules:
        return torch.zeros(SIDE[module], dtype=torch.float64)
    a = adapter.tensor(f"{PREFIX}{module}.lora_A.weight").double()
    b = adapter.tensor(f"{PREFIX}{module}.lora_B.weight").double()
    rank = a.shape[0]
    scale = adapter.config["lora_alpha"] / (
        math.sqrt(rank) if adapter.config["use_rslora"] else rank
    )
    return scale * b @ a


@pytest.fixture
def three(tmp_path):
    """Adapters of other ranks, scales and modules each."""
    return [
        sides(tmp_path / "a", 1),
        sides(tmp_path / "b", 2, ("model.layers.0.q", "model.layers.1.q"), rank=2, lora_alpha=5),
        sides(tmp_path / "c", 3, ("model.layers.0.v",), rank=1, use_rslora=True),
    ]


def summed(adapters, weights, module):
    return sum(w * dense(a, module) for a, w in zip(adapters, weights, strict=True))


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_a_weighted_sum_is_exact(tmp_path, three, method):
    weights = [0.5, -1.25, 2.0]
    out = tmp_path / "deep" / "out"
    report = merge_adapters(three, weights, out, method=method, extra={"README.md": "x\n"})
    merged = Adapter(str(out))
    assert set(merged.modules) == set(report.fits) == set(SIDE)
    for module in SIDE:
        want = summed(three, weights, module)
        torch.testing.assert_close(merged.delta(module).double(), want, rtol=1e-5, atol=1e-5)
        assert report.fits[module].error == 0
    assert {m: f.rank for m, f in report.fits.items()} == {
        "model.layers.0.q": 5, "model.layers.0.v": 4, "model.layers.1.q": 5
    }  # fmt: skip
    assert report.worst == 0 and report.path == out and report.method == method
    assert (out / "README.md").read_text() == "x\n"
    assert merged.config["target_modules"] == ["q", "v"]


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_rank_leaves_the_least_out(tmp_path, three, rank):
    weights = [1.0, 0.5, -0.75]
    report = merge_adapters(three, weights, tmp_path / "out", rank=rank)
    merged = Adapter(str(tmp_path / "out"))
    for module in SIDE:
        want = summed(three, weights, module)
        values = torch.linalg.svdvals(want)
        best = float(values[rank:].norm() / values.norm())
        assert merged.modules[module].rank == report.fits[module].rank == rank
        assert report.fits[module].error == pytest.approx(best, abs=1e-6)
        left = torch.linalg.matrix_norm(merged.delta(module).double() - want)
        assert float(left / want.norm()) == pytest.approx(best, abs=1e-5)
    assert report.worst == max(f.error for f in report.fits.values())


def test_more_ranks_than_the_matrix_has_are_cut_without_loss(tmp_path):
    adapters = [sides(tmp_path / str(i), i, ("model.layers.0.v",)) for i in range(5)]
    report = merge_adapters(adapters, [1.0] * 5, tmp_path / "out")
    [fit] = report.fits.values()
    assert fit.rank == 6 and fit.error < 1e-12
    merged = Adapter(str(tmp_path / "out"))
    want = summed(adapters, [1.0] * 5, "model.layers.0.v")
    torch.testing.assert_close(
        merged.delta("model.layers.0.v").double(), want, rtol=1e-5, atol=1e-5
    )


def test_one_adapter_of_weight_one_is_itself(tmp_path, three):
    merge_adapters(three[:1], [1.0], tmp_path / "out")
    for module in SIDE:
        torch.testing.assert_close(
            Adapter(str(tmp_path / "out")).delta(module), three[0].delta(module)
        )


def test_weight_zero_and_opposite_weights(tmp_path, three):
    merge_adapters(three[:1] * 2, [1.0, -1.0], tmp_path / "none", rank=2)
    for module in SIDE:
        assert float(Adapter(str(tmp_path / "none")).delta(module).abs().max()) < 1e-5
    merge_adapters(three, [1.0, 0.0, 0.0], tmp_path / "first")
    for module in SIDE:
        torch.testing.assert_close(
            Adapter(str(tmp_path / "first")).delta(module), three[0].delta(module)
        )


def test_any_operator_by_its_dense_form(tmp_path, three):
    """The elementwise largest, which no sum of factors can say."""

    def largest(module):
        stacked = torch.stack(deltas(three, module))
        return stacked.gather(0, stacked.abs().argmax(0, keepdim=True))[0]

    report = merge_adapters(three, [1.0] * 3, tmp_path / "out", method="largest", dense=largest)
    merged = Adapter(str(tmp_path / "out"))
    for module in SIDE:
        want = largest(module).double()
        values = torch.linalg.svdvals(want)
        best = float(values[3:].norm() / values.norm())
        fit = report.fits[module]
        assert fit.rank == 3 and fit.error == pytest.approx(best, abs=1e-5)
        assert torch.linalg.matrix_norm(
            merged.delta(module).double() - want
        ) / want.norm() == pytest.approx(best, abs=1e-5)
    full = merge_adapters(three, [1.0] * 3, tmp_path / "full", dense=largest, rank=100)
    assert full.worst < 1e-5 and {f.rank for f in full.fits.values()} == {6, 9}
    zero = merge_adapters(three, [1.0] * 3, tmp_path / "zero", dense=lambda m: torch.zeros(SIDE[m]))
    assert zero.worst == 0
    assert not Adapter(str(tmp_path / "zero")).delta("model.layers.0.q").any()


def test_deltas_are_zero_where_an_adapter_has_nothing(three):
    assert module_shapes(three) == SIDE
    for module in SIDE:
        for adapter, delta in zip(three, deltas(three, module), strict=True):
            want = dense(adapter, module)
            torch.testing.assert_close(delta.double(), want, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14), st.integers(0, 99))
def test_low_rank_is_the_best_of_its_rank(rows, columns, rank, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    b, a, error = low_rank(matrix, rank)
    kept = min(rank, rows, columns)
    assert b.shape == (rows, kept) and a.shape == (kept, columns)
    values = torch.linalg.svdvals(matrix.double())
    assert error == pytest.approx(float(values[kept:].norm() / values.norm()), abs=1e-5)


@pytest.mark.parametrize("shape", [(120, 150), (150, 120)])
def test_the_iteration_for_large_matrices_is_near_the_best(monkeypatch, shape):
    monkeypatch.setattr(adapter_merge, "_FULL_SVD", 8)
    rng = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=rng)  # no gap in its values: the hard case
    low = torch.randn(shape[0], 4, generator=rng) @ torch.randn(4, shape[1], generator=rng)
    b, a, error = low_rank(matrix + low, 8)
    values = torch.linalg.svdvals((matrix + low).double())
    best = float(values[8:].norm() / values.norm())
    assert best <= error <= 1.01 * best
    again = low_rank(matrix + low, 8)
    assert torch.equal(a, again[1]) and torch.equal(b, again[0])
    assert low_rank(low, 8)[2] < 1e-5


def test_the_dtype_is_as_asked(tmp_path, three):
    merge_adapters(three, [1.0] * 3, tmp_path / "out", dtype=torch.bfloat16)
    merged = Adapter(str(tmp_path / "out"))
    for module, factors in merged.modules.items():
        assert merged.dtype(factors.a) == merged.dtype(factors.b) == "BF16"
        want = summed(three, [1.0] * 3, module)
        scale = float(want.abs().max())
        torch.testing.assert_close(merged.delta(module).double(), want, rtol=0, atol=0.05 * scale)


def test_the_names_of_targets_are_in_full_where_layers_were_chosen(tmp_path):
    one = sides(tmp_path / "a", 1, ("model.layers.0.q",), layers_to_transform=[0])
    other = sides(tmp_path / "b", 2, ("model.layers.0.v",), target_modules=".*v")
    merge_adapters([one, other], [1, 1], tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.0.q", "model.layers.0.v"]


def test_names_that_end_alike_keep_their_ranks(tmp_path):
    """PEFT's patterns match the end of a name: `q` also matches `vision.q`."""
    rng = torch.Generator().manual_seed(0)
    one = factor_pair("q", 3, 4, 1, rng) | factor_pair("vision.q", 3, 4, 1, rng)
    other = factor_pair("vision.q", 3, 4, 1, rng)
    for i, tensors in enumerate((one, other)):
        write_adapter(tmp_path / str(i), tensors, r=1, target_modules=["q"])
    adapters = [Adapter(str(tmp_path / str(i))) for i in range(2)]
    merge_adapters(adapters, [1, 1], tmp_path / "out")
    merged = Adapter(str(tmp_path / "out"))
    assert {m: (f.rank, f.scale) for m, f in merged.modules.items()} == {
        "q": (1, 1.0), "vision.q": (2, 1.0)
    }  # fmt: skip


def problem(kind, *arguments, **named):
    with pytest.raises(kind) as raised:
        merge_adapters(*arguments, **named)
    return str(raised.value)


def test_bad_input_is_named_and_leaves_nothing(tmp_path, three):
    out = tmp_path / "out"
    names = set(os.listdir(tmp_path))
    assert "3 finite numbers" in problem(RecipeError, three, [1, 2], out)
    assert "3 finite numbers" in problem(RecipeError, three, [1, 2, math.nan], out)
    assert "at least one" in problem(RecipeError, [], [], out)
    assert "at least 1" in problem(RecipeError, three, [1] * 3, out, rank=0)
    assert "ties" in problem(RecipeError, three, [1] * 3, out, method="ties")
    (tmp_path / "c" / "x").mkdir()
    assert "existing" in problem(UserError, three, [1] * 3, tmp_path / "c")
    rng = torch.Generator()
    other = Adapter(
        str(write_adapter(tmp_path / "o", factor_pair("model.layers.0.q", 9, 8, 2, rng)))
    )
    text = problem(SourceError, [*three, other], [1] * 4, out)
    assert "[9, 8]" in text and "[9, 12]" in text and str(tmp_path / "o") in text
    fan = sides(tmp_path / "f", 1, fan_in_fan_out=True)
    assert "fan_in_fan_out" in problem(SourceError, [*three, fan], [1] * 4, out)
    saved = random_factors(0) | {f"{PREFIX}model.norm.weight": torch.ones(4)}
    saved = Adapter(str(write_adapter(tmp_path / "s", saved)))
    assert "model.norm.weight, saved whole" in problem(SourceError, [saved], [1], out)
    sick = random_factors(0)
    sick[f"{PREFIX}model.layers.3.mlp.lora_B.weight"][0, 0] = math.inf
    sick = Adapter(str(write_adapter(tmp_path / "n", sick)))
    assert "1 values of" in problem(SourceError, [sick], [1], out)
    assert "float16" in problem(EvomergeError, three, [1e6] * 3, out, dtype=torch.float16)
    assert "not finite" in problem(
        EvomergeError, three, [1] * 3, out, dense=lambda m: torch.full(SIDE[m], math.nan)
    )
    assert set(os.listdir(tmp_path)) - names == {"o", "f", "s", "n"}


def test_a_full_disk_leaves_nothing(tmp_path, three, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    names = set(os.listdir(tmp_path))
    for owner, part in ((adapter_merge, "save_file"), (os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, part, full)
            assert "No space left" in problem(EvomergeError, three, [1] * 3, tmp_path / "out")
        assert set(os.listdir(tmp_path)) == names


@pytest.mark.filterwarnings("ignore")
def test_peft_reads_the_result(tmp_path):
    """Embeddings and other ranks included; the sum of what PEFT itself merges for each."""
    peft = pytest.importorskip("peft")
    small = {"num_hidden_layers": 2, "tie_word_embeddings": False}
    base = {n: t.clone() for n, t in real_model("Llama", **small).state_dict().items()}
    chosen = [
        dict(r=2, lora_alpha=5, target_modules=["q_proj", "embed_tokens"], use_rslora=True),
        dict(r=3, target_modules=["q_proj", "down_proj"], rank_pattern={"1.self_attn.q_proj": 1}),
    ]
    adapters, weights, want = [], [0.75, -0.5], dict(base)
    for i, lora in enumerate(chosen):
        folder, adapted = peft_adapter(
            tmp_path / str(i), real_model("Llama", **small), seed=i, **lora
        )
        adapters.append(Adapter(str(folder)))
        for name, tensor in adapted.merge_and_unload().state_dict().items():
            want[name] = want[name] + weights[i] * (tensor - base[name])
    merge_adapters(adapters, weights, tmp_path / "out")
    loaded = peft.PeftModel.from_pretrained(real_model("Llama", **small), tmp_path / "out")
    merged = loaded.merge_and_unload().state_dict()
    for name, tensor in want.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-5)
    changed = {n for n in base if not torch.equal(want[n], base[n])}
    assert len(changed) == 5


def test_the_merged_adapter_adapts_a_model(tmp_path):
    base = write_folder(tmp_path / "b", random_tensors(0))
    adapters = [Adapter(str(write_adapter(tmp_path / str(i), random_factors(i)))) for i in (1, 2)]
    merge_adapters(adapters, [0.5, 0.5], tmp_path / "out")
    ours = open_model(f"{base}+{tmp_path / 'out'}")
    each = [open_model(f"{base}+{a.path}") for a in adapters]
    for name in ours.names:
        want = (each[0].tensor(name) + each[1].tensor(name)) / 2
        torch.testing.assert_close(ours.tensor(name), want, rtol=1e-5, atol=1e-5)
