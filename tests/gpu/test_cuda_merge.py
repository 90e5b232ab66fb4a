"""Merges on a CUDA device agree with those on the CPU."""

import numpy as np
import pytest
import torch

from evomerge import operators
from evomerge.checkpoints.resident import Resident, Wanted
from evomerge.kernels.compiled_loops import CompiledLoops
from evomerge.kernels.loops import loops_for
from evomerge.kernels.masks import MaskKey
from evomerge.kernels.tensor_merge import TensorMerge
from evomerge.kernels.view import View
from evomerge.kernels.weight import Stored

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPE = (64, 1000)
SETTINGS = {
    "linear": {"weight": [0.5, 0.3, 0.4]},
    "ties": {"weight": [0.5, 0.3, 0.4], "density": [0.5, 0.7, 0.3]},
    "breadcrumbs": {"weight": [0.5, 0.3, 0.4], "density": [0.5] * 3, "gamma": [0.01] * 3},
    "dare_ties": {"weight": [0.5, 0.3, 0.4], "density": [0.5, 0.7, 0.3]},
    "della": {"weight": [0.5, 0.3, 0.4], "density": [0.5] * 3, "epsilon": [0.15] * 3},
    "multislerp": {"weight": [0.5, 0.3, 0.4]},
    "sce": {"select_topk": 0.5},
    "model_stock": {},
}


def models():
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(SHAPE, generator=rng)
    near = [base + 0.1 * torch.randn(SHAPE, generator=rng) for _ in range(3)]
    return [t.bfloat16() for t in (base, *near)]


def merged(name, tensors, device):
    operator = operators.get(name)
    base, *xs = [Stored(t.to(device)) for t in tensors]
    keys = [MaskKey(0, str(i), "t") for i in range(3)]
    view = View(base if operator.takes_base == "required" else None, xs, keys)
    out = torch.empty(SHAPE, dtype=torch.bfloat16, device=device)
    assert TensorMerge(view, operator.function(view, **SETTINGS[name])).write(out) == 0
    return out.cpu()


def test_the_compiled_loops_are_used():
    assert isinstance(loops_for([torch.zeros(4, device="cuda")]), CompiledLoops)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_operator_gives_what_it_gives_on_the_cpu(name):
    """Sums of a whole tensor may differ in their last bit, which may move a rounding."""
    on_cpu, on_gpu = (merged(name, models(), d).float().numpy() for d in ("cpu", "cuda"))
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=2**-7, atol=1e-6)
    assert (on_gpu == on_cpu).mean() > 0.999


@pytest.mark.parametrize(("device_bytes", "host_bytes"), [(0, 0), (0, 1 << 30), (1 << 30, 0)])
def test_tensors_arrive_whole_while_others_are_computed(device_bytes, host_bytes):
    rng = torch.Generator().manual_seed(1)
    tensors = [torch.randn(1 << 22, generator=rng) for _ in range(8)]
    resident = Resident("cuda", device_bytes, host_bytes)
    for _ in range(3):
        sums = []
        for [one] in resident.load([Wanted(Stored(t), str(i))] for i, t in enumerate(tensors)):
            busy = torch.randn(2048, 2048, device="cuda")
            for _ in range(20):
                busy = busy @ busy / 50
            sums.append((one.weight.tensor.double() * 2).sum() + 0 * busy[0, 0].nan_to_num())
        for t, total in zip(tensors, sums, strict=True):
            assert float(total) == pytest.approx(float(t.double().sum()) * 2, rel=1e-9, abs=1e-9)
