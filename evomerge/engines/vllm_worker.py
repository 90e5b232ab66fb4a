"""The part of the vLLM engine that runs inside its workers: merges and streams weights."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.deepening import Places, at_depth, is_tied
from evomerge.checkpoints.layout import layout_of
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.region import is_head
from evomerge.engines.weights import check_finite, differing
from evomerge.errors import CandidateError, UserError
from evomerge.recipe import Recipe


class MergeWorkerExtension:
    """Adds `evomerge_load` to a vLLM worker; every other name belongs to the worker.

    The reply is plain data, since exceptions do not survive the way between processes:
    `ok`; `sound` (the model's structure is whole, whatever its weights are); `error`; `kind`
    and `problems` of a user's error; `seconds`; `tensors`.
    """

    def evomerge_load(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Merges a recipe (plain data) and overwrites the running model's weights with it."""
        if "_evomerge_merger" not in self.__dict__:
            device = self.__dict__.get("device", "cpu")  # the worker's own
            self.__dict__["_evomerge_merger"] = Merger(device=device)
        merger: Merger = self.__dict__["_evomerge_merger"]
        worker: Any = self
        config = worker.model_runner.model_config.hf_text_config
        wrong: list[CandidateError] = []

        def weights() -> Iterator[tuple[str, Tensor]]:
            depth = config.num_hidden_layers
            assembly = at_depth(Recipe.from_dict(recipe), merger, depth)
            Places(config.to_dict(), depth).check(assembly)
            tensors = merger.merge(assembly)
            one = getattr(config, "tie_word_embeddings", False) and not is_tied(assembly.config)
            return watch_head(tensors, wrong) if one else tensors

        return self.evomerge_update(weights, wrong)

    def evomerge_update(
        self,
        weights: Callable[[], Iterator[tuple[str, Tensor]]],
        wrong: Sequence[CandidateError] = (),
    ) -> dict[str, Any]:
        """Overwrites the weights from the stream that the callable `weights` opens.

        What is in `wrong` once the stream has ended is told after the update.
        """
        start = time.perf_counter()
        worker: Any = self
        stream: _Stream | None = None
        reply: dict[str, Any] = {"ok": False, "sound": True}
        try:
            stream = _Stream(weights())
            worker.reload_weights(weights_iterator=stream.tensors())
            refresh_tied(worker.model_runner.get_model())
            stream.check(_names(worker.model_runner.model_config.model))
            for error in wrong:
                raise error
            reply["ok"] = True
        except CandidateError as error:
            reply["error"] = str(error)
            reply["sound"] = stream is None or stream.exhausted
        except UserError as error:
            reply |= {"error": str(error), "kind": type(error).__name__}
            reply["problems"] = [[p.field, p.found, p.expected, p.remedy] for p in error.problems]
            reply["sound"] = stream is None
        except Exception as error:
            reply["error"] = f"the weights could not be updated: {type(error).__name__}: {error}"
            reply["sound"] = stream is None
        reply["seconds"] = time.perf_counter() - start
        reply["tensors"] = stream.count if stream else 0
        return reply


class _Stream:
    """Watches tensors go by.

    The first is drawn at once, so that a recipe at fault is found before vLLM begins to
    write. After a value that is not finite the stream goes on, because an update that stops
    half-way leaves vLLM's layers taken apart; `check` then tells.
    """

    def __init__(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        head = list(itertools.islice(weights, 1))
        self._weights = itertools.chain(head, weights)
        self._bad: CandidateError | None = None
        self._seen: set[str] = set()
        self.exhausted = False

    @property
    def count(self) -> int:
        """How many tensors have gone by."""
        return len(self._seen)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors, each noted and looked at."""
        for name, tensor in self._weights:
            self._seen.add(name)
            if self._bad is None:
                try:
                    check_finite(name, tensor)
                except CandidateError as error:
                    self._bad = error
            yield name, tensor
        self.exhausted = True

    def check(self, expected: set[str]) -> None:
        """Tells of a value that was not finite, or of a tensor that never came.

        Raises:
            CandidateError: naming the tensor.
        """
        if self._bad is not None:
            raise self._bad
        missing = sorted(expected - self._seen)
        if missing:
            raise CandidateError(
                f"{len(missing)} tensors of the model were not given, the first is {missing[0]}"
            )


def watch_head(
    tensors: Iterator[tuple[str, Tensor]], wrong: list[CandidateError]
) -> Iterator[tuple[str, Tensor]]:
    """Passes tensors on and notes a head that is not the embedding, for which there is no room.

    vLLM passes over the head of a model that ties it. An update must not stop half-way, so it
    is noted in `wrong` and not raised.
    """
    embedding: tuple[str, Tensor] | None = None
    for name, tensor in tensors:
        if embedding is None and layout_of([name]).embeddings:
            embedding = name, tensor.clone()
        elif is_head(name) and (embedding is None or not torch.equal(embedding[1], tensor)):
            wrong.append(differing(name, embedding[0] if embedding else "the embedding"))
        yield name, tensor


def refresh_tied(model: torch.nn.Module) -> None:
    """Lets layers that share a weight prepare it again after an update.

    vLLM's reload prepares a layer (on a CPU: packs its matrix) when the layer's own weights
    come by. Of layers with a common weight, an embedding and its head, only the first is
    named in the stream: the head would go on with the packed copy of the old weights.
    """
    sharing: dict[int, list[torch.nn.Module]] = {}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.numel():
            sharing.setdefault(id(weight), []).append(module)
    for modules in sharing.values():
        for module in modules if len(modules) > 1 else []:
            method: Any = getattr(module, "quant_method", None)
            if hasattr(method, "process_weights_after_loading"):
                method.process_weights_after_loading(module)


def _names(model: str) -> set[str]:
    """Tensors that the engine's own checkpoint has and every candidate must have, too."""
    from safetensors import safe_open

    names: set[str] = set()
    for file in sorted(Path(model).glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as opened:
            names.update(opened.keys())
    return {n for n in names if n != "lm_head.weight" and not n.endswith("rotary_emb.inv_freq")}
