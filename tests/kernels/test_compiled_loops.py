"""The loops for GPUs: their functions equal torch's loops bit for bit, compiled and not."""

import itertools
import shutil
from unittest.mock import patch

import numpy as np
import pytest
import torch

from evomerge.kernels import compiled_loops, tensor_merge, view
from evomerge.kernels.compiled_loops import DTYPES, ROW, CompiledLoops
from evomerge.kernels.masks import MaskKey, draws, indexed_draws, indexed_draws_at
from evomerge.kernels.plans import All, Band, Blockwise, Chance, Combination, RankedChance, Thinned
from evomerge.kernels.select import EVERYTHING, NOTHING
from evomerge.kernels.tensor_merge import TensorMerge
from evomerge.kernels.torch_loops import TorchLoops
from evomerge.kernels.view import View
from evomerge.kernels.weight import Stored
from evomerge.testing.operators import small_runs

TORCH, COMPILED = TorchLoops(), CompiledLoops()
KEY = MaskKey(1, "source", "tensor")
SIZES = [0, 1, 300, ROW, 2 * ROW, 3 * ROW + 7]
BANDS = [(NOTHING, EVERYTHING), ((2.0, 2.5, 300), (0.7, 0.8, 1 << 22)), (NOTHING, (0.5, 0.5, 0))]
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")


@pytest.fixture
def eager():
    """Runs what would be compiled as it is."""
    made = compiled_loops._MAKERS
    with patch.object(compiled_loops, "_variant", lambda kind, how, dtypes: made[kind](*how)):
        yield


def tensors(size, dtype, count):
    rng = torch.Generator().manual_seed(size)
    return [torch.randn(size, generator=rng).to(dtype) for _ in range(count)]


def both(size, dtype, call):
    outs = [torch.full((size,), 9.0, dtype=dtype) for _ in range(2)]
    counts = [int(call(loops, out)) for loops, out in zip((COMPILED, TORCH), outs, strict=True)]
    assert torch.equal(*outs)
    assert counts[0] == counts[1]
    return outs[0]


def thin(loops, out, base, xs, start, normalize, consensus, kinds=(0, 1, 2, 3, 4)):
    chance = loops.chance(KEY, 1 << 23, base, xs[3], start, False)[0]
    mask = torch.arange(len(base), device=base.device) % 3 == 0
    keeps = [[*BANDS, chance, mask][k] for k in kinds]
    factors, weights = [0.4, -0.3, 1.1, 0.2, 0.3], [0.5, -0.2, 0.9, 0.2, 0.1]
    m = len(kinds)
    return loops.thin(
        out, base, xs[:m], factors[:m], weights[:m], keeps, 0.8, normalize, consensus, 1e-6, start
    )


@pytest.mark.parametrize("start", [0, 1, 2**33 + 1])
def test_draws_are_those_of_masks(start):
    at = torch.arange(start, start + 99)
    assert torch.equal(indexed_draws_at(at), indexed_draws(start, start + 99))
    mask = COMPILED.chance(KEY, 1 << 22, at, at, start, False)[0]
    assert torch.equal(compiled_loops._chosen(mask, at), draws(KEY, start, start + 99) < 1 << 22)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_where_rounding_ends_in_infinity(dtype):
    least = torch.tensor(DTYPES[dtype])
    below = torch.nextafter(least, torch.tensor(0.0))
    assert torch.isinf(least.to(dtype))
    assert torch.isfinite(below.to(dtype))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("given", "wanted"), list(itertools.product(DTYPES, DTYPES)), ids=str)
def test_combine(size, given, wanted):
    xs = tensors(size, given, 4)
    one = torch.tensor([0.3, 0.0, -1.7, 1.0])
    table = torch.randn(size // 7 + 2, 4, generator=torch.Generator().manual_seed(1))
    table[::3, 1] = 0.0
    for c in (one, table, torch.zeros(4)):
        both(size, wanted, lambda loops, out, c=c: loops.combine(out, xs, c, 0.25, 5, 7))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("normalize", "consensus"), itertools.product([False, True], repeat=2))
def test_thin(size, dtype, normalize, consensus):
    base, *xs = tensors(size, dtype, 6)
    for wanted, start in ((dtype, 0), (torch.float32, 37)):
        both(
            size, wanted,
            lambda loops, out, s=start: thin(loops, out, base, xs, s, normalize, consensus),
        )  # fmt: skip


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("size", SIZES)
def test_sums_of_a_random_mask(size):
    base, x = tensors(size, torch.bfloat16, 2)
    found = COMPILED.chance(KEY, 1 << 22, base, x, 5, True)[1:]
    mask = draws(KEY, 5, 5 + size) < 1 << 22
    d = (x.float() - base.float()).abs().double()
    assert found == pytest.approx((float(d.sum()), float(d[mask].sum())), rel=1e-6)
    assert found == pytest.approx(TORCH.chance(KEY, 1 << 22, base, x, 5, True)[1:], rel=1e-13)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("size", [5, 3 * ROW + 7])
