"""Defects that a review found, each with the case that showed it."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from evomerge import operators
from evomerge.checkpoints.statistics import Statistics
from evomerge.kernels.loops import native_available
from evomerge.kernels.masks import MaskKey
from evomerge.kernels.plans import Pieced
from evomerge.kernels.tensor_merge import TensorMerge
from evomerge.kernels.view import View
from evomerge.kernels.weight import Stored


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "ties"])
@pytest.mark.parametrize("odd", [torch.float64, torch.float8_e4m3fn])
def test_sources_of_unlike_dtypes_take_part_in_random_merges(name, odd):
    base, first, second = torch.zeros(4, 64), randn(4, 64), randn(4, 64, seed=1).to(odd)
    keys = [MaskKey(0, "a", "t"), MaskKey(0, "b", "t")]
    given = {"weight": [1.0, 1.0], "density": [0.5, 0.5], "keys": keys}
    merged = operators.merge(name, base, [first, second], **given)
    plain = operators.merge(name, base, [first, second.to(torch.float32)], **given)
    torch.testing.assert_close(merged, plain, rtol=1e-6, atol=1e-6)


def test_an_output_that_the_loops_cannot_write_is_rounded_from_float32():
    base, x = torch.zeros(100), randn(100)
    view = View(Stored(base), [Stored(x)], [MaskKey(0, "a", "t")])
    plan = operators.get("dare_linear").function(view, weight=[1.0], density=[0.5])
    wide, narrow = torch.empty(100), torch.empty(100, dtype=torch.float64)
    assert TensorMerge(view, plan).write(wide) == 0
    assert TensorMerge(view, plan).write(narrow) == 0
    assert torch.equal(narrow, wide.double())


def test_dot_products_with_and_without_a_base_do_not_mix(tmp_path):
    a, b, c = (Stored(randn(50, seed=i)) for i in range(3))
    names = ["A:t", "B:t", "C:t"]
    memory = Statistics(tmp_path)
    assert View(None, [a, b, c], (), names, memory).gram().shape == (3, 3)
    assert View(a, [b, c], (), names, memory).gram().shape == (2, 2)
    memory.flush()
    memory = Statistics(tmp_path)
    found = View(a, [b, c], (), names, memory).gram()
    deltas = [(s.tensor - a.tensor).double() for s in (b, c)]
    np.testing.assert_allclose(found, [[float(x @ y) for y in deltas] for x in deltas], rtol=1e-5)


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 1e-9), (1e-9, 0.15), (0.5, 1e-7)])
def test_a_tiny_spread_keeps_the_density(density, epsilon):
    base, x = torch.zeros(64, 512), randn(64, 512)
    keys = [MaskKey(0, "a", "t")]
    merged = operators.merge(
        "della_linear", base, [x], weight=[1.0], density=[density], epsilon=[epsilon],
        rescale=False, keys=keys,
    )  # fmt: skip
    kept = float((merged != 0).double().mean())
    assert abs(kept - density) < 5 * (0.25 / merged.numel()) ** 0.5 + 1e-6


@pytest.mark.parametrize("tol", [0.0, 1e-300, 1e-5])
def test_the_karcher_mean_of_equal_tensors_is_one_of_them_at_any_tolerance(tol):
    x = randn(30)
    merged = operators.merge("karcher", None, [x, x.clone()], tol=tol, max_iter=1000)
    torch.testing.assert_close(merged, x, rtol=1e-5, atol=1e-6)


def test_hundreds_of_sources_fit():
    xs = [randn(16, seed=i) for i in range(400)]
    merged = operators.merge("multislerp", None, xs, weight=[1 / 400] * 400)
    assert torch.isfinite(merged).all()


@pytest.mark.skipif(not native_available(), reason="needs a C compiler")
def test_infinity_is_treated_alike_by_both_loops(monkeypatch):
    x = torch.zeros(64)
    x[5] = float("inf")
    found = operators.merge("ties", torch.zeros(64), [x], weight=[1.0], density=[0.5])
    from evomerge.testing.operators import torch_loops

    with torch_loops():
        other = operators.merge("ties", torch.zeros(64), [x], weight=[1.0], density=[0.5])
    assert torch.equal(torch.isfinite(found), torch.isfinite(other))


def test_a_seed_by_pieces_is_bit_equal_to_itself():
    x, y = torch.tensor([-0.0, 1.0, -0.0, 2.0]), torch.ones(4)
    view = View(None, [Stored(x), Stored(y)])
    out = torch.empty(4)
    TensorMerge(view, Pieced((2, 4), ((1.0, 0.0), (1.0, 0.0)))).write(out)
    assert torch.equal(out.view(torch.int32), x.view(torch.int32))


CODE = "from evomerge.kernels.loops import native_available; print(native_available())"


@pytest.mark.skipif(not native_available(), reason="needs a C compiler")
def test_a_compiler_with_options_and_a_damaged_library(tmp_path, monkeypatch):
    env = {"EVOMERGE_CACHE": str(tmp_path), "CC": "cc -g0"}

    def run():
        import os

        return subprocess.run(
            [sys.executable, "-c", CODE], capture_output=True, text=True, check=True,
            env={**os.environ, **env},
        ).stdout.split()[-1]  # fmt: skip

    assert run() == "True"
    (library,) = (tmp_path / "kernels").glob("*.so")
    library.write_bytes(b"damaged")
    assert run() == "True"


def test_a_compiler_that_is_no_program_is_told_and_done_without(tmp_path):
    import os

    fake = tmp_path / "fakecc"
    fake.write_text("no program")
    fake.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True,
        env={**os.environ, "EVOMERGE_CACHE": str(tmp_path), "CC": str(fake)},
    )  # fmt: skip
    assert done.stdout.split()[-1] == "False"
    assert "without compiled loops" in done.stderr
