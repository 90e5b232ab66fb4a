"""Cuts from histograms against sorting, with ties counted by position."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.kernels import select
from evomerge.kernels.passes import largest
from evomerge.kernels.select import EVERYTHING, NOTHING, SHIFT, Histogram
from evomerge.kernels.view import View
from evomerge.kernels.weight import Stored
from evomerge.testing.operators import small_runs, torch_loops


def kept_by(cut, magnitudes):
    value, position = cut
    at = np.arange(len(magnitudes))
    return (magnitudes > value) | ((magnitudes == value) & (at < position))


def k_largest(magnitudes, k):
    """Brute force: sorted by magnitude, then by position."""
    order = sorted(range(len(magnitudes)), key=lambda i: (-magnitudes[i], i))
    out = np.zeros(len(magnitudes), bool)
    out[order[:k]] = True
    return out


@st.composite
def values(draw):
    """Float32 numbers with few or many equal magnitudes, and neighbours within a bin."""
    count = draw(st.integers(1, 300))
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


def check(x, k, cut):
    a = x.abs().numpy()
    kept, expected = kept_by(cut, a), k_largest(a, k)
    # where the k-th largest is 0, all zeros may be kept: they add nothing
    assert ((kept == expected) | (a == 0)).all()


@pytest.mark.parametrize("most", [1 << 20, 5], ids=["sorted", "crowded"])
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@given(x=values(), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_view_cuts_as_sorting_does(most, with_base, compiled, x, share):
    k = int(share * len(x))
    base = Stored(torch.zeros_like(x)) if with_base else None
    with pytest.MonkeyPatch.context() as patch, small_runs(64):
        patch.setattr(select, "_MOST", most)
        view = View(base, [Stored(x), Stored(x.flip(0))])
        if compiled:
            cuts = view.cuts([(0, k), (1, k), (0, len(x))])
        else:
            with torch_loops():
                cuts = view.cuts([(0, k), (1, k), (0, len(x))])
    check(x, k, cuts[0])
    check(x.flip(0), k, cuts[1])
    assert cuts[2] == EVERYTHING
    if k == 0:
        assert cuts[0] == NOTHING


@pytest.mark.parametrize("most", [1 << 20, 5], ids=["sorted", "crowded"])
@given(x=values(), shares=st.lists(st.floats(0, 1), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_the_largest_of_computed_values(most, x, shares):
    """Of |x| + |y| with y = x reversed; each cut's value is the k-th largest."""

    def made(start, base, xs):
        return xs[0].abs() + xs[1].abs()

    total = x.abs() + x.flip(0).abs()
    ks = [max(1, int(s * len(x))) for s in shares]
    with pytest.MonkeyPatch.context() as patch, small_runs(64):
        patch.setattr(select, "_MOST", most)
        found = largest(View(None, [Stored(x), Stored(x.flip(0))]), made, ks)
    for k, cut in zip(ks, found, strict=True):
        check(total, k, cut)
        assert max(0.0, cut[0]) == float(total.sort(descending=True).values[k - 1])


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