def test_bad_values_are_counted_without_waiting(size):
    x = torch.full((size,), 300.0)
    x[::5] = float("nan")
    out = torch.empty(size, dtype=torch.float16)
    found = COMPILED.combine(out, [x], torch.tensor([300.0]), 0.0, 0, 1)
    assert isinstance(found, torch.Tensor) and int(found) == size
    found = COMPILED.combine(out, [x], torch.tensor([1.0]), 0.0, 0, 1)
    assert int(found) == int(COMPILED.non_finite(out)) == -(-size // 5)


W = (0.5, 0.4, -0.3)
PLANS = {
    "combination": Combination((0.1, 0.0, -0.3), 0.5, offset=0.7),
    "rows": Combination((np.arange(17) * 1.0, 0.2, np.linspace(0, 1, 17)), 0.5),
    "copied": Combination((0.0, 1.0, 0.0), 0.0),
    "bands": Thinned(W, (Band(300), Band(100, 10), All()), consensus=True, normalize=True),
    "chances": Thinned(W, (Chance(0.3), Chance(0.7), Chance(0.0)), 0.7, rescale="l1"),
    "ranked": Thinned(W, (RankedChance(0.3, 0.1), Chance(0.7), Band(9)), rescale="l1"),
    "blockwise": Blockwise(lambda start, base, xs: base * 0.5 + xs[2]),
}


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", PLANS)
def test_whole_plans(name):
    rng = torch.Generator().manual_seed(3)
    base, *xs = [torch.randn(17, 59 * 5, generator=rng).bfloat16() for _ in range(4)]
    keys = [MaskKey(1, str(i), "t") for i in range(3)]
    outs = []
    for loops in (COMPILED, TORCH):
        with (
            patch.object(view, "loops_for", lambda _, loops=loops: loops),
            patch.object(tensor_merge, "loops_for", lambda _, loops=loops: loops),
            small_runs(2100),
        ):
            seen = View(Stored(base), [Stored(x) for x in xs], keys)
            outs.append(torch.empty(base.shape))
            assert TensorMerge(seen, PLANS[name]).write(outs[-1]) == 0
    assert torch.equal(*outs)


def test_runs_on_a_device_are_large():
    big = torch.empty(3 << 25, device="meta", dtype=torch.bfloat16)
    assert [b - a for a, b in View(None, [Stored(big)]).runs()] == [1 << 25] * 3
    small = View(None, [Stored(torch.empty(3 << 20, dtype=torch.bfloat16))])
    assert [b - a for a, b in small.runs()] == [1 << 20] * 3


def test_where_compiling_fails_torch_does_it(monkeypatch):
    def broken(*_):
        raise RuntimeError("no compiler")

    compiled_loops.compiled_loops.cache_clear()
    monkeypatch.setattr(compiled_loops, "_variant", broken)
    with pytest.warns(UserWarning, match="no compiler"):
        assert compiled_loops.compiled_loops("cpu") is None
    compiled_loops.compiled_loops.cache_clear()


@needs_compiler
@pytest.mark.slow
def test_compiled_for_the_cpu():
    """inductor's own code for a CPU; one variant does all lengths, places and coefficients."""
    for size, c in ((3 * ROW + 7, [0.3, -1.7]), (2 * ROW, [0.1, 0.2])):
        xs = tensors(size, torch.bfloat16, 2)
        both(
            size, torch.bfloat16,
            lambda loops, out, xs=xs, c=c: loops.combine(out, xs, torch.tensor(c), 0.25, 5, 1),
        )  # fmt: skip
    stance = getattr(torch.compiler, "set_stance", None)
    for i, (size, start) in enumerate(((2 * ROW, 0), (3 * ROW + 7, 37))):
        base, *xs = tensors(size, torch.bfloat16, 6)
        if i and stance:
            stance("fail_on_recompile")
        try:
            both(
                size, torch.bfloat16,
                lambda loops, out, b=base, xs=xs, s=start: thin(
                    loops, out, b, [xs[0], xs[1], xs[2], xs[3]], s, True, True, (1, 3)
                ),
            )  # fmt: skip
        finally:
            if stance:
                stance("default")
