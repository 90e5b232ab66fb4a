"""What every merge operator has to do, whatever it computes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge import operators
from evomerge.operators.masks import MaskKey
from evomerge.operators.parameters import Parameter

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4)]


class OperatorConformance:
    """Holds one operator to the common rules; inherit it and set `name`.

    Attributes:
        name: of the operator.
        common: values of whole-merge parameters under which the sum of the weights is
            the size of the step, so that weights of sum 1 average.
    """

    name: str
    common: dict[str, Any] = {}  # noqa: RUF012 (overridden, never changed)

    def merge(
        self,
        base: Tensor,
        sources: Sequence[Tensor],
        weight: Sequence[float],
        density: float | Sequence[float] = 1.0,
        labels: Sequence[str] | None = None,
        **parameters: Any,
    ) -> Tensor:
        """Calls the operator with what it takes of the arguments.

        Args:
            base: float32 tensor.
            sources: tensors of the base's shape.
            weight: one a source.
            density: one a source or the same for all.
            labels: what each source's mask is drawn from; default: its position.
            parameters: of the whole merge.
        """
        operator = operators.get(self.name)
        arguments: dict[str, Any] = {"weight": list(weight), **self.common, **parameters}
        if "density" in operator.parameters:
            same = isinstance(density, float | int)
            arguments["density"] = [density] * len(sources) if same else density
        if operator.needs_keys:
            labels = labels or [str(i) for i in range(len(sources))]
            arguments["keys"] = [MaskKey(0, label, "tensor") for label in labels]
        merged: Tensor = operator.function(base, list(sources), **arguments)
        return merged

    def tensors(self, shape: tuple[int, ...], count: int = 3) -> tuple[Tensor, list[Tensor]]:
        """A base and sources with normal entries, the same at each call."""
        rng = torch.Generator().manual_seed(7)
        first, *rest = (torch.randn(shape, generator=rng) for _ in range(count + 1))
        return first, rest

    def test_its_signature_says_what_it_takes(self) -> None:
        operator = operators.get(self.name)
        assert operator.name == self.name
        weight = operator.parameters["weight"]
        assert isinstance(weight, Parameter) and weight.per_source
        assert set(operator.defaults) <= set(operator.parameters)
        for key, parameter in operator.parameters.items():
            default = operator.defaults.get(key)
            if isinstance(parameter, Parameter) and default is not None:
                assert parameter.low <= default <= parameter.high

    @pytest.mark.parametrize("shape", SHAPES)
    def test_shape_and_dtype_are_kept(self, shape: tuple[int, ...]) -> None:
        base, sources = self.tensors(shape)
        merged = self.merge(base, sources, [0.5, 0.3, -0.2], density=0.6)
        assert merged.shape == shape
        assert merged.dtype == torch.float32
        assert torch.isfinite(merged).all()

    @pytest.mark.parametrize("shape", SHAPES)
    def test_one_source_whole_returns_itself(self, shape: tuple[int, ...]) -> None:
        base, [source] = self.tensors(shape, 1)
        merged = self.merge(base, [source], [1.0])
        torch.testing.assert_close(merged, source, rtol=1e-6, atol=1e-6)

    def test_identical_sources_return_themselves(self) -> None:
        base, [source] = self.tensors((4, 5), 1)
        merged = self.merge(base, [source, source.clone()], [0.25, 0.75])
        torch.testing.assert_close(merged, source, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("density", [1.0, 0.5])
    def test_order_of_sources_is_irrelevant(self, density: float) -> None:
        base, sources = self.tensors((6, 7))
        weights, labels = [0.7, -0.4, 0.9], ["a", "b", "c"]
        expected = self.merge(base, sources, weights, density, labels)
        for order in permutations(range(3)):
            merged = self.merge(
                base,
                [sources[i] for i in order],
                [weights[i] for i in order],
                density,
                [labels[i] for i in order],
            )
            torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("density", [1.0, 0.5])
    def test_zero_weight_equals_absence(self, density: float) -> None:
        base, sources = self.tensors((6, 7))
        labels = ["a", "b", "c"]
        with_it = self.merge(base, sources, [0.6, 0.0, 0.9], density, labels)
        kept = [sources[0], sources[2]]
        without = self.merge(base, kept, [0.6, 0.9], density, ["a", "c"])
        torch.testing.assert_close(with_it, without, rtol=1e-6, atol=1e-6)

    def test_equal_models_stay_as_they_are(self) -> None:
        base, _ = self.tensors((4, 5), 1)
        for density in (0.0, 0.5, 1.0):
            merged = self.merge(base, [base.clone(), base.clone()], [0.5, 0.5], density)
            torch.testing.assert_close(merged, base, rtol=1e-6, atol=1e-6)

    def test_opposite_weights_stay_finite(self) -> None:
        base, sources = self.tensors((50,))
        for weights in ([0.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.3, -0.1, -0.2]):
            for density in (0.0, 0.5, 1.0):
                merged = self.merge(base, sources, weights, density)
                assert float(merged.abs().max()) < 100

    def test_inputs_are_left_alone(self) -> None:
        base, sources = self.tensors((3, 5))
        copies = [t.clone() for t in (base, *sources)]
        self.merge(base, sources, [0.5, 0.3, 0.2], density=0.5)
        for tensor, copy in zip((base, *sources), copies, strict=True):
            assert torch.equal(tensor, copy)

    def test_it_is_deterministic_and_draws_from_no_global_state(self) -> None:
        base, sources = self.tensors((30,))
        state = torch.random.get_rng_state()
        first = self.merge(base, sources, [0.5, 0.3, 0.2], density=0.5)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(self.merge(base, sources, [0.5, 0.3, 0.2], density=0.5), first)
