"""Operators that combine whole tensors, or vectors of them, against float64 on real vectors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge import operators


def _merge(name, base, sources, **parameters):
    base = None if base is None else torch.from_numpy(base)
    merged = operators.merge(name, base, [torch.from_numpy(x) for x in sources], **parameters)
    return merged.numpy().astype(np.float64)


def _wide(base, sources):
    return (None if base is None else base.astype(float)), [x.astype(float) for x in sources]


SHAPES = [(30,), (6, 9), (1, 40), (40, 1), (3, 4, 5), (2, 3, 2, 4)]
"""None so small that vectors are nearly opposite by chance, but for those of one element."""


@st.composite
def tensors(draw, least=1, most=4, shapes=SHAPES):
    shape, count = draw(st.sampled_from(shapes)), draw(st.integers(least, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.02, 1.0]))
    base = rng.standard_normal(shape)
    sources = [base + spread * rng.standard_normal(shape) for _ in range(count)]
    return base.astype(np.float32), [x.astype(np.float32) for x in sources]


def weights(least=-2.0, most=2.0):
    return st.lists(st.floats(least, most), min_size=4, max_size=4)


def quick(test):
    return settings(max_examples=60, deadline=None, derandomize=True)(test)


@given(tensors(), weights(), st.booleans())
@quick
def test_linear(made, w, normalize):
    _, sources = made
    w = w[: len(sources)]
    merged = _merge("linear", None, sources, weight=w, normalize=normalize)
    total = math.fsum(w) if normalize and abs(math.fsum(w)) > 1e-4 else 1.0
    if normalize and 0 < abs(math.fsum(w)) <= 1e-4:
        return
    expected = np.zeros(sources[0].shape)
    for i in np.ndindex(expected.shape):
        expected[i] = math.fsum(a * float(x[i]) for a, x in zip(w, sources, strict=True)) / total
    assert np.allclose(merged, expected, rtol=1e-5, atol=1e-5 / min(1.0, abs(total)))


@given(tensors(), weights(), st.booleans(), st.floats(-2, 2))
@quick
def test_task_arithmetic(made, w, normalize, scale):
    base, sources = made
    w = w[: len(sources)]
    merged = _merge("task_arithmetic", base, sources, weight=w, normalize=normalize, lambda_=scale)
    total = math.fsum(w) if normalize and abs(math.fsum(w)) > 1e-4 else 1.0
    if normalize and 0 < abs(math.fsum(w)) <= 1e-4:
        return
    expected = np.zeros(base.shape)
    for i in np.ndindex(expected.shape):
        deltas = [float(x[i]) - float(base[i]) for x in sources]
        step = math.fsum(a * d for a, d in zip(w, deltas, strict=True))
        expected[i] = base[i] + scale * step / total
    assert np.allclose(merged, expected, rtol=1e-5, atol=1e-5 / min(1.0, abs(total)))


def _slerp(a, b, t, linear_above):
    """Of two vectors, angles from the sine and the cosine of the half angle."""
    u, v = (x / np.linalg.norm(x) if np.linalg.norm(x) else x for x in (a, b))
    cosine = float(u @ v)
    if abs(cosine) > linear_above:
        return (1 - t) * a + t * b
    straight = np.linalg.norm(u) and np.linalg.norm(v)
    theta = math.pi / 2
    if straight:
        theta = 2 * math.atan2(np.linalg.norm(u - v), np.linalg.norm(u + v))
    return (math.sin((1 - t) * theta) * a + math.sin(t * theta) * b) / math.sin(theta)


@given(tensors(most=1), st.floats(-0.5, 1.5), st.booleans())
@quick
def test_slerp(made, t, opposite):
    base, [x] = made
    x = -x if opposite else x
    merged = _merge("slerp", base, [x], t=t)
    b, [y] = _wide(base, [x])
    expected = _slerp(b.ravel(), y.ravel(), t, 0.9995).reshape(base.shape)
    assert np.allclose(merged, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("cosine", "linear"),
    [(0.9994, False), (0.9996, True), (-0.9994, False), (-0.9996, True)],
)
def test_slerp_is_linear_from_a_cosine_of_09995_on(cosine, linear):
    """As mergekit has it; at half of the way a chord is shorter than its arc's radius."""
    base = np.array([1.0, 0.0], np.float32)
    x = np.array([cosine, math.sqrt(1 - cosine**2)], np.float32)
    length = np.linalg.norm(_merge("slerp", base, [x], t=0.5))
    assert length == pytest.approx(math.sqrt((1 + cosine) / 2) if linear else 1.0, rel=2e-5)


