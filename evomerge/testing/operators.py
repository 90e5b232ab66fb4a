"""What every merge operator has to do, whatever it computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise, permutations
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from evomerge import operators
from evomerge.errors import RecipeError
from evomerge.kernels import lines, passes, tensor_merge, view
from evomerge.kernels.loops import native_available
from evomerge.kernels.masks import MaskKey
from evomerge.kernels.tensor_merge import TensorMerge
from evomerge.kernels.torch_loops import TorchLoops
from evomerge.kernels.view import View
from evomerge.kernels.weight import Stored
from evomerge.operators import Operator
from evomerge.operators.parameters import Choice, Parameter

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (1, 1), (4, 1)]
EMPTY = [(0,), (0, 3), (3, 0)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
_LABELS = "abcdef"


def settings(**parameters: Any) -> Mapping[str, Any]:
    """Parameters that no test can change."""
    return MappingProxyType(parameters)


@contextmanager
def small_runs(size: int = 512) -> Iterator[None]:
    """Makes a few hundred elements as many runs as a real tensor has."""
    with (
        patch.object(view, "RUN", size),
        patch.object(tensor_merge, "_BLOCK", size // 2),
        patch.object(passes, "_BLOCK", size // 2),
        patch.object(lines, "_BLOCK", size // 2),
    ):
        yield


@contextmanager
def torch_loops() -> Iterator[None]:
    """Does without the compiled loops."""
    loops = TorchLoops()
    with (
        patch.object(view, "loops_for", lambda _: loops),
        patch.object(tensor_merge, "loops_for", lambda _: loops),
    ):
        yield


class OperatorConformance:
    """Holds one operator to the common rules; inherit it and set `name`.

    Attributes:
        name: of the operator.
        with_base: whether there is a base, for operators that may do without.
        common: values of parameters in all tests, where defaults do not do.
        whole: parameters under which one source is returned as it is; None if there are none.
        sparse: parameters under which only a part of the elements takes part.
        exactly: largest error where a tensor is returned as it is.
    """

    name: str
    with_base: bool = True
    common: Mapping[str, Any] = settings()
    whole: Mapping[str, Any] | None = settings()
    sparse: Mapping[str, Any] = settings()
    exactly: float = 1e-6

    @property
    def operator(self) -> Operator:
        return operators.get(self.name)

    @property
    def count(self) -> int:
        """Number of sources in most tests."""
        return min(3, self.operator.most_sources or 3)

    def arguments(self, count: int, **parameters: Any) -> dict[str, Any]:
        """Parameters for a number of sources.

        A per-source one may be given once for all, or for more sources than there are.
        """
        given = {**self.common, **parameters}
        if "weight" in self.operator.parameters:
            given.setdefault("weight", {1: [1.0], 2: [0.6, 0.4]}.get(count, [0.5, 0.3, 0.2]))
        for key, value in given.items():
            parameter = self.operator.parameters[key.rstrip("_")]
            own = isinstance(parameter, Parameter) and parameter.per_source
            if own:
                many = [value] * count if isinstance(value, float | int) else value
                given[key] = list(many)[:count]
        return given

    def view(
        self, base: Tensor, sources: Sequence[Tensor], labels: Sequence[str] = _LABELS, **more: Any
    ) -> View:
        """The tensors as the operator sees them; masks are drawn from the labels."""
        used = self.with_base and self.operator.takes_base != "never"
        keys = [MaskKey(0, label, "tensor") for label in labels[: len(sources)]]
        return View(Stored(base) if used else None, [Stored(x) for x in sources], keys, **more)

    def made(self, base: Tensor, sources: Sequence[Tensor], **parameters: Any) -> TensorMerge:
        """The merge of a tensor, ready to be read."""
        seen = self.view(base, sources)
        return TensorMerge(seen, self.operator.plan(seen, _recipe_names(parameters)))

    def merge(
        self,
        base: Tensor,
        sources: Sequence[Tensor],
        labels: Sequence[str] = _LABELS,
        **parameters: Any,
    ) -> Tensor:
        """Merges into float32, with defaults for what is not given."""
        given = base if self.with_base else None
        keys = [MaskKey(0, label, "tensor") for label in labels[: len(sources)]]
        arguments = self.arguments(len(sources), **parameters)
        return operators.merge(self.name, given, sources, keys=keys, **arguments)

    def tensors(self, shape: tuple[int, ...], count: int = 3) -> tuple[Tensor, list[Tensor]]:
        """A base and sources with normal entries, the same at each call."""
        rng = torch.Generator().manual_seed(7)
        first, *rest = (torch.randn(shape, generator=rng) for _ in range(count + 1))
        return first, rest

    def is_close(self, merged: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(merged, expected, rtol=1e-6, atol=self.exactly)

    def test_its_signature_says_what_it_takes(self) -> None:
        operator = self.operator
        assert operator.name == self.name
        assert operator.least_sources <= (operator.most_sources or operator.least_sources)
        assert set(operator.defaults) <= set(operator.parameters)
        for key, parameter in operator.parameters.items():
            default = operator.defaults.get(key)
            if isinstance(parameter, Parameter):
                default = parameter.default if default is None else default
                assert default is None or parameter.low <= default <= parameter.high
            else:
                assert default in parameter.values

    @pytest.mark.parametrize("shape", [*SHAPES, *EMPTY])
    def test_shape_is_kept_and_values_are_finite(self, shape: tuple[int, ...]) -> None:
        base, sources = self.tensors(shape, self.count)
        for parameters in ({}, self.sparse):
            merged = self.merge(base, sources, **parameters)
            assert (merged.shape, merged.dtype) == (shape, torch.float32)
            assert torch.isfinite(merged).all()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_it_rounds_once_to_the_dtype_asked_for(self, dtype: torch.dtype) -> None:
        base, sources = self.tensors((9, 13), self.count)
        base, sources = base.to(dtype), [x.to(dtype) for x in sources]
        made = self.made(base, sources, **self.arguments(self.count, **self.sparse))
        out = torch.empty(9, 13, dtype=dtype)
        assert made.write(out) == 0
        assert torch.equal(out, made.read(0, 117).view(9, 13).to(dtype))

    @pytest.mark.parametrize("shape", [*SHAPES, *EMPTY])
    def test_one_source_whole_returns_itself(self, shape: tuple[int, ...]) -> None:
        base, [source] = self.tensors(shape, 1)
        if self.operator.least_sources > 1:
            with pytest.raises(RecipeError, match="found 1 sources"):
                self.merge(base, [source])
            return
        merged = self.merge(base, [source], **(self.whole or {}))
        if self.whole is None:  # every element is then the base's or the source's
            assert ((merged == base) | (merged == source)).all()
        else:
            self.is_close(merged, source)

    def test_identical_sources_return_themselves(self) -> None:
        base, [source] = self.tensors((4, 5), 1)
        merged = self.merge(base, [source.clone() for _ in range(self.count)], **(self.whole or {}))
        if self.whole is None:
            assert ((merged == base) | (merged == source)).all()
        else:
            self.is_close(merged, source)

    def test_equal_models_stay_as_they_are(self) -> None:
        base, _ = self.tensors((4, 5), 1)
        for parameters in ({}, self.sparse):
            merged = self.merge(base, [base.clone() for _ in range(self.count)], **parameters)
            self.is_close(merged, base)

    def test_order_of_sources_is_irrelevant(self) -> None:
        count = self.count
        base, sources = self.tensors((6, 7), count)
        weighted = "weight" in self.operator.parameters
        weights = {"weight": [0.7, -0.4, 0.9]} if weighted else {}
        for parameters in (weights, {**self.sparse, **weights}):
            expected = self.merge(base, sources, **parameters)
            for order in permutations(range(count)):
                moved = {
                    key: [value[i] for i in order] if isinstance(value, Sequence) else value
                    for key, value in parameters.items()
                }
                labels = [_LABELS[i] for i in order]
                merged = self.merge(base, [sources[i] for i in order], labels, **moved)
                torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)

    def test_zero_weight_equals_absence(self) -> None:
        if "weight" not in self.operator.parameters or self.operator.least_sources > 1:
            pytest.skip("without weights, or of a fixed number of sources")
        base, sources = self.tensors((6, 7))
        kept = [sources[0], sources[2]]
        for parameters in ({}, self.sparse):
            own = {k: [v[0], v[2]] for k, v in parameters.items() if isinstance(v, Sequence)}
            given, fewer = {**parameters, "weight": [0.6, 0.0, 0.9]}, {**parameters, **own}
            merged = self.merge(base, sources, "abc", **given)
            without = self.merge(base, kept, "ac", **{**fewer, "weight": [0.6, 0.9]})
            torch.testing.assert_close(merged, without, rtol=1e-6, atol=1e-6)

    def test_opposite_vectors_and_zeros_give_something_of_their_size(self) -> None:
        base, [source] = self.tensors((6, 7), 1)
        zero = torch.zeros_like(base)
        for origin, x in ((zero, source), (base, -base), (base, zero), (zero, zero)):
            for second in (2 * origin - x, origin, x, zero, -x):
                sources = [x, second, origin][: self.count]
                merged = self.merge(origin, sources)
                assert float(merged.abs().max()) < 20

    def test_every_edge_of_every_parameter_is_finite(self) -> None:
        base, sources = self.tensors((5, 8), self.count)
        for key, parameter in self.operator.parameters.items():
            for value in _edges(parameter):
                own = isinstance(parameter, Parameter) and parameter.per_source
                given = [value] * self.count if own else value
                for parameters in ({}, self.sparse):
                    merged = self.merge(base, sources, **{**parameters, _python_name(key): given})
                    assert torch.isfinite(merged).all(), (key, value)

    def test_weights_that_cancel_do_not_blow_up(self) -> None:
        if "weight" not in self.operator.parameters:
            pytest.skip("without weights")
        base, sources = self.tensors((50,), self.count)
        for weights in ([0.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.3, -0.1, -0.2]):
            for parameters in ({}, self.sparse):
                merged = self.merge(base, sources, **{**parameters, "weight": weights})
                assert float(merged.abs().max()) < 100

    def test_inputs_are_left_alone(self) -> None:
        base, sources = self.tensors((3, 5), self.count)
        copies = [t.clone() for t in (base, *sources)]
        for parameters in ({}, self.sparse):
            self.merge(base, sources, **parameters)
        for tensor, copy in zip((base, *sources), copies, strict=True):
            assert torch.equal(tensor, copy)

    def test_it_is_deterministic_and_draws_from_no_global_state(self) -> None:
        base, sources = self.tensors((30,), self.count)
        state = torch.random.get_rng_state()
        first = self.merge(base, sources, **self.sparse)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(self.merge(base, sources, **self.sparse), first)

    @pytest.mark.parametrize("shape", [(1801,), (37, 49), (3, 20, 31), (20, 64)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("crowded", [False, True])
    def test_compiled_and_torch_loops_agree_bit_for_bit(
        self, shape: tuple[int, ...], dtype: torch.dtype, crowded: bool
    ) -> None:
        if not native_available():
            pytest.skip("no C compiler")
        base, sources = self.tensors(shape, self.count)
        if crowded:  # few magnitudes
            base, sources = (base * 4).round() / 4, [(x * 4).round() / 4 for x in sources]
        base, sources = base.to(dtype), [x.to(dtype) for x in sources]
        arguments = self.arguments(self.count, **self.sparse)
        outs = [torch.empty(shape, dtype=dtype) for _ in range(2)]
        for size in (512, 501):  # runs from even elements on, and from odd ones
            with small_runs(size):
                self.made(base, sources, **arguments).write(outs[0])
                with torch_loops():
                    self.made(base, sources, **arguments).write(outs[1])
            assert torch.equal(outs[0], outs[1])

    @pytest.mark.parametrize("shape", [(1801,), (37, 49), (3, 20, 31)])
    def test_runs_in_pieces_and_threads_give_the_whole(self, shape: tuple[int, ...]) -> None:
        base, sources = self.tensors(shape, self.count)
        arguments = self.arguments(self.count, **self.sparse)
        whole, threaded = torch.empty(shape), torch.empty(shape)
        with small_runs(), ThreadPoolExecutor(3) as pool:
            made = self.made(base, sources, **arguments)
            made.write(whole)
            seen = self.view(base, sources, pool=pool)
            plan = self.operator.plan(seen, _recipe_names(arguments))
            TensorMerge(seen, plan).write(threaded)
            cuts = [0, 1, 34, 35, 512, 1100, whole.numel()]
            pieces = [made.read(a, b) for a, b in pairwise(cuts)]
        assert torch.equal(threaded, whole)
        assert torch.equal(torch.cat(pieces), whole.flatten())

    def test_the_size_of_runs_matters_to_rounding_alone(self) -> None:
        base, sources = self.tensors((37, 49), self.count)
        arguments = self.arguments(self.count, **self.sparse)
        expected = self.made(base, sources, **arguments).read(0, 37 * 49)
        with small_runs():
            merged = self.made(base, sources, **arguments).read(0, 37 * 49)
        torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-6)


def _edges(parameter: Parameter | Choice) -> list[Any]:
    """The ends of a parameter's range, 0 and 1 within it; all values of a choice."""
    if isinstance(parameter, Choice):
        return list(parameter.values)
    low, high = parameter.low, parameter.high
    return sorted({low, high, *(v for v in (0, 1) if low <= v <= high)})


def _python_name(key: str) -> str:
    return "lambda_" if key == "lambda" else key


def _recipe_names(parameters: dict[str, Any]) -> dict[str, Any]:
    return {key.rstrip("_"): value for key, value in parameters.items()}
