"""Operators on thinned task vectors against element-by-element float64 loops, and statistics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from evomerge import operators
from evomerge.kernels.masks import MaskKey, draws, indexed_draws

FAMILY = {
    "ties": ("largest", True, True, False),
    "dare_linear": ("random", False, False, True),
    "dare_ties": ("random", True, False, True),
    "breadcrumbs": ("outliers", False, False, False),
    "breadcrumbs_ties": ("outliers", True, False, False),
    "della_linear": ("ranked", False, False, True),
    "della": ("ranked", True, True, True),
}
"""Operator: what it keeps, whether it elects signs, default of normalize and of rescale."""


def _largest(delta, density, skipped=0):
    """Which elements are kept of those that are largest in magnitude, no two of them equal."""
    assert len({abs(d) for d in delta}) == len(delta)
    order = sorted(range(len(delta)), key=lambda i: -abs(delta[i]))
    chosen = set(order[skipped:][: int(density * len(delta))])
    return [i in chosen for i in range(len(delta))]


def _kept(kind, delta, rows, density, extra, key):
    """One bool an element."""
    n = len(delta)
    if density >= 1 or density <= 0:
        return [density >= 1] * n
    if kind == "largest":
        return _largest(delta, max(density, 1 / n + 1e-12))
    if kind == "outliers":
        return _largest(delta, density, min(int(extra * n), n - int(density * n)))
    drawn = draws(key, 0, n).tolist()
    if kind == "random":
        return [k / 2**24 < density for k in drawn]
    extra = min(extra, density, 1 - density)
    length = n // rows
    levels = min(32, length)
    out = []
    for row in range(rows):
        own = delta[row * length : (row + 1) * length]
        for k, d in zip(drawn[row * length :], own, strict=False):
            # of a crowd of equal ones half have the least and half the largest rank among them
            smaller = sum(abs(other) < abs(d) for other in own)
            rank = smaller if k % 2 else sum(abs(other) <= abs(d) for other in own) - 1
            share = rank * levels // length / (levels - 1) if levels > 1 else 0.5
            p = density - extra + 2 * extra * share
            out.append(k / 2**24 < p)
    return out


def _thinned(kind, delta, rows, density, extra, key, rescale):
    kept = _kept(kind, delta, rows, density, extra, key)
    out = np.array([d if k else 0.0 for d, k in zip(delta, kept, strict=True)])
    if rescale == "l1" and np.abs(out).sum() > 0:
        return out * (math.fsum(np.abs(delta)) / math.fsum(np.abs(out)))
    if rescale == "density" and 0 < density < 1:
        share = density if kind in ("random", "ranked") else np.mean(kept)
        return out / share if share else out
    return out


def _mixed(base, deltas, weights, scale, normalize, elect):
    out = np.zeros_like(base)
    for i in range(len(base)):
        terms = [w * d[i] for w, d in zip(weights, deltas, strict=True)]
        taking_part = range(len(terms))
        if elect:
            positive = sum(terms) >= 0
            taking_part = [j for j, t in enumerate(terms) if (t > 0 if positive else t < 0)]
        divisor = math.fsum(weights[j] for j in taking_part) if normalize else 1.0
        divisor = divisor if abs(divisor) > 1e-5 else 1.0
        out[i] = base[i] + scale * math.fsum(terms[j] for j in taking_part) / divisor
    return out


def _undecided(deltas, weights):
    """Elements whose elected sign or divisor is a matter of float32 rounding."""
    terms = np.array([w * d for w, d in zip(weights, deltas, strict=True)])
    sign = np.where(terms.sum(0) >= 0, 1.0, -1.0)
    divisor = (np.array(weights)[:, None] * (np.sign(terms) == sign)).sum(0)
    close = np.abs(terms.sum(0)) < 1e-4 * (np.abs(terms).sum(0) + 1e-12)
    small = (np.abs(divisor) < 1e-2) & (np.abs(divisor) > 0)
    return (close & (np.abs(terms).sum(0) > 0)) | small


@st.composite
def merges(draw):
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    count = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tensors = rng.standard_normal((count + 1, rows, length)).astype(np.float32)

    def numbers(one):
        return draw(st.lists(one, min_size=count, max_size=count))

    weights = numbers(st.floats(-2, 2).filter(lambda w: w == 0 or abs(w) > 0.05))
    share = st.integers(0, 64).map(lambda i: i / 64)
    deltas = tensors[1:] - tensors[0]
    assume(all(len(np.unique(np.abs(d))) == d.size for d in deltas))
    return (
        tensors[0],
        list(tensors[1:]),
        weights,
        numbers(share),
        numbers(share),
        draw(st.booleans()),
    )


@pytest.mark.parametrize(
    "flags",
    [{}, {"normalize": True}, {"normalize": False, "rescale": False, "lambda_": -0.7},
     {"rescale": True, "rescale_norm": "l1"},
     {"rescale": True, "rescale_norm": "density", "lambda_": 0.4}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", FAMILY)
@given(merge=merges())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_equals_the_loops(name, flags, merge):
    base, sources, weights, densities, extras, crowded = merge
    kind, elect, normalize, rescale = FAMILY[name]
    if crowded and kind in ("random", "ranked"):  # few magnitudes, as of bfloat16 files
        base, sources = np.round(base * 2) / 2, [np.round(x * 2) / 2 for x in sources]
    keys = [MaskKey(3, f"source{i}", "tensor") for i in range(len(sources))]
    third = {"outliers": {"gamma": extras}, "ranked": {"epsilon": extras}}.get(kind, {})
    merged = operators.merge(
        name, torch.from_numpy(base), [torch.from_numpy(x) for x in sources], keys=keys,
        weight=weights, density=densities, **third, **flags,
    )  # fmt: skip
    norm = flags.get("rescale_norm", "l1") if flags.get("rescale", rescale) else None
    deltas = [
        _thinned(kind, (x - base).ravel().astype(np.float64), len(base), p, e, key, norm)
        for x, p, e, key in zip(sources, densities, extras, keys, strict=True)
    ]
    normalize = flags.get("normalize", normalize)
    scale = flags.get("lambda_", 1.0)
    expected = _mixed(base.ravel().astype(float), deltas, weights, scale, normalize, elect)
    divisor = abs(math.fsum(weights)) if normalize and not elect else 1.0
    size = max(1.0, *(float(np.abs(w * d).max()) for w, d in zip(weights, deltas, strict=True)))
    size /= min(1.0, divisor) if divisor > 1e-5 else 1.0  # rounding is divided by it, too
    fine = np.isclose(merged.numpy().ravel(), expected, rtol=2e-5, atol=2e-6 * size)
    assert (fine | (_undecided(deltas, weights) if elect else False)).all()


# -- in distribution ----------------------------------------------------------------------------

N = 40_000
KEYS = [MaskKey(seed, "a", "w") for seed in range(3)]


def _kept_by(name, delta, key, **parameters):
    """Where a merge of one source differs from a base of zeros."""
    out = operators.merge(
        name, torch.zeros_like(delta), [delta], keys=[key], weight=[1.0], rescale=False,
        **parameters,
    )  # fmt: skip
    return (out != 0).numpy()


def _normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("density", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_keeps_a_binomial_number(name, density, key):
    kept = _kept_by(name, _normal(200, 200), key, density=[density]).sum()
    low, high = stats.binom.interval(1 - 1e-6, N, density)
    assert low <= kept <= high


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.3), (0.2, 0.15), (0.9, 0.5)])
@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_della_keeps_by_rank_in_the_row(name, density, epsilon, key):
    """In ten groups of ranks the kept fraction rises along a line, five standard errors wide."""
    delta = _normal(200, 200) * torch.rand(200, 1, generator=torch.Generator().manual_seed(1))
    kept = _kept_by(name, delta, key, density=[density], epsilon=[epsilon])
    epsilon = min(epsilon, density, 1 - density)
    rank = delta.abs().argsort(dim=1).argsort(dim=1).numpy()
    p = density - epsilon + 2 * epsilon * (rank / 199)
    low, high = stats.binom.interval(1 - 1e-6, N, density)
    assert low <= kept.sum() <= high
    for group in range(10):
        inside = rank // 20 == group
        error = math.sqrt(0.25 / inside.sum())
        assert abs(kept[inside].mean() - p[inside].mean()) < 5 * error + epsilon / 31


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_rescaling_by_the_density_is_unbiased(name):
    """The mean over many masks is the task vector itself: 5 standard errors of each element."""
    density, times = 0.3, 2000
    delta = _normal(20)
    total = torch.zeros(20, dtype=torch.float64)
    for seed in range(times):
        total += operators.merge(
            name, torch.zeros(20), [delta], keys=[MaskKey(seed, "a", "w")], weight=[1.0],
            density=[density], rescale_norm="density",
        )  # fmt: skip
    error = delta.abs() * math.sqrt((1 - density) / density / times)
    assert ((total / times - delta).abs() < 5 * error).all()


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
@pytest.mark.parametrize("density", [0.1, 0.6])
def test_rescaling_by_l1_keeps_the_l1_norm(name, density):
    base, source = _normal(60, 50), torch.flip(_normal(60, 50), (0,))
    merged = operators.merge(name, base, [source], weight=[1.0], density=[density])
    norm = float((source - base).double().abs().sum())
    assert float((merged - base).double().abs().sum()) == pytest.approx(norm, rel=1e-5)


def test_sources_are_dropped_independently_of_each_other():
    delta = torch.ones(200, 200)
    one, other = (
        _kept_by("dare_linear", delta, MaskKey(0, s, "w"), density=[0.5]).astype(float).ravel()
        for s in "ab"
    )
    assert abs(stats.pearsonr(one, other).statistic) < 5 / math.sqrt(N)


# -- equal magnitudes ---------------------------------------------------------------------------

SURE = 1 - 1e-9


def _crowded(*shape):
    """Integers from 1 to 5 in magnitude."""
    rng = torch.Generator().manual_seed(6)
    sign = 1 - 2 * torch.randint(0, 2, shape, generator=rng)
    return (torch.randint(1, 6, shape, generator=rng) * sign).float()


def _expected_among_equals(a, k):
    """By their draws, so that k elements are kept on average."""
    value = np.sort(a)[::-1][k - 1]
    equal, missing = (a == value).sum(), k - (a > value).sum()
    drawn = indexed_draws(0, len(a)).numpy()
    return (a > value) | ((a == value) & (drawn * equal < missing << 24))


@pytest.mark.parametrize("density", [0.01, 0.25, 0.5, 0.77])
@pytest.mark.parametrize(
    ("name", "gamma"),
    [("ties", 0.0), ("breadcrumbs", 0.0), ("breadcrumbs", 0.11), ("breadcrumbs_ties", 0.2)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_are_broken_by_draws(name, gamma, density, dtype):
    """What is larger than the last kept is kept, what is smaller is not, of equals a share."""
    delta = _crowded(200, 200).to(dtype)
    a = delta.float().abs().numpy().ravel()
    extra = {} if name == "ties" else {"gamma": [gamma]}
    kept = _kept_by(name, delta, KEYS[0], density=[density], **extra).ravel()
    skip, keep = int(gamma * N), int(density * N)
    outer = _expected_among_equals(a, skip + keep)
    inner = _expected_among_equals(a, skip) if skip else np.zeros(N, bool)
    assert not (inner & ~outer).any()
    assert np.array_equal(kept, outer & ~inner)
    spread = 2 * stats.norm.ppf((1 + SURE) / 2) * math.sqrt(0.25 * N / 5)
    assert abs(kept.sum() - keep) < spread
    again = _kept_by(name, delta, KEYS[1], density=[density], **extra).ravel()
    assert np.array_equal(again, kept)


@pytest.mark.parametrize("name", ["ties", "breadcrumbs"])
def test_a_larger_density_keeps_a_superset(name):
    delta = _crowded(60, 50)
    extra = {"gamma": [0.1]} if name == "breadcrumbs" else {}
    before = np.zeros((60, 50), bool)
    for density in (0.1, 0.15, 0.4, 0.41, 0.8, 0.9):
        kept = _kept_by(name, delta, KEYS[0], density=[density], **extra)
        assert not (before & ~kept).any() and kept.sum() > before.sum()
        before = kept


@pytest.mark.parametrize("density", [0.05, 0.37, 0.8])
def test_bfloat16_files_are_trimmed_to_a_bin(density):
    """Base and source of 16 bits: magnitudes within 2**-9 of the k-th largest share its places."""
    base = _normal(200, 200).bfloat16()
    source = (base.float() + 0.02 * torch.flip(_normal(200, 200), (0,))).bfloat16()
    a = (source.float() - base.float()).abs().flatten()
    merged = operators.merge("ties", base, [source], weight=[1.0], density=[density])
    kept = (merged != base.float()).flatten()
    k = int(density * N)
    value = float(a.sort(descending=True).values[k - 1])
    if value == 0:  # fewer differ
        assert torch.equal(kept, a > 0)
        return
    above, below = a > value * (1 + 2**-9), a < value * (1 - 2**-9)
    assert kept[above].all() and not kept[below].any()
    between = int((~above & ~below).sum())
    spread = stats.norm.ppf((1 + SURE) / 2) * math.sqrt(0.25 * between)
    assert abs(int(kept.sum()) - k) <= spread + 1


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.5), (0.2, 0.15)])
@pytest.mark.parametrize("name", ["della", "della_linear"])
def test_della_keeps_the_density_of_crowds(name, density, epsilon, key):
    """Each crowd with the probability of its mean rank in its row, to half a step of 32."""
    delta = _crowded(200, 200)
    kept = _kept_by(name, delta, key, density=[density], epsilon=[epsilon])
    step = 2 * epsilon / 31
    rank = stats.rankdata(delta.abs().numpy(), axis=1) - 1  # the mean of equal ones
    p = density - epsilon + 2 * epsilon * rank / 199
    for size in range(1, 6):
        crowd = (delta.abs() == size).numpy()
        error = stats.norm.ppf((1 + SURE) / 2) * math.sqrt(0.25 / crowd.sum())
        assert abs(kept[crowd].mean() - p[crowd].mean()) < error + step / 2
    low, high = stats.binom.interval(SURE, N, density)
    assert low - N * step / 4 <= kept.sum() <= high + N * step / 4
