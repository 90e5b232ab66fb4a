"""Anchors and sparsity of merge spaces; the spaces of conf/space and of docs/spaces.md."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from merge_spaces import MIXED, RANGES, space

from evomerge.build import load_target
from evomerge.checkpoints.merger import Merger
from evomerge.domain import Domain
from evomerge.setup import make_space
from evomerge.space import MergeSpace
from evomerge.zoo import zoo_path

# -- anchors and sparsity --------------------------------------------------------------------


def zoo_space(method, parameters, names=("math", "japanese", "sorter"), **changes):
    base = str(zoo_path("models/base"))
    layout = Merger(threads=1).checkpoint(base).layout
    return MergeSpace(
        method=method,
        parameters=parameters,
        base=base,
        sources={n: str(zoo_path(f"models/{n}")) for n in names},
        groups={g: layout.filters(g) for g in layout.groups()},
        **changes,
    )


UNIT = {"low": 0.0, "high": 1.0}
DENSE = {"weight": UNIT, "density": {"low": 0.1, "high": 1.0}}
ALONE = [
    ("task_arithmetic", {"weight": {"low": -1.5, "high": 1.5}}),
    ("task_arithmetic", {"weight": {**UNIT, "simplex": True}, "lambda": {"low": 0, "high": 3}}),
    ("linear", {"weight": UNIT}),
    ("ties", {**DENSE, "normalize": {"choices": [True, False]}}),
    ("dare_ties", DENSE),
    ("della", {**DENSE, "epsilon": {"low": 0.0, "high": 0.3}}),
    ("breadcrumbs", {**DENSE, "gamma": {"low": 0.0, "high": 0.3}}),
]


@pytest.mark.parametrize(("method", "parameters"), ALONE)
@pytest.mark.parametrize("granularity", ["layer", "global"])
def test_the_anchor_of_a_source_is_that_source(method, parameters, granularity):
    merge_space = zoo_space(method, parameters, granularity=granularity)
    merger = Merger(threads=1)
    for (_, ref), genome in zip(merge_space.sources.items(), merge_space.anchors(), strict=False):
        own = merger.checkpoint(ref)
        for name, tensor in merger.merge(merge_space.decode(genome)):
            wanted = own.tensor(name).float()
            assert (tensor.float() - wanted).abs().max() <= 2**-8 * wanted.abs().max()


def test_the_anchors_of_slerp_are_source_middle_and_base():
    ranges = {"t": {"low": -0.5, "high": 1.5, "start": 0.25}}
    slerp = zoo_space("slerp", ranges, names=("math",), granularity="global")
    assert [float(a[0]) for a in slerp.anchors()] == [1.0, 0.5, 0.0, 0.25]
    merger = Merger(threads=1)
    for i, model in ((0, "math"), (2, "base")):
        own = merger.checkpoint(str(zoo_path(f"models/{model}")))
        for name, tensor in merger.merge(slerp.decode(slerp.anchors()[i])):
            assert (tensor.float() - own.tensor(name).float()).abs().max() <= 2**-7


@pytest.mark.parametrize("parameters", [*(p for m, p in ALONE if m == "ties"), RANGES, MIXED])
@pytest.mark.parametrize("granularity", ["layer", "global"])
def test_anchors_are_distinct_in_order_and_within_bounds(parameters, granularity):
    merge_space = space(parameters=parameters, granularity=granularity)
    domain = Domain(merge_space.dimensions)
    anchors = merge_space.anchors()
    assert len({a.tobytes() for a in anchors}) == len(anchors)
    assert len({merge_space.decode(a).digest() for a in anchors}) == len(anchors)
    for anchor in anchors:
        assert np.array_equal(domain.snap(anchor), anchor)
    again = space(parameters=parameters, granularity=granularity).anchors()
    assert all(np.array_equal(a, b) for a, b in zip(anchors, again, strict=True))


def test_anchors_of_weights_and_densities():
    anchors = space(granularity="global").anchors()
    assert [a.tolist() for a in anchors] == [
        [1.0, 0.0, 1.0, 1.0],
        [0.0, 1.0, 1.0, 1.0],
        [0.5, 0.5, 1.0, 1.0],
        [1.0, 1.0, 1.0, 1.0],
        [0.5, 0.5, 0.55, 0.55],
    ]


def test_anchors_keep_to_narrow_bounds():
    narrow = {"weight": {"low": 0.2, "high": 0.7}, "density": {"low": 0.1, "high": 0.5}}
    anchors = space(parameters=narrow, granularity="global").anchors()
    assert anchors[0].tolist() == [0.7, 0.2, 0.5, 0.5]
    assert anchors[3].tolist() == [0.7, 0.7, 0.5, 0.5]


@pytest.mark.parametrize(
    ("changes", "genome", "expected"),
    [
        ({}, [1.0, 1.0, 1.0, 1.0], 0.0),
        ({}, [0.0, 0.0, 1.0, 1.0], 1.0),
        ({}, [1.0, 0.0, 1.0, 1.0], 0.5),
        ({}, [2.0, -1.0, 0.5, 0.1], 1 - (0.5 + 0.1) / 2),
        ({}, [0.5, -0.5, 0.5, 0.5], 0.75),
        ({"parameters": {"weight": {"low": 0, "high": 0.5}}}, [0.5, 0.25], 0.25),
        (
            {"parameters": {"weight": UNIT}, "fixed": {"density": 0.3}},
            [1.0, 0.5],
            1 - 0.3 * 0.75,
        ),
        ({"parameters": {"density": UNIT}, "fixed": {"weight": 1}}, [0.2, 0.4], 0.7),
        (
            {"method": "task_arithmetic", "parameters": {"weight": UNIT}, "fixed": {"density": 0}},
            [1.0, 1.0],
            0.0,
        ),
        ({"parameters": {"weight": {**UNIT, "simplex": True}}}, [0.9, 0.9], 0.5),
        ({"method": "sce", "parameters": {"select_topk": UNIT}}, [0.25], 0.75),
        ({"method": "model_stock", "parameters": {"filter_wise": {"choices": [True, False]}}},
         [0.0], 0.0),
        ({"method": "slerp", "parameters": {"t": UNIT}, "sources": {"a": "A"}}, [0.25], 0.75),
        ({"method": "nearswap", "parameters": {"t": UNIT}, "sources": {"a": "A"}}, [0.25], 0.0),
    ],
)  # fmt: skip
def test_sparsity_is_the_share_that_is_left_out(changes, genome, expected):
    found = space(granularity="global", **changes).sparsity(np.array(genome))
    assert found == pytest.approx(expected)


def test_sparsity_averages_over_the_layer_groups():
    merge_space = space(parameters={"weight": UNIT})
    genome = np.zeros(28)
    genome[3] = 1.0
    assert merge_space.sparsity(genome) == pytest.approx(27 / 28)


# -- the files and the page ------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
FILES = (
    "della",
    "operators",
    "pieces",
    "routes",
    "simplex",
    "slerp",
    "task_arithmetic",
    "ties",
    "ties_dare",
)
SPECS = {name: ROOT.joinpath(f"conf/space/{name}.yaml").read_text("utf-8") for name in FILES}
PAGE = ROOT.joinpath("docs/spaces.md").read_text("utf-8")
SPECS |= {
    f"page {i}": text
    for i, text in enumerate(re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
    if "_target_" in text
}


@pytest.mark.parametrize("text", SPECS.values(), ids=SPECS)
def test_spaces_of_files_and_of_the_page_plan_their_anchors(text, tmp_path):
    spec = yaml.safe_load(text)
    names = ("math",) if spec.get("method") == "slerp" else ("math", "japanese", "sorter")
    merger = Merger(threads=1)
    config = {
        "models": {
            "base": str(zoo_path("models/base")),
            "sources": {n: str(zoo_path(f"models/{n}")) for n in names},
        },
        "space": spec,
        "dtype": "bfloat16",
        "seed": 0,
        "run_dir": str(tmp_path),
    }
    found = make_space(config, merger)
    for genome in found.anchors():
        merger.assemble(found.decode(genome))
        assert 0.0 <= found.sparsity(genome) <= 1.0


def test_every_argument_of_a_space_has_its_key():
    known = ("base", "sources", "groups", "dtype", "seed", "self")
    for name in ("simplex", "operators", "routes"):
        spec = yaml.safe_load(SPECS[name])
        target = load_target(spec, "space")
        arguments = [a for a in inspect.signature(target.__init__).parameters if a not in known]
        assert sorted(arguments) == sorted(k for k in spec if k != "_target_")
