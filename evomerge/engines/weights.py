"""Writing a stream of checkpoint tensors into a torch model in place."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from evomerge.errors import CandidateError

_DERIVED = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias)$")
"""Buffers that old checkpoints hold and that models compute for themselves."""


class WeightWriter:
    """Copies tensors into the parameters of a model and checks that each was covered.

    Tied parameters share one storage: the first name that the model gives them is the one
    that counts; another name (a stored copy of the head) is used only if the first is absent.
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
    def write(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Overwrites every parameter.

        Args:
            weights: checkpoint names and tensors of the parameters' shapes, in any order.

        Raises:
            CandidateError: naming a tensor that is unknown, given twice, missing, of another
                shape or not finite. The model is then part old, part new.
        """
        seen: set[str] = set()
        direct: set[str] = set()
        for name, tensor in weights:
            if name in seen:
                raise CandidateError(f"tensor {name} was given twice")
            seen.add(name)
            target = self._targets.get(name)
            if target is None:
                if _DERIVED.search(name):
                    continue
                raise CandidateError(f"the model has no tensor {name}")
            canonical = self._canonical[name]
            if canonical in direct:
                continue
            if tensor.shape != target.shape:
                raise CandidateError(
                    f"tensor {name} has shape {list(tensor.shape)}; "
                    f"the model expects {list(target.shape)}"
                )
            target.copy_(tensor)
            check_finite(name, target)
            direct.add(name)
        covered = {self._canonical[n] for n in direct}
        missing = sorted(self._required - covered)
        if missing:
            raise CandidateError(
                f"{len(missing)} tensors of the model were not given, the first is {missing[0]}"
            )


def check_finite(name: str, tensor: Tensor) -> None:
    """Checks one tensor for NaN and infinity.

    Raises:
        CandidateError: naming the tensor.
    """
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise CandidateError(f"tensor {name} has {bad} values that are not finite")
