"""Plans carried out on whole tensors."""

import numpy as np
import pytest
import torch
from scipy import stats

from evomerge.kernels import tensor_merge
from evomerge.kernels.loops import native_available
from evomerge.kernels.masks import MaskKey, draws
from evomerge.kernels.plans import (
    All,
    Band,
    Blockwise,
    Chance,
    Combination,
    RankedChance,
    Thinned,
)
from evomerge.kernels.tensor_merge import TensorMerge
from evomerge.kernels.view import View
from evomerge.kernels.weight import Stored
from evomerge.testing.operators import small_runs, torch_loops

W = (0.5, 0.4, -0.3)
ROWS = {(1003,): 1, (17, 59): 17, (3, 20, 31): 3}


def plans(rows):
    return {
        "combination": Combination((0.1, 0.0, -0.3), 0.5, offset=0.7),
        "rows": Combination((np.arange(rows) * 1.0, 0.2, np.linspace(0, 1, rows)), 0.5),
        "bands": Thinned(
            W, (Band(300), Band(100, 10), All()), consensus=True, normalize=True, rescale="l1"
        ),
        "bands, plain": Thinned(W, (Band(300), Band(100, 10), All()), 0.7, normalize=True),
        "bands, density": Thinned(W, (Band(300), Band(0, 10), All()), rescale="density"),
        "chances": Thinned(
            W, (Chance(0.3), Chance(0.7), Chance(0.0)), 0.7, consensus=True, rescale="l1"
        ),
        "chances, density": Thinned(
            W, (Chance(0.3), Chance(1.0), Band(50)), 0.7, rescale="density"
        ),
        "ranked": Thinned(
            W, (RankedChance(0.3, 0.15), RankedChance(0.7, 0.2), RankedChance(0.5, 0.0)),
            consensus=True, normalize=True, rescale="l1",
        ),
        "ranked, plain": Thinned(
            W, (RankedChance(0.3, 0.3), RankedChance(1.0, 0.0), RankedChance(0.0, 0.0))
        ),
        "blockwise": Blockwise(
            lambda start, base, xs: base * torch.arange(start, start + len(base)) + xs[2]
        ),
    }  # fmt: skip


def view_of(shape, dtypes=(torch.float32,) * 4):
    rng = torch.Generator().manual_seed(3)
    base = torch.randn(shape, generator=rng)
    xs = [base + 0.1 * torch.randn(shape, generator=rng) for _ in range(3)]
    tensors = [t.to(d) for t, d in zip((base, *xs), dtypes, strict=True)]
    keys = [MaskKey(1, str(i), "t") for i in range(3)]
    return View(Stored(tensors[0]), [Stored(x) for x in tensors[1:]], keys)


def written(view, plan, dtype=torch.float32):
    out = torch.empty(view.shape, dtype=dtype)
    assert TensorMerge(view, plan).write(out) == 0
    return out


MIXED = (torch.bfloat16, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("name", plans(1))
@pytest.mark.parametrize("shape", ROWS, ids=str)
@pytest.mark.parametrize("dtypes", [(torch.bfloat16,) * 4, MIXED], ids=["bf16", "mixed"])
@pytest.mark.parametrize("size", [256, 251], ids=["even", "odd"])
def test_compiled_and_torch_loops_agree(name, shape, dtypes, size):
    """Runs of both kinds: they begin at even elements alone, or at odd ones, too."""
    if not native_available():
        pytest.skip("no C compiler")
    plan = plans(ROWS[shape])[name]
    with small_runs(size):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            out = written(view_of(shape, dtypes), plan, dtype)
            with torch_loops():
                assert torch.equal(written(view_of(shape, dtypes), plan, dtype), out)


@pytest.mark.parametrize("name", ["chances", "ranked"])
def test_masks_that_are_not_kept_are_drawn_again(name, monkeypatch):
    plan = plans(17)[name]
    with small_runs(256):
        out = written(view_of((17, 59)), plan)
        monkeypatch.setattr(tensor_merge, "_MASKS", 0)
        assert torch.equal(written(view_of((17, 59)), plan), out)


@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_a_coefficient_a_row(shape):
    rows = ROWS[shape]
    view, factors = view_of(shape), np.random.default_rng(0).standard_normal((3, rows))
    base = np.linspace(-1, 1, rows)
    out = written(view, Combination(tuple(factors), base)).double().view(rows, -1).numpy()
    read = [t.double().view(rows, -1).numpy() for t in (view.base.tensor,
            *(s.tensor for s in view.sources))]  # fmt: skip
    expected = sum(c[:, None] * t for c, t in zip((base, *factors), read, strict=True))
    assert np.allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_a_block_knows_where_it_begins():
    plan = Blockwise(lambda start, base, xs: torch.arange(start, start + len(base)).float())
    with small_runs(64):
        assert torch.equal(written(view_of((7, 99)), plan).flatten(), torch.arange(693.0))
        assert torch.equal(TensorMerge(view_of((7, 99)), plan).read(5, 500), torch.arange(5.0, 500))


@pytest.mark.parametrize("name", plans(1))
def test_values_that_are_not_finite_are_counted(name):
    view = view_of((17, 59))
    view.sources[2].tensor[3, 4] = float("nan")
    view.base.tensor[3, 6] = float("inf")
    out = torch.empty(17, 59)
    with small_runs(256):
        bad = TensorMerge(view, plans(17)[name]).write(out)
    assert bad == int((~torch.isfinite(out)).sum())
    assert bad >= 1


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_an_l1_norm_is_kept(share):
    view = view_of((17, 59))
    for keep in (Band(int(1003 * share)), Chance(share), RankedChance(share, share)):
        out = written(view, Thinned((1.0, 0.0, 0.0), (keep, All(), All()), rescale="l1"))
        deltas = [t.double() - view.base.tensor for t in (out, view.sources[0].tensor)]
        assert float(deltas[0].abs().sum()) == pytest.approx(float(deltas[1].abs().sum()), rel=1e-5)


# -- which elements of one source are kept ---------------------------------------------------------

SURE = 1 - 1e-9


def kept_of(delta, keep, seed=1, dtype=torch.float32):
    """Where the merge of one source with a base of zeros is not zero."""
    x = delta.to(dtype)
    view = View(Stored(torch.zeros_like(x)), [Stored(x)], [MaskKey(seed, "0", "t")])
    return written(view, Thinned((1.0,), (keep,))) != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("skip", "keep"), [(0, 3000), (500, 3000), (2500, 7000), (9000, 1000)])
