"""Each operator against element-by-element float64 loops written from its formula."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge import operators
from evomerge.operators.masks import MaskKey, uniform
from evomerge.testing.operators import OperatorConformance


def _trimmed(delta: np.ndarray, density: float) -> np.ndarray:
    """Zeroes all but the int(density * n) elements that are largest in magnitude."""
    kept = set(sorted(range(len(delta)), key=lambda i: -abs(delta[i]))[: int(density * len(delta))])
    return np.array([d if i in kept else 0.0 for i, d in enumerate(delta)])


def _dropped(delta: np.ndarray, density: float, key: MaskKey, rescale: str | None) -> np.ndarray:
    if density >= 1:
        return delta
    draws = uniform(key, len(delta)).tolist()
    out = np.array([d if u < density else 0.0 for d, u in zip(delta, draws, strict=True)])
    if rescale == "density":
        return out / density if density else out
    if rescale == "l1" and np.abs(out).sum() > 0:
        return out * (np.abs(delta).sum() / np.abs(out).sum())
    return out


def _elected(base, deltas, weights, scale, normalize):
    """TIES' election, one element at a time."""
    out = np.zeros_like(base)
    for i in range(len(base)):
        terms = [w * d[i] for w, d in zip(weights, deltas, strict=True)]
        positive = sum(terms) >= 0
        agreeing = [j for j, t in enumerate(terms) if (t > 0 if positive else t < 0)]
        value = sum(terms[j] for j in agreeing)
        divisor = sum(weights[j] for j in agreeing) if normalize else 1.0
        out[i] = base[i] + scale * value / (divisor if abs(divisor) > 1e-5 else 1.0)
    return out


def reference(name, base, sources, weights, densities, keys, scale=1.0, **flags):
    normalize = flags.get("normalize", {"linear": True, "ties": True}.get(name, False))
    if name == "linear":
        total = math.fsum(weights) if normalize else 1.0
        out = np.zeros_like(base)
        for i in range(len(base)):
            out[i] = math.fsum(w * x[i] for w, x in zip(weights, sources, strict=True))
        return out / total if abs(total) >= 1e-8 else out
    deltas = [x - base for x in sources]
    if name == "task_arithmetic":
        total = math.fsum(weights) if normalize else 1.0
        total = total if abs(total) >= 1e-8 else 1.0
        return np.array(
            [
                b
                + scale * math.fsum(w * d[i] for w, d in zip(weights, deltas, strict=True)) / total
                for i, b in enumerate(base)
            ]
        )
    if name == "ties":
        deltas = [_trimmed(d, p) for d, p in zip(deltas, densities, strict=True)]
    else:
        rescale = flags.get("rescale_norm", "l1") if flags.get("rescale", True) else None
        deltas = [
            _dropped(d, p, k, rescale) for d, p, k in zip(deltas, densities, keys, strict=True)
        ]
    return _elected(base, deltas, weights, scale, normalize)


WEIGHTS = st.floats(-2, 2).filter(lambda w: w == 0 or abs(w) > 0.05)


@st.composite
def merges(draw):
    n, count = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tensors = rng.standard_normal((count + 1, n)).astype(np.float32)
    weights = draw(st.lists(WEIGHTS, min_size=count, max_size=count))
    densities = draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
    return tensors[0], list(tensors[1:]), weights, densities


FLAGS = {
    "linear": [{}, {"normalize": False}],
    "task_arithmetic": [{}, {"normalize": True}, {"lambda_": -0.7}],
    "ties": [{}, {"normalize": False}, {"lambda_": 1.7}],
    "dare_ties": [
        {},
        {"normalize": True},
        {"rescale": False},
        {"rescale_norm": "density", "lambda_": 0.4},
    ],
}
CASES = [(name, flags) for name, choices in FLAGS.items() for flags in choices]


@pytest.mark.parametrize(("name", "flags"), CASES)
@given(merge=merges())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_equals_the_loops(name, flags, merge):
    base, sources, weights, densities = merge
    keys = [MaskKey(3, f"source{i}", "tensor") for i in range(len(sources))]
    operator = operators.get(name)
    arguments = {"weight": weights, **flags}
    if "density" in operator.parameters:
        arguments["density"] = densities
    if operator.needs_keys:
        arguments["keys"] = keys
    merged = operator.function(
        torch.from_numpy(base), [torch.from_numpy(x) for x in sources], **arguments
    )
    options = {**flags, "scale": flags.get("lambda_", 1.0)}
    options.pop("lambda_", None)
    expected = reference(
        name,
        base.astype(np.float64),
        [x.astype(np.float64) for x in sources],
        weights,
        densities,
        keys,
        **options,
    )
    divisor = 1.0
    if flags.get("normalize", name == "linear") and name in ("linear", "task_arithmetic"):
        divisor = max(abs(math.fsum(weights)), 1e-8)  # rounding is divided by it too
    size = max(1.0, *(abs(w) for w in weights)) / min(1.0, divisor)
    near = _near_ties(name, base, sources, weights, densities, keys, options)
    ok = np.isclose(merged.numpy(), expected, rtol=2e-5, atol=2e-5 * size) | near
    assert ok.all()


