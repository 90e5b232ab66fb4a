"""The compiled loops and torch's: equal to each other bit for bit, and to float64 numpy."""

import itertools

import numpy as np
import pytest
import torch

from evomerge.kernels.loops import loops_for, native_available
from evomerge.kernels.masks import MaskKey, draws, indexed_draws
from evomerge.kernels.native import NativeLoops, library
from evomerge.kernels.select import EVERYTHING, NOTHING
from evomerge.kernels.torch_loops import TorchLoops

TORCH = TorchLoops()
KEY = MaskKey(1, "source", "tensor")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [0, 1, 15, 16, 17, 31, 33, 255, 256, 257, 1003]
OFFSETS = [0, 1, 7]
STARTS = [0, 37, 2**32 - 21, 2**33 + 1]
"""Of runs; the third crosses the end of 32 bits amid 16 elements that are handled at once."""


@pytest.fixture(scope="module")
def native():
    if not native_available():
        pytest.skip("no C compiler")
    return NativeLoops(library())


def tensors(size, dtype, count=4, offset=0):
    """1-D tensors that begin somewhere in memory."""
    rng = torch.Generator().manual_seed(size)
    return [torch.randn(size + offset, generator=rng).to(dtype)[offset:] for _ in range(count)]


def both(native, dtype, call, size):
    """What a loop writes and returns, compiled and in torch."""
    outs = [torch.full((size,), 9.0, dtype=dtype) for _ in range(2)]
    found = [call(loops, out) for loops, out in zip((native, TORCH), outs, strict=True)]
    return outs, found


ALL = list(itertools.product(DTYPES, DTYPES, SIZES))


@pytest.mark.parametrize(("given", "wanted", "size"), ALL, ids=str)
def test_combine(native, given, wanted, size):
    c = torch.tensor([0.3, 0.0, -1.7, 1.0])
    for offset in OFFSETS:
        xs = tensors(size, given, offset=offset)
        outs, found = both(
            native, wanted, lambda loops, out, xs=xs: loops.combine(out, xs, c, 0.25, 5, 1), size
        )
        assert torch.equal(*outs) and found == [0, 0]
        wide = sum(a * x.double() for a, x in zip(c.double(), xs, strict=True)) + 0.25
        tolerance = (
            1e-5 if wanted is torch.float32 else 2 ** (-8 if wanted is torch.bfloat16 else -10)
        )
        torch.testing.assert_close(outs[0].double(), wide, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("start", "row_length"), [(0, 7), (5, 7), (33, 16), (3, 200), (0, 1)])