def _along(axis, function, *arrays):
    """A function of vectors along an axis, vector by vector."""
    moved = [np.moveaxis(x, axis, -1) for x in arrays]
    out = np.zeros_like(moved[0])
    for i in np.ndindex(out.shape[:-1]):
        out[i] = function(*(x[i] for x in moved))
    return np.moveaxis(out, -1, axis)


@given(
    tensors(least=2, most=2), st.floats(0.01, 2), st.floats(0.01, 2), st.booleans(),
    st.sampled_from(["flat", "line", "column"]),
)  # fmt: skip
@quick
def test_nuslerp(made, w0, w1, with_base, way):
    base, sources = made
    flags = {"nuslerp_flatten": way == "flat", "nuslerp_row_wise": way == "column"}
    merged = _merge("nuslerp", base if with_base else None, sources, weight=[w0, w1], **flags)
    b, (x, y) = _wide(base, sources)
    origin = b if with_base else np.zeros_like(b)
    t = w1 / (w0 + w1)

    def between(u, v):
        return _slerp(u, v, t, 1 - 1e-6)

    u, v = x - origin, y - origin
    if way == "flat":
        expected = between(u.ravel(), v.ravel()).reshape(u.shape)
    else:
        expected = _along(-1 if way == "line" else 0, between, u, v)
    # short vectors may be nearly opposite, where sines are small and rounding is divided by them
    cosines = _along(-1 if way != "column" else 0, _cosines, u, v)
    fine = np.isclose(merged, expected + origin, rtol=1e-4, atol=1e-4) | (cosines < -0.999)
    assert fine.all()


def _cosines(u, v):
    return np.full(len(u), u @ v / (np.linalg.norm(u) * np.linalg.norm(v)))


@given(tensors(least=2), weights(0.05), st.booleans(), st.booleans())
@quick
def test_multislerp(made, w, normalize, with_base):
    """With the tangent-space step of the published definition, which turns out to be none."""
    base, sources = made
    w = np.array(w[: len(sources)])
    merged = _merge(
        "multislerp", base if with_base else None, sources, weight=w.tolist(),
        normalize_weights=normalize,
    )  # fmt: skip
    b, xs = _wide(base, sources)
    origin = b if with_base else np.zeros_like(b)
    w = w / w.sum() if normalize else w
    vectors = np.stack([(x - origin).ravel() for x in xs])
    norms = np.linalg.norm(vectors, axis=1)
    units = vectors / (norms + 1e-8)[:, None]
    mean = w @ units
    if np.linalg.norm(mean) < 1e-2 * w.sum():
        return
    mean /= np.linalg.norm(mean)
    tangents = units - (units @ mean)[:, None] * mean
    tangent = w @ tangents
    angle = np.linalg.norm(tangent) + 1e-8
    point = mean * math.cos(angle) + tangent * (math.sin(angle) / angle)
    expected = (point * (w @ norms)).reshape(b.shape) + origin
    assert np.allclose(merged, expected, rtol=1e-4, atol=1e-3)


