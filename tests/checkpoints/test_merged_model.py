"""A merge in the place of a source, and what the merger hands out."""

import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_models import random_tensors, write_folder

from evomerge import operators
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.held import HeldModel
from evomerge.checkpoints.layout import layout_of
from evomerge.checkpoints.merged import MergedModel
from evomerge.checkpoints.merger import Merger
from evomerge.kernels import loops
from evomerge.kernels.torch_loops import TorchLoops
from evomerge.recipe import Recipe, Source

BIG = 1 << 20


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A base and two sources with a tensor of more than two runs, and integers."""
    root = tmp_path_factory.mktemp("merged")
    refs = []
    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        tensors = {
            **random_tensors(seed, blocks=2),
            "big.weight": torch.randn(2 * BIG + 77, generator=rng).bfloat16(),
            "ids": torch.arange(5),
        }
        refs.append(str(write_folder(root / str(seed), tensors)))
    return refs


PLANS = {
    "linear": {"normalize": False},
    "ties": {"density": 0.5},
    "dare_ties": {"density": 0.5, "seed": 3},
    "della": {"density": 0.5, "epsilon": 0.1, "seed": 3},
    "sce": {"select_topk": 0.5},
}


def recipe_of(pool, method, dtype="float32"):
    own = {} if method == "sce" else {"weight": 0.6}
    base = None if method == "linear" else pool[0]
    sources = tuple(Source(r, own) for r in pool[1:])
    return Recipe(method, sources, base, PLANS[method], dtype)


@pytest.mark.parametrize("method", PLANS)
def test_runs_are_parts_of_the_whole_and_not_rounded(pool, method):
    """Wherever they begin and end; the recipe's dtype says nothing about them."""
    merger = Merger(1)
    whole = dict(merger.merge(recipe_of(pool, method)))
    model = merger.model(recipe_of(pool, method, "bfloat16"))
    assert isinstance(model, MergedModel)
    for name, tensor in whole.items():
        assert torch.equal(model.tensor(name), tensor)
    weight, flat = model.weight("big.weight"), whole["big.weight"]
    assert (weight.shape, weight.dtype) == (tuple(flat.shape), torch.float32)
    edges = [0, 1, 7, 33, BIG - 1, BIG, BIG + 5, 2 * BIG, 2 * BIG + 77]
    for start in edges:
        for stop in edges:
            if start <= stop:
                assert torch.equal(weight.read(start, stop), flat[start:stop])


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_recipe_file_passes_integers_on(pool, method, tmp_path):
    """As the same merge of the sources does; copies have nothing to be computed."""
    recipe = recipe_of(pool, method, "bfloat16")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    merger = Merger(1)
    held = merger.checkpoint(str(path))
    assert isinstance(held, HeldModel) and held.dtype("ids") == "I64"
    for name, tensor in merger.merge(recipe):
        assert torch.equal(held.tensor(name), tensor)
    assert torch.equal(held.weight("ids").read(1, 4), torch.arange(1, 4))
    again = dict(merger.merge(Recipe("linear", (Source(str(path), {"weight": 1.0}),))))
    assert torch.equal(again["ids"], torch.arange(5))


def test_a_look_for_values_that_are_not_finite_keeps_no_tensor(pool, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_of(pool, "linear").to_yaml())
    held = Merger(1).checkpoint(str(path))
    made = []
    compute = held._made

    def watched(name):
        tensor = compute(name)
        made.append(weakref.ref(tensor))
        return tensor

    held._made = watched
    assert dict(held.non_finite()) == {}
    # copies of integers lie in the source's own file, which stays open
    assert len(made) == len(held.names)
    assert sum(one() is not None for one in made) <= 1