def _near_ties(name, base, sources, weights, densities, keys, options):
    """Elements whose elected sign or divisor is a matter of float32 rounding."""
    if name not in ("ties", "dare_ties"):
        return np.zeros(len(base), bool)
    wide = [base.astype(np.float64), *(x.astype(np.float64) for x in sources)]
    deltas = [x - wide[0] for x in wide[1:]]
    rescale = options.get("rescale_norm", "l1") if options.get("rescale", True) else None
    if name == "ties":
        deltas = [_trimmed(d, p) for d, p in zip(deltas, densities, strict=True)]
    else:
        deltas = [
            _dropped(d, p, k, rescale) for d, p, k in zip(deltas, densities, keys, strict=True)
        ]
    terms = np.array([w * d for w, d in zip(weights, deltas, strict=True)])
    sign = np.where(terms.sum(0) >= 0, 1.0, -1.0)
    divisor = (np.array(weights)[:, None] * (np.sign(terms) == sign)).sum(0)
    close = np.abs(terms.sum(0)) < 1e-4 * (np.abs(terms).sum(0) + 1e-12)
    small = (np.abs(divisor) < 1e-2) & (np.abs(divisor) > 0)
    return (close & (np.abs(terms).sum(0) > 0)) | small


class TestLinear(OperatorConformance):
    name = "linear"

    def test_equal_models_stay_as_they_are(self):
        base, _ = self.tensors((4, 5), 1)
        assert torch.allclose(self.merge(base, [base, base], [0.2, 0.6]), base)

    def test_weights_of_sum_zero_are_not_divided(self):
        base, [a, b] = self.tensors((9,), 2)
        merged = self.merge(base, [a, b], [1.0, -1.0])
        assert torch.allclose(merged, a - b)

    def test_the_base_is_not_used(self):
        base, sources = self.tensors((9,))
        merged = operators.get("linear").function(None, sources, weight=[1, 2, 3])
        assert torch.equal(merged, self.merge(base, sources, [1, 2, 3]))


class TestTaskArithmetic(OperatorConformance):
    name = "task_arithmetic"


class TestTies(OperatorConformance):
    name = "ties"

    def test_density_zero_returns_the_base(self):
        base, sources = self.tensors((4, 5))
        assert torch.equal(self.merge(base, sources, [1, 1, 1], density=0.0), base)

    def test_opposite_deltas_of_one_size_elect_plus(self):
        base, delta = torch.zeros(4), torch.tensor([1.0, -2.0, 3.0, -4.0])
        merged = self.merge(base, [base + delta, base - delta], [0.5, 0.5])
        assert torch.equal(merged, delta.abs())

    def test_weights_that_cancel_up_to_rounding_do_not_blow_up(self):
        """In float32 0.1 + 0.2 - 0.3 is 0 or 7e-9, by the order of the sources."""
        base = torch.zeros(1)
        deltas = [torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([-1.0])]
        weights = [0.1, 0.2, -0.3]
        for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]):
            merged = self.merge(base, [deltas[i] for i in order], [weights[i] for i in order])
            torch.testing.assert_close(merged, torch.tensor([0.6]))


class TestDareTies(OperatorConformance):
    name = "dare_ties"

    def test_density_zero_returns_the_base(self):
        base, sources = self.tensors((4, 5))
        assert torch.equal(self.merge(base, sources, [1, 1, 1], density=0.0), base)

    def test_rescaling_by_the_density_keeps_the_mean(self):
        """Over many elements the paper's estimator is unbiased: 5 standard errors."""
        n, density = 40_000, 0.3
        base, source = torch.zeros(n), torch.ones(n)
        merged = self.merge(base, [source], [1.0], density, rescale_norm="density")
        error = math.sqrt((1 - density) / density / n)
        assert abs(float(merged.mean()) - 1.0) < 5 * error

    def test_rescaling_by_l1_keeps_the_l1_norm(self):
        base, [source] = self.tensors((2000,), 1)
        merged = self.merge(base, [source], [1.0], 0.2)
        norm = float((source - base).double().abs().sum())
        assert float((merged - base).double().abs().sum()) == pytest.approx(norm, rel=1e-5)


def test_introspection():
    assert operators.names() == ("dare_ties", "linear", "task_arithmetic", "ties")
    dare = operators.get("dare_ties")
    assert set(dare.parameters) == {
        "weight", "density", "lambda", "normalize", "rescale", "rescale_norm"
    }  # fmt: skip
    assert dare.defaults == {
        "lambda": 1.0, "normalize": False, "rescale": True, "rescale_norm": "l1"
    }  # fmt: skip
    assert (dare.needs_base, dare.needs_keys) == (True, True)
    linear = operators.get("linear")
    assert (linear.needs_base, linear.needs_keys) == (False, False)
    assert linear.defaults == {"normalize": True}
    assert operators.get("ties").parameters["density"].default == 1.0


def test_unknown_operator_lists_the_known_ones():
    with pytest.raises(operators.RecipeError, match=r"merge_method: found .slurp.*dare_ties, lin"):
        operators.get("slurp")
