"""Cuts from histograms against sorting: exact without ties, by draws among equals."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from evomerge.kernels import select
from evomerge.kernels.masks import indexed_draws
from evomerge.kernels.passes import keeps, largest, over_blocks
from evomerge.kernels.select import EVERYTHING, NOTHING, SHIFT, Histogram, within
from evomerge.kernels.view import View
from evomerge.kernels.weight import Stored
from evomerge.testing.operators import small_runs, torch_loops

SURE = 1 - 1e-9


def k_largest(a, k):
    """Brute force; of those equal to the k-th largest, by their draws, as many as are missing."""
    value = a.sort(descending=True).values[k - 1]
    equal, missing = int((a == value).sum()), k - int((a > value).sum())
    chosen = indexed_draws(0, len(a)) * equal < missing << 24
    return (a > value) | ((a == value) & chosen)


@st.composite
def values(draw, least=1):
    """Float32 numbers with few or many equal magnitudes, and neighbours within a bin."""
    count = draw(st.integers(least, 300))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["normal", "few", "one", "near", "wide", "zeros"]))
    x = rng.standard_normal(count)
    if kind == "few":
        x = rng.integers(-3, 4, count) * 0.25
    elif kind == "one":
        x = np.full(count, 0.5)
    elif kind == "near":
        x = 1 + rng.integers(0, 9, count) * 2.0**-23
    elif kind == "wide":
        x = 10.0 ** rng.uniform(-37, 38, count)
    elif kind == "zeros":
        x = x * (rng.random(count) < 0.3)
    return torch.from_numpy((x * rng.choice([-1, 1], count)).astype(np.float32))


def check(a, k, cut):
    """A cut of the k largest of magnitudes."""
    if k == 0:
        assert cut == NOTHING and not within(a, cut, 0).any()
    elif k >= len(a) or a.sort(descending=True).values[k - 1] == 0:  # zeros add nothing
        assert cut == EVERYTHING and within(a, cut, 0).all()
    else:
        assert torch.equal(within(a, cut, 0), k_largest(a, k))


def cuts_of(x, ks, compiled=True, size=64, base=None):
    view = View(base, [Stored(x)])
    with small_runs(size):
        if compiled:
            return view.cuts([(0, k) for k in ks])
        with torch_loops():
            return view.cuts([(0, k) for k in ks])


@pytest.mark.parametrize("most", [1 << 20, 5], ids=["sorted", "crowded"])
@pytest.mark.parametrize("with_base", [False, True])
@given(x=values(), share=st.floats(0, 1), size=st.sampled_from([64, 63]))
@settings(max_examples=60, deadline=None)
def test_a_view_cuts_as_sorting_does(most, with_base, x, share, size):
    k = int(share * len(x))
    wanted = [(0, k), (1, k), (0, len(x))]
    base = Stored(torch.zeros_like(x)) if with_base else None
    with pytest.MonkeyPatch.context() as patch, small_runs(size):
        patch.setattr(select, "_MOST", most)
        view = View(base, [Stored(x), Stored(x.flip(0))])
        cuts = view.cuts(wanted)
        with torch_loops():
            assert view.cuts(wanted) == cuts
    check(x.abs(), k, cuts[0])
    check(x.flip(0).abs(), k, cuts[1])
    assert cuts[2] == EVERYTHING


@given(seed=st.integers(0, 2**32), count=st.integers(1, 300), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_without_ties_exactly_the_k_largest_are_kept(seed, count, share):
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal(count).astype(np.float32))
    a, k = x.abs(), int(share * count)
    assume(len(a.unique()) == count)
    [cut] = cuts_of(x, [k])
    expected = torch.zeros(count, dtype=torch.bool)
    expected[a.sort(descending=True).indices[:k]] = True
    assert torch.equal(within(a, cut, 0), expected)


@given(x=values(least=2), k=st.integers(0, 300), more=st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_what_is_kept_grows_with_k(x, k, more):
    for given_x in (x, x.bfloat16()):
        small, large = cuts_of(given_x, [k, k + more])
        a = given_x.float().abs()
        assert bool((~within(a, small, 0) | within(a, large, 0)).all())


@pytest.mark.parametrize("share", [0.03, 0.2, 0.5, 0.81])
@pytest.mark.parametrize("levels", [1, 2, 7])
@pytest.mark.parametrize("most", [1 << 20, 50], ids=["sorted", "crowded"])
def test_ties_share_the_places_left(share, levels, most, monkeypatch):
    """Wherever in the tensor they are: each half has the share that is due to it."""
    monkeypatch.setattr(select, "_MOST", most)
    n = 20_000
    rng = torch.Generator().manual_seed(levels)
    a = torch.randint(1, levels + 1, (n,), generator=rng) * 0.37
    sign = torch.randint(0, 2, (n,), generator=rng) * 2 - 1
    k = int(share * n)
    [cut] = cuts_of(a * sign, [k], size=4096)
    kept, value = within(a, cut, 0), a.sort(descending=True).values[k - 1]
    assert kept[a > value].all() and not kept[a < value].any()
    chance = (k - int((a > value).sum())) / int((a == value).sum())
    for part in (slice(0, n // 2), slice(n // 2, n), slice(0, n, 2), slice(1, n, 2)):
        equal = a[part] == value
        low, high = stats.binom.interval(SURE, int(equal.sum()), chance)
        assert low <= int(kept[part][equal].sum()) <= high


@pytest.mark.parametrize("dtypes", [
    (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16),
    (torch.bfloat16, torch.float16), (None, torch.bfloat16),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("near", [1.0, 2**-6], ids=["far", "close"])
def test_sixteen_bits_are_cut_to_a_bin(dtypes, near):
    """Close sources differ by a few units in the last place: most magnitudes are shared."""
    n = 20_000
    rng = torch.Generator().manual_seed(7)
    b = torch.randn(n, generator=rng).to(dtypes[0] or torch.bfloat16)
    x = ((b.float() if dtypes[0] else 0) + near * torch.randn(n, generator=rng)).to(dtypes[1])
    a = (x.float() - b.float()).abs() if dtypes[0] else x.float().abs()
    base = Stored(b) if dtypes[0] else None
    ks = [int(s * n) for s in (0.001, 0.05, 0.3, 0.5, 0.7, 0.9)]
    found = cuts_of(x, ks, size=4096, base=base)
    assert cuts_of(x, ks, compiled=False, size=4096, base=base) == found
    ordered = a.sort(descending=True).values
    for k, (bottom, top, limit) in zip(ks, found, strict=True):
        value = float(ordered[k - 1])
        if value == 0:
            assert (bottom, top, limit) == EVERYTHING
            continue
        kept = within(a, (bottom, top, limit), 0)
        assert bottom <= value and top <= bottom * (1 + 2**-9)
        assert kept[a >= top].all() and not kept[a < bottom].any()
        inside = (a >= bottom) & (a < top)
        missing = k - int((a >= top).sum())
        if limit == 0:
            assert missing == 0
        else:
            low, high = stats.binom.interval(SURE, int(inside.sum()), missing / int(inside.sum()))
            assert low <= int(kept[inside].sum()) <= high


@pytest.mark.parametrize("dtypes", [
    (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)
], ids=str)  # fmt: skip
def test_a_float32_among_them_is_cut_exactly(dtypes):
    rng = torch.Generator().manual_seed(7)
    b, x = (torch.randn(30_000, generator=rng).to(d) for d in dtypes)
    a = (x.float() - b.float()).abs()
    ks = [1, 400, 12_345, 29_000]
    for k, cut in zip(ks, cuts_of(x, ks, base=Stored(b)), strict=True):
        assert torch.equal(within(a, cut, 0), k_largest(a, k))


@given(x=values(), bounds=st.tuples(*[st.floats(0, 2)] * 2), limit=st.integers(0, 1 << 24),
       start=st.one_of(st.integers(0, 9), st.integers(2**40, 2**40 + 9)))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_within_goes_by_the_draws_of_the_positions(x, bounds, limit, start):
    bottom, top = np.sort(np.array(bounds, np.float32)).tolist()
    a = x.abs()
    drawn = indexed_draws(start, start + len(a)).tolist()
    expected = [
        v >= top or (v >= bottom and d < limit) for v, d in zip(a.tolist(), drawn, strict=True)
    ]
    assert within(a, (bottom, top, limit), start).tolist() == expected


@pytest.mark.parametrize("most", [1 << 20, 5], ids=["sorted", "crowded"])
@given(x=values(), shares=st.lists(st.floats(0, 1), min_size=1, max_size=3),
       size=st.sampled_from([64, 62]))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_largest_of_computed_values(most, x, shares, size):
    """Of |x| + |y| with y = x reversed; each cut begins at the k-th largest."""

    def made(start, base, xs):
        return xs[0].abs() + xs[1].abs()

    total = x.abs() + x.flip(0).abs()
    ks = [max(1, int(s * len(x))) for s in shares]
    view = View(None, [Stored(x), Stored(x.flip(0))])
    with pytest.MonkeyPatch.context() as patch, small_runs(size):
        patch.setattr(select, "_MOST", most)
        found = largest(view, made, ks)
        kept = [
            torch.cat(over_blocks(view, lambda at, b, xs, c=c: keeps(c, made(at, b, xs), at)))
            for c in found
        ]
    ordered = total.sort(descending=True).values
    for k, cut, mask in zip(ks, found, kept, strict=True):
        assert max(0.0, cut[0]) == float(ordered[k - 1])
        assert torch.equal(mask, k_largest(total, k) | (total == 0) & (ordered[k - 1] == 0))


@given(x=values())
@settings(max_examples=60, deadline=None)
def test_places_in_a_histogram(x):
    a = x.abs()
    bits = a.view(torch.int32) >> SHIFT
    histogram = Histogram.of(torch.bincount(bits, minlength=1 << (31 - SHIFT)))
    ordered = a.sort(descending=True).values
    for k in range(1, len(x) + 1):
        number, rank, size = histogram.place(k)
        value = ordered[k - 1]
        assert number == int(value.view(torch.int32)) >> SHIFT
        assert size == int((bits == number).sum())
        assert rank == k - int((bits > number).sum())