def test_it_describes_itself(pool):
    merger = Merger()
    model = merger.model(recipe_of(pool, "ties", None))
    base = Checkpoint(pool[0])
    assert model.names == base.names and model.shapes == base.shapes
    assert model.config == base.config and model.path == base.path
    assert model.layout == layout_of(base.names)
    assert [model.dtype(n) for n in model.names] == [base.dtype(n) for n in base.names]
    assert merger.model(recipe_of(pool, "ties", "float16")).dtype("big.weight") == "F16"
    assert model.bytes() == sum(Checkpoint(r).bytes() for r in pool)
    assert model.vocabulary == {} and model.tokenizer() is None
    assert len(model.fingerprint) == 64
    assert list(model.non_finite()) == []
    assert torch.equal(model.tensor("ids"), torch.arange(5))


def test_the_base_is_read_too(tmp_path):
    refs = [str(write_folder(tmp_path / str(i), {"w": torch.ones(9)})) for i in range(2)]
    model = Merger().model(Recipe("ties", (Source(refs[1], {"weight": 1}),), refs[0]))
    assert model.bytes() == sum(Checkpoint(r).bytes() for r in refs)


def test_it_counts_what_is_not_finite(tmp_path):
    tensors = random_tensors(0, blocks=1)
    tensors["model.norm.weight"][1:3] = float("nan")
    ref = str(write_folder(tmp_path / "m", tensors))
    model = Merger().model(Recipe("linear", (Source(ref, {"weight": 1}),)))
    assert list(model.non_finite()) == [("model.norm.weight", 2)]


