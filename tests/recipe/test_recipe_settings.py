"""Values by the tensor's name and by depth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_strategies import SETTINGS

from evomerge.recipe import Case, cases, resolve, values


def test_first_hit_wins():
    setting = (Case("layers.1.", 1.0), Case("mlp", 2.0), Case(None, 3.0), Case("norm", 4.0))
    assert resolve(setting, "model.layers.1.mlp.w") == 1.0
    assert resolve(setting, "model.layers.11.mlp.w") == 2.0
    assert resolve(setting, "model.norm.weight") == 3.0
    assert resolve((Case("*", 5), Case("mlp", 6)), "mlp") == 5
    assert resolve((Case("mlp", 2.0),), "attn") is None
    assert resolve((), "attn") is None
    assert resolve(0.5, "anything") == 0.5
    assert resolve((Case("mlp", ()), Case(None, 1)), "mlp") is None


@given(
    st.lists(st.tuples(st.text("ab.", max_size=3), st.integers()), max_size=5),
    st.text("ab.", max_size=6),
)
@settings(deadline=None, max_examples=50)
def test_filters_are_a_first_substring_search(pairs, tensor):
    hits = [value for pattern, value in pairs if tensor.find(pattern) != -1]
    setting = tuple(Case(p, v) for p, v in pairs)
    assert resolve(setting, tensor) == (hits[0] if hits else None)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), st.floats(0, 1))
@settings(deadline=None, max_examples=50)
def test_numbers_of_a_gradient_are_interpolated(gradient, t):
    knots = np.linspace(0, 1, len(gradient)) if len(gradient) > 1 else [0.0]
    expected = np.interp(t, knots, gradient)
    for setting in (tuple(gradient), (Case("x", tuple(gradient)), Case(None, 7))):
        assert resolve(setting, "x", t) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_gradient_by_hand():
    assert [resolve((0, 0.5, 1, 0), "x", t) for t in (0, 1 / 3, 0.5, 1)] == [0, 0.5, 0.75, 0]
    assert resolve((1, 3), "x") == 1
    assert [resolve((3,), "x", t) for t in (0, 0.3, 1)] == [3, 3, 3]


@pytest.mark.parametrize("gradient", [("a", "b", "c"), (True, False, True), (1, "b", 3)])
def test_words_of_a_gradient_hold_until_the_next(gradient):
    found = [resolve(gradient, "x", t) for t in (0, 0.25, 0.5, 0.75, 0.99, 1)]
    assert found == [gradient[i] for i in (0, 0, 1, 1, 1, 2)]


@pytest.mark.parametrize("t", [-0.01, 1.01, float("nan")])
def test_a_depth_outside_the_model_is_refused(t):
    with pytest.raises(ValueError, match="depth"):
        resolve((1, 2), "x", t)


@given(SETTINGS, st.sampled_from(["mlp", "attn", ""]), st.floats(0, 1))
@settings(deadline=None, max_examples=50)
def test_cases_say_the_same_as_the_setting(setting, tensor, t):
    assert resolve(cases(setting), tensor, t) == resolve(setting, tensor, t)
    found = resolve(setting, tensor, t)
    listed = list(values(setting))
    if found is None or isinstance(found, bool | str):
        assert found is None or found in listed
    else:
        numbers = [v for v in listed if not isinstance(v, bool | str)]
        assert min(numbers) - 1e-3 <= found <= max(numbers) + 1e-3 or abs(found) > 2**53


def test_every_value_of_a_setting_is_listed():
    assert list(values(3)) == [3]
    assert list(values((1, 2))) == [1, 2]
    assert list(values((Case("a", 1), Case(None, (2, "x"))))) == [1, 2, "x"]
    assert list(values(())) == []
