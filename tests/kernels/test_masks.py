"""The counter-based masks against integer arithmetic and statistics."""

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evomerge.kernels.masks import BITS, MaskKey, draws, indexed_draws, limit, uniform

KEYS = [MaskKey(seed, source, "model.layers.0.w") for seed in (0, 1) for source in ("a", "b", "c")]
_WORD = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """Output function of splitmix64 (Steele, Lea, Flood 2014) in whole numbers."""
    z = state & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)


def test_reference_gives_the_published_sequence():
    """First outputs for seed 1234567, as listed with the public implementations."""
    states = [1234567 + i * 0x9E3779B97F4A7C15 for i in (1, 2, 3)]
    assert [splitmix64(s) for s in states] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423
    ]  # fmt: skip


def draw(key: MaskKey, i: int) -> int:
    """Element i in whole numbers: halves of one output serve an even and the next odd one."""
    text = f"{key.seed}\0{key.source}\0{key.tensor}".encode()
    state = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
    z = splitmix64(state + (i // 2 + 1) * 0x9E3779B97F4A7C15)
    return z >> 40 if i % 2 else (z & 0xFFFFFFFF) >> 8


@given(
    seed=st.integers(-(2**40), 2**40),
    source=st.text(max_size=5),
    tensor=st.text(max_size=5),
    start=st.one_of(st.integers(0, 9), st.integers(2**40, 2**40 + 9)),
    count=st.integers(0, 9),
)
@settings(deadline=None, max_examples=60)
def test_equals_integer_splitmix64(seed, source, tensor, start, count):
    key = MaskKey(seed, source, tensor)
    expected = [draw(key, i) for i in range(start, start + count)]
    assert draws(key, start, start + count).tolist() == expected


def lowbias32(x: int) -> int:
    """Of hash-prospector, in whole numbers."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
    x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
    return x ^ (x >> 16)


@given(
    start=st.one_of(
        st.integers(0, 9), st.integers(2**32 - 9, 2**32 + 9), st.integers(2**40, 2**40 + 9)
    ),
    count=st.integers(0, 9),
)
@settings(deadline=None, max_examples=60)
def test_draws_by_position_equal_whole_numbers(start, count):
    expected = [
        lowbias32(i % 2**32 ^ (i // 2**32 * 0x9E3779B1) % 2**32) >> 8
        for i in range(start, start + count)
    ]
    assert indexed_draws(start, start + count).tolist() == expected


@pytest.mark.parametrize("start", [0, 12_345_677, 2**32 - 10_000, 2**40])
@pytest.mark.parametrize("step", [1, 2, 64, 4096])
def test_draws_by_position_are_uniform_and_uncorrelated(start, step):
    """Along neighbours, and along the columns of rows."""
    at = range(start, start + 5000 * step, step)
    found = torch.cat([indexed_draws(i, i + 1) for i in at]).double().numpy() / 2**BITS
    assert stats.kstest(found, "uniform").pvalue > 1e-4
    for lag in (1, 2, 16):
        assert abs(stats.pearsonr(found[:-lag], found[lag:]).statistic) < 5 / math.sqrt(5000)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_whether_a_draw_is_even_tells_nothing_of_its_size(key):
    """It decides to which side of a level an element counts that is equal to it."""
    found = draws(key, 0, 20_000)
    for half in (found < 1 << (BITS - 1), found >= 1 << (BITS - 1)):
        even, n = int((found[half] % 2 == 0).sum()), int(half.sum())
        low, high = stats.binom.interval(1 - 1e-6, n, 0.5)
        assert low <= even <= high


def test_uniform_is_the_draws_as_fractions():
    assert uniform(KEYS[0], 5).tolist() == [draw(KEYS[0], i) / 2**24 for i in range(5)]


@given(density=st.floats(0, 1))
@settings(deadline=None, max_examples=100)
def test_the_limit_counts_the_draws_below_the_density(density):
    """A draw of k is kept where k / 2**24 < density."""
    top = limit(density)
    assert 0 <= top <= 2**BITS
    assert top == 0 or (top - 1) / 2**BITS < density
    assert top == 2**BITS or top / 2**BITS >= density


def mask(key: MaskKey, count: int, density: float) -> torch.Tensor:
    return draws(key, 0, count) < limit(density)


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_uniform_by_kolmogorov_smirnov(key):
    draws = uniform(key, 20_000).double().numpy()
    assert draws.min() >= 0 and draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_neighbours_are_uncorrelated(key):
    draws = uniform(key, 20_001).double().numpy()
    assert abs(stats.pearsonr(draws[:-1], draws[1:]).statistic) < 5 / math.sqrt(20_000)


def test_masks_of_different_keys_are_independent():
    keys = [*KEYS, MaskKey(0, "a", "model.layers.1.w")]
    draws = [uniform(k, 20_000).double().numpy() for k in keys]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert abs(stats.pearsonr(one, other).statistic) < 5 / math.sqrt(20_000)


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.99])
def test_kept_count_is_binomial(key, density):
    n = 20_000
    kept = int(mask(key, n, density).sum())
    low, high = stats.binom.interval(1 - 1e-6, n, density)
    assert low <= kept <= high


def test_density_zero_keeps_nothing_and_one_everything():
    assert not mask(KEYS[0], 150, 0.0).any()
    assert mask(KEYS[0], 150, 1.0).all()


@given(count=st.integers(0, 300), more=st.integers(0, 300))
@settings(deadline=None, max_examples=50)
def test_an_element_does_not_depend_on_the_count(count, more):
    key = KEYS[0]
    assert torch.equal(uniform(key, count), uniform(key, count + more)[:count])


def test_a_larger_density_keeps_a_superset():
    small, large = (mask(KEYS[0], 500, d) for d in (0.2, 0.6))
    assert bool((~small | large).all())


def test_the_order_of_drawing_is_irrelevant():
    forwards = [uniform(k, 50) for k in KEYS]
    torch.manual_seed(1)
    torch.rand(3)
    backwards = [uniform(k, 50) for k in reversed(KEYS)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_the_parts_of_a_key_do_not_run_together():
    assert MaskKey(1, "2", "x").state() != MaskKey(12, "", "x").state()
    assert MaskKey(1, "ab", "c").state() != MaskKey(1, "a", "bc").state()