def test_threads_may_read_one_model_at_once(pool):
    """More tensors than are kept, so that they push each other out."""
    merger = Merger(1)
    model = merger.model(recipe_of(pool, "ties"))
    whole = {n: model.tensor(n) for n in model.names}
    problems = []

    def work(names):
        for _ in range(3):
            for name in names:
                size = whole[name].numel()
                part = model.weight(name).read(size // 3, size)
                if not torch.equal(part, whole[name].reshape(-1)[size // 3 :]):
                    problems.append(name)

    orders = [list(whole), list(whole)[::-1], list(whole)[3:] + list(whole)[:3]]
    workers = [threading.Thread(target=work, args=(o,)) for o in orders]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems


def test_merges_that_come_and_go_are_not_kept(pool):
    merger = Merger(1)
    recipe = recipe_of(pool, "linear")
    first = merger.model(recipe)
    assert merger.model(recipe) is first
    for i in range(40):
        sources = (Source(pool[0], {"weight": i + 1}),)
        merger.model(Recipe("linear", sources))
    assert len(merger._nested) < 40
    assert merger.model(recipe) is not first


# -- what is handed out ---------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [True, False])
def test_a_merge_is_written_into_a_parameter_in_place(pool, monkeypatch, compiled):
    """Also by torch's own loops, to which a parameter is a leaf that asks for a gradient."""
    if not compiled:
        monkeypatch.setattr(loops, "library", lambda: None)
        assert isinstance(loops.loops_for([torch.zeros(1)]), TorchLoops)
    merger = Merger(2)
    for method in PLANS:
        expected = dict(merger.merge(recipe_of(pool, method, "bfloat16")))
        for pending in merger.stream(recipe_of(pool, method, "bfloat16")):
            if pending.dtype == torch.int64:
                continue
            parameter = torch.nn.Parameter(torch.zeros(pending.shape, dtype=pending.dtype))
            at = parameter.data_ptr()
            assert pending.write(parameter) == 0
            assert parameter.data_ptr() == at and parameter.requires_grad
            assert torch.equal(parameter.detach(), expected[pending.name])


@pytest.mark.parametrize("method", operators.names())
def test_two_threads_make_the_same_bits_as_one(pool, method, tmp_path, monkeypatch):
    """Of a tensor that is shared among them, statistics included."""
    operator = operators.get(method)
    count = operator.most_sources or 2
    own = {"weight": 0.5, "density": 0.5, "gamma": 0.1, "t": 0.3, "select_topk": 0.5}
    given = {k: v for k, v in own.items() if k in operator.parameters}
    base = None if operator.takes_base == "never" else pool[0]
    sources = tuple(Source(r) for r in pool[1 : 1 + count])
    recipe = Recipe(method, sources, base, {**given, "seed": 5}, "float32")
    found = []
    for threads in (1, 2):
        monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / str(threads)))
        found.append(dict(Merger(threads).merge(recipe)))
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name
    assert not torch.equal(found[0]["big.weight"], torch.zeros(2 * BIG + 77))


def test_another_shape_is_refused(pool):
    (pending, *_) = Merger().stream(recipe_of(pool, "linear"))
    with pytest.raises(ValueError, match=pending.name):
        pending.write(torch.zeros(3))


def test_the_return_value_counts_what_is_not_finite(tmp_path):
    tensors = {"w": torch.tensor([1.0, float("nan"), 2.0, float("-inf")]), "v": torch.ones(2)}
    refs = [
        str(write_folder(tmp_path / n, {k: v * f for k, v in tensors.items()}))
        for n, f in (("a", 1), ("b", 3))
    ]
    for names in ((0,), (0, 1)):
        sources = tuple(Source(refs[i], {"weight": 1.0}) for i in names)
        stream = Merger().stream(Recipe("linear", sources, dtype="float32"))
        assert {p.name: p.write(torch.empty(p.shape)) for p in stream} == {"w": 2, "v": 0}


def test_float8_and_float64_files(tmp_path):
    """Whole passes of dtypes that the compiled loops do not know."""
    wide = torch.tensor([1.0, -0.5, 2.0, 0.25], dtype=torch.float64)
    for dtype in (torch.float64, torch.float8_e4m3fn, torch.float8_e5m2):
        refs = [
            str(write_folder(tmp_path / f"{i}{dtype}", {"w": (wide * (i + 1)).to(dtype)}))
            for i in range(2)
        ]
        for count in (1, 2):
            sources = tuple(Source(r, {"weight": 1}) for r in refs[:count])
            found = dict(Merger().merge(Recipe("linear", sources, dtype=None)))["w"]
            assert found.dtype == dtype
            exact = wide * (1 if count == 1 else 1.5)
            assert torch.equal(found.double(), exact.to(dtype).double())


MEMORY = """
import sys, threading, time
import torch
from pathlib import Path
from evomerge.checkpoints.merger import Merger
from evomerge.kernels.loops import native_available
from evomerge.recipe import Recipe, Source

native_available()
refs, method, parameters = sys.argv[2:], *eval(sys.argv[1])
own = {"weight": 0.1} if method != "model_stock" else {}
sources = tuple(Source(r, own) for r in refs[1:])
recipe = Recipe(method, sources, refs[0], parameters, "bfloat16")
merger = Merger(2)
assembly = merger.assemble(recipe)
target = torch.zeros(assembly.parts[0].shape, dtype=torch.bfloat16)  # the engine's own


def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) >> 10


before, peak, done = anonymous(), 0, threading.Event()


def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.002)


watcher = threading.Thread(target=watch)
watcher.start()
for pending in merger.stream(assembly):
    pending.write(target)
done.set()
watcher.join()
print(peak - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A base and 16 sources of one tensor of 64 MB each."""
    root = tmp_path_factory.mktemp("large")
    base = torch.randn(8192, 4096).bfloat16()
    refs = []
    for i in range(17):
        tensors = {"model.layers.0.mlp.weight": base + i * 0.01 * base.roll(i)}
        refs.append(str(write_folder(root / str(i), tensors, 1, {"num_hidden_layers": 1})))
    return refs


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the memory")
@pytest.mark.parametrize(
    "case",
    [
        ("task_arithmetic", {}),
        ("ties", {"density": 0.3}),
        ("della", {"density": 0.5, "epsilon": 0.1}),
        ("model_stock", {}),
    ],
    ids=lambda case: case[0],
)
def test_memory_does_not_grow_with_the_sources(large, case):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, repr(case), *large],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 256


def test_the_order_is_that_of_the_base_s_files(pool):
    merger = Merger()
    found = [p.name for p in merger.assemble(recipe_of(pool, "ties")).parts]
    assert found == list(Checkpoint(pool[0]).names)
    assert np.unique(found).size == len(found)
