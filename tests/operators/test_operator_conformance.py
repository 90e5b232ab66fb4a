"""Every operator against the common rules, and its own documented edge values."""

import math

import pytest
import torch

from evomerge import operators
from evomerge.errors import RecipeError, SourceError
from evomerge.testing.operators import OperatorConformance, settings


class TaskVectors(OperatorConformance):
    """What the operators that thin out task vectors share."""

    sparse = settings(density=(0.7, 0.5, 0.4))

    def test_density_zero_returns_the_base(self):
        base, sources = self.tensors((4, 5))
        assert torch.equal(self.merge(base, sources, density=[0.0] * 3), base)

    def test_density_zero_of_one_source_equals_its_absence(self):
        base, sources = self.tensors((4, 5))
        merged = self.merge(
            base, sources, weight=[1, 1, 1], density=[1.0, 1.0, 0.0], normalize=False
        )
        without = self.merge(base, sources[:2], weight=[1, 1], density=[1.0, 1.0], normalize=False)
        torch.testing.assert_close(merged, without)

    @pytest.mark.parametrize("normalize", [False, True])
    def test_density_one_takes_everything(self, normalize):
        base, sources = self.tensors((4, 5))
        one = self.merge(base, [sources[0]], density=[1.0], normalize=normalize)
        torch.testing.assert_close(one, sources[0])


class TestLinear(OperatorConformance):
    name = "linear"

    def test_weights_of_sum_zero_are_not_divided(self):
        base, [a, b] = self.tensors((9,), 2)
        assert torch.allclose(self.merge(base, [a, b], weight=[1.0, -1.0]), a - b)

    def test_the_base_is_not_used(self):
        base, sources = self.tensors((9,))
        merged = operators.merge("linear", None, sources, weight=[1, 2, 3])
        assert torch.equal(merged, self.merge(base, sources, weight=[1, 2, 3]))


class TestPassthrough(OperatorConformance):
    name = "passthrough"

    def test_scale(self):
        base, [x] = self.tensors((9,), 1)
        assert torch.equal(self.merge(base, [x], scale=[-0.5]), -0.5 * x)
        assert torch.equal(self.merge(base, [x], scale=[0.0]), torch.zeros(9))


class TestTaskArithmetic(OperatorConformance):
    name = "task_arithmetic"

    def test_one_source_of_weight_one_is_exact(self):
        base, [x] = self.tensors((99,), 1)
        assert torch.equal(self.merge(base, [x * 1e-3]), x * 1e-3)


class TestTies(TaskVectors):
    name = "ties"

    def test_opposite_deltas_of_one_size_elect_plus(self):
        base, delta = torch.zeros(4), torch.tensor([1.0, -2.0, 3.0, -4.0])
        merged = self.merge(base, [base + delta, base - delta], weight=[0.5, 0.5])
        assert torch.equal(merged, delta.abs())

    def test_weights_that_cancel_up_to_rounding_do_not_blow_up(self):
        """In float32 0.1 + 0.2 - 0.3 is 0 or 7e-9, by the order of the sources."""
        base = torch.zeros(1)
        deltas = [torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([-1.0])]
        weights = [0.1, 0.2, -0.3]
        for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]):
            merged = self.merge(
                base, [deltas[i] for i in order], weight=[weights[i] for i in order]
            )
            torch.testing.assert_close(merged, torch.tensor([0.6]))

    def test_a_density_above_zero_keeps_at_least_one_element(self):
        base, [x] = self.tensors((10,), 1)
        merged = self.merge(base, [x], density=[0.01])
        largest = int((x - base).abs().argmax())
        assert (merged != base).nonzero().flatten().tolist() == [largest]


class TestDareLinear(TaskVectors):
    name = "dare_linear"


class TestDareTies(TaskVectors):
    name = "dare_ties"


class TestBreadcrumbs(TaskVectors):
    name = "breadcrumbs"
    sparse = settings(density=(0.7, 0.5, 0.4), gamma=(0.1, 0.2, 0.05))

    def test_gamma_zero_keeps_the_largest(self):
        base, [x] = self.tensors((10,), 1)
        merged = self.merge(base, [x], density=[0.3], gamma=[0.0])
        kept = (x - base).abs().argsort(descending=True)[:3]
        assert set((merged != base).nonzero().flatten().tolist()) == set(kept.tolist())

    def test_gamma_one_keeps_the_smallest(self):
        base, [x] = self.tensors((10,), 1)
        merged = self.merge(base, [x], density=[0.3], gamma=[1.0])
        kept = (x - base).abs().argsort()[:3]
        assert set((merged != base).nonzero().flatten().tolist()) == set(kept.tolist())


