"""Operators that decide element by element against float64 loops written from their formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evomerge import operators
from evomerge.kernels.masks import indexed_draws
from evomerge.testing.operators import small_runs

SHAPES = [(), (1,), (30,), (6, 9), (1, 40), (40, 1), (3, 4, 5)]


def _merge(name, base, sources, **parameters):
    given_sources = [torch.from_numpy(np.asarray(x)) for x in sources]
    return operators.merge(name, torch.from_numpy(np.asarray(base)), given_sources, **parameters)


@st.composite
def merges(draw, most=4):
    shape, count = draw(st.sampled_from(SHAPES)), draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    base = rng.standard_normal(shape)
    deltas = [rng.standard_normal(shape) for _ in range(count)]
    if draw(st.booleans()):  # many exact zeros, as in a fine-tuned model
        deltas = [d * (rng.random(shape) < 0.6) for d in deltas]
    if draw(st.booleans()):  # few magnitudes, as differences of bfloat16 have
        base, deltas = np.round(base * 8) / 8, [np.round(d * 2) / 2 for d in deltas]
    base = np.asarray(base, np.float32)
    return base, [np.asarray(base + d, np.float32) for d in deltas]


def _flat(base, sources):
    base = base.astype(np.float32).ravel()
    deltas = [(x.ravel() - base).astype(np.float64).tolist() for x in sources]
    return base.astype(np.float64).tolist(), deltas


def quick(test):
    return settings(max_examples=80, deadline=None, derandomize=True)(test)


def _same(merged, expected, **tolerance):
    tolerance = tolerance or {"rtol": 1e-5, "atol": 1e-5}
    assert np.allclose(merged.numpy().ravel(), expected, **tolerance)


@given(merges(most=1), st.floats(0, 2))
@quick
def test_nearswap(merge, t):
    base, sources = merge
    b, [d] = _flat(base, sources)
    expected = [x + min(1.0, t / max(abs(y), 1e-6)) * y for x, y in zip(b, d, strict=True)]
    _same(_merge("nearswap", base, sources, t=t), expected)


def _active(deltas, i, epsilon):
    return [j for j, d in enumerate(deltas) if abs(d[i]) > epsilon]


@given(merges(), st.sampled_from([1e-5, 0.3, 0.7]))
@quick
def test_ram(merge, epsilon):
    base, sources = merge
    b, deltas = _flat(base, sources)
    expected = []
    for i, x in enumerate(b):
        who = _active(deltas, i, np.float32(epsilon))
        expected.append(x + (math.fsum(deltas[j][i] for j in who) / len(who) if who else 0.0))
    _same(_merge("ram", base, sources, epsilon=epsilon), expected)


@given(merges(), st.sampled_from([1e-5, 0.3, 0.7]), st.floats(0, 2), st.floats(0, 3))
@quick
def test_ramplus_tl(merge, epsilon, r, alpha):
    base, sources = merge
    b, deltas = _flat(base, sources)
    who = [_active(deltas, i, np.float32(epsilon)) for i in range(len(b))]
    factors = []
    for j in range(len(deltas)):
        unique = sum(w == [j] for w in who)
        shared = sum(j in w and len(w) > 1 for w in who)
        factors.append(1 + r * min(alpha, shared / unique) if unique else None)
    expected = []
    for i, x in enumerate(b):
        if len(who[i]) == 1:
            x += factors[who[i][0]] * deltas[who[i][0]][i]
        elif who[i]:
            x += math.fsum(deltas[j][i] for j in who[i]) / len(who[i])
        expected.append(x)
    _same(_merge("ramplus_tl", base, sources, r=r, alpha=alpha, epsilon=epsilon), expected)


def _varying_most(variances, k):
    """The k largest; of those equal to the k-th the ones whose draws leave k on average."""
    if not k:
        return set()
    last = sorted(variances, reverse=True)[k - 1]
    equal, missing = variances.count(last), k - sum(v > last for v in variances)
    drawn = indexed_draws(0, len(variances)).tolist()
    return {
        i for i, v in enumerate(variances)
        if v > last or (v == last and drawn[i] * equal < missing * 2**24)
    }  # fmt: skip


@given(merges(), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
@quick
def test_sce(merge, share):
    base, sources = merge
    b, deltas = _flat(base, sources)
    n, m = len(b), len(deltas)
    chosen = set(range(n))
    if share < 1:
        variances = [float(np.float32(np.var([d[i] for d in deltas]))) for i in range(n)]
        chosen = _varying_most(variances, int(np.count_nonzero(variances) * share))
    deltas = [[x if i in chosen else 0.0 for i, x in enumerate(d)] for d in deltas]
    squares = [math.fsum(x * x for x in d) / n for d in deltas]
    total = math.fsum(squares)
    weights = [s / total for s in squares] if total >= 1e-6 else [1 / m] * m
    expected, undecided = [], []
    for i, x in enumerate(b):
        own = [d[i] for d in deltas]
        positive = math.fsum(own) >= 0
        agreeing = [j for j, y in enumerate(own) if (y > 0 if positive else y < 0)]
        divisor = max(math.fsum(weights[j] for j in agreeing), 1e-6)
        expected.append(x + math.fsum(weights[j] * own[j] for j in agreeing) / divisor)
        undecided.append(0 < abs(math.fsum(own)) < 1e-5)
    merged = _merge("sce", base, sources, select_topk=share).numpy().ravel()
    assert (np.isclose(merged, expected, rtol=1e-5, atol=1e-5) | undecided).all()


def _importance(base, source):
    """|d| * KL for vectors along the last dimension, float64."""
    width = base.shape[-1] if base.ndim else 1
    xs, bs = (t.astype(float).reshape(-1, width) for t in (source, base))
    out = np.zeros_like(xs)
    for row, (x, b) in enumerate(zip(xs, bs, strict=True)):
        p = [math.exp(v - max(x)) for v in x]
        q = [math.exp(v - max(b)) for v in b]
        p = [v / math.fsum(p) + 1e-8 for v in p]
        q = [v / math.fsum(q) + 1e-8 for v in q]
        divergence = math.fsum(a * math.log(a / c) for a, c in zip(p, q, strict=True))
        out[row] = np.abs(x - b) * divergence
    return out.ravel()


@given(merges(most=1), st.booleans())
@quick
def test_arcee_fusion(merge, split):
    base, sources = merge
    importance = _importance(base, sources[0])
    ordered = sorted(importance)
    first, median, third = (ordered[int(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (third - first)
    expected = np.where(importance >= threshold, sources[0].ravel(), base.ravel())
    if split:  # vectors and tensors in several blocks
        with small_runs(16):
            merged = _merge("arcee_fusion", base, sources)
    else:
        merged = _merge("arcee_fusion", base, sources)
    near = np.abs(importance - threshold) <= 1e-5 * max(threshold, 1e-9)
    assert ((merged.numpy().ravel() == expected) | near).all()


def test_arcee_fusion_takes_exact_quartiles_of_a_large_tensor():
    """2.1 million elements: quartiles of all of them, not of a sample."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((3000, 700)).astype(np.float32)
    source = base + 0.1 * rng.standard_normal(base.shape).astype(np.float32)
    p, q = (torch.from_numpy(x).double().softmax(-1) + 1e-8 for x in (source, base))
    divergence = (p * (p / q).log()).sum(-1, keepdim=True)
    importance = (divergence * torch.from_numpy(np.abs(source - base))).flatten()
    ordered = importance.sort().values
    n = len(ordered) - 1
    threshold = ordered[n // 2] + 1.5 * (ordered[3 * n // 4] - ordered[n // 4])
    merged = _merge("arcee_fusion", base, [source]).flatten()
    sure = (importance - threshold).abs() > 1e-6 * threshold
    both = [torch.from_numpy(x).flatten() for x in (source, base)]
    assert torch.equal(merged[sure], torch.where(importance >= threshold, *both)[sure])
    assert sure.sum() > 0.999 * len(sure)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_sce_selects_exactly_as_many_as_asked_for(share):
    rng = np.random.default_rng(0)
    base = np.zeros((40, 50), np.float32)
    sources = [rng.standard_normal((40, 50)).astype(np.float32) for _ in range(3)]
    variances = np.var(np.stack(sources).astype(float), axis=0)
    merged = _merge("sce", base, sources, select_topk=share).numpy()
    k = int(2000 * share)
    assert np.array_equal(merged != 0, variances >= np.sort(variances.ravel())[-k])
    assert np.count_nonzero(merged) == k


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("size", [64, 62])
def test_sce_selects_as_many_of_equal_ones_as_asked_for_on_average(share, size):
    rng = np.random.default_rng(0)
    base = np.zeros((40, 50), np.float32)
    sources = [(2.0 ** rng.integers(0, 2, (40, 50))).astype(np.float32) for _ in range(2)]
    variances = np.var(np.stack(sources), axis=0)
    varied = np.count_nonzero(variances)  # all of them by the same
    merged = _merge("sce", base, sources, select_topk=share)
    with small_runs(size):
        assert torch.equal(_merge("sce", base, sources, select_topk=share), merged)
    kept = merged.numpy() != 0
    assert not kept[variances == 0].any()
    low, high = stats.binom.interval(1 - 1e-9, varied, int(varied * share) / varied)
    assert low <= kept.sum() <= high
