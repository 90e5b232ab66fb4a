"""Writing a stream of checkpoint tensors into a torch model in place."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from evomerge.checkpoints.merger import Pending
from evomerge.checkpoints.region import is_derived
from evomerge.errors import CandidateError, NotFiniteError
from evomerge.kernels.compiled_loops import Count
from evomerge.kernels.loops import loops_for


class WeightWriter:
    """Copies tensors into the parameters of a model and checks that each was covered.

    Tied parameters share one storage, which cannot hold two matrices: a stored copy of the head
    has to be the embedding once more. Where the written model is tied as well, every program
    takes the embedding for the head, and a stored copy is passed over.
    Persistent buffers are written if the stream has them and kept if it has not.
    """

    def __init__(self, model: nn.Module) -> None:
        self._targets: dict[str, Tensor] = {}
        self._canonical: dict[str, str] = {}
        first: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._targets[name] = parameter
            self._canonical[name] = first.setdefault(id(parameter), name)
        self._required = set(self._canonical.values())
        for name, buffer in model.state_dict(keep_vars=True).items():
            if name not in self._targets:
                self._targets[name] = buffer
                self._canonical[name] = name

    @torch.no_grad()
    def write(self, weights: Iterable[tuple[str, Tensor] | Pending], copies: bool = False) -> None:
        """Overwrites every parameter.

        Args:
            weights: checkpoint names and tensors of the parameters' shapes, in any order, or
                tensors that are still to be computed, which is done in place where it can be.
            copies: whether tied tensors may come a second time with other values, of which those
                under the first name that the model gives them count.

        Raises:
            CandidateError: naming a tensor that is unknown, given twice, missing, of another
                shape or not finite, or a head of its own. The model is then part old, part new.
        """
        seen: set[str] = set()
        filled: dict[str, str] = {}
        counts: list[tuple[str, Tensor]] = []
        for weight in weights:
            name = weight.name if isinstance(weight, Pending) else weight[0]
            if name in seen:
                raise CandidateError(f"tensor {name} was given twice")
            seen.add(name)
            target = self._targets.get(name)
            if target is None:
                if is_derived(name):
                    continue
                raise CandidateError(f"the model has no tensor {name}")
            canonical = self._canonical[name]
            values = weight if isinstance(weight, Pending) else weight[1]
            if tuple(values.shape) != tuple(target.shape):
                raise CandidateError(
                    f"tensor {name} has shape {list(values.shape)}; "
                    f"the model expects {list(target.shape)}"
                )
            if canonical in filled:
                if not copies:
                    _check_copy(name, filled[canonical], target, values)
                if not copies or name != canonical:
                    continue
            bad = _fill(target, values)
            if isinstance(bad, Tensor):  # on a GPU, which is waited for once
                counts.append((name, bad))
            else:
                _complain(name, bad)
            filled[canonical] = name
        if counts:
            found = torch.stack([bad for _, bad in counts]).tolist()
            for (name, _), bad in zip(counts, found, strict=True):
                _complain(name, bad)
        missing = sorted(self._required - filled.keys())
        if missing:
            raise CandidateError(
                f"{len(missing)} tensors of the model were not given, the first is {missing[0]}"
            )


def _fill(target: Tensor, values: Tensor | Pending) -> Count:
    """Overwrites one parameter.

    A merge is computed in the parameter itself if that has the merge's dtype and lies where
    the merge is computed; otherwise it is rounded to the merge's dtype first, as it would be
    on the disk.

    Returns:
        How many of the values are NaN or infinite; on a GPU a tensor of one number.
    """
    if isinstance(values, Pending):
        here = target.is_contiguous() and target.device == values.device
        if here and target.dtype == values.dtype:
            return values.begin(target)
        values = values.tensor()
    target.copy_(values)
    return _non_finite(target)


def _check_copy(name: str, first: str, target: Tensor, values: Tensor | Pending) -> None:
    """Checks that a tensor which shares its storage with another has the same values."""
    own = values.tensor() if isinstance(values, Pending) else values
    if not torch.equal(own.to(target.device, target.dtype), target):
        raise differing(name, first)


def differing(name: str, first: str) -> CandidateError:
    """What to tell of a head of its own, for which a tied model has no room."""
    return CandidateError(
        f"tensor {name} differs from {first}, and the engine holds both as one tensor: keep the "
        "head tied, or start the engine on a model whose head is not"
    )


def check_finite(name: str, tensor: Tensor) -> None:
    """Checks one tensor for NaN and infinity.

    Raises:
        NotFiniteError: naming the tensor.
    """
    _complain(name, int(_non_finite(tensor)))


def _non_finite(tensor: Tensor) -> Count:
    if not tensor.is_floating_point():
        return 0
    flat = tensor.detach().reshape(-1)
    return loops_for([flat]).non_finite(flat)


def _complain(name: str, bad: int) -> None:
    if bad:
        raise NotFiniteError(f"tensor {name} has {bad} values that are not finite")