class TestBreadcrumbsTies(TaskVectors):
    name = "breadcrumbs_ties"
    sparse = settings(density=(0.7, 0.5, 0.4), gamma=(0.1, 0.2, 0.05))


class TestDellaLinear(TaskVectors):
    name = "della_linear"

    def test_no_epsilon_is_dare(self):
        base, sources = self.tensors((40, 30))
        merged = self.merge(base, sources, density=[0.4] * 3, epsilon=[0.0] * 3)
        dare = TestDareLinear().merge(base, sources, density=[0.4] * 3)
        assert torch.equal(merged, dare)

    def test_a_large_epsilon_is_lowered(self):
        base, sources = self.tensors((40, 30))
        merged = self.merge(base, sources, density=[0.8] * 3, epsilon=[0.9] * 3)
        lowered = self.merge(base, sources, density=[0.8] * 3, epsilon=[1 - 0.8] * 3)
        assert torch.equal(merged, lowered)


class TestDella(TaskVectors):
    name = "della"


class TestSlerp(OperatorConformance):
    name = "slerp"
    common = settings(t=0.3)
    whole = settings(t=1.0)

    def test_its_ends(self):
        base, [x] = self.tensors((9,), 1)
        torch.testing.assert_close(self.merge(base, [x], t=0.0), base)
        torch.testing.assert_close(self.merge(base, [x], t=1.0), x)

    @pytest.mark.parametrize("t", [0.25, 0.5])
    def test_opposite_vectors_are_interpolated_linearly(self, t):
        base, _ = self.tensors((9,), 1)
        torch.testing.assert_close(self.merge(base, [-base], t=t), (1 - 2 * t) * base)

    def test_unit_vectors_at_right_angles(self):
        base, x = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        merged = self.merge(base, [x], t=1 / 3)
        expected = torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)])
        torch.testing.assert_close(merged, expected)


class TestNuslerp(OperatorConformance):
    name = "nuslerp"

    def test_weights_that_sum_to_zero_count_as_equal(self):
        base, sources = self.tensors((9,), 2)
        merged = self.merge(base, sources, weight=[1.0, -1.0])
        assert torch.equal(merged, self.merge(base, sources, weight=[1.0, 1.0]))

    def test_zero_weight_leaves_the_other(self):
        base, sources = self.tensors((9,), 2)
        torch.testing.assert_close(self.merge(base, sources, weight=[0.0, 2.0]), sources[1])


class TestNuslerpAlone(TestNuslerp):
    with_base = False


class TestNuslerpByLine(TestNuslerp):
    common = settings(nuslerp_flatten=False)


class TestNuslerpByColumn(TestNuslerp):
    common = settings(nuslerp_flatten=False, nuslerp_row_wise=True)


class TestMultislerp(OperatorConformance):
    name = "multislerp"

    def test_vectors_that_cancel_are_averaged(self):
        base, [a, b] = self.tensors((9,), 2)
        sources = [base + a, base - 3 * a, base + b, base - b]
        merged = self.merge(base, sources, weight=[0.25] * 4)
        torch.testing.assert_close(merged, sum(sources) / 4)


class TestMultislerpAlone(OperatorConformance):
    name = "multislerp"
    with_base = False


class TestKarcher(OperatorConformance):
    name = "karcher"

    def test_opposite_vectors_are_averaged(self):
        base, [a, _] = self.tensors((9,), 2)
        torch.testing.assert_close(self.merge(base, [a, -3 * a]), -a)

    def test_zeros_count_in_the_norm_alone(self):
        base, [a, b] = self.tensors((9,), 2)
        merged = self.merge(base, [a, b, torch.zeros(9)])
        torch.testing.assert_close(merged, self.merge(base, [a, b]) * 2 / 3)