def test_combine_by_row(native, dtype, start, row_length):
    size = 303
    xs = tensors(size, dtype, 3)
    rows = (start + size) // row_length + 1
    c = torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))
    c[::3, 1] = 0.0
    outs, _ = both(
        native,
        torch.float32,
        lambda loops, out: loops.combine(out, xs, c, 0, start, row_length),
        size,
    )
    assert torch.equal(*outs)
    for i in range(size):
        row = (start + i) // row_length
        expected = sum(float(c[row, j]) * float(xs[j][i]) for j in range(3))
        assert float(outs[0][i]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_term_of_coefficient_zero_is_left_out(native):
    bad = torch.full((20,), float("nan"))
    for c in (torch.tensor([0.0, 1.0]), torch.tensor([[0.0, 1.0]])):
        outs, found = both(
            native, torch.float32,
            lambda loops, out, c=c: loops.combine(out, [bad, torch.ones(20)], c, 0.0, 0, 20), 20,
        )  # fmt: skip
        assert found == [0, 0]
        assert all(torch.equal(out, torch.ones(20)) for out in outs)


HALF = 1 << 23
BANDS = [
    (NOTHING, EVERYTHING),
    ((2.0, 2.5, HALF // 2), (0.7, 1.5, HALF)),
    (NOTHING, (0.5, 0.5, 0)),
    ((0.7, 1.5, HALF // 2), (0.7, 1.5, HALF)),
]


def kept_by(cut, a, start):
    """Brute force, one element after the other."""
    bottom, top, limit = cut
    drawn = indexed_draws(start, start + len(a)).tolist()
    kept = [v >= top or (v >= bottom and u < limit) for v, u in zip(a.tolist(), drawn, strict=True)]
    return torch.tensor(kept, dtype=torch.bool)


def kept_in(band, a, start):
    inner, outer = band
    return kept_by(outer, a, start) & ~kept_by(inner, a, start)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("normalize", "consensus"), list(itertools.product([False, True], repeat=2))
)
def test_thin(native, dtype, size, normalize, consensus):
    base, *xs = tensors(size, dtype, 5, offset=3)
    start = STARTS[size % 4]
    factors, weights = [0.4, -0.3, 1.1, 0.2], [0.5, -0.2, 0.9, 0.2]

    def call(loops, out):
        mask = loops.chance(KEY, 1 << 23, base, xs[3], start, False)[0]
        return loops.thin(
            out,
            base,
            xs,
            factors,
            weights,
            [*BANDS[:3], mask],
            0.8,
            normalize,
            consensus,
            1e-6,
            start,
        )

    for wanted in DTYPES:
        outs, found = both(native, wanted, call, size)
        assert torch.equal(*outs) and found == [0, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("band", BANDS, ids=str)
def test_thin_keeps_a_band(native, dtype, start, band):
    for size in (5, 33, 1003):
        base, x = tensors(size, dtype, 2)
        base = (base * 4).round() / 4  # many elements of some size
        x = (x * 4).round() / 4

        def call(loops, out, base=base, x=x):
            args = (0.5, False, False, 1e-8, start)
            return loops.thin(out, base, [x], [1.0], [1.0], [band], *args)

        outs, _ = both(native, torch.float32, call, size)
        kept = kept_in(band, (x.float() - base.float()).abs(), start)
        expected = torch.where(kept, (base.float() + x.float()) / 2, base.float())
        assert torch.equal(outs[0], expected) and torch.equal(outs[1], expected)


@pytest.mark.parametrize("size", [1, 33, 500])
def test_thin_without_sources_gives_the_base(native, size):
    [base] = tensors(size, torch.bfloat16, 1)
    for on in (False, True):

        def call(loops, out, on=on):
            return loops.thin(out, base, [], [], [], [], 1.0, on, on, 1e-8, 0)

        outs, _ = both(native, torch.bfloat16, call, size)
        assert torch.equal(outs[0], base) and torch.equal(outs[1], base)


def unpack(words, count):
    """The bits of a compiled mask; those of torch are booleans already."""
    if words.dtype is torch.bool:
        return words
    bits = np.unpackbits(words.numpy().view(np.uint8), bitorder="little")
    return torch.from_numpy(bits[:count].astype(bool))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("start", [0, 1, 16, 255, 2**33 + 1, 2**33 + 2])
def test_chance(native, dtype, size, start):
    base, x = tensors(size, dtype, 2)
    top = int(0.3 * 2**24)
    made = [loops.chance(KEY, top, base, x, start, True) for loops in (native, TORCH)]
    assert torch.equal(unpack(made[0][0], size), made[1][0])
    assert torch.equal(made[1][0], draws(KEY, start, start + size) < top)
    assert made[0][1:] == made[1][1:]
    d = (x.float() - base.float()).abs().double()
    assert made[0][1] == pytest.approx(float(d.sum()), rel=1e-6)
    assert made[0][2] == pytest.approx(float(d[made[1][0]].sum()), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("start", "row_length"),
    [(0, 1003), (5, 40), (39, 8), (0, 1), (7, 256), (0, 16), (48, 32), (2**33 + 80, 2**31)],
)
@pytest.mark.parametrize("ties", [False, True])
def test_ranked(native, dtype, size, start, row_length, ties):
    """Elements equal to entries of the table are beyond them if their draws are even."""
    base, x = tensors(size, dtype, 2)
    if ties:
        base, x = ((t * 8).round() / 8 for t in (base, x))
    rows = (start + size) // row_length + 1
    rng = torch.Generator().manual_seed(2)
    for levels in (2, 9, 32):
        table = torch.full((rows, 32), float("inf"))
        table[:, :levels] = torch.rand(rows, levels, generator=rng).sort(dim=1).values * 2
        if ties:
            table = (table * 8).round() / 8
        table[:, 0] = -1.0
        step = 0.4 / (levels - 1)
        made = [
            loops.ranked(KEY, 0.3, 1 / step, levels, table, row_length, base, x, start, True)
            for loops in (native, TORCH)
        ]
        mask = unpack(made[0][0], size)
        assert torch.equal(mask, made[1][0])
        assert made[0][1:] == made[1][1:]
        drawn = draws(KEY, start, start + size)
        u = (drawn.double() / 2**24).numpy()
        d = (x.float() - base.float()).abs()
        own = table[torch.arange(start, start + size) // row_length, :levels]
        reached = torch.where(drawn[:, None] % 2 == 0, own <= d[:, None], own < d[:, None])
        p = 0.3 + (reached.sum(1).numpy() - 1) * step
        sure = np.abs(u - p) > 1e-6
        assert np.array_equal(mask.numpy()[sure], (u < p)[sure])


@pytest.mark.parametrize("given", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("start", STARTS)
def test_band_sums(native, given, size, start):
    base, x = tensors(size, given, 2)
    d = (x.float() - base.float()).abs()
    for band in BANDS:
        found = [loops.band_sums(band, base, x, start) for loops in (native, TORCH)]
        assert found[0] == found[1]
        kept = kept_in(band, d, start)
        expected = (float(d.double().sum()), float(d[kept].double().sum()))
        assert found[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_base", [False, True])
def test_statistics(native, dtype, size, with_base):
    base, *xs = tensors(size, dtype, 4)
    base = base if with_base else None
    ds = [(x.float() - base.float()) if with_base else x.float() for x in xs]
    for loops in (native, TORCH):
        counts = loops.histogram(base, xs[0])
        bits = ds[0].abs().numpy().view(np.int32) >> 14
        assert np.array_equal(counts.numpy(), np.bincount(bits, minlength=1 << 17))
        gram = loops.gram(base, xs).numpy()
        wide = np.stack([d.double().numpy() for d in ds])
        assert np.allclose(gram, wide @ wide.T, rtol=1e-5, atol=1e-4)
        bins = [int(np.abs(d.numpy()).max().view(np.int32)) >> 14 if size else 0 for d in ds]
        gathered = loops.gather(bins, [size] * 3, base, xs)
        for values, d, number in zip(gathered, ds, bins, strict=True):
            a = d.abs().numpy()
            assert np.array_equal(values.numpy(), a[a.view(np.int32) >> 14 == number])
    assert torch.equal(native.gram(base, xs), TORCH.gram(base, xs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "length"), [(1, 1), (5, 1), (3, 5), (7, 31), (4, 32), (3, 33), (2, 257), (1, 1003)]
)
@pytest.mark.parametrize("kind", ["normal", "ties", "wide", "equal"])
@pytest.mark.parametrize("with_base", [False, True])
def test_row_table(native, dtype, rows, length, kind, with_base):
    """Ranks of each row against numpy's sort; a number less where the rank before is smaller."""
    base, x = tensors(rows * length, dtype, 2, offset=1)
    if kind == "ties":
        base, x = (base * 2).round() / 2, (x * 2).round() / 2
    elif kind == "wide":
        base, x = base * 0, x.sign() * (3 * x).exp2() ** 2
    elif kind == "equal":
        base, x = torch.zeros_like(base), torch.full_like(x, -0.25)
    base = base if with_base else None
    a = (x.float() - base.float() if with_base else x.float()).abs().numpy()
    ordered = np.sort(a.reshape(rows, length), axis=1)
    levels = min(32, length)
    ranks = [-(-r * length // levels) for r in range(levels)]
    expected = np.full((rows, 32), np.inf, np.float32)
    for row, level in itertools.product(range(rows), range(levels)):
        value = expected[row, level] = ordered[row, ranks[level]]
        if ranks[level] and ordered[row, ranks[level] - 1] < np.nextafter(value, np.float32(0)):
            expected[row, level] = np.nextafter(value, np.float32(0))
    for loops in (native, TORCH):
        assert np.array_equal(loops.row_table(ranks, length, base, x).numpy(), expected)


def test_neighbours_among_float32_numbers_are_not_moved(native):
    """Nothing lies between them, so that the larger one is the entry."""
    x = torch.tensor([1.0, 1 + 2.0**-23, 0.0, 2.0**-149])
    for loops in (native, TORCH):
        table = loops.row_table([0, 1], 2, None, x)
        assert table[:, :2].tolist() == [[1.0, 1 + 2.0**-23], [0.0, 2.0**-149]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_non_finite_values_are_counted(native, dtype):
    for size in (1, 16, 100):
        x = torch.zeros(size, dtype=dtype)
        x[:: max(1, size // 3)] = float("nan")
        x[-1] = float("-inf")
        expected = int((~torch.isfinite(x)).sum())
        for loops in (native, TORCH):
            out = torch.empty(size, dtype=dtype)
            assert loops.non_finite(x) == expected
            assert loops.combine(out, [x], torch.ones(1), 0.0, 0, size) == expected
            assert loops.thin(out, torch.zeros_like(x), [x], [1.0], [1.0], [None], 1.0, False,
                              False, 0.0, 0) == expected  # fmt: skip


def test_an_overflow_of_the_output_is_counted(native):
    x = torch.full((40,), 300.0)
    x[3] = 1.0
    for loops in (native, TORCH):
        out = torch.empty(40, dtype=torch.float16)
        assert loops.combine(out, [x], torch.tensor([300.0]), 0.0, 0, 40) == 39


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_torchs(native, dtype):
    """Halves, their neighbours and random bits: nearest, ties to even, to infinity at the top."""
    every = torch.arange(0, 1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    every = every[torch.isfinite(every)]
    bits = every.view(torch.int32)
    near = torch.cat(
        [bits + step for step in (0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001)]
    )
    more = torch.randint(-(2**31), 2**31 - 1, (50_000,), dtype=torch.int64).to(torch.int32)
    x = torch.cat([near, more]).view(torch.float32)
    x = x[torch.isfinite(x)]
    out = torch.empty(len(x), dtype=dtype)
    native.combine(out, [x], torch.ones(1), 0.0, 0, len(x))
    assert torch.equal(out.view(torch.int16), (x + 0.0).to(dtype).view(torch.int16))


def test_which_loops_take_what(native):
    x = torch.zeros(8)
    assert isinstance(loops_for([x, None, x.bfloat16()]), NativeLoops)
    assert isinstance(loops_for([x, x.double()]), TorchLoops)
    assert isinstance(loops_for([x[::2]]), TorchLoops)
    assert isinstance(loops_for([x.to("meta")]), TorchLoops)