def test_a_band_keeps_its_number(dtype, skip, keep):
    """Exactly in float32, within binomial bounds of what is in the two bins of its ends else."""
    order = torch.randperm(10_000, generator=torch.Generator().manual_seed(2)).view(100, 100)
    delta = (order + 1) * 1e-3 * (1 - 2 * (order % 2))
    a = delta.to(dtype).float().abs()
    kept, ordered = kept_of(delta, Band(keep, skip), dtype=dtype), a.flatten().sort().values.flip(0)
    if dtype is torch.float32:
        outer = ordered[keep + skip - 1]
        inner = ordered[skip - 1] if skip else torch.inf
        assert torch.equal(kept, (a >= outer) & (a < inner))
        return
    ends = [float(ordered[i - 1]) for i in (skip, keep + skip) if 0 < i < len(ordered)]
    doubtful = torch.zeros_like(kept)
    for end in ends:
        doubtful |= (a >= end * (1 - 2**-9)) & (a <= end * (1 + 2**-9))
    spread = stats.norm.ppf((1 + SURE) / 2) * (0.25 * float(doubtful.sum())) ** 0.5 + 1
    assert abs(int(kept.sum()) - keep) <= spread
    sure = ~doubtful & (a <= (ends[0] if skip else torch.inf)) & (a >= ordered[keep + skip - 1])
    assert kept[sure].all() and not kept[~doubtful & ~sure].any()
    assert int(sure.sum()) > 0.9 * keep


def crowded(rows, length, shares=(0.35, 0.05, 0.4, 0.2)):
    """Rows of four magnitudes, none of them 0, each row in an order of its own."""
    counts = [round(s * length) for s in shares]
    row = torch.cat([torch.full((c,), float(i + 1)) for i, c in enumerate(counts)])
    rng = torch.Generator().manual_seed(4)
    sign = torch.randint(0, 2, (rows, len(row)), generator=rng) * 2 - 1
    order = torch.stack([torch.randperm(len(row), generator=rng) for _ in range(rows)])
    return row[order] * sign, counts


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.5), (0.3, 0.25), (0.8, 0.2)])
@pytest.mark.parametrize("shape", [(400, 100), (1, 40_000), (2000, 20)], ids=str)
def test_a_crowd_has_the_probability_of_its_mean_rank(density, epsilon, shape):
    delta, counts = crowded(*shape)
    kept = kept_of(delta if shape[0] > 1 else delta[0], RankedChance(density, epsilon))
    kept = kept.view(delta.shape)
    low, high = stats.binom.interval(SURE, delta.numel(), density)
    levels = min(32, shape[1])
    step = 2 * epsilon / (levels - 1)  # a level is as exact as the mean rank can be
    slack = step * 0.5 * delta.numel()
    assert low - slack <= int(kept.sum()) <= high + slack
    first = 0
    for i, count in enumerate(counts):
        crowd = delta.abs() == i + 1
        rank = (first + (count - 1) / 2) / (shape[1] - 1)
        p = density - epsilon + 2 * epsilon * rank
        error = stats.norm.ppf((1 + SURE) / 2) * (0.25 / int(crowd.sum())) ** 0.5
        assert abs(float(kept[crowd].float().mean()) - p) < error + step / 2 + 1e-6
        first += count


@pytest.mark.parametrize("length", [2, 3, 7, 31, 32, 33, 50, 1000])
@pytest.mark.parametrize("one_row", [False, True])
def test_without_ties_an_element_has_the_probability_of_its_level(length, one_row):
    rng = torch.Generator().manual_seed(length)
    rows = 1 if one_row else 30
    delta = torch.randn(rows, length, generator=rng) + 3
    rank = delta.abs().argsort(dim=1).argsort(dim=1)
    levels = min(32, length)
    p = 0.1 + 0.6 * (rank * levels // length).double() / (levels - 1)
    for seed in range(5):
        drawn = draws(MaskKey(seed, "0", "t"), 0, rows * length).double().view(rows, length)
        given = delta[0] if one_row else delta
        kept = kept_of(given, RankedChance(0.4, 0.3), seed).view(rows, length)
        sure = (drawn / 2**24 - p).abs() > 1e-6
        assert torch.equal(kept[sure], (drawn / 2**24 < p)[sure])
