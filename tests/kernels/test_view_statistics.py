"""What a view knows of a tensor, against numpy on the whole of it."""

import numpy as np
import pytest
import torch

from evomerge.kernels.lines import column_gram, line_grams, line_runs
from evomerge.kernels.passes import over_blocks
from evomerge.kernels.view import View
from evomerge.kernels.weight import Stored
from evomerge.testing.operators import small_runs, torch_loops

SHAPES = [(1,), (700,), (9, 70), (70, 9), (1, 700), (3, 20, 30), (2, 2, 300)]


def view_of(shape, with_base=True, dtype=torch.float32, **more):
    rng = torch.Generator().manual_seed(3)
    base, *xs = (torch.randn(shape, generator=rng).to(dtype) for _ in range(4))
    view = View(Stored(base) if with_base else None, [Stored(x) for x in xs], **more)
    wide = [x.double().numpy() for x in xs]
    return view, base.double().numpy(), wide


class Notebook:
    """Remembers what was computed, and how often."""

    def __init__(self):
        self.kept = {}
        self.computed = []

    def recall(self, kind, members, compute):
        if (kind, members) not in self.kept:
            self.computed.append((kind, members))
            self.kept[kind, members] = compute()
        return self.kept[kind, members]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("deltas", [False, True])
def test_gram(shape, with_base, deltas):
    view, base, xs = view_of(shape, with_base)
    vectors = [x - base if with_base and deltas else x for x in xs]
    if with_base and not deltas:
        vectors = [base, *vectors]
    flat = np.stack([v.ravel() for v in vectors])
    with small_runs(256):
        assert np.allclose(view.gram(deltas=deltas), flat @ flat.T, rtol=1e-5, atol=1e-3)
        rows = np.stack([v.reshape(view.rows, -1) for v in vectors])
        expected = np.einsum("arc,brc->rab", rows, rows)
        assert np.allclose(view.row_gram(deltas=deltas), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(), *SHAPES])
@pytest.mark.parametrize("with_base", [False, True])
def test_lines_and_columns(shape, with_base):
    view, base, xs = view_of(shape, with_base)
    vectors = np.stack([x - base if with_base else x for x in xs])
    lines = vectors.reshape(3, -1, shape[-1] if shape else 1)
    columns = vectors.reshape(3, shape[0] if len(shape) > 1 else 1, -1)
    if len(shape) < 2:
        columns = np.swapaxes(columns, 1, 2)
    with small_runs(128):
        runs = line_runs(view)
        assert [a for a, _ in runs] == [0, *(b for _, b in runs[:-1])]
        assert runs[-1][1] == view.count
        assert max(b - a for a, b in runs) <= 64
        found = np.concatenate(list(line_grams(view)))
        assert np.allclose(found, np.einsum("alc,blc->lab", lines, lines), rtol=1e-4, atol=1e-4)
        found = column_gram(view)
        expected = np.einsum("arc,brc->cab", columns, columns)
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_histogram(shape, dtype):
    view, base, xs = view_of(shape, dtype=dtype)
    with small_runs(256):
        made = view.histogram(1)
    bits = np.abs(xs[1] - base).astype(np.float32).ravel().view(np.int32) >> 14
    numbers, counts = np.unique(bits, return_counts=True)
    assert np.array_equal(made.bins, numbers)
    assert np.array_equal(made.counts, counts)


@pytest.mark.parametrize("shape", [*SHAPES, (31,), (33,), (5, 1), (7, 31)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_table(shape, dtype):
    """An entry parts the smallest rank of its level from the rank before."""
    view, base, xs = view_of(shape, dtype=dtype)
    with small_runs(256):
        table, levels = view.row_table(2)
        with torch_loops():
            assert torch.equal(view.row_table(2)[0], table)
    deltas = np.abs(xs[2].astype("f4") - base.astype("f4"))
    rows = np.sort(deltas.reshape(view.rows, -1), axis=1)
    length = rows.shape[1]
    assert levels == min(32, length) and table.shape == (len(rows), 32)
    for row in range(len(rows)):
        assert float(table[row, 0]) == -1.0
        assert table[row, levels:].tolist() == [float("inf")] * (32 - levels)
        for level in range(1, levels):
            rank = next(i for i in range(length) if i * levels >= level * length)
            before, value = rows[row, rank - 1 : rank + 1]
            below = np.nextafter(value, np.float32(0))
            expected = below if before < below else value
            assert float(table[row, level]) == expected


def test_statistics_are_remembered_by_their_members():
    memory = Notebook()
    view, _, _ = view_of((9, 70), names=("base", "a", "b", "c"), memory=memory)
    first = [view.histogram(1), view.gram(), view.row_table(0), view.cuts([(2, 100)])]
    again = [view.histogram(1), view.gram(), view.row_table(0), view.cuts([(2, 100)])]
    assert memory.computed == [
        ("histogram", ("base", "b")),
        ("gram_deltas", ("base", "a", "b", "c")),
        ("row_table", ("base", "a")),
        ("histogram", ("base", "c")),
    ]
    assert np.array_equal(first[1], again[1]) and first[3] == again[3]
    assert np.array_equal(first[0].counts, again[0].counts)


def test_without_names_nothing_is_remembered():
    memory = Notebook()
    view_of((9, 70), memory=memory)[0].gram()
    assert memory.computed == []


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_an_empty_tensor_has_statistics_too(shape):
    view, _, _ = view_of(shape)
    assert view.runs() == [] and view.rows == 0
    assert np.array_equal(view.gram(), np.zeros((3, 3)))
    assert len(view.cuts([(0, 0)])) == 1
    assert len(view.histogram(0).bins) == 0
    assert list(line_grams(view)) == [] and line_runs(view) == []


def test_blocks_cover_the_tensor_in_order():
    view, base, xs = view_of((7, 211))
    with small_runs(256):
        made = over_blocks(view, lambda start, b, x: (start, b.clone(), x[2].clone()))
    assert max(len(b) for _, b, _ in made) == 128
    assert [s for s, _, _ in made] == np.cumsum([0, *(len(b) for _, b, _ in made[:-1])]).tolist()
    assert np.array_equal(torch.cat([b for _, b, _ in made]).numpy(), base.ravel().astype("f4"))
    assert np.array_equal(torch.cat([x for _, _, x in made]).numpy(), xs[2].ravel().astype("f4"))