class TestModelStock(OperatorConformance):
    name = "model_stock"

    def test_opposite_task_vectors_give_the_base(self):
        base, [a, _] = self.tensors((9,), 2)
        torch.testing.assert_close(self.merge(base, [base + a, base - a]), base)

    def test_task_vectors_at_right_angles_give_the_base(self):
        base, a, b = torch.ones(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        assert torch.equal(self.merge(base, [base + a, base + b]), base)


class TestModelStockByLine(TestModelStock):
    common = settings(filter_wise=True)


class TestSce(OperatorConformance):
    name = "sce"
    sparse = settings(select_topk=0.4)

    def test_nothing_selected_returns_the_base(self):
        base, sources = self.tensors((4, 5))
        assert torch.equal(self.merge(base, sources, select_topk=0.0), base)
        assert torch.equal(self.merge(base, sources[:1], select_topk=0.5), base)


class TestNearswap(OperatorConformance):
    name = "nearswap"
    common = settings(t=0.3)
    whole = settings(t=100.0)

    def test_t_zero_returns_the_base(self):
        base, sources = self.tensors((4, 5), 1)
        assert torch.equal(self.merge(base, sources, t=0.0), base)

    def test_no_element_moves_by_more_than_t(self):
        base, [x] = self.tensors((400,), 1)
        moved = (self.merge(base, [x], t=0.3) - base).abs()
        torch.testing.assert_close(moved, (x - base).abs().clamp(max=0.3), rtol=1e-5, atol=1e-6)


class TestArceeFusion(OperatorConformance):
    name = "arcee_fusion"
    whole = None

    @pytest.mark.parametrize("shape", [(), (1,), (4, 1)])
    def test_vectors_of_one_element_are_taken_over(self, shape):
        base, [x] = self.tensors(shape, 1)
        assert torch.equal(self.merge(base, [x]), x)


class TestRam(OperatorConformance):
    name = "ram"
    sparse = settings(epsilon=0.7)
    exactly = 1e-5


class TestRamplusTl(OperatorConformance):
    name = "ramplus_tl"
    sparse = settings(epsilon=0.7)
    exactly = 1e-5

    def test_alpha_or_r_zero_is_ram(self):
        base, sources = self.tensors((4, 5))
        plain = TestRam().merge(base, sources, epsilon=0.7)
        for parameters in ({"alpha": 0.0}, {"r": 0.0}):
            merged = self.merge(base, sources, epsilon=0.7, **parameters)
            torch.testing.assert_close(merged, plain)


def test_every_operator_is_held_to_the_rules():
    tested = {c.name for c in globals().values() if isinstance(c, type) and hasattr(c, "name")}
    assert tested == set(operators.names())
    assert len(tested) == 20


def test_introspection():
    dare = operators.get("dare_ties")
    assert set(dare.parameters) == {
        "weight", "density", "lambda", "normalize", "rescale", "rescale_norm", "int8_mask"
    }  # fmt: skip
    assert dare.defaults == {
        "lambda": 1.0, "normalize": False, "rescale": True, "rescale_norm": "l1",
        "int8_mask": False,
    }  # fmt: skip
    assert (dare.needs_base, dare.needs_keys) == (True, True)
    assert dare.parameters["int8_mask"].inert and not dare.parameters["rescale"].inert
    assert operators.get("ties").parameters["density"].default == 1.0


@pytest.mark.parametrize(
    ("name", "takes_base", "least", "most"),
    [
        ("linear", "never", 1, None),
        ("passthrough", "never", 1, 1),
        ("slerp", "required", 1, 1),
        ("nuslerp", "optional", 2, 2),
        ("multislerp", "optional", 1, None),
        ("ties", "required", 1, None),
    ],
)
def test_what_it_takes(name, takes_base, least, most):
    operator = operators.get(name)
    assert (operator.takes_base, operator.least_sources, operator.most_sources) == (
        takes_base, least, most
    )  # fmt: skip


def test_defaults_are_mergekits():
    """As its documentation lists them."""
    normalize = {n: operators.get(n).defaults.get("normalize") for n in operators.names()}
    rescale = {n: operators.get(n).defaults.get("rescale") for n in operators.names()}
    assert {n for n, on in normalize.items() if on} == {"linear", "ties", "della"}
    assert {n for n, on in rescale.items() if on} == {
        "dare_linear", "dare_ties", "della", "della_linear"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (("slurp", None, 1, {}), RecipeError, r"merge_method: found .slurp.*arcee_fusion, bread"),
        (("ties", None, 1, {"weight": [1]}), RecipeError, "base_model: found none"),
        (("slerp", True, 2, {"t": 0.5}), RecipeError, "models: found 2 sources besides the base"),
        (("slerp", True, 1, {}), RecipeError, "parameters.t: found nothing"),
        (("linear", None, 2, {"weight": 1.0}), RecipeError, "a sequence of 2 numbers"),
        (("linear", None, 2, {"weight": [1.0]}), RecipeError, "a sequence of 2 numbers"),
        (("karcher", None, 2, {"t": 1.0}), RecipeError, "does not have; expected one of max_iter"),
    ],
)
def test_mistakes_are_named(call, error, message):
    name, base, count, parameters = call
    x = torch.ones(3)
    with pytest.raises(error, match=message):
        operators.merge(name, x if base else None, [x] * count, **parameters)


def test_shapes_that_differ_are_named():
    with pytest.raises(SourceError, match=r"sources\[1\]: found shape \[4\]"):
        operators.merge("linear", None, [torch.ones(3), torch.ones(4)], weight=[1, 1])
    with pytest.raises(SourceError, match=r"base: found shape \[4\]"):
        operators.merge("ram", torch.ones(4), [torch.ones(3)])