@given(tensors(least=2))
@quick
def test_karcher_is_where_the_logarithms_sum_to_zero(made):
    """Checks the result's definition, on the vectors themselves."""
    _, sources = made
    vectors = np.stack([x.astype(float).ravel() for x in sources])
    norms = np.linalg.norm(vectors, axis=1)
    units = vectors / norms[:, None]
    if (units @ units.T).min() < 0.2:  # it converges fast within a cap
        return
    merged = _merge("karcher", None, sources, max_iter=100, tol=1e-9).ravel()
    assert np.linalg.norm(merged) == pytest.approx(norms.mean(), rel=1e-5)
    mean = merged / np.linalg.norm(merged)
    logarithms = []
    for u in units:
        across = u - (u @ mean) * mean
        sine = np.linalg.norm(across)
        logarithms.append(math.atan2(sine, u @ mean) * across / sine if sine > 1e-9 else across)
    assert np.linalg.norm(np.mean(logarithms, axis=0)) < 1e-5


@given(tensors(least=2), st.integers(0, 3))
@quick
def test_karcher_takes_its_steps_along_the_mean_logarithm(made, steps):
    _, sources = made
    vectors = np.stack([x.astype(float).ravel() for x in sources])
    norms = np.linalg.norm(vectors, axis=1)
    units = vectors / norms[:, None]
    mean = units.mean(0)
    if np.linalg.norm(mean) < 0.05 or (units @ units.T).min() < -0.9:
        return
    mean /= np.linalg.norm(mean)
    for _ in range(steps):
        step = np.zeros_like(mean)
        for u in units:
            across = u - (u @ mean) * mean
            sine = np.linalg.norm(across)
            step += math.atan2(sine, u @ mean) * (across / sine if sine > 1e-9 else 0) / len(units)
        angle = np.linalg.norm(step)
        if angle > 1e-6:
            mean = math.cos(angle) * mean + math.sin(angle) * step / angle
    merged = _merge("karcher", None, sources, max_iter=steps, tol=1e-6).ravel()
    assert np.allclose(merged, mean * norms.mean(), rtol=1e-4, atol=1e-4)


def _stock(b, xs):
    """t of one vector (arXiv 2403.19522, section 4.2)."""
    count = len(xs)
    if count == 1:
        return 1.0
    deltas = [x - b for x in xs]
    cosines = [
        u @ v / (np.linalg.norm(u) * np.linalg.norm(v))
        for i, u in enumerate(deltas)
        for v in deltas[:i]
    ]
    c = np.mean(cosines)
    denominator = 1 + (count - 1) * c
    return count * c / denominator if denominator else math.inf


@given(tensors(), st.booleans())
@quick
def test_model_stock(made, filter_wise):
    base, sources = made
    merged = _merge("model_stock", base, sources, filter_wise=filter_wise)
    b, xs = _wide(base, sources)

    def one(b, *xs):
        t = _stock(b, xs)
        return t * np.mean(xs, axis=0) + (1 - t) * b if abs(t) < 20 else np.full_like(b, np.nan)

    if filter_wise:
        expected = _along(-1, one, b, *xs)
    else:
        expected = one(b.ravel(), *(x.ravel() for x in xs)).reshape(b.shape)
    # a large t is a denominator near 0: rounding decides
    assert (np.isclose(merged, expected, rtol=1e-3, atol=1e-3) | np.isnan(expected)).all()


@pytest.mark.parametrize("size", [1e-12, 1e-4, 1e6])
@pytest.mark.parametrize("name", ["nuslerp", "multislerp", "karcher", "model_stock"])
def test_the_unit_of_the_weights_does_not_matter(name, size):
    rng = np.random.default_rng(3)
    base = np.zeros((5, 6), np.float32)
    sources = [rng.standard_normal((5, 6)).astype(np.float32) for _ in range(2)]
    own = {"weight": [0.3, 0.7]} if name in ("nuslerp", "multislerp") else {}
    more = {"eps": 0.0} if name == "multislerp" else {}
    merged = _merge(name, base, [size * x for x in sources], **own, **more)
    expected = _merge(name, base, sources, **own, **more)
    assert np.allclose(merged / size, expected, rtol=1e-4, atol=1e-5)
